"""How fast 200 MB are downloaded, and what that costs in memory."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.contestants import Contestant, order, polypod, threads
from benchmarks.figures import Row, median
from benchmarks.servers import MIB, until

ROUNDS = 6
SIZE = 200_000_000


def run(folder: Path, share: float) -> list[Row]:
    with ExitStack() as stack:
        everyone = [
            stack.enter_context(serve(folder / serve.__name__)) for serve in (polypod, threads)
        ]
        jobs = {each.name: _made(each) for each in everyone}
        speeds: dict[str, list[float]] = {each.name: [] for each in everyone}
        before = _rss(everyone[0])
        highest = before
        for number in range(max(int(ROUNDS * share), 2) + 1):
            for each in everyone:
                speed = _download(each, jobs[each.name])
                if number:  # the first ones warm up
                    speeds[each.name].append(speed)
            highest = max(highest, _rss(everyone[0]))
    ours, theirs = (median(speeds[each.name]) for each in everyone)
    return [
        Row("download of 200 MB", "MB/s", ours, theirs, "thread queue", least_ratio=0.8),
        Row("memory after it", "MiB", highest, before, "polypod before it", most_ratio=1.1),
    ]


def _made(each: Contestant) -> str:
    with each.wire() as wire:
        job = each.submit(wire, order(size_bytes=SIZE))
        until(lambda: each.ended(wire, job), 120, 0.05)
        return job


def _download(each: Contestant, job: str) -> float:
    """MB per second."""
    with each.wire() as wire:
        wire.ask("GET", "/health")
        begin = time.perf_counter()
        size = each.fetch(wire, job)
        return size / (time.perf_counter() - begin) / 1e6


def _rss(each: Contestant) -> float:
    return each.server.api().memory_info().rss / MIB
