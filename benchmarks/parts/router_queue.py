"""Whether the router is quick while 10 000 jobs wait: on SQLite, and on PostgreSQL.

The jobs lie in the store when the router starts, behind one that holds the only endpoint. A burst
is 200 submits on 16 connections. The peer is the same router with 100 jobs waiting, in the same
run.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path

from benchmarks.contestants import Contestant, order, polypod
from benchmarks.figures import Row, at
from benchmarks.models.stub.model import MODEL
from benchmarks.postgres import postgres
from benchmarks.routed import router
from benchmarks.servers import until
from benchmarks.wire import together
from polypod.assets.blobs import Blobs
from polypod.jobs.job import Asset, FileRef, Job, new_id
from polypod.jobs.store.store import Store

JOBS, FEW = 10_000, 100
ROUNDS = 300
BURST, CONNECTIONS = 200, 16
PAGE = 50
HELD_S = 3600.0

Times = dict[tuple[str, str], list[float]]


def run(folder: Path, share: float) -> list[Row]:
    rounds = max(int(ROUNDS * share), 30)
    rows: list[Row] = []
    for database in ("SQLite", "PostgreSQL"):
        times: Times = defaultdict(list)
        with contextlib.ExitStack() as stack:
            both = {
                name: stack.enter_context(_waiting(folder / f"{database}-{name}", database, count))
                for name, count in (("many", JOBS), ("few", FEW))
            }
            for number in range(rounds + 5):
                for name, each in both.items():
                    measured = _ask(each)
                    if number >= 5:  # the first ones warm up
                        for what, seconds in measured.items():
                            times[name, what].append(1000 * seconds)
            for name, each in both.items():
                times[name, "burst"] += [1000 * seconds for seconds in _burst(each)]
                times[name, "start"].append(each.server.started_in_s)
        rows += _rows(database, times)
    return rows


def _rows(database: str, times: Times) -> list[Row]:
    def row(what: str, figure: str, share: float, most: float | None, unit: str = "ms") -> Row:
        ours, theirs = (at(share, times[name, figure]) for name in ("many", "few"))
        peer = f"{FEW} waiting"
        return Row(f"{database}, {JOBS} waiting: {what}", unit, ours, theirs, peer, most)

    return [
        row("submit, p50", "submit", 0.5, None),
        row("submit, p99", "submit", 0.99, 50),
        row(f"submit, burst of {BURST}, p99", "burst", 0.99, None),
        row(f"GET /jobs, {PAGE} of them, p99", "page", 0.99, 30),
        row("GET /job, the last in line, p50", "status", 0.5, None),
        row("GET /metrics, p50", "metrics", 0.5, None),
        row("start", "start", 0.5, None, "s"),
    ]


@contextlib.contextmanager
def _waiting(folder: Path, database: str, count: int) -> Generator[Contestant]:
    """A router with `count` jobs in line; its one endpoint is held by the first of them."""
    data = folder / "router" / "data"
    data.mkdir(parents=True)
    env = {"MAX_QUEUE_SIZE": str(2 * JOBS)}
    with contextlib.ExitStack() as stack:
        url = f"sqlite:///{data}/polypod.db"
        if database == "PostgreSQL":
            url = env["POLYPOD_DATABASE_URL"] = stack.enter_context(postgres(folder))
        asyncio.run(_fill(data, url, count + 1))
        pod = stack.enter_context(polypod(folder / "pod"))
        made = stack.enter_context(router(folder / "router", [pod], **env))
        with made.wire() as wire:
            until(lambda: wire.json("GET", "/queue")["processing"] == 1, 60, 0.05)
        yield made


async def _fill(data: Path, url: str, count: int) -> None:
    """Queued jobs that hold their device for an hour, all with the same picture."""
    picture = Path(__file__).parents[2] / "examples" / "duck.jpg"
    image = Blobs(data).put_bytes(picture.read_bytes(), "image/jpeg", "duck.jpg")
    store = await Store.open(url)
    await store.put_card(MODEL.name, MODEL.card, time.time())
    for first in range(0, count, 200):
        jobs = [_job(image, number) for number in range(first, min(first + 200, count))]
        await asyncio.gather(*(store.submit(job, 2 * count) for job in jobs))
    await store.close()


def _job(image: FileRef, number: int) -> Job:
    params = MODEL.resolve({"seed": number, "seconds": HELD_S})
    files = {"inputs": {"image": image}, "assets": (Asset("image", image, "input"),)}
    card = MODEL.card["digest"]
    return Job(new_id(), MODEL.name, "", params=params, created_at=time.time(), card=card, **files)


def _ask(each: Contestant) -> dict[str, float]:
    """Seconds that each took."""
    with each.wire() as wire:
        wire.ask("GET", "/readyz")
        body = order(HELD_S, 1000)
        begin = time.perf_counter()
        job = each.submit(wire, body)
        submitted = time.perf_counter()
        page = wire.json("GET", f"/jobs?limit={PAGE}")["jobs"]
        listed = time.perf_counter()
        wire.json("GET", f"/job/{job}")
        shown = time.perf_counter()
        wire.ask("GET", "/metrics")
        told = time.perf_counter()
    assert len(page) == PAGE
    return {
        "submit": submitted - begin,
        "page": listed - submitted,
        "status": shown - listed,
        "metrics": told - shown,
    }


def _burst(each: Contestant) -> list[float]:
    orders = [("POST", each.submit_path, order(HELD_S, 1000)) for _ in range(BURST)]
    return together(each.server.port, orders, CONNECTIONS)
