"""An unfinished job as the engine holds it: what is done, what comes next, how far it is."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path

from polypod.jobs.job import Asset, FileRef, Job, KeptStage, StageRun
from polypod.jobs.publish import output_assets
from polypod.jobs.schedule import Ready, WorkerKey
from polypod.model import Model, Stage
from polypod.workers.pool import Assignment
from polypod.workers.worker import StageTask

LOG_LINES = 200


@dataclass(eq=False)
class Live:
    job: Job
    model: Model
    plan: tuple[Stage, ...]
    done: int = 0
    """How many stages of the plan have their outputs kept."""
    files: dict[str, FileRef] = field(default_factory=dict[str, FileRef])
    """What the coming stages can read: inputs, then outputs, by file name."""
    assets: list[Asset] = field(default_factory=list[Asset])
    runs: list[StageRun] = field(default_factory=list[StageRun])
    keys: set[str] = field(default_factory=set[str])
    """Keys of the stages done: retention leaves them alone."""
    kept: list[KeptStage] = field(default_factory=list[KeptStage])
    """The stages done, in order."""
    next_key: str = ""
    """Key of the stage to do next; empty while it is not known or is in a worker's hands."""
    ready_since: float = 0.0
    handed: bool = False
    """A worker has it, running or reserved."""
    ended: bool = False
    tries: int = 0
    at: str = ""
    """The stage that runs now."""
    fraction: float = 0.0
    message: str = ""
    waits_for: str = ""
    """What keeps it from going on though it is its turn, in words."""
    progress_sent: float = 0.0
    log: deque[str] = field(default_factory=lambda: deque[str](maxlen=LOG_LINES))
    publishing: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, job: Job, model: Model) -> Live:
        inputs = [a for a in job.assets if a.kind == "input"]
        plan = model.plan(job.params, job.until, job.inputs)
        return cls(job, model, plan, files=dict(job.inputs), assets=inputs)

    @property
    def order(self) -> tuple[int, int]:
        return (-self.job.priority, self.job.seq)

    @property
    def stage(self) -> Stage:
        """The stage to do next."""
        return self.plan[self.done]

    @property
    def worker(self) -> WorkerKey:
        return (self.model.name, self.stage.worker_name)

    @property
    def group(self) -> Hashable:
        """Jobs of one group wait in one line."""
        if self.ended or self.done >= len(self.plan):
            return None
        return (self.stage.slot, self.worker, self.begins)

    @property
    def begins(self) -> bool:
        """Whether starting it only prepares work for another slot."""
        ahead = self.stage.slot == "cpu" and any(s.slot != "cpu" for s in self.plan)
        return self.job.status == "queued" and ahead

    def ready(self) -> Ready:
        return Ready(
            self.job.id, self.order, self.stage.slot, self.worker, self.ready_since, self.begins
        )

    def key_of(self, stage: Stage) -> str:
        digests = {name: self.files[name].digest for name in stage.inputs if name in self.files}
        return self.model.stage_key(stage, digests, self.job.params, self.job.owner)

    def apply(self, kept: KeptStage, *, ran: bool) -> list[Asset]:
        """Take the outputs of the next stage as done; returns the assets that came with it."""
        stage = self.stage
        self.files.update(kept.files)
        self.keys.add(kept.key)
        self.kept.append(kept)
        self.runs.append(kept.run if ran else replace(kept.run, kept=True))
        assets = output_assets(stage, kept.files)
        self.assets.extend(assets)
        self.done += 1
        return assets

    def assignment(self, blob: Callable[[str], Path], work: Path) -> Assignment:
        """The `chain`, each of its stages reading the folder before it."""
        self.tries += 1
        paths = {name: str(blob(ref.digest)) for name, ref in self.needed().items()}
        tasks: list[StageTask] = []
        for stage in self.chain:
            name = f"{stage.name}.{self.job.attempt}.{self.tries}"
            folder = work / self.job.id / name
            tasks.append(
                StageTask(
                    id=f"{self.job.id}/{name}",
                    chain=f"{self.job.id}.{self.tries}",
                    stage=stage.name,
                    inputs={n: paths[n] for n in stage.inputs if n in paths},
                    outputs=str(folder),
                    params=stage.handed(self.job.params),
                    limit_s=stage.limit_s,
                    silence_s=stage.silence_s,
                )
            )
            paths.update({n: str(folder / n) for n in stage.outputs})
        return Assignment(self.job.id, self.worker, tuple(tasks), self.job.trace)

    @property
    def chain(self) -> list[Stage]:
        """The next stages that one worker can do in a row."""
        slot, worker = self.stage.slot, self.stage.worker_name
        coming = self.plan[self.done :]
        return list(takewhile(lambda s: (s.slot, s.worker_name) == (slot, worker), coming))

    def needed(self) -> dict[str, FileRef]:
        """Those of its files that the next stages read."""
        names = {name for stage in self.chain for name in stage.inputs}
        return {name: ref for name, ref in self.files.items() if name in names}

    @property
    def progress(self) -> float:
        """0 to 100, by the shares of the stages done and of the one that runs."""
        total = sum(s.share for s in self.plan) or 1.0
        done = sum(s.share for s in self.plan[: self.done])
        names = [s.name for s in self.plan]
        if self.at in names[self.done :]:
            index = names.index(self.at)
            done = sum(s.share for s in self.plan[:index]) + self.plan[index].share * self.fraction
        return round(100 * min(done / total, 1.0), 1)

    def view(self) -> Job:
        """The job with what is known of it so far."""
        return replace(
            self.job,
            assets=tuple(self.assets),
            stages=tuple(self.runs),
            log="\n".join(self.log),
        )
