"""Who is measured: each takes the same orders, on its own server process."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import json
import random
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.servers import Server, serve
from benchmarks.wire import Wire

RESULT_BYTES = 2_000_000
ENDED = ("completed", "failed", "cancelled", "success", "failure", "canceled")

_seeds = itertools.count(1)


def order(seconds: float = 0.0, size_bytes: int = RESULT_BYTES, **more: Any) -> bytes:
    """The JSON of a new job: its picture and its seed are its own, so nothing is kept already."""
    seed = next(_seeds)
    fields = {"image": _picture(seed), "seed": seed, "seconds": seconds, "size_bytes": size_bytes}
    return json.dumps(fields | more).encode()


def _picture(seed: int) -> str:
    pixels = random.Random(seed).randbytes(32 * 32 * 3)
    out = io.BytesIO()
    Image.frombytes("RGB", (32, 32), pixels).save(out, "PNG", compress_level=0)
    return base64.b64encode(out.getvalue()).decode()


@dataclass(frozen=True)
class Contestant:
    """A server, and the paths under which it takes, shows and hands out jobs."""

    name: str
    server: Server
    submit_path: str
    status_path: str
    result_path: str
    job_field: str = "job_id"

    def wire(self) -> Wire:
        return Wire(self.server.port)

    def submit(self, wire: Wire, body: bytes) -> str:
        return wire.json("POST", self.submit_path, body)[self.job_field]

    def status(self, wire: Wire, job: str) -> str:
        return wire.json("GET", self.status_path.format(job))["status"]

    def ended(self, wire: Wire, job: str) -> bool:
        return self.status(wire, job) in ENDED

    def fetch(self, wire: Wire, job: str) -> int:
        return wire.fetch(self.result_path.format(job))


@contextlib.contextmanager
def polypod(folder: Path, **env: str) -> Generator[Contestant]:
    """Our service of the stub model, as anyone serves it, with room for many jobs."""
    command = ("-m", "bentoml", "serve", "benchmarks.models.stub.service:Stub", "--port", "{port}")
    env = {"POLYPOD_DATA": str(folder / "data"), "MAX_QUEUE_SIZE": "10000"} | env
    with serve(command, folder, **env) as server:
        yield Contestant("polypod", server, "/generate", "/job/{}", "/job/{}/download")


@contextlib.contextmanager
def task(folder: Path) -> Generator[Contestant]:
    command = ("-m", "bentoml", "serve", "benchmarks.peers.task:Task", "--port", "{port}")
    with serve(command, folder, "/readyz") as server:
        yield Contestant(
            "BentoML task",
            server,
            "/generate/submit",
            "/generate/status?task_id={}",
            "/generate/get?task_id={}",
            "task_id",
        )


@contextlib.contextmanager
def bare(folder: Path, status: Any = None) -> Generator[Contestant]:
    """It answers `POST /generate` with the result itself, and every status with `status`."""
    folder.mkdir(parents=True, exist_ok=True)
    answer = folder / "status.json"
    answer.write_text(json.dumps(status))
    command = ("-m", "bentoml", "serve", "benchmarks.peers.bare:Bare", "--port", "{port}")
    with serve(command, folder, STUB_STATUS=str(answer)) as server:
        yield Contestant("bare BentoML", server, "/generate", "/job/{}", "")


@contextlib.contextmanager
def threads(folder: Path) -> Generator[Contestant]:
    command = ("-m", "uvicorn", "benchmarks.peers.threads:app", "--no-access-log")
    with serve((*command, "--port", "{port}"), folder) as server:
        yield Contestant("thread queue", server, "/generate", "/job/{}", "/job/{}/download")
