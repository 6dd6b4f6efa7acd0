"""What serving adds to a job of 20 ms: until it is known to be done, and until 2 MB are in hand."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

from benchmarks.contestants import Contestant, bare, order, polypod, task, threads
from benchmarks.figures import Row, median, runs
from benchmarks.servers import until
from benchmarks.wire import Wire

ROUNDS = 50
JOB_S = 0.02
POLL_S = 0.002

Times = dict[tuple[str, str], list[float]]


def run(folder: Path, share: float) -> list[Row]:
    with ExitStack() as stack:
        ours, bentoml_task, plain, thread_queue = (
            stack.enter_context(serve(folder / serve.__name__))
            for serve in (polypod, task, bare, threads)
        )
        times: Times = defaultdict(list)
        for number in range(max(int(ROUNDS * share), 5) + 3):
            if number == 3:  # the rounds before warm up
                times.clear()
            _by_events(ours, times)
            for each in (ours, bentoml_task, thread_queue):
                _by_polling(each, times)
            _in_one_answer(plain, times)
    return _rows(times)


def _rows(times: Times) -> list[Row]:
    middle = {key: median(values) for key, values in times.items()}
    done, held = middle["polypod", "events"], middle["polypod", "in hand"]
    rows = [Row("done, told by events", "ms", done, middle["BentoML task", "polling"],
                "BentoML task, polled", most=5)]  # fmt: skip
    for peer in ("BentoML task", "thread queue"):
        polled = middle["polypod", "polling"]
        rows.append(Row("done, polled", "ms", polled, middle[peer, "polling"], peer, most=10))
    for peer in ("BentoML task", "bare BentoML", "thread queue"):
        rows.append(Row("2 MB in hand", "ms", held, middle[peer, "in hand"], peer, most=12))
    return rows


def _by_events(each: Contestant, times: Times) -> None:
    body = order(JOB_S)
    with each.wire() as wire, each.wire() as other:
        for line in (wire, other):
            line.ask("GET", "/readyz")  # the connection is there
        begin = time.perf_counter()
        job = each.submit(wire, body)
        for event in other.events(f"/job/{job}/events"):
            if event.get("status") == "completed":
                break
        done = time.perf_counter()
        each.fetch(wire, job)
        held = time.perf_counter()
    times[each.name, "events"].append(_over_the_model(each, done - begin))
    times[each.name, "in hand"].append(_over_the_model(each, held - begin))


def _by_polling(each: Contestant, times: Times) -> None:
    body = order(JOB_S)
    with each.wire() as wire:
        wire.ask("GET", "/readyz")
        begin = time.perf_counter()
        job = each.submit(wire, body)
        until(lambda: each.ended(wire, job), 30, POLL_S)
        done = time.perf_counter()
        each.fetch(wire, job)
        held = time.perf_counter()
    times[each.name, "polling"].append(_over_the_model(each, done - begin))
    if each.name != "polypod":  # for us by events, which is how our clients wait
        times[each.name, "in hand"].append(_over_the_model(each, held - begin))


def _in_one_answer(each: Contestant, times: Times) -> None:
    body = order(JOB_S)
    with each.wire() as wire:
        wire.ask("GET", "/readyz")
        begin = time.perf_counter()
        _post(wire, each, body)
        held = time.perf_counter()
    times[each.name, "in hand"].append(_over_the_model(each, held - begin))


def _post(wire: Wire, each: Contestant, body: bytes) -> None:
    status, answer = wire.ask("POST", each.submit_path, body)
    if status != 200 or not answer:
        raise RuntimeError(f"{each.name}: {status} {answer[:300]!r}")


def _over_the_model(each: Contestant, seconds: float) -> float:
    """Milliseconds, without those for which the model held its device."""
    begin, end = runs(each.server.stub_log)[-1]
    return 1000 * (seconds - (end - begin))
