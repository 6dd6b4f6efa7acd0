"""Two stages on two slots: a pipeline on two devices, taking turns on one that is too small.

Stages of 300 and 200 ms in real worker processes, with a backlog. On two devices a job should end
every 300 ms; on one with 24 GB, whose workers want 10 and 21, workers must not change at every job.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

from benchmarks.contestants import Contestant
from benchmarks.figures import Row, median
from benchmarks.servers import serve, until

BACKLOG, ROUNDS = 60, 3
SHAPE_S, PAINT_S = 0.3, 0.2
TURNS = 20
LOAD_S = 1.0
TOOL = """#!/bin/sh
case "$*" in
  *query*) echo "GPU-00, Pretended GPU, 24576, 8.6, 550.54.14" ;;
  *) echo "CUDA Version: 12.4" ;;
esac
"""
"""Stands for the driver's tool, so that the machine seems to have one GPU of 24 GB."""


def run(folder: Path, share: float) -> list[Row]:
    count = max(int(BACKLOG * share), 12)
    slots = {"POLYPOD_SLOT_GEOMETRY": "cuda:0", "POLYPOD_SLOT_TEXTURE": "cuda:1"}
    with relay(folder / "two", **slots) as two:
        shares = [_throughput(two, count, n) for n in range(1 + (ROUNDS if share == 1 else 1))]
    slots = {name: "cuda:0" for name in slots}
    tool = folder / "bin" / "nvidia-smi"
    tool.parent.mkdir(parents=True)
    tool.write_text(TOOL)
    tool.chmod(0o755)
    path = f"{tool.parent}:{os.environ['PATH']}"
    with relay(folder / "one", **slots, PATH=path, STUB_LOAD_S=str(LOAD_S)) as one:
        _finish(one, TURNS, 0)
        loads = [line for line in _log(one) if line.get("load", "cpu") != "cpu"]
    rate = median(shares[1:])  # the first warms up
    return [
        Row(f"{count} jobs on two devices, of one per 300 ms", "share", rate, least=0.98),
        Row(f"{TURNS} jobs on one device: loads of workers", "loads", len(loads), most=6),
    ]


@contextlib.contextmanager
def relay(folder: Path, **env: str) -> Generator[Contestant]:
    service = "benchmarks.models.relay.service:Relay"
    command = ("-m", "bentoml", "serve", service, "--port", "{port}")
    own = {"POLYPOD_DATA": str(folder / "data"), "MAX_QUEUE_SIZE": "1000"}
    with serve(command, folder, **(own | env)) as server:
        yield Contestant("polypod", server, "/generate", "/job/{}", "/job/{}/download")


def _throughput(each: Contestant, count: int, number: int) -> float:
    """Jobs that ended in the time between the first end and the last, of those that could have."""
    before = len(_log(each))
    _finish(each, count, number)
    ends = sorted(line["ended"] for line in _log(each)[before:] if line.get("stage") == "paint")
    return (count - 1) * SHAPE_S / (ends[-1] - ends[0])


def _finish(each: Contestant, count: int, number: int) -> None:
    """Submits all at once, and fetches each result, which must be its own picture."""
    jobs: list[str] = []
    pictures = [b"picture %d of round %d" % (n, number) for n in range(count)]
    fetcher = threading.Thread(target=_fetch_all, args=(each, jobs, count))
    fetcher.start()
    with each.wire() as wire:
        for picture in pictures:
            fields = {"image": base64.b64encode(picture).decode(), "seed": number}
            body = json.dumps(fields | {"shape_s": SHAPE_S, "paint_s": PAINT_S}).encode()
            jobs.append(each.submit(wire, body))
    fetcher.join()
    with each.wire() as wire:
        for job, picture in zip(jobs, pictures, strict=True):
            status, result = wire.ask("GET", each.result_path.format(job))
            if status != 200 or not result.startswith(picture + b" "):
                raise RuntimeError(f"the result of {picture!r} is {status}: {result[:100]!r}")


def _fetch_all(each: Contestant, jobs: list[str], count: int) -> None:
    with each.wire() as wire:
        for number in range(count):
            until(lambda: len(jobs) > number, 60)  # noqa: B023
            until(lambda: each.ended(wire, jobs[number]), 120, 0.05)  # noqa: B023


def _log(each: Contestant) -> list[dict[str, Any]]:
    log = each.server.stub_log
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
