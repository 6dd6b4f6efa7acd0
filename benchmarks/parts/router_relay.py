"""How fast results of 200 MB come home from a pod, and what that costs in memory.

`home` is from the pod's word that the file is there to the router's that the job is done: fetched,
checked and durable.
The peer is a plain reverse proxy before the same pod, which keeps nothing.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psutil

from benchmarks.contestants import Contestant, order
from benchmarks.figures import Row, median
from benchmarks.routed import fleet
from benchmarks.servers import MIB, serve, until

SIZE = 200_000_000
JOBS = 10
"""2 GB."""


def run(folder: Path, share: float) -> list[Row]:
    count = max(int(JOBS * share), 2)
    home: list[float] = []
    held: list[float] = []
    through: list[float] = []
    with fleet(folder, 1) as (routed, (pod,)):
        behind = f"http://127.0.0.1:{pod.server.port}"
        command = ("-m", "uvicorn", "benchmarks.peers.proxy:app", "--no-access-log")
        with serve((*command, "--port", "{port}"), folder / "proxy", BEHIND=behind) as server:
            proxy = Contestant("reverse proxy", server, "", "", "/job/{}/download")
            own = _made(pod)
            _bring(routed, pod)  # warms up
            with _Highest(routed.server.api()) as memory:
                for _ in range(count):
                    through.append(_fetch(proxy, own))
                    job, speed = _bring(routed, pod)
                    home.append(speed)
                    held.append(_fetch(routed, job))
    both = 1 / (1 / median(home) + 1 / median(held))
    plain = median(through)
    return [
        Row("200 MB home, durable", "MB/s", median(home), plain, "reverse proxy", least_ratio=0.6),
        Row(
            "200 MB from the router", "MB/s", median(held), plain, "reverse proxy", least_ratio=0.6
        ),
        Row("both, one after the other", "MB/s", both, plain, "reverse proxy"),
        Row(f"memory, growth over {count * SIZE / 1e9:g} GB", "MiB", memory.growth, most=50),
    ]


def _made(each: Contestant) -> str:
    with each.wire() as wire:
        job = each.submit(wire, order(size_bytes=SIZE))
        until(lambda: each.ended(wire, job), 120, 0.05)
        return job


def _bring(routed: Contestant, pod: Contestant) -> tuple[str, float]:
    """A new job, and the MB/s at which its result came home."""
    told: dict[str, float] = {}
    with routed.wire() as wire, pod.wire() as there:
        job = routed.submit(wire, order(size_bytes=SIZE))
        until(lambda: there.ask("GET", f"/job/{job}")[0] == 200, 30)
        followers = [
            threading.Thread(target=_until, args=(each, job, told, goal))
            for each, goal in ((pod, "model.bin"), (routed, "completed"))
        ]
        for follower in followers:
            follower.start()
        for follower in followers:
            follower.join()
    return job, SIZE / (told["router"] - told["polypod"]) / 1e6


def _until(each: Contestant, job: str, told: dict[str, float], goal: str) -> None:
    """Notes when the asset or the status is told."""
    with each.wire() as wire:
        for event in wire.events(f"/job/{job}/events"):
            names = {event.get("name"), *(asset["name"] for asset in event.get("assets", ()))}
            if goal in {event.get("status"), *names}:
                told[each.name] = time.perf_counter()
                return


def _fetch(each: Contestant, job: str) -> float:
    """MB per second."""
    with each.wire() as wire:
        wire.ask("GET", "/health")
        begin = time.perf_counter()
        size = each.fetch(wire, job)
        return size / (time.perf_counter() - begin) / 1e6


class _Highest:
    """Looks at a process's memory again and again while the block runs."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._over = threading.Event()
        self._before = self._highest = self._rss()
        self._watcher = threading.Thread(target=self._watch)

    @property
    def growth(self) -> float:
        """MiB."""
        return (self._highest - self._before) / MIB

    def __enter__(self) -> _Highest:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self._highest = max(self._highest, self._rss())

    def _rss(self) -> int:
        return self._process.memory_info().rss
