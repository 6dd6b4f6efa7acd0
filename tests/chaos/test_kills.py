"""`kill -9` of any process at any moment, under load: what was accepted ends once, and is right.

`POLYPOD_CHAOS_ROUNDS` kills (`make chaos`: 100); `POLYPOD_CHAOS_SEED` repeats a run's choices.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import sqlite3
import statistics
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.bento import all_gone, wait_until
from tests.chaos.processes import Server, kill, server
from tests.chaos.storm import Storm

ROUNDS = int(os.environ.get("POLYPOD_CHAOS_ROUNDS", "5"))
SEED = int(os.environ.get("POLYPOD_CHAOS_SEED", "0")) or random.SystemRandom().getrandbits(31)
TARGETS = ("parent", "worker", "api", "all")
MOMENTS = ("random", "prepare", "work", "publish", "submit")
RUNS_LOST_PER_KILL = 4
"""Two slots, each with a stage that runs and one whose outputs are being published."""


def test_what_was_accepted_ends_once_and_right_whatever_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(SEED)
    restarts: dict[str, list[float]] = {}
    rounds = list(itertools.islice(zip(itertools.cycle(TARGETS), itertools.cycle(MOMENTS)), ROUNDS))
    with server(tmp_path, MAX_QUEUE_SIZE="50") as running, Storm(running.url, SEED) as storm:
        for target, moment in rounds:
            wait_for(moment, running, storm, chance)
            restarts.setdefault(target, []).append(kill_and_restore(target, running, chance))
            wait_until(lambda: len(running.engines()) == 1)
            assert not storm.faults, f"seed {SEED}"
        storm.calm()
        assert not storm.faults, f"seed {SEED}"
        family = running.family()
        assert running.stop() == 0
        wait_until(lambda: all_gone(family), 10)
    with capsys.disabled():
        print(report(rounds, storm, running, restarts))
    assert running.family() == []
    assert running.leftovers() == []
    check_store(running, storm)
    check_blobs(running)
    assert runs_again(running, storm) <= RUNS_LOST_PER_KILL * len(rounds)


def wait_for(moment: str, running: Server, storm: Storm, chance: random.Random) -> None:
    """Until the server is at it; then a little longer, so that each kill hits another place."""
    before, more = storm.ended(), chance.choice([0, 0, 3, 8])
    wait_until(lambda: storm.ended() >= before + more, 60)
    if moment in ("prepare", "work"):
        wait_until(lambda: moment in running.slots().values(), 30)
        time.sleep(chance.uniform(0, 0.1))
    elif moment == "publish":
        until_publishing(running)
        time.sleep(chance.uniform(0, 0.02))
    elif moment == "submit":
        storm.submitting.clear()
        assert storm.submitting.wait(30)
        time.sleep(chance.uniform(0, 0.05))
    else:
        time.sleep(chance.uniform(0, 1.5))


def until_publishing(running: Server) -> None:
    """Looks often: an output is there for some hundredths of a second."""
    deadline = time.monotonic() + 30
    while not list(running.data.glob("work/*/work.*/model.glb")):
        assert time.monotonic() < deadline
        time.sleep(0.002)


def kill_and_restore(target: str, running: Server, chance: random.Random) -> float:
    """Kills, and starts what does not start by itself; seconds until a good /health."""
    family, began = running.family(), time.monotonic()
    if target in ("parent", "all"):
        kill(family if target == "all" else running.parent())
        running.process.wait()
        running.start_until_healthy()
        assert all_gone(family), "nothing outlives the parent"
    else:
        victims = running.api() if target == "api" else chance.sample(running.workers(), 1)
        kill(victims)
        wait_until(lambda: all_gone(victims) and running.is_healthy(), 60)
    return time.monotonic() - began


def check_store(running: Server, storm: Storm) -> None:
    """What the clients know is what the store has: no job lost, none double."""
    with sqlite3.connect(running.data / "polypod.db") as store:
        assert store.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = store.execute("SELECT idempotency_key, id, status FROM jobs").fetchall()
    known = [(order.key, order.job_id, order.status) for order in storm.orders]
    assert sorted(rows) == sorted(known), f"seed {SEED}"


def check_blobs(running: Server) -> None:
    """Every file that the store points to is there, and every file is what its name says."""
    with sqlite3.connect(running.data / "polypod.db") as store:
        named = {row[0] for row in store.execute("SELECT digest FROM assets")}
        named |= {row[0] for row in store.execute("SELECT digest FROM kept_files")}
    files = {path.name: path for path in (running.data / "blobs").glob("*/*")}
    assert named <= files.keys()
    for name, path in files.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == name


def runs_again(running: Server, storm: Storm) -> int:
    """How many runs of stages were for what had run before: a kill costs no more than its own."""
    return sum(count - 1 for count in running.all_runs().values())


def report(
    rounds: list[tuple[str, str]],
    storm: Storm,
    running: Server,
    restarts: dict[str, list[float]],
) -> str:
    accepted = [order for order in storm.orders if order.job_id]
    ids = {order.job_id for order in accepted}
    moments = Counter(moment for _, moment in rounds)
    lines = [
        f"chaos, seed {SEED}: {len(rounds)} kills",
        "  while: " + ", ".join(f"{name} {count}" for name, count in moments.items()),
        f"  jobs accepted {len(accepted)}: completed {storm.count('completed')}, "
        f"cancelled {storm.count('cancelled')}, "
        f"lost {sum(order.status not in ('completed', 'cancelled') for order in accepted)}, "
        f"double {len(accepted) - len(ids)}",
        f"  downloads checked {sum(order.downloads for order in accepted)}",
        f"  stages run {running.all_runs().total()}, of these again {runs_again(running, storm)}",
        *(
            f"  {target} killed {len(times)} times; to a good /health: "
            f"median {statistics.median(times):.2f} s, most {max(times):.2f} s"
            for target, times in restarts.items()
        ),
    ]
    return "\n" + "\n".join(lines)
