"""What the store forgets, by age and for the disk budget: oldest first, in batches.

To forget is to remove pointers. Blobs that nothing points to any more are swept by whoever has the
folder, which asks `unreferenced`.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Protocol, TypeVar

from sqlalchemy import Connection, Executable

from polypod.jobs.store import statements as sql
from polypod.settings import Settings

T = TypeVar("T")

BATCH = 100
"""Things forgotten per transaction: others' writes wait no longer than that takes."""


@dataclass
class Forgotten:
    """Keys of stages; ids of the jobs that lost their results, their inputs, or that are gone."""

    stages: list[str] = field(default_factory=list[str])
    results: list[str] = field(default_factory=list[str])
    inputs: list[str] = field(default_factory=list[str])
    jobs: list[str] = field(default_factory=list[str])
    images: list[str] = field(default_factory=list[str])


class HandOver(Protocol):
    """`Writer.hand_over`."""

    def __call__(self, work: Callable[[Connection], T], /) -> Awaitable[T]: ...


async def expire(
    hand_over: HandOver, now: float, settings: Settings, pinned: frozenset[str]
) -> Forgotten:
    async def all_of(
        keep_s: float, oldest: Executable, *forget: Executable, but: frozenset[str] = frozenset()
    ) -> list[str]:
        work = partial(_forget, before=now - keep_s, oldest=oldest, forget=forget, but=but)
        gone: list[str] = []
        while True:
            batch = await hand_over(work)
            gone += batch
            if len(batch) < BATCH:
                return gone

    inputs_s = settings.keep_inputs_s
    return Forgotten(
        stages=await all_of(settings.keep_stages_s, sql.OLD_STAGES, sql.FORGET_STAGES, but=pinned),
        results=await all_of(
            settings.keep_results_s, sql.OLD_RESULTS, sql.FORGET_OUTPUTS, sql.MARK_OUTPUTS_GONE
        ),
        inputs=await all_of(inputs_s, sql.OLD_INPUTS, sql.FORGET_INPUTS, sql.MARK_INPUTS_GONE),
        images=await all_of(inputs_s, sql.OLD_IMAGES, sql.FORGET_IMAGES),
        jobs=await all_of(settings.keep_jobs_s, sql.OLD_JOBS, sql.FORGET_JOBS),
    )


def _forget(
    connection: Connection,
    before: float,
    oldest: Executable,
    forget: Iterable[Executable],
    but: frozenset[str],
) -> list[str]:
    found = _oldest(connection, oldest, before, but)
    if found:
        for statement in forget:
            connection.execute(statement, {"ids": [id_ for id_, _, _ in found]})
    return [name for _, name, _ in found]


def _oldest(
    connection: Connection, oldest: Executable, before: float, but: frozenset[str] = frozenset()
) -> list[tuple[int | str, str, float]]:
    """(row id, name, time) of at most `BATCH` rows, also where many are in `but`."""
    rows = connection.execute(oldest, {"before": before, "most": BATCH + len(but)})
    return list(islice(((row[0], row[1], row[2]) for row in rows if row[1] not in but), BATCH))


@dataclass(frozen=True)
class _Kind:
    """What can be forgotten for the budget: statements that find it, its files, and forget it."""

    oldest: Executable
    files: Executable
    forget: tuple[Executable, ...]


_STAGES = {"stages": _Kind(sql.OLD_STAGES, sql.KEPT_FILES, (sql.FORGET_STAGES,))}
_OF_USERS = {
    "results": _Kind(
        sql.EVICTED_RESULTS, sql.OUTPUT_FILES, (sql.FORGET_OUTPUTS, sql.MARK_OUTPUTS_GONE)
    ),
    "inputs": _Kind(sql.OLD_INPUTS, sql.INPUT_FILES, (sql.FORGET_INPUTS, sql.MARK_INPUTS_GONE)),
    "images": _Kind(sql.OLD_IMAGES, sql.IMAGE_FILES, (sql.FORGET_IMAGES,)),
}
"""By the field of `Forgotten` that tells of them."""


async def evict(
    hand_over: HandOver, bytes_over: int, pinned: frozenset[str], before: float
) -> Forgotten:
    forgotten = Forgotten()
    for kinds, until in ((_STAGES, math.inf), (_OF_USERS, before)):
        work = partial(_evict, kinds=kinds, before=until, but=pinned)
        while bytes_over > 0:
            batch, freed = await hand_over(partial(work, bytes_over=bytes_over))
            for kind, name in batch:
                getattr(forgotten, kind).append(name)
            bytes_over -= freed
            if not batch:
                break
    return forgotten


def _evict(
    connection: Connection,
    bytes_over: int,
    kinds: Mapping[str, _Kind],
    before: float,
    but: frozenset[str],
) -> tuple[list[tuple[str, str]], int]:
    """Forgets one after the other until enough is free; returns what it forgot and the bytes."""
    gone: list[tuple[str, str]] = []
    freed = 0
    found = [
        (at, kind, id_, name)
        for kind, how in kinds.items()
        for id_, name, at in _oldest(connection, how.oldest, before, but)
    ]
    for _, kind, id_, name in sorted(found, key=lambda one: one[0])[:BATCH]:
        if freed >= bytes_over:
            break
        how = kinds[kind]
        sizes = {row.digest: row.size for row in connection.execute(how.files, {"id": id_})}
        for statement in how.forget:
            connection.execute(statement, {"ids": [id_]})
        freed += sum(sizes[digest] for digest in unreferenced(connection, sizes))
        gone.append((kind, name))
    return gone, freed


def unreferenced(connection: Connection, digests: Collection[str]) -> set[str]:
    """Those of `digests` that nothing points to."""
    left = set(digests)
    wanted = list(digests)
    for i in range(0, len(wanted), 500):
        rows = connection.execute(sql.HELD, {"digests": wanted[i : i + 500]})
        left.difference_update(rows.scalars())
    return left
