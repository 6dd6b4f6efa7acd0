"""What the router adds to a job, beside a pod like its own that is asked directly.

That one is another process: its jobs must not wait for files of the router's, which a pod syncs
later. Jobs hold the device for 20 ms and leave 1 kB. `completion` is from submit until the client
is told, by events, without the time of the model. A line is what the model prints, with the time at
which it did, until a client has it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path

from benchmarks.contestants import Contestant, order, polypod
from benchmarks.figures import Row, at, median, runs
from benchmarks.routed import fleet

ROUNDS = 100
WARM_UP = 5
JOB_S = 0.02
LINES = 10
TELLING_S = 0.5

Times = dict[tuple[str, str], list[float]]


def run(folder: Path, share: float) -> list[Row]:
    times: Times = defaultdict(list)
    with polypod(folder / "own") as own, fleet(folder, 1) as (routed, (pod,)):
        for number in range(max(int(ROUNDS * share), 10) + WARM_UP):
            if number == WARM_UP:
                times.clear()
            _job(own, own, times)
            _job(routed, pod, times)
        for _ in range(max(int(ROUNDS * share / 10), 2)):
            for each in (own, routed):
                _lines(each, times)
    return [*_rows("submit", times, 5), *_rows("completion", times, 10), *_told(times)]


def _rows(what: str, times: Times, most: float) -> list[Row]:
    ours, theirs = times["router", what], times["polypod", what]
    added = median(ours) - median(theirs)
    return [
        Row(f"{what}, p50", "ms", median(ours), median(theirs), "a pod, directly"),
        Row(f"{what}, p90", "ms", at(0.9, ours), at(0.9, theirs), "a pod, directly"),
        Row(f"{what}: added by the router, p50", "ms", added, most=most),
    ]


def _told(times: Times) -> list[Row]:
    ours, theirs = times["router", "line"], times["polypod", "line"]
    return [
        Row("a line that the model prints, p50", "ms", median(ours), median(theirs),
            "a pod, directly"),
        Row("the same, slowest", "ms", max(ours), max(theirs), "a pod, directly", most=100),
    ]  # fmt: skip


def _job(each: Contestant, pod: Contestant, times: Times) -> None:
    body = order(JOB_S, size_bytes=1000)
    with each.wire() as wire, each.wire() as other:
        for line in (wire, other):
            line.ask("GET", "/readyz")  # the connection is there
        begin = time.perf_counter()
        job = each.submit(wire, body)
        submitted = time.perf_counter()
        for event in other.events(f"/job/{job}/events"):
            if event.get("status") == "completed":
                break
        done = time.perf_counter()
    started, ended = runs(pod.server.stub_log)[-1]
    times[each.name, "submit"].append(1000 * (submitted - begin))
    times[each.name, "completion"].append(1000 * (done - begin - (ended - started)))


def _lines(each: Contestant, times: Times) -> None:
    """From the model's print to the client, for each line of one job."""
    with each.wire() as wire, each.wire() as other:
        job = each.submit(wire, order(TELLING_S, size_bytes=1000, lines=LINES))
        for event in other.events(f"/job/{job}/events"):
            if "line" in event:
                times[each.name, "line"].append(1000 * (time.time() - float(event["line"])))
