"""The job engine: takes jobs in, answers for them, and ends each exactly once.

It lives on one event loop. A runner (`stages`) does the work between; what must survive is
committed by the store before anyone is told.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polypod import __version__, logs, metrics, tracing
from polypod.assets.storage import BlobStore, make_durable, open_blobs, path_of
from polypod.background import Background
from polypod.errors import BadInput, NotFound, Problem, Unavailable
from polypod.jobs.budget import Budget
from polypod.jobs.derived import Derived
from polypod.jobs.describe import describe_asset, describe_job, with_urls
from polypod.jobs.estimates import Estimates
from polypod.jobs.events import EventHub
from polypod.jobs.job import (
    TERMINAL,
    Asset,
    FileRef,
    Job,
    JobError,
    KeptStage,
    Status,
    new_id,
)
from polypod.jobs.live import Live
from polypod.jobs.lock import DataLock
from polypod.jobs.queue import Queue
from polypod.jobs.runner import Book, Runner
from polypod.jobs.stages import StageRunner
from polypod.jobs.store.forget import Forgotten
from polypod.jobs.store.store import Store
from polypod.jobs.sweep import Sweeper
from polypod.model import Model
from polypod.settings import Settings
from polypod.webhooks.sender import Sender

log = logging.getLogger("polypod.jobs")

SERVER_DEATHS = 10
PROGRESS_INTERVAL_S = 0.2
FINISHED_REMEMBERED = 512
THREADS = 64
"""Where files are in a bucket: as many as it is asked connections for at once."""


@dataclass(frozen=True)
class Submission:
    """A checked request: files are in the blob store, parameters are resolved."""

    model: str
    inputs: Mapping[str, FileRef]
    """What the model is given, by input name."""
    uploads: Mapping[str, FileRef]
    """The same as uploaded; kept beside the results."""
    params: Mapping[str, Any]
    until: str = ""
    owner: str = ""
    idempotency_key: str = ""
    request_digest: str = ""
    parent: str = ""
    priority: int = 0
    id: str = ""
    """As the router gave it; empty: a new one."""
    relayed: bool = False
    """From a router, which shows the result itself."""
    webhook_url: str = ""
    """Told of the job's end."""
    most_queued: int | None = None
    """How many jobs the owner may have in line; None: as many as fit."""
    traceparent: str = ""
    """As the request brought it."""


class Engine:
    """`start` before use; `stop` leaves unfinished jobs to the next start.

    `make_runner` gives what does the work: by default this machine's workers, stage by stage.
    """

    def __init__(
        self,
        models: Iterable[Model],
        settings: Settings,
        make_runner: Callable[[Book], Runner] = StageRunner,
    ) -> None:
        self.models: dict[str, Model] = {model.name: model for model in models}
        self.settings = settings
        self.events = EventHub()
        self.blobs: BlobStore
        self.store: Store
        self.budget: Budget
        self.derived: Derived
        self.runner: Runner
        self.webhooks: Sender
        self._make_runner = make_runner
        self.estimates = Estimates(settings.device)
        self.queue = Queue()
        self._finished: OrderedDict[str, Job] = OrderedDict()
        self._coming: dict[str, asyncio.Future[Job]] = {}
        """Jobs that are being submitted."""
        self._background = Background()
        self._line_timer: asyncio.TimerHandle | None = None
        self._started = False
        self._stopping = False
        self._started_at = time.time()
        self._instance_id = uuid.uuid4().hex

    async def start(self) -> None:
        """Lock the data folder, open the store, take over unfinished jobs, load the model."""
        settings, data = self.settings, self.settings.data
        self._lock = await DataLock.acquire(data)
        self.store = await Store.open(settings.database_url or f"sqlite:///{data}/polypod.db")
        self.blobs = await asyncio.to_thread(self._open_blobs)
        await self._recover()
        if self.blobs.remote:  # threads that wait for a slow storage must not be all there are
            threads = ThreadPoolExecutor(THREADS, "polypod-thread")
            asyncio.get_running_loop().set_default_executor(threads)
        for model, stage, device, preset, seconds in reversed(await self.store.stage_seconds()):
            self.estimates.add(model, stage, device, preset, seconds)
        self.derived = Derived(self.store, self.blobs, data / "derived", self._made)
        await self.derived.start()
        self.runner = self._make_runner(self)
        await self.runner.start()
        self.webhooks = Sender(self.store, settings, self._show)
        self.budget = Budget(
            settings, self.store, self.blobs, self._pinned, self.forgot, lambda: self.leads
        )
        await self._begin()
        self._background.run(self.budget.run())
        await self.webhooks.start()
        self._started = True

    async def _begin(self) -> None:
        """All unfinished jobs are this server's."""
        self._lead(await self.store.take_over())

    def _lead(self, unfinished: Iterable[Job]) -> asyncio.Task[Any]:
        """Work on these jobs, and keep the house; returns what does the latter."""
        for job in unfinished:
            self._take_over(job)
        self.runner.lead()
        parts = (self.settings, self.store, self.blobs, self._pinned, self._in_hand, self.forgot)
        return self._background.run(Sweeper(*parts, self.budget).run())

    async def stop(self) -> None:
        self._stopping = True
        if self._started:
            await self.runner.stop()
            await self._background.stop()
            await self.derived.stop()
            await self.webhooks.stop()
            await self._put_back()
            await self.store.close()
            self._lock.release()

    def _open_blobs(self) -> BlobStore:
        blobs = open_blobs(self.settings)
        blobs.check(self.store.store_id)
        blobs.clear_tmp()
        return blobs

    async def _recover(self) -> None:
        """After a loss of power: a router's jobs that lack files are forgotten; it has them."""
        if await asyncio.to_thread(self.blobs.recover):
            gone = await self.store.forget_relayed(self.blobs.renew)
            log.warning("power was lost: %d jobs are left to their router", gone)

    async def _put_back(self) -> None:
        """An orderly stop is no death of the server for the jobs that it interrupts."""
        try:
            await self.store.put_back([live.job for live in self.queue.processing.values()])
        except Unavailable as problem:
            log.error("the stop is not noted: %s", problem)

    # What users ask

    async def submit(self, submission: Submission) -> Job:
        """Keep the job durably and put it in line; returns it, or the earlier one of the same key.

        Raises:
            QueueFull, Conflict: see `Store.submit`.
            BudgetFull: see `check_room`.
            Unavailable: the service stops, the disk is full, or what the model needs is missing.
            BadInput: it needs more GPU memory than there is.
        """
        if self._stopping:
            raise Unavailable(
                "The service is stopping.", "Try again in a minute.", retry_after_s=30
            )
        self.runner.check(self.models[submission.model], submission.params, submission.until)
        job = Job(
            id=submission.id or new_id(),
            model=submission.model,
            owner=submission.owner,
            inputs=submission.inputs,
            params=submission.params,
            created_at=time.time(),
            card=self.models[submission.model].card["digest"],
            until=submission.until,
            parent=submission.parent,
            priority=submission.priority,
            idempotency_key=submission.idempotency_key,
            request_digest=submission.request_digest,
            trace=tracing.begin(submission.traceparent),
            relayed=submission.relayed,
            assets=tuple(Asset(n, ref, "input") for n, ref in submission.uploads.items()),
        )
        # shielded: a job that is committed is in line too, even if its client has gone
        return await asyncio.shield(self._coming_in(job, submission))

    async def check_room(self, model: str = "", owner: str = "", key: str = "") -> None:
        """To be asked before a file is kept for a new job.

        Raises BudgetFull where the disk budget is used up, but not for who repeats a request (the
        idempotency `key`), which makes no new job.
        """
        refusal = self.budget.refusal
        if refusal and not (key and await self.store.has_key(owner, model, key)):
            if model:
                metrics.job_refused(model, refusal.code())
            raise refusal

    def _coming_in(self, job: Job, submission: Submission) -> asyncio.Future[Job]:
        """Once for each id: a router repeats what was not answered in time."""
        if job.id in self.queue.lives or job.id in self._finished:
            return asyncio.ensure_future(self.job(job.id, None))
        coming = self._coming.get(job.id)
        if coming is None:
            coming = self._coming[job.id] = asyncio.ensure_future(self._take_in(job, submission))
            coming.add_done_callback(lambda _: self._coming.pop(job.id))
        return coming

    async def _take_in(self, job: Job, submission: Submission) -> Job:
        await self.check_room(job.model, job.owner, job.idempotency_key)
        if not job.relayed:
            files = [*job.inputs.values(), *(asset.file for asset in job.assets)]
            await make_durable(self.blobs, {file.digest for file in files})
        try:
            stored = await self.store.submit(
                job,
                self.settings.max_queue_size,
                webhook_url=submission.webhook_url,
                most_queued=submission.most_queued,
            )
        except Problem as problem:
            metrics.job_refused(job.model, problem.code())
            raise
        if stored.id != job.id:
            return await self.job(stored.id, None)
        metrics.job_submitted(job.model)
        self._enter(stored)
        return stored

    def _enter(self, job: Job) -> None:
        """A new job."""
        logs.belongs(job.id, tracing.trace_id(job.trace))
        live = self.runner.live(job, self.models[job.model])
        self.queue.add(live)
        self.runner.add(live)
        self.moved(live)

    def _take_over(self, job: Job) -> None:
        """A job that the last server left unfinished."""
        model = self.models.get(job.model)
        if model is None:
            log.warning("job %s is for model %s, which is not served here", job.id, job.model)
            return
        logs.belongs(job.id, tracing.trace_id(job.trace))
        error = _past_doing(job, model)
        live = self.runner.live(replace(job, until="") if error else job, model)
        live.job = job
        self.queue.add(live)
        if error is None:
            self.runner.add(live)
        else:
            self._background.run(self.finish(live, "failed", error))

    async def job(self, job_id: str, owner: str | None) -> Job:
        """The job as it is now; `owner` None sees every job.

        Raises:
            NotFound: unknown, or another owner's.
        """
        job = await self._find(job_id)
        if job is None or owner not in (None, job.owner):
            raise NotFound(
                f"There is no job {job_id[:64]!r}.",
                "Check the id; jobs are removed some time after they end.",
            )
        return job

    async def _find(self, job_id: str) -> Job | None:
        live = self.queue.lives.get(job_id)
        job = live.view() if live else self._finished.get(job_id)
        if job is None:
            job = await self.store.get(job_id)
            if job and job.status in TERMINAL:
                self._remember(job)
        return job

    def current(self, job: Job) -> Job:
        """The job as it is now, if it has just been read from the store."""
        live = self.queue.lives.get(job.id)
        if live or job.status in TERMINAL:
            return live.view() if live else job
        return self._finished.get(job.id, job)

    def describe(self, job: Job) -> dict[str, Any]:
        """The body of `GET /job/{id}`."""
        live = self.queue.lives.get(job.id)
        position = self.queue.position(live) if live else 0
        eta = self.runner.eta(live, max(position - 1, 0)) if live else None
        model = self.models.get(job.model)
        return describe_job(
            job, model, live, position=position, queue_length=self.queue.queued, eta_s=eta
        )

    async def cancel(self, job: Job) -> Job:
        """End the job as cancelled unless it has ended; its worker stops within its grace.

        Raises Unavailable where that cannot be kept now: the job goes on.
        """
        live = self.queue.lives.get(job.id)
        if live:
            await self._try_to_end(live, _as_ended(live, "cancelled"))
        elif self._unserved(job):
            await self.store.finish(replace(job, status="cancelled", finished_at=time.time()))
            self.webhooks.wake()
        return await self.job(job.id, None)

    async def withdraw(self, job: Job) -> bool:
        """Cancel a job that waits, so that another server can do it; whether that was so."""
        live = self.queue.lives.get(job.id)
        if live is None or self.runner.works_on(live):
            return False
        return (await self.cancel(job)).status == "cancelled"

    async def delete(self, job: Job) -> Job | None:
        """Delete a job that has ended (None), or cancel one that has not (the job)."""
        if job.id in self.queue.lives or self._unserved(job):
            return await self.cancel(job)
        await self.store.delete(job.id)
        self._finished.pop(job.id, None)
        return None

    def _unserved(self, job: Job) -> bool:
        """Whether it waits for a model that is not here: nothing works on it."""
        return job.model not in self.models and job.status not in TERMINAL

    async def find_asset(self, job: Job, name: str) -> Asset:
        """An asset; made now where it can be derived from the result.

        Raises:
            NotFound, Conflict: see `Derived.get`.
        """
        return job.asset(name) or await self.derived.get(job, self.models.get(job.model), name)

    async def asset(self, job: Job, name: str) -> tuple[Asset, Path]:
        """`find_asset` and its file, on this machine's disk."""
        asset = await self.find_asset(job, name)
        try:
            return asset, await path_of(self.blobs, asset.file.digest)
        except KeyError:
            raise NotFound(
                f"The file of {name!r} is no longer kept.", "Submit the job again."
            ) from None

    async def keep_stages(self, stages: Sequence[KeptStage]) -> None:
        """Stages that another server has computed; their files are here."""
        if stages:
            await self.store.keep_stages(stages)
            self.runner.remember([stage.key for stage in stages])

    # What the service shows

    @property
    def leads(self) -> bool:
        """Whether the unfinished jobs are this server's to do."""
        return True

    @property
    def ready(self) -> bool:
        return self._started and not self._stopping and self.runner.ready

    def figures(self) -> dict[str, int]:
        """The body of `GET /queue`."""
        return {
            "queued": self.queue.queued,
            "processing": len(self.queue.processing),
            "max_queue_size": self.settings.max_queue_size,
            "max_concurrent": self.settings.max_concurrent,
        }

    def health(self) -> dict[str, Any]:
        """The body of `GET /health`; never waits for anything."""
        idle: dict[str, Any] = {"reasons": [], "model_loaded": False}
        work = self.runner.describe() if self._started else idle
        refusal = self.budget.refusal if self._started else None
        status = "degraded" if work["reasons"] else "healthy" if self.ready else "starting"
        return {
            "status": status,
            **work,
            "refuses": refusal and refusal.message,
            "models": list(self.models),
            "queue": self.figures(),
            "api": 1,
            "version": __version__,
            "store_id": self.store.store_id if self._started else None,
            "instance_id": self._instance_id,
            "uptime_s": round(time.time() - self._started_at, 1),
        }

    # What happens to jobs (the runner's `Book`)

    def learn(self, models: Iterable[Model]) -> None:
        """These models can be asked for, too."""
        self.models.update({model.name: model for model in models})

    def began(self, live: Live, at: float) -> None:
        """Its first stage has started."""
        live.job = replace(live.job, status="processing", started_at=at)
        self.queue.begin(live)
        durable = not live.job.relayed
        self._background.run(self.store.start(live.job.id, live.job.attempt, at, durable))
        self._line_moved()

    def moved(self, live: Live) -> None:
        """Tell its status, as it is now."""
        self.events.publish(live.job.id, "status", self.describe(live.view()))

    def progressed(self, live: Live) -> None:
        now = time.monotonic()
        if now - live.progress_sent >= PROGRESS_INTERVAL_S:
            live.progress_sent = now
            eta = self.runner.eta(live, 0)
            data = {
                "progress": live.progress,
                "stage": live.at,
                "message": live.message,
                "eta_seconds": round(eta, 1) if eta is not None else None,
            }
            self.events.publish(live.job.id, "progress", data)

    def logged(self, live: Live, line: str) -> None:
        live.log.append(line)
        self.events.publish(live.job.id, "log", {"line": line})

    def gained(self, live: Live, assets: list[Asset]) -> None:
        for asset in assets:
            self.events.publish(live.job.id, "asset", describe_asset(live.job, asset))
        if 0 < live.done < len(live.plan):  # fewer stages remain
            self.moved(live)

    async def finish(self, live: Live, status: Status, error: JobError | None = None) -> bool:
        """End the job; the first committed end wins, and only it is told. False: another did.

        Tried until the disk or the database takes it.
        """
        job, wait = _as_ended(live, status, error), 0.5
        while True:
            try:
                return await self._try_to_end(live, job)
            except Unavailable as problem:
                log.error("job %s cannot be ended now: %s", job.id, problem)
                await asyncio.sleep(wait)
                wait = min(wait * 2, 10)

    async def _try_to_end(self, live: Live, job: Job) -> bool:
        if not await self.store.finish(job, as_owner=self.leads):
            return False
        self.webhooks.wake()
        metrics.job_ended(job)
        tracing.job_ended(job)
        self._end(live, job)
        if job.status == "completed" and not job.relayed:
            self.derived.prepare(job, live.model)
        return True

    def _end(self, live: Live, job: Job) -> None:
        """The job has ended like this: nothing works on it any more, and everybody is told."""
        live.job, live.ended = job, True
        self.queue.remove(live)
        self._remember(job)
        self.runner.drop(live)
        self.events.publish(job.id, "status", self.describe(job))
        self._line_moved()

    def _made(self, job: Job, assets: list[Asset], facts: Mapping[str, Any]) -> None:
        """Assets were derived from the job's result, after its end."""
        known = self._finished.get(job.id, job)
        names = {a.name for a in assets}
        others = tuple(a for a in known.assets if a.name not in names)
        self._remember(replace(known, assets=(*others, *assets), facts={**known.facts, **facts}))
        for asset in assets:
            self.events.publish(job.id, "asset", describe_asset(job, asset))

    async def _show(self, job_id: str) -> dict[str, Any]:
        return with_urls(self.describe(await self.job(job_id, None)), self.settings.public_url)

    def _remember(self, job: Job) -> None:
        self._finished[job.id] = job
        self._finished.move_to_end(job.id)
        if len(self._finished) > FINISHED_REMEMBERED:
            self._finished.popitem(last=False)

    def forgot(self, gone: Forgotten) -> None:
        """Retention has taken this."""
        self.runner.forgot(gone.stages)
        for job_id in (*gone.results, *gone.inputs, *gone.jobs):
            self._finished.pop(job_id, None)

    def _pinned(self) -> set[str]:
        """Keys of kept stages that unfinished jobs stand on."""
        return {key for live in self.queue.lives.values() for key in live.keys}

    def _in_hand(self) -> set[str]:
        """Digests of the files that unfinished jobs have so far, for users or their next stages."""
        lives = self.queue.lives.values()
        assets = {asset.file.digest for live in lives for asset in live.assets}
        return assets.union(ref.digest for live in lives for ref in live.files.values())

    def _line_moved(self) -> None:
        """Tell those who watch a queued job its new position, a few times a second at most."""
        if self._line_timer is None:
            loop = asyncio.get_running_loop()
            self._line_timer = loop.call_later(PROGRESS_INTERVAL_S, self._tell_positions)

    def _tell_positions(self) -> None:
        self._line_timer = None
        for job_id in self.events.watched():
            live = self.queue.lives.get(job_id)
            if live and live.job.status == "queued":
                self.moved(live)


def _as_ended(live: Live, status: Status, error: JobError | None = None) -> Job:
    return replace(live.view(), status=status, error=error, finished_at=time.time())


def _past_doing(job: Job, model: Model) -> JobError | None:
    """Why a job that the last server left unfinished is not begun again."""
    if job.server_deaths >= SERVER_DEATHS:
        return JobError(
            "server_died",
            f"The server died {job.server_deaths} times while it ran this job.",
            "The picture may be what kills it; try another one or a lighter preset.",
        )
    try:
        for stage in model.plan(job.params, job.until, job.inputs):
            stage.handed(job.params)
    except (BadInput, KeyError) as unknown:
        log.warning("job %s does not fit model %s any more: %s", job.id, job.model, unknown)
        return JobError(
            "model_changed",
            "The model has changed since this job was submitted, and cannot run it any more.",
            "Submit it again.",
        )
    return None
