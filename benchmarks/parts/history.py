"""Whether 10 000 kept jobs make anything slower than in a fresh store."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

from benchmarks.contestants import Contestant, order, polypod
from benchmarks.figures import Row, at
from benchmarks.models.stub.model import MODEL
from benchmarks.parts.busy import queued
from benchmarks.wire import per_second
from polypod.jobs.job import Asset, FileRef, Job, KeptStage, StageRun, new_id
from polypod.jobs.store.store import Store
from polypod.model import digest_of

JOBS = 10_000
FEW = 110
"""What the other store has: enough for a full page and for an old job in every round."""
ROUNDS = 100
ROUND_S = 1.5
PAGE = 20
WITHIN = 1.2

Times = dict[tuple[str, str], list[float]]


def run(folder: Path, share: float) -> list[Row]:
    rounds = max(int(ROUNDS * share), 10)
    for each in ("fresh", "full"):
        (folder / each / "data").mkdir(parents=True)
    old = {
        each: asyncio.run(_fill(folder / each / "data", count))
        for each, count in (("fresh", FEW), ("full", max(int(JOBS * share), 10 * FEW)))
    }
    times: Times = defaultdict(list)
    for number in range(4):
        for each in ("fresh", "full"):
            with polypod(folder / each) as server:
                if number:  # the first start makes the schema
                    times[each, "start"].append(server.server.started_in_s)
    with ExitStack() as stack:
        both = {each: stack.enter_context(polypod(folder / each)) for each in ("fresh", "full")}
        for number in range(rounds + 5):
            for each, server in both.items():
                measured = _job(server, old[each][number])
                if number >= 5:  # the first ones warm up
                    for what, seconds in measured.items():
                        times[each, what].append(1000 * seconds)
        for number in range(6):
            for each, server in both.items():
                rate = _status_rate(server)
                busy = queued(server, max(int(100 * share), 20), 0.02)
                if number:
                    times[each, "status"].append(rate)
                    times[each, "busy"].append(busy)
        for each, server in both.items():
            times[each, "memory"].append(server.server.memory_mib()[0])
    return _rows(times)


def _rows(times: Times) -> list[Row]:
    peer = f"polypod, {FEW} kept jobs"

    def row(what: str, unit: str, figure: str, share: float = 0.5) -> Row:
        ours, theirs = (at(share, times[each, figure]) for each in ("full", "fresh"))
        if figure in ("status", "busy"):
            return Row(what, unit, ours, theirs, peer, least_ratio=1 / WITHIN)
        return Row(what, unit, ours, theirs, peer, most_ratio=WITHIN)

    return [
        row("submit, p50", "ms", "submit"),
        row("submit, p90", "ms", "submit", 0.9),
        row("submitted until done, by events", "ms", "done"),
        row("status of an old job, p50", "ms", "status of one"),
        row("first page of the history, p50", "ms", "page"),
        row("status", "requests/s", "status"),
        row("100 jobs of 20 ms", "share", "busy"),
        row("start to the first good /health", "s", "start"),
        row("memory of the server processes", "MiB", "memory"),
    ]


def _job(each: Contestant, old: str) -> dict[str, float]:
    """Seconds that one job takes in its parts, then those of looking at the history."""
    with each.wire() as wire, each.wire() as other:
        for line in (wire, other):
            line.ask("GET", "/readyz")
        body = order()
        begin = time.perf_counter()
        job = each.submit(wire, body)
        accepted = time.perf_counter()
        for event in other.events(f"/job/{job}/events"):
            if event.get("status") == "completed":
                break
        done = time.perf_counter()
        page = wire.json("GET", f"/jobs?limit={PAGE}")["jobs"]
        listed = time.perf_counter()
        wire.json("GET", f"/job/{old}")
        shown = time.perf_counter()
    assert len(page) == PAGE
    return {
        "submit": accepted - begin,
        "done": done - begin,
        "page": listed - done,
        "status of one": shown - listed,
    }


def _status_rate(each: Contestant) -> float:
    with each.wire() as wire:
        job = wire.json("GET", "/jobs?limit=1")["jobs"][0]["job_id"]
    return per_second(each.server.port, f"/job/{job}", ROUND_S, 8)


async def _fill(data: Path, count: int) -> list[str]:
    """Finished jobs with their files and kept stages, as the engine leaves them; their ids."""
    store = await Store.open(f"sqlite:///{data}/polypod.db")
    begin = time.time() - count
    ids: list[str] = []
    for first in range(0, count, 200):
        numbers = range(first, min(first + 200, count))
        ids += await asyncio.gather(*(_keep(store, number, begin + number) for number in numbers))
    await store.close()
    return ids


async def _keep(store: Store, number: int, at: float) -> str:
    given, made, manifest = (
        FileRef(digest_of([number, name]), 1000, "application/octet-stream")
        for name in ("image", "model.bin", "manifest.json")
    )
    params = MODEL.resolve({"seed": number})
    assets = (Asset("image", given, "input"),)
    new = Job(new_id(), MODEL.name, "", {"image": given}, params, at, assets=assets)
    job = await store.submit(new, 1000)
    await store.start(job.id, 0, at)
    stage = MODEL.stage("work")
    ran = StageRun(stage.name, 0.02, "cpu", False)
    key = MODEL.stage_key(stage, {"image": given.digest}, params, "")
    kept = KeptStage(key, MODEL.name, stage.name, "", {"model.bin": made}, ran, "", at)
    output = Asset("model.bin", made, "output", stage.name)
    await store.keep_stage(kept, job.id, 0, [output])
    end = Asset("manifest.json", manifest, "manifest")
    fields = {"status": "completed", "started_at": at, "finished_at": at + 0.02}
    await store.finish(
        Job(**{**vars(job), **fields, "stages": (ran,), "assets": (*assets, output, end)})
    )
    return job.id
