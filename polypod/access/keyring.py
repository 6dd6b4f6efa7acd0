"""The keys that are known here, in memory: no request waits for the database.

Keys that are made or revoked elsewhere (`polypod keys`, another router) are noticed by asking the
store once a second whether there are new ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from typing import TYPE_CHECKING

from polypod.access.keys import Key, hash_of, key_from_settings
from polypod.access.rate import Bucket
from polypod.errors import TooManyRequests, Unavailable

if TYPE_CHECKING:
    from polypod.access.records import Records

log = logging.getLogger("polypod.access")

POLL_S = 1.0
NOTE_USES_S = 60.0
"""How often the times of last use are written."""

_NO_HASH = "0" * 64


class Keyring:
    """`given`: the keys of POLYPOD_API_KEYS, or their hashes."""

    def __init__(self, given: Iterable[str] = ()) -> None:
        self._given = {key.id: key for key in map(key_from_settings, given)}
        self._known = dict(self._given)
        self._version = (0, 0)
        self._buckets: dict[str, Bucket] = {}
        self._used: dict[str, float] = {}

    @property
    def asks(self) -> bool:
        """Whether a key is needed: one was given or made, even if all are revoked by now.

        To revoke the last key must not open the door.
        """
        return bool(self._given) or self._version[0] > 0

    def find(self, secret: bytes) -> Key | None:
        """The key that may be used with this secret.

        Keys are found by their id, which is no secret; whether it is the right one, a comparison in
        constant time says. So the time tells nothing, with any number of keys.
        """
        digest = hash_of(secret)
        key = self._known.get(digest[:16])
        if not hmac.compare_digest(digest, key.hash if key else _NO_HASH) or not key:
            return None
        self._used[key.id] = time.time()
        return key

    async def count_submit(
        self, key: Key, count_for_all: Callable[[str], Awaitable[float]]
    ) -> None:
        """Raises TooManyRequests where the key has submitted too many jobs lately.

        `count_for_all` counts for all servers of the database, and tells how long to wait. It is
        not asked for what is too much for one, and not heeded while the database does not answer.
        """
        limit = key.submits_per_minute
        if limit is None:
            return
        now = time.monotonic()
        bucket = self._buckets.get(key.id)
        if bucket is None or bucket.per_minute != limit:
            bucket = self._buckets[key.id] = Bucket(limit, now)
        wait_s = bucket.take(now)
        if not wait_s:
            with _logged():
                wait_s = await count_for_all(key.id)
        if wait_s:
            seconds = int(wait_s) + 1
            raise TooManyRequests(
                f"This API key may submit {limit} job{'s' if limit > 1 else ''} a minute.",
                f"Try again in {seconds} s.",
                retry_after_s=seconds,
            )

    @contextlib.asynccontextmanager
    async def following(self, records: Records) -> AsyncGenerator[None]:
        """Knows the store's keys inside the block, and notices changes."""
        await self._read(records)
        task = asyncio.ensure_future(self._follow(records))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            with _logged():
                await self._note_uses(records)

    async def _follow(self, records: Records) -> None:
        """Keys stay as they were last known while the database does not answer."""
        noted = time.monotonic()
        while True:
            await asyncio.sleep(POLL_S)
            with _logged():
                await self._read(records)
                if time.monotonic() - noted > NOTE_USES_S:
                    noted = time.monotonic()
                    await self._note_uses(records)

    async def _read(self, records: Records) -> None:
        version = await records.version()
        if version != self._version:
            kept = {key.id: key for key in await records.keys() if key.revoked_at is None}
            self._known = kept | self._given
            self._version = version

    async def _note_uses(self, records: Records) -> None:
        used, self._used = self._used, {}
        kept = {id_: at for id_, at in used.items() if id_ not in self._given}
        if kept:
            await records.note_uses(kept)


@contextlib.contextmanager
def _logged() -> Generator[None]:
    try:
        yield
    except Unavailable as problem:
        log.warning("API keys: %s", problem)
