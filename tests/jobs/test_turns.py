"""Two slots: a pipeline on two devices, and workers that take turns on one which is too small.

What is counted are loads of real worker processes and the order of their stages, not time.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.models.relay.model import MODEL
from benchmarks.parts.pipeline import TOOL
from polypod.jobs.engine import Engine, Submission
from polypod.jobs.schedule import BATCH
from polypod.settings import Settings

JOBS = 20
LIMIT_S = 60


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the workers note what they do. The machine seems to have a GPU of 24 GB."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(TOOL)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("STUB_LOG", str(tmp_path / "stub.log"))
    return tmp_path / "stub.log"


def run_all(folder: Path, log: Path, slots: dict[str, str], **params: Any) -> list[dict[str, Any]]:
    """Submits a backlog, checks every result, and gives what the workers noted."""

    async def main() -> list[str]:
        engine = Engine([MODEL], Settings(data=folder / "data", slots=slots, max_queue_size=JOBS))
        await engine.start()
        try:
            await loaded(engine, slots)
            jobs = [await submit(engine, number, params) for number in range(JOBS)]
            await asyncio.wait_for(asyncio.gather(*(ended(engine, job) for job in jobs)), LIMIT_S)
            for number, job in enumerate(jobs):
                asset, path = await engine.asset(await engine.job(job, None), "model.bin")
                assert path.read_bytes().startswith(b"picture %d " % number), asset
            return jobs
        finally:
            await engine.stop()

    jobs = asyncio.run(main())
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [{**line, "job": jobs.index(line["job"])} if "job" in line else line for line in lines]


async def loaded(engine: Engine, slots: dict[str, str]) -> None:
    """Until every worker that fits is there."""
    for _ in range(LIMIT_S * 50):
        if len(engine.runner.pool.load_seconds) > len(set(slots.values())):  # and that of the CPU
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the workers do not load")


async def submit(engine: Engine, number: int, params: dict[str, Any]) -> str:
    image = engine.blobs.put_bytes(b"picture %d" % number, "image/png", "photo.png")
    resolved = MODEL.resolve({"shape_s": 0.02, "paint_s": 0.01, **params})
    files = {"image": image}
    return (await engine.submit(Submission("relay", files, files, resolved))).id


async def ended(engine: Engine, job_id: str) -> None:
    async def snapshot(job: str) -> dict[str, Any]:
        return engine.describe(await engine.job(job, None))

    async for _ in engine.events.stream([job_id], snapshot):
        pass
    assert (await engine.job(job_id, None)).status == "completed"


@pytest.mark.parametrize("prepare", [False, True])
def test_on_one_device_workers_take_turns_by_batches(
    tmp_path: Path, log: Path, prepare: bool
) -> None:
    slots = {"geometry": "cuda:0", "texture": "cuda:0"}
    noted = run_all(tmp_path, log, slots, prepare=prepare)
    on_gpu = [line.get("load", line.get("stage")) for line in noted]
    loads = [name for name in on_gpu if name in ("geometry", "texture")]
    assert loads[:2] == ["geometry", "texture"] and len(loads) <= 6
    for stage in ("shape", "paint"):
        done = [line["job"] for line in noted if line.get("stage") == stage]
        assert sorted(done) == list(range(JOBS))
    first = next(n for n, line in enumerate(noted) if line.get("stage") == "paint")
    assert sum(line.get("stage") == "shape" for line in noted[:first]) <= BATCH


def test_on_two_devices_each_worker_stays(tmp_path: Path, log: Path) -> None:
    slots = {"geometry": "cuda:1", "texture": "cuda:2"}
    noted = run_all(tmp_path, log, slots, shape_s=0.08)
    loads = sorted(line["load"] for line in noted if "load" in line)
    assert loads == ["cpu", "geometry", "texture"]
    shapes = {line["job"]: line for line in noted if line.get("stage") == "shape"}
    paints = {line["job"]: line for line in noted if line.get("stage") == "paint"}
    assert list(shapes) == list(paints) == list(range(JOBS))
    assert all(paints[n]["began"] >= shapes[n]["ended"] for n in range(JOBS))
    assert shapes[JOBS - 1]["began"] > paints[0]["began"], "no job waits for all shapes"
