"""How busy eight endpoints are kept by the router while more work waits.

The share of each is taken over the time in which all had work: from the last first begin to the
first last end.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.contestants import Contestant, order
from benchmarks.figures import Row, median, runs
from benchmarks.routed import fleet
from benchmarks.servers import until
from benchmarks.wire import together

PODS = 8
JOBS = 400
JOB_S = 0.2
SIZE = 100_000
CONNECTIONS = 8


def run(folder: Path, share: float) -> list[Row]:
    count = max(int(JOBS * share), 20 * PODS)
    with fleet(folder, PODS) as (routed, pods):
        _queue(routed, pods, 2 * PODS)  # warms up
        before = {pod.server.port: len(_noted(pod)) for pod in pods}
        _queue(routed, pods, count)
        found = [_noted(pod)[before[pod.server.port] :] for pod in pods]
    shares = busy_shares(found)
    what = f"{count} jobs of 200 ms on {PODS} endpoints, busy"
    return [
        Row(f"{what}: the least", "share", min(shares), least=0.98),
        Row(f"{what}: the median", "share", median(shares)),
    ]


def busy_shares(found: list[list[tuple[float, float]]]) -> list[float]:
    """Of each endpoint's runs: their share of the time in which all endpoints had work."""
    begin = max(min(b for b, _ in runs_there) for runs_there in found)
    end = min(max(e for _, e in runs_there) for runs_there in found)
    return [
        sum(max(0.0, min(e, end) - max(b, begin)) for b, e in runs_there) / (end - begin)
        for runs_there in found
    ]


def _queue(routed: Contestant, pods: list[Contestant], count: int) -> None:
    before = sum(len(_noted(pod)) for pod in pods)
    orders = [("POST", routed.submit_path, order(JOB_S, SIZE)) for _ in range(count)]
    together(routed.server.port, orders, CONNECTIONS)
    with routed.wire() as wire:
        until(lambda: not any(_open(wire.json("GET", "/queue"))), 120, 0.2)
    ran = sum(len(_noted(pod)) for pod in pods) - before
    if ran != count:
        raise RuntimeError(f"{count} jobs made {ran} runs")


def _open(queue: dict[str, int]) -> tuple[int, int]:
    return queue["queued"], queue["processing"]


def _noted(pod: Contestant) -> list[tuple[float, float]]:
    return runs(pod.server.stub_log) if pod.server.stub_log.exists() else []
