"""How long it takes until a job is accepted: idle, and in a burst.

A burst is 200 jobs of 20 ms, sent on 16 connections, on each as soon as the one before is accepted.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.contestants import Contestant, order, polypod, task, threads
from benchmarks.figures import Row, at, median
from benchmarks.servers import until
from benchmarks.wire import Wire, together

ROUNDS = 150
BURST = 200
BURSTS = 3
JOB_S = 0.02
CONNECTIONS = 16


def run(folder: Path, share: float) -> list[Row]:
    with ExitStack() as stack:
        everyone = [
            stack.enter_context(serve(folder / serve.__name__))
            for serve in (polypod, task, threads)
        ]
        idle = _idle(stack, everyone, max(int(ROUNDS * share), 10))
        bursts: dict[str, list[float]] = {each.name: [] for each in everyone}
        for number in range(BURSTS + 1):
            for each in everyone:
                times = _burst(each, max(int(BURST * share), 50) if number else 20)
                bursts[each.name] += times if number else []
    rows: list[Row] = []
    for peer in everyone[1:]:
        ours, theirs = idle["polypod"], idle[peer.name]
        is_task = peer.name == "BentoML task"
        rows += [
            Row("idle, p50", "ms", median(ours), median(theirs), peer.name, most=5,
                most_ratio=1 if is_task else None),
            Row("idle, p99", "ms", at(0.99, ours), at(0.99, theirs), peer.name, most=20),
            Row(f"burst of {BURST}, p99", "ms", at(0.99, bursts["polypod"]),
                at(0.99, bursts[peer.name]), peer.name, most=50),
        ]  # fmt: skip
    return rows


def _idle(stack: ExitStack, everyone: list[Contestant], rounds: int) -> dict[str, list[float]]:
    """Milliseconds per submit; each job has ended before the next is submitted."""
    wires = {each.name: stack.enter_context(each.wire()) for each in everyone}
    times: dict[str, list[float]] = {each.name: [] for each in everyone}
    for number in range(rounds + 5):
        for each in everyone:
            body, wire = order(size_bytes=1000), wires[each.name]
            begin = time.perf_counter()
            job = each.submit(wire, body)
            spent = time.perf_counter() - begin
            until(lambda: each.ended(wire, job), 30)  # noqa: B023
            if number >= 5:  # the first ones warm up
                times[each.name].append(1000 * spent)
    return times


def _burst(each: Contestant, count: int) -> list[float]:
    """Milliseconds per submit of `count` jobs, as fast as they are taken; all have ended then."""
    requests = [("POST", each.submit_path, order(JOB_S)) for _ in range(count)]
    before = _ended_runs(each)
    times = together(each.server.port, requests, CONNECTIONS)
    until(lambda: _ended_runs(each) == before + count, 60, every_s=0.05)
    with Wire(each.server.port) as wire:
        until(lambda: _quiet(each, wire), 60, every_s=0.05)
    return [1000 * seconds for seconds in times]


def _ended_runs(each: Contestant) -> int:
    log = each.server.stub_log
    return log.read_text().count("end ") if log.exists() else 0


def _quiet(each: Contestant, wire: Wire) -> bool:
    """Whether polypod has published everything; the others have when their runs have ended."""
    if each.name != "polypod":
        return True
    queue = wire.json("GET", "/queue")
    return queue["queued"] + queue["processing"] == 0
