"""PostgreSQL's word that another router has told something: ids only, the news are in the store."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import psycopg
from sqlalchemy.engine import URL

from polypod.jobs.store.database import CONNECTION
from polypod.jobs.store.routers import CHANNEL

log = logging.getLogger(__name__)

AGAIN_S = 1.0


class Channel:
    """`run` listens on a connection of its own, and `wait` returns when there may be news.

    A word that is lost with the connection costs what `wait` waits at most, nothing else.
    """

    def __init__(self, url: URL, me: str) -> None:
        self._url = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._me = me
        self._woken = asyncio.Event()

    async def run(self) -> None:
        while True:
            try:
                await self._listen()
            except (psycopg.Error, OSError) as error:
                log.warning("listening for other routers' news begins anew: %s", error)
            await asyncio.sleep(AGAIN_S)

    async def wait(self, most_s: float) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._woken.wait(), most_s)
        self._woken.clear()

    async def _listen(self) -> None:
        connect = psycopg.AsyncConnection.connect(self._url, autocommit=True, **CONNECTION)
        async with await connect as connection:
            await connection.execute(f"LISTEN {CHANNEL}")
            self._woken.set()
            async for word in connection.notifies():
                if word.payload != self._me:
                    self._woken.set()
