"""The router's runner: whole jobs go to endpoints, and come home as if they had run here.

Where a job is, is known by the pods themselves: when an endpoint becomes ready it is asked which of
our unfinished jobs it has, and those are followed instead of being started again. Nothing about it
is stored, so nothing about it can be stale.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from polypod.background import Background
from polypod.errors import Problem
from polypod.jobs import fits
from polypod.jobs.job import TERMINAL, Job, JobError
from polypod.jobs.live import Live
from polypod.jobs.runner import Book
from polypod.model import Model
from polypod.router import registered
from polypod.router.cards import CardModel, models_of
from polypod.router.choose import Held, Offer, Served, next_dispatch, next_move
from polypod.router.endpoint import Endpoint, Known
from polypod.router.endpoints import Endpoints, Pods
from polypod.router.errand import Broken, Errand, Gone
from polypod.router.handover import ANSWER_S, Refused
from polypod.router.routed import RoutedLive

log = logging.getLogger("polypod.router")

SETTLE_S = 10.0
"""How long after a start jobs that were under way are kept for the pods that may have them."""
RETRY_S = 2.0
TIDY_S = 5.0
CANCEL_AGAIN_S = ANSWER_S + 1.0
GONE = 5
"""So often in a row a pod may not have a job that it was given, before it counts as broken."""


class Dispatcher:
    def __init__(self, book: Book, endpoints: Iterable[Known], pods: Pods | None = None) -> None:
        self.endpoints = Endpoints(endpoints, pods, self._came, self._went, self._drained)
        self._book = book
        self._background = Background()
        self._unseen: set[str] = set()
        """Endpoints that have not answered since it leads."""
        self._running = False
        self._wake_pending = False
        self._leads = False

    async def start(self) -> None:
        await self.learn_kept()
        self._running = True
        self.endpoints.start()
        self._background.run(self._tidying())

    async def learn_kept(self) -> None:
        """The models whose cards the store has."""
        self._book.learn(models_of(await self._book.store.cards()))

    def lead(self) -> None:
        """Follow what runs on endpoints already; then send them what waits."""
        self._leads = True
        asked = [e for e in self.endpoints.values() if e.has_jobs_to_end]
        waited_for = [e for e in self.endpoints.values() if e.known.url and e.state == "starting"]
        self._unseen = {endpoint.id for endpoint in (*asked, *waited_for)}
        for endpoint in asked:
            self._background.run(self._reattach(endpoint))
        asyncio.get_running_loop().call_later(SETTLE_S, self._settle)
        self.endpoints.run_pods()

    def follow(self) -> None:
        """Another router leads: what runs on endpoints is that one's, and goes on."""
        self._leads = False
        self.forget_places()

    def forget_places(self) -> None:
        """Where jobs are is told anew: by the router that leads, or by the endpoints themselves."""
        for endpoint in list(self.endpoints.values()):
            for live in filter(None, map(self._live, endpoint.jobs)):
                live.endpoint = ""
                if live.errand:
                    live.errand.cancel()
            endpoint.jobs.clear()

    def heard(self, live: RoutedLive, where: str) -> None:
        """The router that leads has the job on that endpoint."""
        if before := self.endpoints.get(live.endpoint):
            before.jobs.discard(live.job.id)
        if endpoint := self.endpoints.get(where):
            endpoint.jobs.add(live.job.id)
        live.endpoint = where

    def go_on(self) -> None:
        """It may act again."""
        self._wake()

    @property
    def acts(self) -> bool:
        """Whether endpoints are to do what it says: asked anew after every wait."""
        return self._running and self._leads and self._book.leads

    async def stop(self) -> None:
        """Leaves the jobs on the pods: the next start follows them further."""
        self._running = False
        await self._background.stop()
        await self.endpoints.stop()

    # Endpoints

    def describe_endpoint(self, endpoint: Endpoint) -> dict[str, Any]:
        """As `GET /endpoints` shows it."""
        lives = (self._live(job) for job in sorted(endpoint.jobs))
        running = [live.job.id for live in lives if live and live.job.status == "processing"]
        return endpoint.describe() | {"job": running[0] if running else None}

    def backlog(self) -> Counter[str]:
        """How many jobs wait for a place, by model."""
        lives = self._book.queue.lives.values()
        return Counter(live.model.name for live in lives if not (live.handed or live.ended))

    def _came(self, endpoint: Endpoint) -> None:
        if endpoint.store_id == self._book.store.store_id:  # it would wait for itself for ever
            endpoint.take_out("unusable", "It is this router itself.")
            return
        self._book.learn(self.endpoints.newest(endpoint.models))
        self._background.run(self._keep_cards(endpoint.models))
        if self._leads:
            self._background.run(self._reattach(endpoint))

    async def _keep_cards(self, names: Iterable[str]) -> None:
        """So that a model is known while its pods sleep."""
        for model in self.endpoints.newest(names):
            await self._book.store.put_card(model.name, model.card, time.time())

    async def _reattach(self, endpoint: Endpoint) -> None:
        """Follow those of our jobs that the pod has; end there what is no longer ours."""
        endpoint.untidy = False
        try:
            async for view in endpoint.client.jobs(limit=200):
                live = self._live(view.id)
                if not self.acts:
                    endpoint.untidy = True
                    return
                if live and not live.handed and endpoint.has_jobs_to_end:
                    self._assign(live, endpoint, there=True)
                elif await self._is_left_over(view.id, endpoint) and self.acts:
                    endpoint.untidy = True  # until its own list does not show it any more
                    await self._end_there(endpoint, view.id, ended=view.done)
        except Exception as error:  # whatever it answers
            log.warning("endpoint %s did not tell its jobs: %r", endpoint.id, error)
            endpoint.untidy = True
        self._seen(endpoint)

    async def _is_left_over(self, job_id: str, endpoint: Endpoint) -> bool:
        """Whether a job that the pod has is one of ours that has ended or is elsewhere now.

        Others may use the pod too: their jobs are not known here.
        """
        live = self._live(job_id)
        if live:
            return live.handed and live.endpoint != endpoint.id
        job = await self._book.store.get(job_id)
        return job is not None and job.status in TERMINAL

    def _seen(self, endpoint: Endpoint) -> None:
        self._unseen.discard(endpoint.id)
        self.endpoints.remove_if_drained(endpoint)
        self._wake()

    def _settle(self) -> None:
        self._unseen.clear()
        self._wake()

    def _went(self, endpoint: Endpoint) -> None:
        for job_id in list(endpoint.jobs):
            live = self._live(job_id)
            if live and self._leads:
                self._lost(live, endpoint)
        self._unseen.discard(endpoint.id)
        self.endpoints.remove_if_drained(endpoint)
        self._wake()

    def _drained(self, endpoint: str) -> None:
        if not self._book.store.routers.id:  # else the database has forgotten it already
            data = self._book.settings.data
            self._background.run(asyncio.to_thread(registered.forget, data, endpoint))

    # Jobs (the engine's `Runner`)

    def live(self, job: Job, model: Model) -> Live:
        inputs = [a for a in job.assets if a.kind == "input"]
        plan = model.plan(job.params, job.until, job.inputs)
        return RoutedLive(job, model, plan, assets=inputs)

    def add(self, live: Live) -> None:
        self._book.queue.mark_ready(live)
        self._wake()

    def drop(self, live: Live) -> None:
        """The job has ended: if it did so here, it is to end on the pod too."""
        assert isinstance(live, RoutedLive)
        endpoint = self.endpoints.get(live.endpoint)
        if endpoint:
            endpoint.jobs.discard(live.job.id)
            errand = live.errand if live.errand is not asyncio.current_task() else None
            if self._leads:
                self._background.run(self._clean_up(endpoint, live.job, errand))
            self.endpoints.remove_if_drained(endpoint)
        self._wake()

    def remember(self, keys: list[str]) -> None:
        """The router keeps no stages."""

    def forgot(self, keys: list[str]) -> None:
        """The router keeps no stages."""

    def check(self, model: Model, params: Mapping[str, Any], until: str) -> None:
        """Refused only where every endpoint of the model is known to be too small."""
        serving = [e.vram_gb for e in self.endpoints.values() if model.name in e.models]

        def most(slot: str) -> float | None:
            known = [there[slot] for there in serving if slot in there]
            return max(known) if known and len(known) == len(serving) else None

        if self._book.settings.needs == "on":
            fits.check(model, params, until, most)

    def works_on(self, live: Live) -> bool:
        assert isinstance(live, RoutedLive)
        return bool(live.endpoint)

    def eta(self, live: Live, ahead: int) -> float | None:
        assert isinstance(live, RoutedLive)
        return live.told_eta_s if live.endpoint else None

    @property
    def ready(self) -> bool:
        return self._running

    def describe(self) -> dict[str, Any]:
        states = Counter(endpoint.shown_state for endpoint in self.endpoints.values())
        return {
            "reasons": [],
            "model_loaded": any(e.health.get("model_loaded") for e in self.endpoints.values()),
            "cuda": any(e.health.get("cuda") for e in self.endpoints.values()),
            "gpu": None,
            "slots": [],
            "endpoints": {"ready": 0, "busy": 0, "lost": 0} | states,
        }

    async def _clean_up(
        self, endpoint: Endpoint, job: Job, errand: asyncio.Task[Any] | None
    ) -> None:
        """What is home, or cancelled, need not stay on the pod."""
        if errand:
            await _call_off(errand)  # it may have been handing the job over
        await self._end_there(endpoint, job.id, ended=job.status != "cancelled")

    async def _end_there(self, endpoint: Endpoint, job_id: str, *, ended: bool) -> None:
        """Nothing of the job is to be on the pod; `ended`: it has ended there too."""
        try:
            if not ended:
                await endpoint.client.cancel(job_id)
            await endpoint.client.delete(job_id)
        except Exception as error:  # whatever it answers
            log.info("job %s stays on %s for now: %r", job_id, endpoint.id, error)
            endpoint.untidy = True

    async def _tidying(self) -> None:
        """Again and again: end what is left over on pods that could not be told so before."""
        while True:
            await asyncio.sleep(TIDY_S)
            for endpoint in [e for e in self.endpoints.values() if e.takes_jobs and e.untidy]:
                if self.acts:
                    await self._reattach(endpoint)

    # Who goes where

    def _wake(self) -> None:
        """Look for work to send, once, when the event loop comes round."""
        if self.acts and not self._unseen and not self._wake_pending:
            self._wake_pending = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._wake_pending = False
        while self.acts:
            lives = self._book.queue.oldest_ready(lambda live: not live.ended)
            waiting = [live.waiting() for live in lives if isinstance(live, RoutedLive)]
            action = next_dispatch(waiting, self._offers(), self._dispatched())
            if action is None:
                self._level()
                return
            live = self._live(action.job)
            if live:
                self._assign(live, self.endpoints[action.endpoint], there=False)

    def _level(self) -> None:
        """Nothing waits here: an endpoint that is idle gets what waits on another."""
        move = next_move(list(self._held()), self._offers())
        live = self._live(move.job) if move else None
        if live:
            live.stays = True
            self._background.run(self._take_back(live, self.endpoints[live.endpoint]))

    def _held(self) -> Iterable[Held]:
        """Of each endpoint with two jobs the one that seems to be behind: the pod knows."""
        for endpoint in self.endpoints.values():
            lives = [live for live in map(self._live, endpoint.jobs) if live]
            behind = sorted(lives, key=lambda live: (not live.runs_there, live.order))
            may_go = [live for live in behind if not (live.stays or live.home) and live.errand]
            if len(lives) > 1 and may_go:
                waits = [live.told_eta_s for live in lives if live is not may_go[-1]]
                known = [eta for eta in waits if eta is not None]
                yield Held(may_go[-1].waiting(), endpoint.id, sum(known) if known else None)

    async def _take_back(self, live: RoutedLive, endpoint: Endpoint) -> None:
        """Have it here again, unless its endpoint has begun to work on it."""
        assert live.errand
        await _call_off(live.errand)
        taken = False
        if still_there := self.acts and self._is_at(live, endpoint):
            try:
                answer = await endpoint.http.post(f"/job/{live.job.id}/withdraw")
                taken = answer.status_code == 200
            except Exception as error:  # whatever it answers
                log.info("job %s stays on %s: %r", live.job.id, endpoint.id, error)
            still_there = self.acts and self._is_at(live, endpoint)
        if not still_there:
            return
        if taken:
            endpoint.jobs.discard(live.job.id)
            self._back_in_line(live)
            await self._end_there(endpoint, live.job.id, ended=True)
        else:
            self._assign(live, endpoint, there=True)

    def _is_at(self, live: RoutedLive, endpoint: Endpoint) -> bool:
        return not live.ended and live.endpoint == endpoint.id and live.job.id in endpoint.jobs

    def _offers(self) -> list[Offer]:
        return [
            Offer(e.id, _served(e.models), len(e.jobs), self._free_in_s(e), e.vram_gb)
            for e in self.endpoints.values()
            if e.takes_new_jobs
        ]

    def _free_in_s(self, endpoint: Endpoint) -> float:
        lives = [self._live(job) for job in endpoint.jobs]
        return sum(live.told_eta_s or 0.0 for live in lives if live)

    def _dispatched(self) -> Counter[str]:
        return Counter(
            live.job.owner
            for e in self.endpoints.values()
            for j in e.jobs
            if (live := self._live(j))
        )

    def _live(self, job_id: str) -> RoutedLive | None:
        live = self._book.queue.lives.get(job_id)
        return live if isinstance(live, RoutedLive) and not live.ended else None

    def _assign(self, live: RoutedLive, endpoint: Endpoint, *, there: bool) -> None:
        live.handed, live.endpoint = True, endpoint.id
        endpoint.jobs.add(live.job.id)
        errand = Errand(live, endpoint, self._book, self._book.blobs)
        live.errand = self._background.run(self._carry(live, endpoint, errand, there))

    async def _carry(
        self, live: RoutedLive, endpoint: Endpoint, errand: Errand, there: bool
    ) -> None:
        try:
            await errand.run(there=there)
            endpoint.failures = 0
        except Refused as refused:
            if refused.for_good:
                await self._book.finish(live, "failed", refused.error)
            else:
                await self._later(live, endpoint)
        except Gone:
            live.gone += 1
            if live.gone % GONE:
                await self._later(live, endpoint)
            else:
                self._blame(endpoint, "It does not keep the jobs that it is given.")
        except Broken as broken:
            self._blame(endpoint, str(broken))
        except (Problem, OSError) as error:
            log.warning("job %s: %s", live.job.id, error)
            await self._later(live, endpoint)

    async def _later(self, live: RoutedLive, endpoint: Endpoint) -> None:
        """Back in line, after a moment: the pod may be about to be lost."""
        endpoint.jobs.discard(live.job.id)
        if not live.ended and live.endpoint == endpoint.id:
            await asyncio.sleep(RETRY_S)
            self._back_in_line(live)

    def _blame(self, endpoint: Endpoint, why: str) -> None:
        """It says that it is well, but fails at jobs: they go on elsewhere."""
        log.warning("endpoint %s is taken out: %s", endpoint.id, why)
        endpoint.take_out("lost", why)
        self._went(endpoint)

    def _lost(self, live: RoutedLive, endpoint: Endpoint) -> None:
        """The endpoint is lost with the job: it goes on elsewhere, unless it is what kills pods."""
        if live.home:
            return
        endpoint.jobs.discard(live.job.id)
        if live.errand and live.errand is not asyncio.current_task():
            live.errand.cancel()
        endpoint.untidy = True
        live.note_loss(endpoint.id, endpoint.life)
        if live.is_poison:
            error = JobError(
                "pods_lost",
                f"{live.losses} pods were lost while they ran this job.",
                "The picture may be what kills them; try another one or a lighter preset.",
            )
            self._background.run(self._book.finish(live, "failed", error))
        else:
            self._back_in_line(live)

    def _back_in_line(self, live: RoutedLive) -> None:
        if not live.ended:
            live.back_in_line()
            live.ready_since = time.monotonic()
            self._book.queue.mark_ready(live)
            self._wake()


async def _call_off(errand: asyncio.Task[Any]) -> None:
    """Cancelled until it ends: a cancel that meets the answer it waits for can get lost."""
    while not errand.done():
        errand.cancel()
        await asyncio.wait([errand], timeout=CANCEL_AGAIN_S)


def _served(models: Mapping[str, CardModel]) -> dict[str, Served]:
    return {m.name: Served(str(m.card["digest"]), m.age) for m in models.values()}
