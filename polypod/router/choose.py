"""Which job goes to which endpoint: pure functions, one dispatch or move at a time.

Each ready endpoint offers two places: one job that runs and one that waits behind it, so its device
never waits for us. All other jobs stay in the router's queue. One that waits on an endpoint while
another endpoint has nothing to do is moved there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from polypod.jobs.fits import CLASS_SLACK

PLACES = 2
LEAST_GAIN_S = 2.0
"""A job that would wait for less than this stays where it is."""


@dataclass(frozen=True)
class Served:
    """A model as an endpoint serves it: digest of its card, and its version (newer is larger)."""

    card: str
    version: tuple[int, ...] = ()


@dataclass(frozen=True)
class Waiting:
    """The oldest waiting job of one model and owner."""

    job: str
    model: str
    owner: str
    order: tuple[int, int]
    """Smaller goes first: priority (negated), then arrival."""
    card: str = ""
    """Digest of the card that it was checked against."""
    avoid: frozenset[str] = frozenset()
    """Endpoints that were lost with it, which are asked last."""
    vram_gb: Mapping[str, float] = field(default_factory=dict[str, float])
    """GPU memory that it needs, by slot."""


@dataclass(frozen=True)
class Offer:
    """A ready endpoint. `free_in_s`: when the work that it has will be done, as far as is known."""

    endpoint: str
    models: Mapping[str, Served]
    jobs: int
    free_in_s: float = 0.0
    vram_gb: Mapping[str, float] = field(default_factory=dict[str, float])
    """GPU memory by slot, where it is known."""


@dataclass(frozen=True)
class Held:
    """A job that waits on an endpoint. `waits_s`: for those before it; None: not known."""

    job: Waiting
    endpoint: str
    waits_s: float | None = None


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
        able = [
            offer
            for offer in _of_its_version(job, offers)
            if offer.jobs < PLACES and fits(job, offer)
        ]
        if able:
            best = min(
                able, key=lambda o: (o.endpoint in job.avoid, o.jobs, o.free_in_s, o.endpoint)
            )
            return Dispatch(job.job, best.endpoint)
    return None


def next_move(held: Sequence[Held], offers: Sequence[Offer]) -> Dispatch | None:
    """The next job to take from its endpoint, and the idle one that it goes to; the longest wait
    first. Asked when nothing waits for the idle ones."""
    worth_it = [h for h in held if h.waits_s is None or h.waits_s >= LEAST_GAIN_S]
    for one in sorted(worth_it, key=lambda h: (-(h.waits_s or 0.0), h.job.order)):
        idle = [
            offer.endpoint
            for offer in _of_its_version(one.job, offers)
            if not offer.jobs and fits(one.job, offer) and offer.endpoint not in one.job.avoid
        ]
        if idle:
            return Dispatch(one.job.job, min(idle))
    return None


def fits(job: Waiting, offer: Offer) -> bool:
    """Whether the endpoint's GPUs have the memory that the job needs; unknown ones may."""
    there = offer.vram_gb
    return all(gb <= there.get(slot, gb) * CLASS_SLACK for slot, gb in job.vram_gb.items())


def _of_its_version(job: Waiting, offers: Sequence[Offer]) -> list[Offer]:
    """Those of the version that the job was checked for; where there is none, of the newest."""
    serving = [offer for offer in offers if job.model in offer.models]
    same = [offer for offer in serving if offer.models[job.model].card == job.card]
    newest = max((offer.models[job.model].version for offer in same or serving), default=())
    return [offer for offer in serving if offer.models[job.model].version == newest]
