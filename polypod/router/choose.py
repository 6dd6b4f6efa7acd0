"""Which job goes to which endpoint: a pure function, one dispatch at a time.

Each ready endpoint offers two places: one job that runs and one that waits behind it, so its device
never waits for us. All other jobs stay in the router's queue, where they can still be moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PLACES = 2


@dataclass(frozen=True)
class Waiting:
    """The oldest waiting job of one model and owner."""

    job: str
    model: str
    owner: str
    order: tuple[int, int]
    """Smaller goes first: priority (negated), then arrival."""


@dataclass(frozen=True)
class Offer:
    """A ready endpoint. `free_in_s`: when the work that it has will be done, as far as is known."""

    endpoint: str
    models: frozenset[str]
    jobs: int
    free_in_s: float = 0.0


@dataclass(frozen=True)
class Dispatch:
    job: str
    endpoint: str


def next_dispatch(
    waiting: Sequence[Waiting], offers: Sequence[Offer], dispatched: Mapping[str, int]
) -> Dispatch | None:
    """The next dispatch, or None. `dispatched` counts the jobs on endpoints by owner.

    Priority goes first; then the owner who has the fewest jobs on endpoints, so that one key's 500
    jobs do not starve another's first; then age. An idle endpoint is taken before a busy one.
    """
    fairly = sorted(waiting, key=lambda w: (w.order[0], dispatched.get(w.owner, 0), w.order[1]))
    for job in fairly:
        able = [o for o in offers if job.model in o.models and o.jobs < PLACES]
        if able:
            best = min(able, key=lambda o: (o.jobs, o.free_in_s, o.endpoint))
            return Dispatch(job.job, best.endpoint)
    return None
