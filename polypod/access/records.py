"""Keys and administrative acts in the store's database."""

from __future__ import annotations

import logging
import time
from asyncio import Future
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, RowMapping

from polypod.access import statements as sql
from polypod.access.keys import Key

log = logging.getLogger("polypod.audit")
T = TypeVar("T")


class Read(Protocol):
    def __call__(self, question: Callable[[Connection], T], /) -> Awaitable[T]: ...


class Write(Protocol):
    def __call__(self, work: Callable[[Connection], T], /) -> Future[T]: ...


@dataclass(frozen=True)
class Act:
    """An administrative act."""

    at: float
    who: str
    """The id of a key; `local` where no keys are asked for; `shell:USER` for `polypod keys`."""
    act: str
    object: str


class Records:
    """All methods may raise `Unavailable`, as those of the store do."""

    def __init__(self, read: Read, write: Write) -> None:
        self._read = read
        self._write = write

    async def add(self, key: Key, who: str) -> None:
        """Keeps a new key; noted as an act of `who` in the same transaction."""
        act = Act(key.created_at, who, "key created", f"{key.id} {key.name}")

        def work(connection: Connection) -> None:
            connection.execute(sql.INSERT_KEY, _row(key))
            connection.execute(sql.INSERT_ACT, vars(act))

        await self._write(work)
        _log(act)

    async def revoke(self, key_id: str, who: str) -> bool:
        """False: there is no such key, or it is revoked already."""
        act = Act(time.time(), who, "key revoked", key_id)

        def work(connection: Connection) -> bool:
            done = connection.execute(sql.REVOKE_KEY, {"key_id": key_id, "at": act.at}).rowcount > 0
            if done:
                connection.execute(sql.INSERT_ACT, vars(act))
            return done

        done = await self._write(work)
        if done:
            _log(act)
        return done

    async def keys(self) -> list[Key]:
        """All keys that were ever made, oldest first."""
        return await self._read(lambda c: [_key(row) for row in c.execute(sql.KEYS).mappings()])

    async def version(self) -> tuple[int, int]:
        """How many keys were made, and how many are revoked: what changes when the keys do."""

        def question(connection: Connection) -> tuple[int, int]:
            made, revoked = connection.execute(sql.KEYS_VERSION).one()
            return (made, revoked)

        return await self._read(question)

    async def note_uses(self, used: Mapping[str, float]) -> None:
        """When keys were last used, by their ids."""
        rows = [{"key_id": key_id, "at": at} for key_id, at in used.items()]

        def work(connection: Connection) -> None:
            connection.execute(sql.NOTE_KEY_USE, rows)

        await self._write(work)

    async def note(self, who: str, act: str, about: str) -> None:
        """Keeps an administrative act, and writes it to the log."""
        noted = Act(time.time(), who, act, about)

        def work(connection: Connection) -> None:
            connection.execute(sql.INSERT_ACT, vars(noted))

        await self._write(work)
        _log(noted)

    async def acts(self, limit: int) -> list[Act]:
        """The newest administrative acts, newest first."""
        return await self._read(
            lambda c: [Act(*row) for row in c.execute(sql.ACTS, {"most": limit})]
        )


def _log(act: Act) -> None:
    log.info("%s: %s: %s", act.who, act.act, act.object)


def _row(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "hash": key.hash,
        "scopes": " ".join(sorted(key.scopes)),
        "submits_per_minute": key.submits_per_minute,
        "most_queued": key.most_queued,
        "created_at": key.created_at,
    }


def _key(row: RowMapping) -> Key:
    found: dict[str, Any] = dict(row)
    return Key(scopes=frozenset(found.pop("scopes").split()), **found)
