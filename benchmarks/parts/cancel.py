"""When a cancel frees the device, whatever the model does; when a killed worker is noticed."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil

from benchmarks.contestants import Contestant, order, polypod, task
from benchmarks.figures import Row
from benchmarks.servers import until
from benchmarks.wire import Wire

HOLD_S = 5.0
"""How long the jobs that are cancelled would take."""
ROUNDS = 2
KILLS = 5
NOTICE_LIMIT_S = 3.0


def run(folder: Path, share: float) -> list[Row]:
    with ExitStack() as stack:
        ours = stack.enter_context(polypod(folder / "polypod"))
        theirs = stack.enter_context(task(folder / "task"))
        rounds = ROUNDS if share == 1 else 1
        peer = _freed(theirs, "")
        rows = [
            Row(f"device free after a cancel, model {how}", "s",
                max(_freed(ours, deaf) for _ in range(rounds)), peer, "BentoML task", most=2)
            for how, deaf in (
                ("in a long sleep", ""),
                ("that swallows every exception", "swallow"),
                ("in native code that holds the interpreter", "native"),
            )
        ]  # fmt: skip
        noticed = max(_noticed(ours) for _ in range(KILLS if share == 1 else 1))
        never = _noticed_by_task(theirs)
    return [*rows, Row("killed worker noticed", "s", noticed, never, "BentoML task", most=1)]


def _freed(each: Contestant, deaf: str) -> float:
    """Seconds from the cancel until the model no longer runs: it has ended, or its process."""
    more = {"deaf": deaf} if each.name == "polypod" else {}
    workers = each.server.workers()
    with each.wire() as wire:
        body = order(HOLD_S, 1000, **more)
        before = _lines(each, "begin"), _lines(each, "end")
        job = each.submit(wire, body)
        until(lambda: _lines(each, "begin") > before[0], 10)
        time.sleep(0.2)
        begin = time.perf_counter()
        if each.name == "polypod":
            wire.json("POST", f"/job/{job}/cancel")
        else:
            wire.ask("PUT", f"/generate/cancel?task_id={job}")
        until(lambda: _lines(each, "end") > before[1] or _gone(workers), HOLD_S + 5)
        freed = time.perf_counter() - begin
        if each.name == "polypod":
            _works_again(each, wire)
        return freed


def _noticed(each: Contestant) -> float:
    """Seconds from the worker's `kill -9` until /health shows that it is gone."""
    with each.wire() as wire:
        job = each.submit(wire, order(0.5, 1000))
        until(lambda: each.status(wire, job) == "processing", 10)
        worker = each.server.workers()[0]
        begin = time.perf_counter()
        worker.kill()
        until(lambda: not wire.json("GET", "/health")["model_loaded"], 10, 0.001)
        noticed = time.perf_counter() - begin
        until(lambda: each.status(wire, job) == "completed", 30)
        return noticed


def _noticed_by_task(each: Contestant) -> float:
    """The same where model and server are one process: until the task's state says so."""
    with each.wire() as wire:
        job = each.submit(wire, order(1.0, 1000))
    time.sleep(0.3)
    begin = time.perf_counter()
    each.server.api().kill()

    def told() -> bool:
        with contextlib.suppress(OSError), Wire(each.server.port) as wire:
            status, answer = wire.ask("GET", each.status_path.format(job))
            return status != 200 or b"in_progress" not in answer
        return False

    return _or_never(told, begin)


def _or_never(told: Callable[[], bool], begin: float) -> float:
    try:
        until(told, NOTICE_LIMIT_S)
    except TimeoutError:
        return math.inf
    return time.perf_counter() - begin


def _works_again(each: Contestant, wire: Wire) -> None:
    job = each.submit(wire, order(0.0, 1000))
    until(lambda: each.status(wire, job) == "completed", 30)


def _lines(each: Contestant, what: str) -> int:
    log = each.server.stub_log
    return log.read_text().count(what + " ") if log.exists() else 0


def _gone(processes: list[psutil.Process]) -> bool:
    """Some process of the model has died."""
    return any(not process.is_running() for process in processes)
