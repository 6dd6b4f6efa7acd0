"""The workers of this pod: which live where, what they run, and when they end.

A lane is one place of the schedule: a device (one of `MAX_CONCURRENT` parts of it) that runs one
task at a time. Several workers may be resident in a lane; two slots on one device share its lanes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from polypod import metrics, tracing
from polypod.background import Background
from polypod.image import Home
from polypod.jobs.job import JobError
from polypod.jobs.schedule import BATCH, Place, WorkerKey
from polypod.model import KIT, Model
from polypod.settings import Settings
from polypod.workers import events as e
from polypod.workers.devices import VISIBLE, visible_as
from polypod.workers.process import end_leftovers
from polypod.workers.spec import spec_of
from polypod.workers.worker import StageTask, Worker

log = logging.getLogger("polypod.workers")

BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""How long a lane stays closed after so many deaths in a row."""
FREE_S = 1.0
"""A lane without a task for so long has nothing better to do than to load what did not load."""


@dataclass(frozen=True)
class Assignment:
    """Consecutive stages of one job for one worker."""

    job: str
    worker: WorkerKey
    tasks: tuple[StageTask, ...]
    trace: str = ""
    """The job's."""


class Listener(Protocol):
    """What the engine is told. Nothing here may block or raise."""

    def task_started(self, task: StageTask, at: float) -> None: ...
    def task_progressed(self, task: StageTask, fraction: float, message: str) -> None: ...
    def task_logged(self, job: str, line: str) -> None: ...
    def task_finished(self, task: StageTask, event: e.Finished, device: str) -> None: ...
    def task_failed(self, task: StageTask, error: JobError) -> None: ...
    def task_returned(self, job: str, why: JobError | None = None) -> None:
        """Taken back, or its worker died, before it began."""
        ...

    def worker_died(self, job: str, error: JobError) -> None:
        """The worker died while it ran this job."""
        ...

    def places_changed(self) -> None: ...


@dataclass
class _Handed:
    """An assignment in a worker's hands."""

    assignment: Assignment
    open: dict[str, StageTask]
    """Tasks that have not ended, by id."""
    worker: Worker | None = None
    """Who has it; None: it is not there yet."""
    started: bool = False
    settled: bool = False
    """Failed or cancelled: nothing more is to be told of it."""
    revoking: bool = False
    stage: str = ""
    since: float = 0.0


@dataclass
class _Lane:
    id: str
    device: str
    slots: frozenset[str]
    capacity_gb: float | None
    workers: OrderedDict[WorkerKey, Worker] = field(default_factory=OrderedDict[WorkerKey, Worker])
    leaving: list[Worker] = field(default_factory=list[Worker])
    """Told to end, so that their memory is free: nothing is loaded before they are gone."""
    running: _Handed | None = None
    reserved: _Handed | None = None
    missing: set[WorkerKey] = field(default_factory=set[WorkerKey])
    """To be loaded again when nothing runs here."""
    deaths: int = 0
    closed_until: float = 0.0
    idle_since: float = field(default_factory=time.monotonic)
    crowded: bool = False
    row: tuple[WorkerKey | None, int] = (None, 0)
    """The worker that was handed the newest tasks, and how many in a row."""

    def count(self, worker: WorkerKey) -> None:
        last, tasks = self.row
        self.row = worker, tasks + 1 if worker == last else 1

    def handed(self) -> list[_Handed]:
        return [h for h in (self.running, self.reserved) if h]

    def place(self) -> Place:
        return Place(
            id=self.id,
            slots=self.slots,
            running=self.running.assignment.job if self.running else "",
            running_worker=self.running.assignment.worker if self.running else None,
            reserved=self.reserved.assignment.job if self.reserved else "",
            revoking=bool(self.reserved and self.reserved.revoking),
            resident=tuple(self.workers),
            capacity_gb=self.capacity_gb,
            closed_until=self.closed_until,
            crowded=self.crowded,
            row_left=max(BATCH - self.row[1], 0) if self.crowded else 0,
        )


class Pool:
    """The executor of a pod: its places are lanes, its tasks are stages."""

    def __init__(
        self,
        models: Iterable[Model],
        settings: Settings,
        listener: Listener,
        device_gb: Callable[[str], float | None] = lambda device: None,
    ) -> None:
        self.settings = settings
        self.listener = listener
        self.load_seconds: dict[WorkerKey, float] = {}
        self.needs_gb: dict[WorkerKey, float] = {}
        self.load_errors: dict[WorkerKey, JobError] = {}
        self._pids = settings.data / "workers"
        self._models = {model.name: model for model in models}
        self._slots: dict[WorkerKey, str] = {}
        for model in self._models.values():
            for stage in model.stages:
                key = (model.name, stage.worker_name)
                self._slots[key] = stage.slot
                self.needs_gb[key] = model.needs.vram_gb.get(stage.worker_name, 0.0)
        self._lanes = {lane.id: lane for lane in self._make_lanes(device_gb)}
        self._background = Background()
        self._stopping = False

    def _make_lanes(self, device_gb: Callable[[str], float | None]) -> list[_Lane]:
        devices: dict[str, set[str]] = {}
        for slot in self._slots.values():
            devices.setdefault(self.settings.device(slot), set()).add(slot)
        lanes: list[_Lane] = []
        for device, slots in devices.items():
            gb, count = device_gb(device), self.settings.max_concurrent
            capacity = gb / count if gb else None
            needed = sum(self.needs_gb[key] for key, slot in self._slots.items() if slot in slots)
            crowded = capacity is not None and needed > capacity
            lanes += [
                _Lane(f"{device}/{number}", device, frozenset(slots), capacity, crowded=crowded)
                for number in range(count)
            ]
        return lanes

    async def start(self) -> None:
        """End what a dead server left behind, then load every worker that fits."""
        await asyncio.to_thread(end_leftovers, self._pids)
        for lane in self._lanes.values():
            self._background.run(self._preload(lane))
        self._background.run(self._unload_idle())

    async def stop(self) -> None:
        self._stopping = True
        await self._background.stop()
        workers = [
            w for lane in self._lanes.values() for w in (*lane.workers.values(), *lane.leaving)
        ]
        await asyncio.gather(*(worker.stop() for worker in workers))

    # What the engine asks

    def places(self) -> Sequence[Place]:
        return [lane.place() for lane in self._lanes.values()]

    def begin(self, assignment: Assignment, place: str, evict: tuple[WorkerKey, ...] = ()) -> None:
        """Run `assignment` on a free place, after ending the workers in `evict`."""
        lane = self._lanes[place]
        lane.running = handed = self._handed(assignment)
        lane.count(assignment.worker)
        self._background.run(self._begin(lane, handed, evict), partial(self._not_begun, lane))

    def reserve(self, assignment: Assignment, place: str) -> None:
        """Hand `assignment` to the worker that is busy on the place."""
        lane = self._lanes[place]
        lane.reserved = handed = self._handed(assignment)
        lane.count(assignment.worker)
        self._hand_over(lane, handed)

    def revoke(self, place: str) -> None:
        """Take back what is reserved on the place, unless it has begun by then."""
        lane = self._lanes[place]
        if lane.reserved and (worker := lane.workers.get(lane.reserved.assignment.worker)):
            lane.reserved.revoking = True
            worker.revoke(lane.reserved.assignment.tasks[0].id)

    def cancel(self, job: str) -> None:
        """Make the job's tasks end: unstarted ones at once, a running one within its grace."""
        for lane in self._lanes.values():
            for handed in lane.handed():
                if handed.assignment.job == job:
                    handed.settled |= handed.worker is None
                    for task_id in list(handed.open):
                        if handed.worker:
                            handed.worker.cancel(task_id)

    # What users are shown

    @property
    def ready(self) -> bool:
        """Whether every worker that was started has loaded when it last tried."""
        return not self.load_errors and bool(self.load_seconds)

    @property
    def loaded(self) -> bool:
        """Whether one of the model's own workers holds it."""
        loaded = {k for lane in self._lanes.values() for k, x in lane.workers.items() if x.loaded}
        return any(worker != KIT for _, worker in loaded)

    def capacity_gb(self, slot: str) -> float | None:
        """GPU memory that a worker of the slot may take; None where it is not known."""
        lanes = (lane for lane in self._lanes.values() if slot in lane.slots)
        return next((lane.capacity_gb for lane in lanes), None)

    def describe(self) -> list[dict[str, Any]]:
        """Each lane: device, slots, what it runs since when, and the memory of its workers."""
        return [
            {
                "device": lane.device,
                "slots": sorted(lane.slots),
                "vram_gb": lane.capacity_gb,
                "stage": (lane.running and lane.running.stage) or None,
                "job": lane.running.assignment.job if lane.running else None,
                "since": (lane.running and lane.running.since) or None,
                "memory_bytes": sum(worker.memory for worker in lane.workers.values()),
            }
            for lane in self._lanes.values()
        ]

    # Workers

    async def _preload(self, lane: _Lane) -> None:
        used = 0.0
        for key, slot in self._slots.items():
            if slot in lane.slots:
                used += self.needs_gb[key]
                if lane.capacity_gb is None or used <= lane.capacity_gb:
                    await self._spawn(lane, key)

    async def _spawn(self, lane: _Lane, key: WorkerKey) -> None:
        model = self._models[key[0]]
        on_gpu = lane.device.startswith("cuda")
        spec = spec_of(
            model,
            key[1],
            Home(self.settings.home / model.name),
            python=self.settings.model_python,
            device="cuda:0" if on_gpu else lane.device,
            env={VISIBLE: visible_as(lane.device) if on_gpu else ""},
            data=self.settings.data,
        )
        worker = lane.workers[key] = Worker(
            spec, lambda child, event: self._on_event(lane, key, child, event), self._pids
        )
        try:
            await worker.start()
        except Exception:
            del lane.workers[key]
            raise

    async def _begin(self, lane: _Lane, handed: _Handed, evict: tuple[WorkerKey, ...]) -> None:
        key = handed.assignment.worker
        lane.leaving += [lane.workers.pop(other) for other in evict if other in lane.workers]
        await asyncio.gather(*(worker.stop() for worker in lane.leaving))
        worker = lane.workers.get(key)
        if not handed.settled and (worker is None or not worker.alive):
            await self._spawn(lane, key)
        if handed.settled:  # cancelled meanwhile
            self._ended(lane, handed)
        else:
            self._hand_over(lane, handed)

    async def _not_begun(self, lane: _Lane, error: Exception) -> None:
        """The worker's process could not be started, as without memory or files: again later."""
        log.error("no worker can be started on %s", lane.device, exc_info=error)
        hit, lane.running, lane.reserved = lane.handed(), None, None
        for handed in hit:
            self._back_off(lane, handed.assignment.worker)
        why = JobError("worker_not_started", "The model's process could not be started.")
        for handed in hit:
            if not handed.settled:
                self.listener.task_returned(handed.assignment.job, why)
        self._changed(lane)

    def _hand_over(self, lane: _Lane, handed: _Handed) -> None:
        key = handed.assignment.worker
        lane.workers.move_to_end(key)
        handed.worker = lane.workers[key]
        for task in handed.assignment.tasks:
            handed.worker.run(task)

    async def _unload_idle(self) -> None:
        limit = self.settings.model_idle_timeout_s
        while limit:
            await asyncio.sleep(min(limit / 4, 10))
            for lane in self._lanes.values():
                if not lane.running and time.monotonic() - lane.idle_since >= limit:
                    await self._unload(lane)

    async def _unload(self, lane: _Lane) -> None:
        lane.leaving += lane.workers.values()
        lane.workers.clear()
        await asyncio.gather(*(worker.stop() for worker in lane.leaving))

    # What workers tell

    def _on_event(self, lane: _Lane, key: WorkerKey, worker: Worker, event: e.Event) -> None:
        if isinstance(event, e.Loaded):
            self.load_seconds[key] = event.seconds
            metrics.worker_loaded(*key, event.seconds)
            self.load_errors.pop(key, None)
            self.listener.places_changed()
        elif isinstance(event, e.LoadFailed):
            self.load_errors[key] = event.error
        elif isinstance(event, e.Died):
            self._on_death(lane, key, worker, event)
        elif not isinstance(event, e.Heartbeat):
            self._on_task_event(lane, event)

    def _on_task_event(self, lane: _Lane, event: e.TaskEvent) -> None:
        handed = next((h for h in lane.handed() if event.task in h.open), None)
        if handed is None:
            return
        task = handed.open[event.task or ""]
        if isinstance(event, e.Started):
            handed.started, handed.stage, handed.since = True, task.stage, event.at
            self.listener.task_started(task, event.at)
        elif isinstance(event, e.Progress):
            self.listener.task_progressed(task, event.fraction, event.message)
        elif isinstance(event, e.Log):
            self.listener.task_logged(handed.assignment.job, event.line)
        else:
            del handed.open[task.id]
            _trace(lane, handed, task, event)
            if isinstance(event, e.Finished):
                lane.deaths = 0
                self.listener.task_finished(task, event, lane.device)
            elif isinstance(event, e.Failed):
                self.listener.task_failed(task, event.error)
            handed.settled |= isinstance(event, e.Failed | e.Cancelled)
            if not handed.open:
                self._ended(lane, handed)

    def _ended(self, lane: _Lane, handed: _Handed) -> None:
        if not handed.started and not handed.settled:
            self.listener.task_returned(handed.assignment.job)
        if handed is lane.running:
            lane.running, lane.reserved = lane.reserved, None
            lane.idle_since = time.monotonic()
        elif handed is lane.reserved:
            lane.reserved = None
        self._changed(lane)

    def _changed(self, lane: _Lane) -> None:
        """Where the lane is free, what did not load is tried: a pod whose worker does not load is
        sent no job that would load it."""
        if not lane.running and not self._stopping:
            missing, lane.missing = lane.missing & self.load_errors.keys(), set()
            for key in missing:
                self._background.run(self._restart(lane, key, FREE_S))
        self.listener.places_changed()

    def _on_death(self, lane: _Lane, key: WorkerKey, worker: Worker, event: e.Died) -> None:
        if lane.workers.get(key) is worker:
            del lane.workers[key]
        if worker in lane.leaving:
            lane.leaving.remove(worker)
        hit = [h for h in lane.handed() if h.worker is worker]
        for handed in hit:
            if handed is lane.running:
                lane.running = None
            else:
                lane.reserved = None
        if not event.expected:
            metrics.worker_died(*key, event.oom)
            self._back_off(lane, key)
        for handed in hit:
            if handed.settled:
                continue
            _trace_death(lane, handed, worker, event)
            if handed.started and not event.expected:  # we stop: the job is not to blame
                self.listener.worker_died(handed.assignment.job, _death_error(event))
            else:
                why = None if worker.loaded else self.load_errors.get(key)
                self.listener.task_returned(handed.assignment.job, why)
        lane.idle_since = time.monotonic()
        self._changed(lane)

    def _back_off(self, lane: _Lane, key: WorkerKey) -> None:
        """Close the lane for a while, then load the worker again so that the next job finds it."""
        wait = BACKOFF_S[min(lane.deaths, len(BACKOFF_S) - 1)]
        lane.deaths += 1
        lane.closed_until = time.monotonic() + wait
        if not self._stopping:
            self._background.run(self._restart(lane, key, wait))

    async def _restart(self, lane: _Lane, key: WorkerKey, wait: float) -> None:
        await asyncio.sleep(wait)
        if not lane.running and key not in lane.workers:
            await self._make_room(lane, key)
        if lane.running:
            lane.missing.add(key)
        elif key not in lane.workers:
            await self._spawn(lane, key)
        self.listener.places_changed()

    async def _make_room(self, lane: _Lane, key: WorkerKey) -> None:
        """Ends the others where they leave too little memory."""
        needed = sum(self.needs_gb[each] for each in (*lane.workers, key))
        if lane.capacity_gb is not None and needed > lane.capacity_gb:
            await self._unload(lane)

    def _handed(self, assignment: Assignment) -> _Handed:
        return _Handed(assignment, {task.id: task for task in assignment.tasks})


def _trace(lane: _Lane, handed: _Handed, task: StageTask, event: e.TaskEvent) -> None:
    """The span of a stage that has ended; one that was taken back never began."""
    if isinstance(event, e.Revoked) or handed.stage != task.stage:
        return
    worker = lane.workers.get(handed.assignment.worker)
    error = event.error.code if isinstance(event, e.Failed) else ""
    error = "cancelled" if isinstance(event, e.Cancelled) else error
    end = event.at if isinstance(event, e.Finished) else time.time()
    _trace_stage(lane, handed, worker, end, error)


def _trace_death(lane: _Lane, handed: _Handed, worker: Worker, event: e.Died) -> None:
    if any(task.stage == handed.stage for task in handed.open.values()):
        _trace_stage(lane, handed, worker, time.time(), event.reason)


def _trace_stage(
    lane: _Lane, handed: _Handed, worker: Worker | None, end: float, error: str
) -> None:
    model, name = handed.assignment.worker
    about: dict[str, str | int] = {
        "polypod.model": model,
        "polypod.stage": handed.stage,
        "polypod.worker": name,
        "polypod.worker.pid": worker.pid or 0 if worker else 0,
        "polypod.device": lane.device,
    }
    trace, stage = handed.assignment.trace, f"stage {handed.stage}"
    tracing.span(trace, stage, handed.since, end, about, error)


def _death_error(event: e.Died) -> JobError:
    if event.oom:
        return JobError(
            "out_of_memory",
            "The model's process was ended by the system for want of memory.",
            "Use a lighter preset or a smaller picture, or give the pod more memory.",
        )
    words = f" Last words: {event.last_words}" if event.last_words else ""
    return JobError(
        "worker_died",
        f"The model's process died ({event.reason}).{words}",
        "Try again; if it happens with the same picture each time, report the picture.",
    )
