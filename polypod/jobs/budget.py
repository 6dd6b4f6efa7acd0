"""The disk budget: the store forgets for it what it may; once that is not enough, no job comes in.

Unfinished jobs go on: they end, and what they leave can then be fetched, deleted or forgotten.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from polypod.assets.storage import BlobStore
from polypod.errors import BudgetFull
from polypod.jobs.store.forget import Forgotten
from polypod.jobs.store.store import Store
from polypod.settings import GIB, MIB, Settings

log = logging.getLogger("polypod.jobs")

LOOK_S = 10.0
KEEP_NEW_S = 600.0
"""What users have is not forgotten for the budget before that: somebody is about to fetch it."""
RETRY_AFTER_S = 60


class Budget:
    """`pinned` gives the keys of kept stages that unfinished jobs stand on; `forgot` hears of what
    is kept no longer. Of several servers at one store the one that `leads` makes room.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        blobs: BlobStore,
        pinned: Callable[[], set[str]],
        forgot: Callable[[Forgotten], None],
        leads: Callable[[], bool],
    ) -> None:
        budget = settings.disk_budget_bytes
        self._most = blobs.budget_bytes if budget is None else budget
        self._store = store
        self._pinned = pinned
        self._forgot = forgot
        self._leads = leads
        self._used = 0
        self._full = False
        self._exceeded_at = float("-inf")

    async def run(self) -> None:
        while self._most:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look(time.time())
            except Exception:
                log.exception("the disk budget was not looked at; next in %.0f s", LOOK_S)

    async def look(self, now: float) -> None:
        """Make room where there is too little, and see whether that was enough."""
        if not self._most:
            return
        was_over, leads = self._used > self._most, self._leads()
        self._used = await self._store.total_bytes()
        if self._used > self._most:
            self._exceeded_at = now
            if leads:
                over = self._used - self._most
                self._forgot(await self._store.evict(over, self._pinned(), now - KEEP_NEW_S))
                self._used = await self._store.total_bytes()
        # who does not lead sees by its second look whether who leads has found anything
        full = self._used > self._most and (leads or was_over)
        if full != self._full:
            self._full = full
            log.warning("%s", self.refusal or "the disk budget has room again for new jobs")

    @property
    def refusal(self) -> BudgetFull | None:
        """Why new jobs are refused; None: there is room."""
        if not self._full:
            return None
        return BudgetFull(
            f"The disk budget is used up: {_size(self._used)} of {_size(self._most)}. Nothing more"
            " may be removed for it now, so no new jobs are taken.",
            "Try again later, or delete or cancel jobs. Who runs this server: raise"
            " POLYPOD_DISK_BUDGET_BYTES, or shorten POLYPOD_KEEP_RESULTS_S.",
            used_bytes=self._used,
            disk_budget_bytes=self._most,
            retry_after_s=RETRY_AFTER_S,
        )

    def exceeded_since(self, when: float) -> bool:
        return self._exceeded_at >= when


def _size(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / MIB:.2f} MiB"
