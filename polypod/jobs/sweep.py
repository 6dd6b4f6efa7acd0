"""Retention: the store forgets what is too old or too much; blobs that nothing names are removed.

A blob goes only when nothing has pointed to it and nobody has put it for a grace, so an upload
whose job is not committed yet is safe.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from itertools import islice

from polypod.assets.storage import BlobStore
from polypod.jobs.budget import Budget
from polypod.jobs.store.forget import Forgotten
from polypod.jobs.store.store import Store
from polypod.settings import Settings

log = logging.getLogger("polypod.jobs")

GRACE_S = 86400.0
GRACE_OVER_BUDGET_S = 3600.0
BATCH = 500


class Sweeper:
    """`pinned` gives the keys of kept stages that unfinished jobs stand on, `in_hand` the digests
    of what they have so far, which their end will name; `forgot` hears of what is kept no longer.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        blobs: BlobStore,
        pinned: Callable[[], set[str]],
        in_hand: Callable[[], set[str]],
        forgot: Callable[[Forgotten], None],
        budget: Budget,
    ) -> None:
        self._settings = settings
        self._store = store
        self._blobs = blobs
        self._pinned = pinned
        self._in_hand = in_hand
        self._forgot = forgot
        self._budget = budget

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._blobs.sweep_every_s)
            try:
                await self.sweep(time.time())
            except Exception:
                log.exception("sweeping failed; next in %.0f s", self._blobs.sweep_every_s)

    async def sweep(self, now: float) -> int:
        """Forget and remove; returns how many blobs went. A bucket's are only marked at first."""
        self._forgot(await self._store.expire(now, self._settings, self._pinned()))
        tight = self._budget.exceeded_since(now - GRACE_S)
        unused_since = now - (GRACE_OVER_BUDGET_S if tight else GRACE_S)
        old = self._put_before(unused_since)
        removed = 0
        while batch := await asyncio.to_thread(lambda: list(islice(old, BATCH))):
            for digest in await self._store.unreferenced(batch) - self._in_hand():
                removed += await asyncio.to_thread(self._blobs.delete, digest, unused_since)
        return removed

    def _put_before(self, when: float) -> Iterator[str]:
        return (digest for digest, _, put_at in self._blobs.digests() if put_at <= when)
