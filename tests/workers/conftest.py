"""Real workers with what they told, and a check that they leave nothing behind."""

from __future__ import annotations

import asyncio
import shutil
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tqdm

from polypod.workers.worker import Event, Log, Progress, StageTask, Worker, WorkerSpec

SAMPLES = Path(__file__).with_name("samples")
DEADLINE_S = 30


def interpreters() -> list[str]:
    """One of each Python 3.8 to 3.13 that is here, by PATH and pyenv; this one first."""
    found = {f"{sys.version_info[0]}.{sys.version_info[1]}": sys.executable}
    for version in ("3.8", "3.9", "3.10", "3.11", "3.12", "3.13"):
        installed = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python"))
        on_path = shutil.which(f"python{version}")
        candidates = [str(path) for path in installed]
        if on_path and "/shims/" not in on_path:  # pyenv's shims stand for what may not be there
            candidates.append(on_path)
        if candidates:
            found.setdefault(version, candidates[0])
    return list(found.values())


@dataclass
class Watched:
    """A worker, everything that it told, and ways to wait for more."""

    folder: Path
    worker: Worker = field(init=False)
    events: list[Event] = field(default_factory=list)
    pid: int | None = None

    def __post_init__(self) -> None:
        self.changed = asyncio.Event()

    def heard(self, worker: Worker, event: Event) -> None:
        self.events.append(event)
        self.changed.set()

    def task(self, task_id: str, stage: str, chain: str = "", **more: Any) -> StageTask:
        limits = {name: more.pop(name) for name in ("limit_s", "silence_s") if name in more}
        inputs = more.pop("inputs", {})
        outputs = str(self.folder / "out" / task_id)
        return StageTask(task_id, chain, stage, inputs, outputs, more, **limits)

    def run(self, task_id: str, stage: str, chain: str = "", **more: Any) -> None:
        self.worker.run(self.task(task_id, stage, chain, **more))

    def all(self, kind: Any, task: str | None = None) -> list[Any]:
        return [
            event
            for event in self.events
            if isinstance(event, kind) and (task is None or getattr(event, "task", "") == task)
        ]

    async def until(self, kind: Any, task: str | None = None) -> Any:
        """The first such event."""
        return await self.wait(lambda: next(iter(self.all(kind, task)), None))

    async def wait(self, question: Callable[[], Any]) -> Any:
        end = time.monotonic() + DEADLINE_S
        while not (answer := question()):
            assert time.monotonic() < end, self.events[-20:]
            self.changed.clear()
            try:
                await asyncio.wait_for(self.changed.wait(), 0.1)
            except asyncio.TimeoutError:
                continue
        return answer

    def lines(self, task: str | None = None) -> list[str]:
        return [event.line for event in self.all(Log) if event.task == task]

    def fractions(self, task: str) -> list[float]:
        return [round(event.fraction, 3) for event in self.all(Progress, task)]

    def messages(self, task: str) -> list[str]:
        return [event.message for event in self.all(Progress, task)]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Starts workers; at the end they are stopped and nothing of them may be left."""
    started: list[Watched] = []
    await asyncio.to_thread(int)  # the loop's own thread is not counted below
    before = _held()

    async def starter(
        sample: str = "model",
        python: str = sys.executable,
        env: dict[str, str] | None = None,
        load_limit_s: float = 900,
        **settings: Any,
    ) -> Watched:
        watched = Watched(tmp_path)
        spec = WorkerSpec(
            model="sample",
            name="gpu",
            python=python,
            code=SAMPLES / f"{sample}.py",
            settings=settings,
            env=env or {},
            load_limit_s=load_limit_s,
        )
        watched.worker = Worker(spec, watched.heard, tmp_path / "pids")
        started.append(watched)
        await watched.worker.start()
        watched.pid = watched.worker.pid
        return watched

    yield starter
    for watched in started:
        await watched.worker.stop()
        assert not watched.worker.alive
    await asyncio.sleep(0)
    held = _held()
    assert all(after <= then for after, then in zip(held, before, strict=True)), (held, before)
    assert not list((tmp_path / "pids").glob("*"))
    assert not [watched.pid for watched in started if watched.pid and state(watched.pid)]


def _held() -> tuple[int, int, int]:
    """What a process can lose: open files, threads, tasks of the event loop."""
    files = len(list(Path("/proc/self/fd").iterdir()))
    return files, threading.active_count(), len(asyncio.all_tasks())


def state(pid: int) -> str:
    """The process's state as ps shows it; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.fixture
def ends() -> Callable[[int], bool]:
    """Whether a process ends within the deadline; whoever has it as a child may yet reap it."""

    def wait(pid: int) -> bool:
        end = time.monotonic() + DEADLINE_S
        while (left := state(pid) not in ("", "Z", "X")) and time.monotonic() < end:
            time.sleep(0.01)
        return not left

    return wait


@pytest.fixture(params=interpreters())
def python(request: pytest.FixtureRequest) -> str:
    """Every interpreter that is here."""
    return str(request.param)


@pytest.fixture
def tqdm_only(tmp_path: Path) -> dict[str, str]:
    """An environment in which any interpreter finds tqdm, which is plain Python."""
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "tqdm").symlink_to(Path(tqdm.__file__).parent)
    return {"PYTHONPATH": str(folder)}
