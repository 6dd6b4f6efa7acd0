"""The engine of a router that shares its database with others.

One router leads and does what the single router does: every unfinished job is its own, and it alone
sends jobs to endpoints. The others mirror its queue, so each accepts jobs, answers for all of them
and ends them when it is told to, and each can lead at once when the leader is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

from polypod import logs, tracing
from polypod.errors import Problem, Unavailable
from polypod.jobs.engine import Engine, Submission
from polypod.jobs.events import EventHub
from polypod.jobs.job import TERMINAL, Job, new_id
from polypod.jobs.live import Live
from polypod.jobs.runner import Book, Runner
from polypod.jobs.store import routers
from polypod.jobs.store.channel import Channel
from polypod.jobs.store.routers import LEASE_S, NEWS_KEPT_S, Lease, News
from polypod.router import told
from polypod.router.dispatch import Dispatcher
from polypod.router.endpoint import Known
from polypod.router.routed import RoutedLive
from polypod.settings import Settings

log = logging.getLogger("polypod.router")

RENEW_S = 1.0
POLL_S = 1.0
"""How often news are looked for without a word that there are any."""
TELL_S = 0.03
"""At most so often the leader tells what happens: what comes meanwhile goes together."""
MARGIN_S = 1.0
"""So long before its lease ends, a leader that could not renew it does nothing more."""
UNTOLD = 5000
TIDY_S = 30.0


class SharedEngine(Engine):
    def __init__(self, settings: Settings, make_runner: Callable[[Book], Runner]) -> None:
        super().__init__((), settings, make_runner)
        self.id = new_id()
        self.events = _Hub(self._tell)
        self._leads = False
        self._acts_until = 0.0
        self._others = 0
        self._heard = 0
        """Number of the newest news that was heard."""
        self._heard_at = 0.0
        self._untold = deque[tuple[str, str, Mapping[str, Any]]](maxlen=UNTOLD)
        self._to_tell = asyncio.Event()
        self._to_renew = asyncio.Event()
        self._fleet = frozenset[str]()
        """Endpoints that were not registered while routers ran."""
        self._house: asyncio.Task[Any] | None = None
        """Sweeping and retention, while it leads."""

    @property
    def leads(self) -> bool:
        return self._leads and _clock() < self._acts_until

    def health(self) -> dict[str, Any]:
        return super().health() | {"router": {"leads": self.leads, "others": self._others}}

    async def _begin(self) -> None:
        self._heard_at = _clock()
        self._heard = await self.store.routers.newest()
        await self.store.routers.join(self.id)
        self._fleet = frozenset(self._dispatcher.endpoints)
        await self._know_endpoints()
        await self._renew()
        if not self._leads:
            await self._catch_up()
        self._channel = Channel(self.store.routers.url, self.id)
        for work in (self._channel.run(), self._renewing(), self._hearing(), self._telling()):
            self._background.run(work)

    async def _put_back(self) -> None:
        """An orderly stop gives up what it leads at once."""
        if self._leads:
            await super()._put_back()
        try:
            await self.store.routers.leave()
        except Unavailable as problem:
            log.error("the stop is not told to other routers: %s", problem)

    # Who leads

    async def _renewing(self) -> None:
        tidied = _clock()
        while True:
            await _logged(self._renew())
            if self._leads and _clock() - tidied > TIDY_S:
                tidied = _clock()
                await _logged(self.store.routers.forget_news())
            await _wait(self._to_renew, RENEW_S)

    async def _renew(self) -> None:
        """Say that this router lives; lead where nobody does, follow where another one does."""
        asked = _clock()
        lease = await self.store.routers.renew()
        if lease is None:
            await self.store.routers.join(self.id)
            lease = Lease(leads=False, others=self._others, vacant=False)
        was_late = asked > self._acts_until
        self._acts_until = asked + LEASE_S - MARGIN_S
        self._others = lease.others
        if self._leads and not lease.leads:
            await self._follow()
        elif not self._leads and (lease.vacant or lease.leads):  # the latter: not heard of so far
            await self._take_lead()
        elif self._leads and was_late:
            self._dispatcher.go_on()

    async def _take_lead(self) -> None:
        unfinished = await self.store.routers.lead()
        if unfinished is None:
            return
        level = logging.WARNING if self._started else logging.INFO
        log.log(level, "this router leads now; %d jobs are unfinished", len(unfinished))
        await self._know_models(unfinished)
        others = self._begin_anew(unfinished)
        self._leads = True
        for live in others:
            self.runner.add(live)
        async for job in _in_turns(unfinished):
            live = self.queue.lives.get(job.id)
            if live and live.job.attempt < job.attempt:  # mirrored now, but read before
                self.queue.remove(live)
            if not self._is_known(job.id):
                self._take_over(job)
        self._house = self._lead(())
        await self._end_ended(others)
        self._tell_watchers()

    async def _follow(self) -> None:
        log.warning("another router leads now")
        self._leads = False
        ran = list(self.queue.processing)
        if self._house:
            self._house.cancel()
        self._dispatcher.follow()
        await self._hear_anew()
        await self.store.routers.was_only_late(ran)

    # The mirror of the queue

    async def _catch_up(self) -> None:
        """See which jobs are unfinished; but where it leads, what was known counts no more."""
        known = list(self.queue.lives.values())
        unfinished = await self.store.routers.unfinished()
        await self._know_models(unfinished)
        if anew := not self._leads:  # it may have taken the lead while it read
            self._begin_anew(unfinished)
        async for job in _in_turns(unfinished):
            self._mirror(job)
        ids = {job.id for job in unfinished}
        await self._end_ended(live for live in known if live.job.id not in ids)
        self._tell_watchers()
        if anew:  # the router that leads then tells how far they are
            await self.store.routers.tell([(routers.JOINED, self.id, None)])

    def _tell_watchers(self) -> None:
        for job_id in self.events.watched() & self.queue.lives.keys():
            self.moved(self.queue.lives[job_id])

    def _begin_anew(self, unfinished: Iterable[Job]) -> list[Live]:
        """Forgets these; returns the others: they have ended, or were submitted just now."""
        ids = {job.id for job in unfinished}
        others = [live for live in self.queue.lives.values() if live.job.id not in ids]
        self._dispatcher.forget_places()
        self.queue.clear()
        for live in others:
            self.queue.add(live)
        return others

    async def _end_ended(self, lives: Iterable[Live]) -> None:
        """Those of them that have ended elsewhere end here too."""
        asked = {live.job.id: live for live in lives}
        found = await self.store.routers.jobs(asked) if asked else {}
        for job_id, live in asked.items():
            job = found.get(job_id) or _deleted(live)
            if job.status in TERMINAL:
                self._end(live, job)

    async def _know_models(self, jobs: Iterable[Job]) -> None:
        if any(job.model not in self.models for job in jobs):
            await self._dispatcher.learn_kept()

    async def _know_endpoints(self) -> None:
        """Those that were registered at any router."""
        before = list(self._dispatcher.endpoints.values())
        kept = {
            name: Known(name, url, api_key=key)
            for name, url, key in await self.store.routers.endpoints()
        }
        for known in kept.values():
            self._dispatcher.endpoints.register(known)
        for gone in {e.id for e in before if e.known.provider == "fixed"} - self._fleet - {*kept}:
            self._drain(gone)

    def _drain(self, name: str) -> None:
        if endpoint := self._dispatcher.endpoints.get(name):
            self._dispatcher.endpoints.drain(endpoint)

    def _mirror(self, job: Job) -> None:
        model = self.models.get(job.model)
        if self._is_known(job.id) or model is None or job.status in TERMINAL:
            return
        logs.belongs(job.id, tracing.trace_id(job.trace))
        live = self.runner.live(job, model)
        self.queue.add(live)
        if self._leads:
            self.runner.add(live)
        self._line_moved()

    def _is_known(self, job_id: str) -> bool:
        """It is in the queue, or has ended a moment ago."""
        return job_id in self.queue.lives or job_id in self._finished

    def _enter(self, job: Job) -> None:
        self._mirror(job)
        if live := self.queue.lives.get(job.id):
            self.moved(live)

    # The store knows best: others end jobs too

    async def _take_in(self, job: Job, submission: Submission) -> Job:
        with self._doubted():
            return await super()._take_in(job, submission)

    async def _find(self, job_id: str) -> Job | None:
        live = self.queue.lives.get(job_id)
        if live and self.leads and not self._others:
            return live.view()
        job = await self.store.get(job_id)
        if job is None:
            return None
        self._mirror(job)
        live = self.queue.lives.get(job_id)
        if live is None or job.status not in TERMINAL:
            return live.view() if live else job
        if not self._leads:  # where it leads, whoever works on the job is about to end it
            self._end(live, job)
        return job

    async def _try_to_end(self, live: Live, job: Job) -> bool:
        with self._doubted():
            ended = await super()._try_to_end(live, job)
        if not ended:
            await self._end_ended([live])
        return ended

    @contextlib.contextmanager
    def _doubted(self) -> Generator[None]:
        """What fails may be committed, with only the answer lost: the queue is read anew then."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, Problem) or isinstance(error, Unavailable):
                self._heard_at = -math.inf
            raise

    def _end(self, live: Live, job: Job) -> None:
        if not live.ended:
            super()._end(live, job)

    # What routers tell each other

    def _tell(self, job_id: str, kind: str, data: Mapping[str, Any]) -> None:
        """What happens to a job that this router leads, so that the others' mirrors show it.

        New jobs and ends are told by the store, in the transactions that make them.
        """
        live = self.queue.lives.get(job_id) if self._leads and self._others else None
        if not isinstance(live, RoutedLive) or live.ended:
            return
        if kind == "status" and live.job.status == "queued" and not live.endpoint:
            return  # its place in line is known everywhere
        self._untold.append((kind, job_id, told.state(live) if kind == "status" else data))
        self._to_tell.set()

    def _tell_all(self) -> None:
        """How far every job is, for a router that has just come."""
        for live in self.queue.lives.values():
            if isinstance(live, RoutedLive) and live.endpoint:
                self._tell(live.job.id, told.STATE, told.whole_state(live))

    async def _telling(self) -> None:
        while True:
            await self._to_tell.wait()
            self._to_tell.clear()
            untold = list(self._untold)
            self._untold.clear()
            if not await _logged(self.store.routers.tell(untold)):
                self._tell_all()  # instead of what is lost
            await asyncio.sleep(TELL_S)

    async def _hearing(self) -> None:
        while True:
            await self._channel.wait(POLL_S)
            await _logged(self._hear())

    async def _hear(self) -> None:
        while True:
            asked = _clock()
            news = await self.store.routers.news(self._heard)
            if _clock() - self._heard_at > NEWS_KEPT_S / 2:  # some may have gone before that
                return await self._hear_anew()
            if not news:
                self._heard_at = asked
                return
            await self._take(news)
            self._heard = max(self._heard, news[-1].id)

    async def _hear_anew(self) -> None:
        self._heard_at = _clock()
        with self._doubted():
            self._heard = await self.store.routers.newest()
            await self._know_endpoints()
            await self._catch_up()

    async def _take(self, news: list[News]) -> None:
        about = {one.about for one in news if one.kind in (routers.NEW, routers.ENDED)}
        jobs = await self.store.routers.jobs(about) if about else {}
        await self._know_models(jobs.values())
        for one in news:
            if one.kind in (routers.NEW, routers.ENDED):
                self._take_job(one.about, jobs.get(one.about))
            elif one.kind == routers.LEFT:
                self._to_renew.set()
            elif one.kind == routers.LEADS:
                self._to_renew.set()
                if not self._leads:
                    await self._catch_up()
            elif one.kind == routers.REGISTERED:
                await self._know_endpoints()
            elif one.kind == routers.REMOVED:
                self._drain(one.about)
            elif one.kind == routers.JOINED:
                self._others = max(self._others, 1)
                self._tell_all()
            elif not self._leads:
                live = self.queue.lives.get(one.about)
                if isinstance(live, RoutedLive) and one.data is not None:
                    self._show_told(live, one.kind, one.data)

    def _take_job(self, job_id: str, job: Job | None) -> None:
        live = self.queue.lives.get(job_id)
        if live and (job is None or job.status in TERMINAL):
            self._end(live, job or _deleted(live))
        elif job and job.status in TERMINAL:
            self._remember(job)
        elif job:
            self._mirror(job)

    def _show_told(self, live: RoutedLive, kind: str, data: Mapping[str, Any]) -> None:
        """Takes what the router that leads tells of the job."""
        waited = live.job.status == "queued"
        told.take(live, kind, data)
        if waited and live.job.status != "queued":
            self.queue.begin(live)
            self._line_moved()
        if kind in ("status", told.STATE):
            self._dispatcher.heard(live, data["endpoint"])
            self.moved(live)
        else:
            self.events.publish(live.job.id, kind, dict(data))

    @property
    def _dispatcher(self) -> Dispatcher:
        return cast(Dispatcher, self.runner)


class _Hub(EventHub):
    """Tells what is published."""

    def __init__(self, tell: Callable[[str, str, Mapping[str, Any]], None]) -> None:
        super().__init__()
        self._tell = tell

    def publish(self, job_id: str, kind: str, data: dict[str, Any]) -> None:
        super().publish(job_id, kind, data)
        self._tell(job_id, kind, data)


async def _in_turns(jobs: Iterable[Job]) -> AsyncGenerator[Job]:
    """All of them, with others' turns on the event loop between."""
    for count, job in enumerate(jobs):
        if count % 50 == 49:
            await asyncio.sleep(0)
        yield job


def _deleted(live: Live) -> Job:
    """The end of a job that was deleted before its end was heard of."""
    return replace(live.view(), status="cancelled", finished_at=time.time())


def _clock() -> float:
    """Seconds that pass also while the process is stopped or the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


async def _wait(event: asyncio.Event, most_s: float) -> None:
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(event.wait(), most_s)
    event.clear()


async def _logged(work: Coroutine[Any, Any, object]) -> bool:
    """What fails now is tried again soon: no router may stop to renew its lease or to listen."""
    try:
        await work
        return True
    except Unavailable as problem:
        log.warning("routers on this database: %s", problem)
    except Exception:
        log.exception("routers on this database")
    return False
