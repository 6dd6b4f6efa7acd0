"""The pool on real worker processes: who is loaded where, and tasks on their way to a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.models.relay.model import MODEL
from polypod.jobs.job import JobError
from polypod.settings import Settings
from polypod.workers.pool import Assignment, Pool
from polypod.workers.worker import StageTask, Worker

pytestmark = pytest.mark.anyio

GEOMETRY = ("relay", "geometry")
TEXTURE = ("relay", "texture")


class Heard:
    """A listener that notes what it is told; `news` is set each time."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.news = asyncio.Event()

    def note(self, what: str, about: str = "") -> None:
        self.told.append((what, about))
        self.news.set()

    async def until(self, question: Callable[[], bool]) -> None:
        while not question():
            await asyncio.wait_for(self.news.wait(), 30)
            self.news.clear()

    def task_started(self, task: StageTask, at: float) -> None:
        self.note("started", task.id)

    def task_progressed(self, task: StageTask, fraction: float, message: str) -> None: ...
    def task_logged(self, job: str, line: str) -> None: ...

    def task_finished(self, task: StageTask, event: Any, device: str) -> None:
        self.note("finished", task.id)

    def task_failed(self, task: StageTask, error: JobError) -> None:
        self.note("failed", task.id)

    def task_returned(self, job: str, why: JobError | None = None) -> None:
        self.note("returned", job)

    def worker_died(self, job: str, error: JobError) -> None:
        self.note("died", job)

    def places_changed(self) -> None:
        self.note("places")


def pool_of(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    heard: Heard | None = None,
    log: Path | None = None,
    **slots: str,
) -> tuple[Pool, Heard]:
    """On GPUs of 24 GB each; `geometry` needs 10, `texture` 21. None loads where no log can be."""
    monkeypatch.setenv("STUB_LOG", str(log or tmp_path / "stub.log"))
    heard = heard or Heard()
    settings = Settings(data=tmp_path / "data", slots=slots)
    return Pool([MODEL], settings, heard, lambda device: 24.0 if "cuda" in device else None), heard


async def test_every_device_loads_what_fits_into_its_own_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, _ = pool_of(tmp_path, monkeypatch, geometry="cuda:0", texture="cuda:1")
    await pool.start()
    await asyncio.sleep(0)
    resident = {place.slots: place.resident for place in pool.places()}
    await pool.stop()
    assert resident[frozenset({"geometry"})] == (GEOMETRY,)
    assert resident[frozenset({"texture"})] == (TEXTURE,)


async def test_slots_on_one_device_share_its_memory_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, _ = pool_of(tmp_path, monkeypatch, geometry="cuda", texture="cuda:0")
    assert {place.slots for place in pool.places()} >= {frozenset({"geometry", "texture"})}


async def test_workers_stay_within_the_gpus_that_this_process_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-11,3")
    pool, heard = pool_of(tmp_path, monkeypatch, geometry="cuda:0", texture="cuda:1")
    await pool.start()
    await heard.until(lambda: {*pool.load_seconds} >= {GEOMETRY, TEXTURE})
    pids = [path.stem for path in (tmp_path / "data/workers").glob("*.json")]
    given = {psutil.Process(int(pid)).environ()["CUDA_VISIBLE_DEVICES"] for pid in pids}
    await pool.stop()
    assert {"GPU-11", "3"} <= given


async def test_a_task_cancelled_before_its_worker_has_it_never_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, heard = pool_of(tmp_path, monkeypatch, geometry="cuda:0", texture="cuda:0")
    await pool.start()
    await asyncio.sleep(0)
    place = next(place for place in pool.places() if "texture" in place.slots)
    picture = tmp_path / "shape.bin"
    picture.write_bytes(b"a shape")
    for job, worker in (("a", TEXTURE), ("b", TEXTURE)):
        task = StageTask(
            f"{job}/paint",
            "",
            "paint",
            {"shape.bin": str(picture)},
            str(tmp_path / job),
            {"paint_s": 0},
        )
        pool.begin(Assignment(job, worker, (task,)), place.id, (GEOMETRY,))
        if job == "a":
            pool.cancel(job)
        await heard.until(lambda: not any(each.running for each in pool.places()))
    await pool.stop()
    assert [about for what, about in heard.told if what == "started"] == ["b/paint"]


async def test_a_worker_that_cannot_be_started_gives_its_task_and_the_place_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: Worker) -> None:
        raise OSError(24, "Too many open files")

    pool, heard = pool_of(tmp_path, monkeypatch, geometry="cuda:0", texture="cuda:0")
    await pool.start()
    await asyncio.sleep(0)
    place = next(place for place in pool.places() if "texture" in place.slots)
    monkeypatch.setattr(Worker, "start", fail)
    task = StageTask("a/paint", "", "paint", {}, str(tmp_path / "a"), {})
    pool.begin(Assignment("a", TEXTURE, (task,)), place.id, (GEOMETRY,))
    await heard.until(lambda: ("returned", "a") in heard.told)
    (left,) = (each for each in pool.places() if each.id == place.id)
    assert not left.running and not left.resident
    await pool.stop()


async def test_a_worker_that_did_not_load_is_tried_again_once_its_place_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is loaded the pod is degraded, and no router sends it the job that would load it."""

    class Busy(Heard):
        def task_returned(self, job: str, why: JobError | None = None) -> None:
            """The place is taken at once, and what has failed would load now."""
            gone.rename(folder)
            pool.begin(assignment("b", GEOMETRY, "shape"), place.id)
            super().task_returned(job, why)

    def assignment(job: str, worker: tuple[str, str], stage: str) -> Assignment:
        files = {"image": str(picture), "shape.bin": str(picture)}
        times = {"shape_s": 0, "paint_s": 0}
        task = StageTask(f"{job}/{stage}", "", stage, files, str(tmp_path / job), times)
        return Assignment(job, worker, (task,))

    folder, gone, picture = tmp_path / "log", tmp_path / "gone", tmp_path / "picture"
    folder.mkdir()
    picture.write_bytes(b"a picture")
    pool, heard = pool_of(
        tmp_path, monkeypatch, Busy(), log=folder / "stub.log", geometry="cuda:0", texture="cuda:0"
    )
    await pool.start()
    await heard.until(lambda: pool.ready)
    place = next(place for place in pool.places() if "texture" in place.slots)
    folder.rename(gone)
    pool.begin(assignment("a", TEXTURE, "paint"), place.id, (GEOMETRY,))
    await heard.until(lambda: ("finished", "b/shape") in heard.told)
    await heard.until(lambda: pool.ready and TEXTURE in pool.load_seconds)
    resident = {place.slots: place.resident for place in pool.places()}
    await pool.stop()
    assert resident[place.slots] == (TEXTURE,), "both are too much for the GPU"
