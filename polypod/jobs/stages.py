"""How a pod runs jobs: stage by stage on its workers, each finished stage kept under its key.

What decides is elsewhere (`schedule`, `live`); what blocks goes to threads and worker processes.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from polypod import metrics
from polypod.assets.storage import BlobStore, make_durable, patiently, renew_all
from polypod.background import Background
from polypod.errors import Problem
from polypod.jobs import fits, publish
from polypod.jobs.faults import explained
from polypod.jobs.job import Asset, FileRef, Job, JobError, KeptStage, StageRun
from polypod.jobs.live import Live
from polypod.jobs.runner import Book
from polypod.jobs.schedule import BATCH, Place, Reserve, Start, next_action
from polypod.model import Model
from polypod.workers.checkup import Checkup
from polypod.workers.devices import Devices
from polypod.workers.events import Finished
from polypod.workers.pool import Pool
from polypod.workers.worker import StageTask

WORKER_DEATHS = 3
FILE_LOST = JobError(
    "file_lost",
    "A file that this job needs is no longer kept.",
    "Submit the job again, with its picture.",
)


class StageRunner:
    """Takes each live job from stage to stage. It is its pool's `Listener`."""

    def __init__(self, book: Book) -> None:
        self.pool: Pool
        self._checkup: Checkup
        self._book = book
        self._queue = book.queue
        self._store = book.store
        self._blobs = book.blobs
        self._estimates = book.estimates
        self._work = book.settings.data / "work"
        self._devices = Devices()
        self._background = Background()
        self._kept: set[str] = set()
        """Keys of all kept stages, so that only a hit costs a look into the store."""
        self._computing: dict[str, str] = {}
        """Key of a stage that is being computed, and the job that does it."""
        self._waiting: defaultdict[str, set[Live]] = defaultdict(set[Live])
        """Jobs whose next stage has this key and that no worker holds."""
        self._newest: dict[tuple[str, str], asyncio.Task[Any]] = {}
        """The newest publication of each model's stage."""
        self._wake_pending = False
        self._wake_timer: asyncio.TimerHandle | None = None
        self._running = False

    async def start(self) -> None:
        await asyncio.to_thread(_clear, self._work)
        self._kept.update(await self._store.stage_keys())
        book = self._book
        self._checkup = Checkup(book.models.values(), book.settings, self._devices)
        well = await self._checkup.look()
        self.pool = Pool(book.models.values(), book.settings, self, self._devices.capacity_gb)
        if well:
            await self._open()
        else:
            self._background.run(self._open_when_well())

    async def _open_when_well(self) -> None:
        await self._checkup.wait_until_well()
        await self._open()
        self._wake()

    async def _open(self) -> None:
        await self.pool.start()
        self._running = True

    async def stop(self) -> None:
        if self._running:
            self._running = False
            await self.pool.stop()
        await self._background.stop()

    def lead(self) -> None:
        """Each was begun as it was added."""

    def live(self, job: Job, model: Model) -> Live:
        return Live.of(job, model)

    def add(self, live: Live) -> None:
        self._advance(live)

    def drop(self, live: Live) -> None:
        """Its tasks stop, and what waited for it goes on."""
        self._no_longer_waits(live)
        self._release(live)
        self.pool.cancel(live.job.id)
        self._background.run(self._clear_work(live))
        self._wake()

    def remember(self, keys: list[str]) -> None:
        self._kept.update(keys)

    def forgot(self, keys: list[str]) -> None:
        self._kept.difference_update(keys)

    def check(self, model: Model, params: Mapping[str, Any], until: str) -> None:
        self._checkup.check()
        if self._book.settings.needs == "on":
            fits.check(model, params, until, self.pool.capacity_gb)

    def works_on(self, live: Live) -> bool:
        reserved = {place.reserved for place in self.pool.places()}
        return live.handed and live.job.id not in reserved

    def eta(self, live: Live, ahead: int) -> float | None:
        running = list(self._queue.processing.values())
        lanes = self._book.settings.max_concurrent
        return self._estimates.until_done(live, running, ahead, lanes)

    @property
    def ready(self) -> bool:
        return self._running and self.pool.ready

    def describe(self) -> dict[str, Any]:
        errors = [
            explained(error, self._book.models[model])
            for (model, _), error in self.pool.load_errors.items()
        ]
        return {
            "reasons": [
                *self._checkup.reasons,
                *(f"{error.message} {error.hint}".strip() for error in errors),
            ],
            "model_loaded": self.pool.loaded,
            **self._devices.describe(),
            "slots": self.pool.describe(),
        }

    # What comes next for a job

    def _advance(self, live: Live) -> None:
        """See what comes next: a stage that is kept, one to run or to wait for, or the end."""
        if live.ended or live.handed:
            return
        if live.done == len(live.plan):
            self._run_for(live, self._complete(live))
            return
        key = live.next_key = live.key_of(live.stage)
        self._waiting[key].add(live)
        if key in self._computing:
            return
        if key in self._kept:
            self._run_for(live, self._use_kept(live, key))
            return
        live.ready_since = time.monotonic()
        self._queue.mark_ready(live)
        self._wake()

    async def _use_kept(self, live: Live, key: str) -> None:
        kept = await self._store.find_stage(key)
        files = kept.files.values() if kept else ()
        digests = [ref.digest for ref in files]
        there = await renew_all(self._blobs, digests)
        if not live.job.relayed:
            await make_durable(self._blobs, digests)
        if live.ended or live.handed or live.next_key != key:
            return
        if kept and there:
            self._book.gained(live, self._take(live, kept, ran=False))
        else:
            self._kept.discard(key)
            await self._store.forget_stage(key)
        self._advance(live)

    def _take(self, live: Live, kept: KeptStage, *, ran: bool) -> list[Asset]:
        self._no_longer_waits(live)
        assets = live.apply(kept, ran=ran)
        metrics.stage_ended(live.model.name, live.runs[-1])
        return assets

    def _no_longer_waits(self, live: Live) -> None:
        waiting = self._waiting.get(live.next_key)
        if waiting is not None:
            waiting.discard(live)
            if not waiting:
                del self._waiting[live.next_key]
        live.next_key = ""

    def _claim(self, live: Live, key: str) -> None:
        """This job computes the stage of `key`; others wait for it.

        One that has ended claims nothing: it has let go of its keys, and would not do so again.
        """
        if not live.ended:
            self._computing.setdefault(key, live.job.id)

    def _release(self, live: Live) -> None:
        """Let others compute what this job was computing."""
        for key in [k for k, job in self._computing.items() if job == live.job.id]:
            self._computed(live, key)

    def _computed(self, live: Live, key: str) -> None:
        if self._computing.get(key) == live.job.id:
            del self._computing[key]
        for other in self._waiting.pop(key, set[Live]()):
            self._advance(other)

    # Who runs next

    def _wake(self) -> None:
        """Look for work to place, once, when the event loop comes round."""
        if self._running and not self._wake_pending:
            self._wake_pending = True
            asyncio.get_running_loop().call_soon(self._place_work)

    def _place_work(self) -> None:
        self._wake_pending = False
        while self._running:
            places = self.pool.places()
            now = time.monotonic()
            action = next_action(
                [live.ready() for live in self._queue.oldest_ready(self._may_run)],
                places,
                now,
                may_begin=self._may_begin(places),
                load_seconds=self.pool.load_seconds,
                needs_gb=self.pool.needs_gb,
            )
            if action is None:
                self._wake_when_a_place_opens([p.closed_until for p in places], now)
                return
            if isinstance(action, Start | Reserve):
                self._hand(self._queue.lives[action.job], action)
            else:
                self.pool.revoke(action.place)

    def _may_run(self, live: Live) -> bool:
        return not live.ended and live.next_key not in self._computing

    def _may_begin(self, places: Sequence[Place]) -> int:
        """How many jobs may still start preparing: CPU stages look ahead by one per GPU slot.

        Where workers take turns on a device it is by a batch.
        """
        gpu = [p for p in places if p.slots - {"cpu"}]
        handed = [self._queue.lives.get(job) for p in places for job in (p.running, p.reserved)]
        begun = len(self._queue.processing) + sum(1 for live in handed if live and live.begins)
        batches = BATCH * sum(place.crowded for place in gpu)
        return len(gpu) + len({slot for p in gpu for slot in p.slots - {"cpu"}}) + batches - begun

    def _wake_when_a_place_opens(self, times: list[float], now: float) -> None:
        if self._wake_timer:
            self._wake_timer.cancel()
        later = [t for t in times if t > now]
        if later:
            loop = asyncio.get_running_loop()
            self._wake_timer = loop.call_later(min(later) - now, self._wake)

    def _hand(self, live: Live, action: Start | Reserve) -> None:
        self._claim(live, live.next_key)
        self._no_longer_waits(live)
        live.handed = True
        try:
            assignment = live.assignment(self._here, self._work)
        except KeyError:
            self._run_for(live, self._fetch(live))
            return
        if isinstance(action, Start):
            self.pool.begin(assignment, action.place, action.evict)
        else:
            self.pool.reserve(assignment, action.place)

    def _here(self, digest: str) -> Path:
        path = self._blobs.here(digest)
        if path is None:
            raise KeyError(digest)
        return path

    async def _fetch(self, live: Live) -> None:
        """Bring to this disk what it needs; then it waits for its turn again."""
        try:
            for ref in live.needed().values():
                await patiently(partial(self._blobs.path, ref.digest))
        except KeyError:
            await self._fail(live, FILE_LOST)
        else:
            self.task_returned(live.job.id)

    # What the pool tells

    def task_started(self, task: StageTask, at: float) -> None:
        live = self._of(task)
        if live:
            live.at, live.fraction, live.message, live.waits_for = task.stage, 0.0, "", ""
            if live.job.status == "queued":
                self._book.began(live, at)
            self._book.moved(live)

    def task_progressed(self, task: StageTask, fraction: float, message: str) -> None:
        live = self._of(task)
        if live and live.at == task.stage:
            live.fraction, live.message = fraction, message or live.message
            self._book.progressed(live)

    def task_logged(self, job: str, line: str) -> None:
        live = self._queue.lives.get(job)
        if live:
            self._book.logged(live, line)

    def task_finished(self, task: StageTask, event: Finished, device: str) -> None:
        live = self._of(task)
        if live:
            live.fraction = 1.0
            stage = (live.model.name, task.stage)
            earlier = [t for t in (live.publishing, self._newest.get(stage)) if t and not t.done()]
            work = self._publish(live, task, event, device, earlier)
            live.publishing = self._newest[stage] = self._run_for(live, work)

    def task_failed(self, task: StageTask, error: JobError) -> None:
        live = self._of(task)
        if live:
            self._run_for(live, self._fail(live, _with_lighter(error, live, task.stage)))

    def task_returned(self, job: str, why: JobError | None = None) -> None:
        """It did not begin; `why`: its worker could not load the model, which is tried again."""
        live = self._queue.lives.get(job)
        if live and not live.ended:
            live.handed = False
            if why:
                error = explained(why, live.model)
                live.waits_for = f"Waiting for the model, which does not load: {error.message}"
                self._book.moved(live)
            self._release(live)
            self._advance(live)

    def worker_died(self, job: str, error: JobError) -> None:
        live = self._queue.lives.get(job)
        if live is None or live.ended:
            return
        live.job = replace(live.job, worker_deaths=live.job.worker_deaths + 1)
        self._background.run(self._store.note_death(job, live.job.attempt, True))
        error = _with_lighter(error, live, live.at)
        poison = live.job.worker_deaths >= WORKER_DEATHS
        self._run_for(live, self._fail(live, error) if poison else self._resume(live))

    def places_changed(self) -> None:
        self._wake()

    def _of(self, task: StageTask) -> Live | None:
        live = self._queue.lives.get(task.id.partition("/")[0])
        return live if live and not live.ended else None

    async def _resume(self, live: Live) -> None:
        """Go on after the last stage whose outputs are kept."""
        if live.publishing:
            await asyncio.wait([live.publishing])
        live.handed, live.at, live.fraction = False, "", 0.0
        self._release(live)
        self._advance(live)

    # Publication and the end

    async def _publish(
        self,
        live: Live,
        task: StageTask,
        event: Finished,
        device: str,
        earlier: list[asyncio.Task[Any]],
    ) -> None:
        """Keep the outputs of a stage (also of a job cancelled meanwhile); then the job goes on.

        In order: after this job's stage before, and after the same stage of the jobs before.
        """
        if earlier:
            await asyncio.wait(earlier)
        if live.done == len(live.plan) or live.stage.name != task.stage:
            return
        stage = live.stage
        key = live.key_of(stage)
        self._claim(live, key)
        last = live.done + 1 == len(live.plan)
        run = self._run_of(live, event, device)
        files, manifest = await self._keep_files(live, Path(task.outputs), run, last)
        kept = self._as_kept(live, key, files, run)
        assets = self._take(live, kept, ran=True)
        end = self._end_as_completed(live, manifest) if manifest and not live.ended else None
        new = () if end else assets  # the end brings all of them, in the same commit
        durable = not live.job.relayed
        keep = self._store.keep_stage(kept, live.job.id, live.job.attempt, new, durable)
        saving = [self._background.run(keep)]  # the job goes on also where this fails
        if end:
            saving.append(asyncio.ensure_future(end))
        self._kept.add(key)  # looked up only after this job lets go of the key, so after the commit
        stays = not last and live.worker == (live.model.name, stage.worker_name)
        if stays:
            self._claim(live, live.key_of(live.stage))
        # told before the commit: a router brings them home meanwhile
        self._book.gained(live, [*assets, manifest] if manifest and end else assets)
        await asyncio.gather(*saving)
        self._computed(live, key)
        if not last and not stays:
            live.handed = False
            self._advance(live)

    async def _keep_files(
        self, live: Live, folder: Path, run: StageRun, last: bool
    ) -> tuple[dict[str, FileRef], Asset | None]:
        """The outputs of the next stage; after the last one the manifest too, in the same go."""
        blobs, stage = self._blobs_for(live.job), live.stage
        if not last:
            return await patiently(partial(publish.keep_outputs, blobs, stage, folder)), None
        job, model = live.view(), live.model
        return await patiently(partial(publish.keep_result, blobs, stage, folder, job, model, run))

    def _blobs_for(self, job: Job) -> BlobStore:
        return self._blobs.relayed if job.relayed else self._blobs

    def _run_of(self, live: Live, event: Finished, device: str) -> StageRun:
        memory = (event.peak_memory, event.peak_gpu_memory)
        return StageRun(live.stage.name, event.seconds, device, False, *memory)

    def _as_kept(
        self, live: Live, key: str, files: Mapping[str, FileRef], run: StageRun
    ) -> KeptStage:
        model, preset = live.model.name, str(live.job.params.get("preset", ""))
        self._estimates.add(model, run.stage, run.device, preset, run.seconds)
        return KeptStage(key, model, run.stage, live.job.owner, files, run, preset, time.time())

    async def _complete(self, live: Live) -> None:
        blobs = self._blobs_for(live.job)
        work = partial(publish.keep_manifest, blobs, live.view(), live.model)
        await self._end_as_completed(live, await patiently(work))

    async def _end_as_completed(self, live: Live, manifest: Asset) -> None:
        """Without a pause between the two: a cancel that comes first has no manifest."""
        live.assets.append(manifest)
        await self._book.finish(live, "completed")

    async def _fail(self, live: Live, error: JobError) -> None:
        """End the job as failed, with the stages before kept."""
        if live.publishing:
            await asyncio.wait([live.publishing])
        await self._end_as_failed(live, error)

    async def _end_as_failed(self, live: Live, error: JobError) -> None:
        """What it was making goes first: it may be what fills the disk, and the end needs room."""
        await asyncio.to_thread(_clear, self._work / live.job.id)
        await self._book.finish(live, "failed", error)

    async def _clear_work(self, live: Live) -> None:
        if live.publishing:
            await asyncio.wait([live.publishing])
        await asyncio.to_thread(_clear, self._work / live.job.id)

    def _run_for(self, live: Live, work: Any) -> asyncio.Task[Any]:
        """Run `work` in the background; an error in it ends the job."""

        async def failed(error: Exception) -> None:
            await self._end_as_failed(live, _job_error(error))

        return self._background.run(work, failed)


def _with_lighter(error: JobError, live: Live, stage: str) -> JobError:
    """In the declaration's words; out of memory: with what it knows to need less."""
    error = explained(error, live.model)
    lighter = next((s.lighter for s in live.model.stages if s.name == stage), "")
    if error.code != "out_of_memory" or not lighter:
        return error
    return replace(error, hint=f"{lighter} Or use a device with more memory.")


def _job_error(error: Exception) -> JobError:
    if isinstance(error, Problem):
        return JobError(error.code(), error.message, error.hint)
    if isinstance(error, publish.MissingOutput):
        return JobError(
            "upstream_failure", f"The model left no {error}.", "Report this with the picture."
        )
    publish.log.error("a job failed on our side", exc_info=error)
    return JobError("internal", "An internal error ended this job.", "See the server's log.")


def _clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
