"""Runs a model's stages through the real harness, in real child processes, without a server."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polypod.image import Home
from polypod.jobs.job import JobError
from polypod.model import Model, Stage
from polypod.workers.spec import spec_of
from polypod.workers.worker import (
    Cancelled,
    Died,
    Event,
    Failed,
    Finished,
    LoadFailed,
    Log,
    Progress,
    StageTask,
    Started,
    Worker,
)

DEADLINE_S = 60


@dataclass
class Ran:
    """What came of a job: its files by name, and the error that ended it, if one did."""

    files: dict[str, Path] = field(default_factory=dict[str, Path])
    error: JobError | None = None
    failed_in: str = ""
    progress: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    """By stage: fraction and message."""
    log: list[str] = field(default_factory=list[str])


class Harnessed:
    """A worker process for each worker of the model, started when a stage asks for it."""

    def __init__(self, model: Model, folder: Path, env: Mapping[str, str]) -> None:
        self.model = model
        self.folder = folder
        self.env = dict(env)
        self.workers: dict[str, Worker] = {}
        self._events: list[tuple[Worker, Event]] = []
        self._heard = asyncio.Event()
        self._jobs = 0
        self._on_gpu = {s.worker_name for s in model.stages if s.slot != "cpu"}

    async def run(self, inputs: Mapping[str, Path], until: str = "", **given: Any) -> Ran:
        """Runs the planned stages of a job with these parameters, each as declared."""
        params, ran = self.model.resolve(given), Ran(dict(inputs))
        self._jobs += 1
        for stage in self.model.plan(params, until, inputs):
            outputs = self.folder / f"job{self._jobs}" / stage.name
            await self._stage(stage, params, outputs, ran)
            if ran.error:
                ran.failed_in = stage.name
                break
            made = {path.name: path for path in outputs.iterdir()}
            left_out = set(stage.outputs) - set(stage.optional) - set(made)
            assert not left_out, f"{stage.name} did not write {left_out}"
            assert set(made) <= set(stage.outputs), f"{stage.name} wrote {set(made)}"
            ran.files |= made
        return ran

    async def _stage(self, stage: Stage, params: Any, outputs: Path, ran: Ran) -> None:
        worker = await self._worker(stage.worker_name)
        inputs = {name: self._blob(ran.files[name]) for name in stage.inputs if name in ran.files}
        handed = stage.handed(params)
        task = f"{self._jobs}/{stage.name}"
        worker.run(StageTask(task, "", stage.name, inputs, str(outputs), handed, stage.limit_s))
        end = await self._end(worker, task)
        events = [event for teller, event in self._events if teller is worker]
        if isinstance(end, Died) and not any(isinstance(e, Started | LoadFailed) for e in events):
            self._events.clear()  # it was leaving because of the task before
            return await self._stage(stage, params, outputs, ran)
        if isinstance(end, Failed):
            ran.error = end.error
        elif isinstance(end, Died):
            load = next((event for event in events if isinstance(event, LoadFailed)), None)
            ran.error = load.error if load else JobError("died", end.reason, end.last_words)
        told = [e for e in events if isinstance(e, Progress) and e.task == task]
        ran.progress[stage.name] = [(e.fraction, e.message) for e in told]
        ran.log += [e.line for e in events if isinstance(e, Log)]
        self._events.clear()

    async def _worker(self, name: str) -> Worker:
        worker = self.workers.get(name)
        if worker is None or not worker.alive:
            spec = spec_of(
                self.model,
                name,
                Home(self.folder),
                python=sys.executable,
                device="cuda:0" if name in self._on_gpu else "cpu",
                env=self.env,
            )
            worker = self.workers[name] = Worker(spec, self._hear, self.folder / "pids")
            await worker.start()
        return worker

    def _blob(self, path: Path) -> str:
        """The file as a job has it: its name tells nothing of what is in it."""
        blobs = self.folder / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blob)
        return str(blob)

    def _hear(self, worker: Worker, event: Event) -> None:
        self._events.append((worker, event))
        self._heard.set()

    async def _end(self, worker: Worker, task: str) -> Event:
        """The event that ended the task. Output that was printed before it has come by then."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            for teller, event in self._events:
                if isinstance(event, Finished | Failed | Cancelled) and event.task == task:
                    return event
                if isinstance(event, Died) and teller is worker:
                    return event
            assert time.monotonic() < deadline, self._events[-20:]
            self._heard.clear()
            try:
                await asyncio.wait_for(self._heard.wait(), 1)
            except asyncio.TimeoutError:
                continue

    async def stop(self) -> None:
        for worker in self.workers.values():
            await worker.stop()


@asynccontextmanager
async def harnessed(model: Model, folder: Path, env: Mapping[str, str]) -> AsyncIterator[Harnessed]:
    """The model's workers with this environment; stopped at the end."""
    running = Harnessed(model, folder, env)
    try:
        yield running
    finally:
        await running.stop()
