"""What the store forgets, by age and for the disk budget: oldest first, in batches.

To forget is to remove pointers. Blobs that nothing points to any more are swept by whoever has the
folder, which asks `unreferenced`.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Iterable
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
            connection.execute(statement, {"ids": [id_ for id_, _ in found]})
    return [name for _, name in found]


def _oldest(
    connection: Connection, oldest: Executable, before: float, but: frozenset[str] = frozenset()
) -> list[tuple[int, str]]:
    """(row id, name) of at most `BATCH` rows: enough are read that those in `but` leave so many."""
    rows = connection.execute(oldest, {"before": before, "most": BATCH + len(but)})
    return list(islice(((row[0], row[1]) for row in rows if row[1] not in but), BATCH))


async def evict(hand_over: HandOver, bytes_over: int, pinned: frozenset[str]) -> Forgotten:
    forgotten = Forgotten()
    stages = partial(
        _evict, oldest=sql.OLD_STAGES, files=sql.KEPT_FILES, forget=[sql.FORGET_STAGES], but=pinned
    )
    results = partial(
        _evict,
        oldest=sql.EVICTED_RESULTS,
        files=sql.OUTPUT_FILES,
        forget=[sql.FORGET_OUTPUTS, sql.MARK_OUTPUTS_GONE],
        but=frozenset[str](),
    )
    for work, names in ((stages, forgotten.stages), (results, forgotten.results)):
        while bytes_over > 0:
            batch, freed = await hand_over(partial(work, bytes_over=bytes_over))
            names += batch
            bytes_over -= freed
            if not batch:
                break
    return forgotten


def _evict(
    connection: Connection,
    bytes_over: int,
    oldest: Executable,
    files: Executable,
    forget: Iterable[Executable],
    but: frozenset[str],
) -> tuple[list[str], int]:
    """Forgets one after the other until enough is free; returns what it forgot and the bytes."""
    gone: list[str] = []
    freed = 0
    for id_, name in _oldest(connection, oldest, math.inf, but):
        if freed >= bytes_over:
            break
        sizes = {row.digest: row.size for row in connection.execute(files, {"id": id_})}
        for statement in forget:
            connection.execute(statement, {"ids": [id_]})
        freed += sum(sizes[digest] for digest in unreferenced(connection, sizes))
        gone.append(name)
    return gone, freed


def unreferenced(connection: Connection, digests: Collection[str]) -> set[str]:
    """Those of `digests` that nothing points to."""
    left = set(digests)
    wanted = list(digests)
    for i in range(0, len(wanted), 500):
        rows = connection.execute(sql.HELD, {"digests": wanted[i : i + 500]})
        left.difference_update(rows.scalars())
    return left
