"""What happens to jobs, told to whoever listens: bounded rings, read at the listener's own pace.

Each job has a ring of its newest events. A listener remembers only the number of the last event
that it was given, so a slow one costs no memory: what the ring has dropped meanwhile is made good
by a snapshot.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from polypod.jobs.job import TERMINAL

EVENTS_PER_JOB = 512
JOBS_REMEMBERED = 2000


@dataclass(frozen=True)
class Event:
    """`kind`: snapshot, status, progress, log or asset. `id` resumes a stream after it."""

    id: str
    kind: str
    job_id: str
    data: dict[str, Any]

    @property
    def ends_job(self) -> bool:
        return self.kind in ("snapshot", "status") and self.data.get("status") in TERMINAL


@dataclass
class _Ring:
    events: deque[tuple[int, str, dict[str, Any]]] = field(
        default_factory=lambda: deque[tuple[int, str, dict[str, Any]]](maxlen=EVENTS_PER_JOB)
    )
    dropped: int = 0
    """Number of the newest event that is no longer here."""
    listeners: set[asyncio.Event] = field(default_factory=set[asyncio.Event])

    def continues(self, after: int) -> bool:
        """Whether there is news after event number `after`, with none missing."""
        return self.dropped <= after and bool(self.events) and self.events[-1][0] > after


class EventHub:
    """Lives on one event loop; `publish` never waits."""

    def __init__(self) -> None:
        self._boot = secrets.token_hex(4)
        self._count = 0
        self._rings: OrderedDict[str, _Ring] = OrderedDict()

    def publish(self, job_id: str, kind: str, data: dict[str, Any]) -> None:
        self._count += 1
        ring = self._ring(job_id)
        if len(ring.events) == EVENTS_PER_JOB:
            ring.dropped = ring.events[0][0]
        ring.events.append((self._count, kind, data))
        for listener in ring.listeners:
            listener.set()

    def watched(self) -> set[str]:
        """Jobs that somebody listens to."""
        return {job_id for job_id, ring in self._rings.items() if ring.listeners}

    async def stream(
        self,
        jobs: Sequence[str],
        snapshot: Callable[[str], Awaitable[dict[str, Any]]],
        last_event_id: str = "",
    ) -> AsyncGenerator[Event]:
        """Events of these jobs, until all of them have ended.

        It begins with what came after `last_event_id` where that is known and there is any, else
        with a snapshot of each job.
        """
        after = self._number(last_event_id)
        waiting = asyncio.Event()
        rings: dict[str, _Ring] = {}
        for job in jobs:
            rings[job] = self._ring(job)
            rings[job].listeners.add(waiting)  # before the next one asks who is not listened to
        seen = {job: after if ring.continues(after) else -1 for job, ring in rings.items()}
        running = set(rings)
        try:
            while running:
                waiting.clear()
                for event in await self._news(rings, seen, snapshot):
                    yield event
                    if event.ends_job:
                        running.discard(event.job_id)
                if running:
                    await waiting.wait()
        finally:
            for ring in rings.values():
                ring.listeners.discard(waiting)

    async def _news(
        self,
        rings: dict[str, _Ring],
        seen: dict[str, int],
        snapshot: Callable[[str], Awaitable[dict[str, Any]]],
    ) -> list[Event]:
        news: list[tuple[int, Event]] = []
        for job, ring in rings.items():
            if seen[job] < max(ring.dropped, 0):
                number = self._count
                news.append((number, self._event(number, "snapshot", job, await snapshot(job))))
                seen[job] = number
            for number, kind, data in ring.events:
                if number > seen[job]:
                    news.append((number, self._event(number, kind, job, data)))
                    seen[job] = number
        return [event for _, event in sorted(news, key=lambda item: item[0])]

    def _event(self, number: int, kind: str, job: str, data: dict[str, Any]) -> Event:
        return Event(f"{self._boot}-{number}", kind, job, data)

    def _ring(self, job_id: str) -> _Ring:
        ring = self._rings.get(job_id)
        if ring is None:
            if len(self._rings) >= JOBS_REMEMBERED:
                self._forget_one()
            ring = self._rings[job_id] = _Ring(dropped=self._count)
        return ring

    def _forget_one(self) -> None:
        for job_id, ring in self._rings.items():
            if not ring.listeners:
                del self._rings[job_id]
                return

    def _number(self, event_id: str) -> int:
        """The event's number; -1 for an id that is not of this process."""
        boot, _, number = event_id.partition("-")
        known = boot == self._boot and number.isascii() and number.isdecimal()
        return int(number) if known and len(number) < 20 else -1
