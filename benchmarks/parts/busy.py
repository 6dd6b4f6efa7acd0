"""How busy the device is kept while every result is fetched as soon as it is there."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

from benchmarks.contestants import Contestant, bare, order, polypod, task, threads
from benchmarks.figures import Row, busy_share, median, runs
from benchmarks.servers import until

SHORT, LONG = 200, 60
SHORT_S, LONG_S = 0.02, 0.2
ROUNDS = 3
FETCH_EVERY_S = 0.02


def run(folder: Path, share: float) -> list[Row]:
    with ExitStack() as stack:
        ours, bentoml_task, plain, thread_queue = (
            stack.enter_context(serve(folder / serve.__name__))
            for serve in (polypod, task, bare, threads)
        )
        short, long = int(SHORT * share), max(int(LONG * share), 10)
        shares: dict[str, list[float]] = {}
        for number in range(ROUNDS + 1 if share == 1 else 2):
            count = short if number else 20
            measured = {
                "polypod": queued(ours, count, SHORT_S),
                "two stages": queued(ours, count, SHORT_S, stages=2),
                "BentoML task": queued(bentoml_task, count, SHORT_S),
                "bare BentoML": _all_at_once(plain, count, SHORT_S),
                "thread queue": queued(thread_queue, count, SHORT_S),
            }
            if number == 1:
                measured["long"] = queued(ours, long, LONG_S)
                measured["long, thread queue"] = queued(thread_queue, long, LONG_S)
            if number:  # the first ones warm up
                for name, value in measured.items():
                    shares.setdefault(name, []).append(value)
    middle = {name: median(values) for name, values in shares.items()}
    rows = [
        Row(f"{short} jobs of 20 ms", "share", middle["polypod"], middle[peer], peer, least=0.99)
        for peer in ("BentoML task", "bare BentoML", "thread queue")
    ]
    both = f"{short} jobs of two stages of 20 ms"
    other = middle["long, thread queue"]
    return [
        *rows,
        Row(both, "share", middle["two stages"], middle["thread queue"],
            "thread queue, one stage", least=0.99),
        Row(f"{long} jobs of 200 ms", "share", middle["long"], other, "thread queue", least=0.999),
    ]  # fmt: skip


def queued(each: Contestant, count: int, seconds: float, stages: int = 1) -> float:
    """Busy share over `count` jobs that are queued at once, each result fetched meanwhile."""
    more = {"stages": stages} if stages > 1 else {}
    before = len(_runs(each))
    jobs: list[str] = []
    fetcher = threading.Thread(target=_fetch_all, args=(each, jobs, count))
    fetcher.start()
    with each.wire() as wire:
        for _ in range(count):
            jobs.append(each.submit(wire, order(seconds, **more)))
    fetcher.join()
    return busy_share(_runs(each)[before:])


def _fetch_all(each: Contestant, jobs: list[str], count: int) -> None:
    """Fetches each result, in the order of submission, when it is there."""
    with each.wire() as wire:
        for number in range(count):
            until(lambda: len(jobs) > number, 60)  # noqa: B023
            job = jobs[number]
            until(lambda: each.ended(wire, job), 60, FETCH_EVERY_S)  # noqa: B023
            each.fetch(wire, job)


def _all_at_once(each: Contestant, count: int, seconds: float) -> float:
    """The same for answers that bring the result themselves: so many callers wait."""
    before = len(_runs(each))
    bodies = [order(seconds) for _ in range(count)]
    callers = 16

    def call(share: list[bytes]) -> None:
        with each.wire() as wire:
            for body in share:
                status, _ = wire.ask("POST", each.submit_path, body)
                if status != 200:
                    raise RuntimeError(f"{each.name}: {status}")

    waiting = [threading.Thread(target=call, args=(bodies[i::callers],)) for i in range(callers)]
    for caller in waiting:
        caller.start()
    for caller in waiting:
        caller.join()
    return busy_share(_runs(each)[before:])


def _runs(each: Contestant) -> list[tuple[float, float]]:
    return runs(each.server.stub_log) if each.server.stub_log.exists() else []
