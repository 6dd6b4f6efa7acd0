"""How many status requests a second are answered while the model is kept busy."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.contestants import Contestant, bare, order, polypod
from benchmarks.figures import Row, busy_share, median, runs
from benchmarks.wire import per_second

ROUNDS = 4
SECONDS = 2.5
CONNECTIONS = 8
JOBS_S = {"20 ms": 0.02, "200 ms": 0.2}


def run(folder: Path, share: float) -> list[Row]:
    """The bare route is asked while nothing else runs there: its best case."""
    with ExitStack() as stack:
        ours = stack.enter_context(polypod(folder / "polypod"))
        with ours.wire() as wire:
            job = ours.submit(wire, order(0.0))
            while not ours.ended(wire, job):
                time.sleep(0.01)
            body = wire.json("GET", f"/job/{job}")
        plain = stack.enter_context(bare(folder / "bare", body))
        path = f"/job/{job}"
        seconds = max(SECONDS * share, 0.5)
        for each in (ours, plain):
            per_second(each.server.port, path, 0.5, CONNECTIONS)
        rows: list[Row] = []
        for name, job_s in JOBS_S.items():
            figures = [_round(ours, plain, path, seconds, job_s) for _ in range(ROUNDS)]
            here, there, busy = (median(values) for values in zip(*figures, strict=True))
            rows += [
                Row(f"status with jobs of {name}", "requests/s", here, there,
                    "bare BentoML route, idle", least_ratio=0.8),
                Row(f"busy meanwhile, jobs of {name}", "share", busy, least=0.95),
            ]  # fmt: skip
        return rows


def _round(
    ours: Contestant, plain: Contestant, path: str, seconds: float, job_s: float
) -> tuple[float, float, float]:
    """Our requests a second, theirs, and our model's busy share while ours were counted."""
    theirs = per_second(plain.server.port, path, seconds, CONNECTIONS)
    with ours.wire() as wire:
        for _ in range(int((seconds + 1) / job_s) + 2):
            ours.submit(wire, order(job_s))
        begin = time.monotonic()
        here = per_second(ours.server.port, path, seconds, CONNECTIONS)
        end = time.monotonic()
        for shown in wire.json("GET", "/jobs?status=queued&limit=200")["jobs"]:
            wire.ask("POST", f"/job/{shown['job_id']}/cancel")
        while wire.json("GET", "/queue")["queued"] + wire.json("GET", "/queue")["processing"]:
            time.sleep(0.02)
    inside = [(b, e) for b, e in runs(ours.server.stub_log) if begin <= b and e <= end]
    return here, theirs, busy_share(inside)
