"""Who runs next: a pure function from what is ready and where there is room to one action.

The engine asks again until the answer is None, so every case is one row of a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WorkerKey = tuple[str, str]
"""Model and worker name."""

BATCH = 10
"""Tasks that a worker does in a row, if there are as many, before another takes its memory."""


@dataclass(frozen=True)
class Ready:
    """The oldest job that is ready for one worker on one slot."""

    job: str
    order: tuple[int, int]
    """Smaller goes first: priority (negated), then arrival."""
    slot: str
    worker: WorkerKey
    since: float
    """When it became ready."""
    begins: bool = False
    """Its job has not started, and this stage only prepares work for another slot."""


@dataclass(frozen=True)
class Place:
    """One lane of a device: one task at a time, several workers resident."""

    id: str
    slots: frozenset[str]
    running: str = ""
    """Job of the running task."""
    running_worker: WorkerKey | None = None
    reserved: str = ""
    """Job of the task that the running worker was handed for afterwards."""
    revoking: bool = False
    """The reserved task is being taken back."""
    resident: tuple[WorkerKey, ...] = ()
    """Workers alive here, the least recently used first."""
    capacity_gb: float | None = None
    """Memory for resident workers; None: no limit."""
    closed_until: float = 0.0
    """Back-off after a death."""
    crowded: bool = False
    """Not all workers of its slots fit into its memory together."""
    row_left: int = 0
    """How many tasks of its `BATCH` the newest worker has not done."""


@dataclass(frozen=True)
class Start:
    """Run the job's next stages here; end the workers in `evict` first."""

    job: str
    place: str
    worker: WorkerKey
    evict: tuple[WorkerKey, ...] = ()


@dataclass(frozen=True)
class Reserve:
    """Hand the job's next stages to the worker that is still busy here."""

    job: str
    place: str
    worker: WorkerKey


@dataclass(frozen=True)
class Revoke:
    """Take back the task reserved here: another place could run it now."""

    place: str


def next_action(
    ready: Sequence[Ready],
    places: Sequence[Place],
    now: float,
    *,
    may_begin: int,
    load_seconds: Mapping[WorkerKey, float],
    needs_gb: Mapping[WorkerKey, float],
) -> Start | Reserve | Revoke | None:
    """The next thing to do, or None when nothing can be done now.

    `may_begin` is how many jobs may still start preparing ahead of the GPU. Free places are filled
    before anything is reserved, so that a job never waits behind one place while another is idle.
    """
    candidates = sorted((r for r in ready if may_begin > 0 or not r.begins), key=lambda r: r.order)
    free = [p for p in places if not p.running and p.closed_until <= now]
    for place in free:
        chosen = _pick(candidates, place, now, load_seconds, needs_gb)
        if chosen:
            evict = _evictions(chosen.worker, place, needs_gb)
            return Start(chosen.job, place.id, chosen.worker, evict)
    for place in places:
        if place.reserved and not place.revoking and any(place.slots & f.slots for f in free):
            return Revoke(place.id)
    for place in places:
        if place.running and not place.reserved and place.running_worker in place.resident:
            chosen = _pick(candidates, place, now, load_seconds, needs_gb)
            if chosen and chosen.worker == place.running_worker:
                return Reserve(chosen.job, place.id, chosen.worker)
    return None


def _pick(
    candidates: Sequence[Ready],
    place: Place,
    now: float,
    load_seconds: Mapping[WorkerKey, float],
    needs_gb: Mapping[WorkerKey, float],
) -> Ready | None:
    """The oldest; but work for resident workers goes before what would push them out, until that
    has waited two load times and the newest worker has done a batch."""
    fitting = [r for r in candidates if r.slot in place.slots]
    if not fitting:
        return None
    oldest = fitting[0]
    if not _evictions(oldest.worker, place, needs_gb):
        return oldest
    patience = 2 * load_seconds.get(oldest.worker, 0.0)
    if now - oldest.since >= patience and not place.row_left:
        return oldest
    return next((r for r in fitting if r.worker in place.resident), oldest)


def _evictions(
    worker: WorkerKey, place: Place, needs_gb: Mapping[WorkerKey, float]
) -> tuple[WorkerKey, ...]:
    """Whom to end, the least recently used first, so that `worker` fits."""
    if worker in place.resident or place.capacity_gb is None:
        return ()
    need = needs_gb.get(worker, 0.0)
    used = sum(needs_gb.get(w, 0.0) for w in place.resident)
    out: list[WorkerKey] = []
    for other in place.resident:
        if used + need <= place.capacity_gb:
            break
        out.append(other)
        used -= needs_gb.get(other, 0.0)
    return tuple(out)
