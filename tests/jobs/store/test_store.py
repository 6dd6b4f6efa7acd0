from __future__ import annotations

import asyncio
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Coroutine, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from polypod.errors import Conflict, NotFound, QueueFull, TooManyRequests, Unavailable
from polypod.jobs.job import TERMINAL, Asset, FileRef, Job, JobError, KeptStage, StageRun, new_id
from polypod.jobs.store.database import open_engines
from polypod.jobs.store.store import Store

pytestmark = pytest.mark.anyio
T = TypeVar("T")
ROOM = 1000


def a_file(name: str, size: int = 10) -> FileRef:
    return FileRef(name.encode().hex().zfill(64), size, "image/png", f"{name}.png")


def a_job(**changes: Any) -> Job:
    job = Job(
        id=new_id(),
        model="inflate",
        owner="ann",
        inputs={"image": a_file("seen")},
        params={"seed": 42, "depth": 0.5, "preset": None},
        created_at=100.0,
        card="c1",
        until="texture",
        parent="p1",
        priority=3,
        request_digest="r1",
        assets=(Asset("image.png", a_file("uploaded"), "input"),),
    )
    return replace(job, **changes)


def ended(job: Job, status: Any = "completed", at: float = 130.0, **changes: Any) -> Job:
    outputs = (*job.assets, Asset("model.glb", a_file("mesh", 500), "output", "export"))
    done = replace(job, status=status, started_at=110.0, finished_at=at, assets=outputs)
    return replace(done, **changes)


def kept(key: str, stage: str = "inflate", seconds: float = 2.0, **changes: Any) -> KeptStage:
    made = KeptStage(
        key=key,
        model="inflate",
        stage=stage,
        owner="ann",
        files={"mesh.npz": a_file(f"mesh-{key}"), "log.txt": a_file(f"log-{key}")},
        run=StageRun(stage, seconds, "cpu", False, 1000, 2000),
        preset="draft",
        created_at=120.0,
    )
    return replace(made, **changes)


# --- submit


async def test_a_job_is_read_back_as_it_was_submitted(store: Store) -> None:
    submitted = await store.submit(a_job(), ROOM)
    assert submitted.seq > 0
    assert await store.get(submitted.id) == submitted
    assert await store.get("no such job") is None


async def test_the_same_key_gives_the_earlier_job_as_it_is_now_even_when_full(store: Store) -> None:
    first = await store.submit(a_job(idempotency_key="k"), 1)
    assert await store.submit(a_job(idempotency_key="k"), 1) == first
    await store.start(first.id, 0, 111.0)
    again = await store.submit(a_job(idempotency_key="k"), 0)
    assert (again.id, again.status, again.started_at) == (first.id, "processing", 111.0)


async def test_a_key_of_another_request_is_a_conflict(store: Store) -> None:
    first = await store.submit(a_job(idempotency_key="k"), ROOM)
    with pytest.raises(Conflict, match="'k' was used for another request") as caught:
        await store.submit(a_job(idempotency_key="k", request_digest="r2"), ROOM)
    assert caught.value.extra == {"job_id": first.id}


@pytest.mark.parametrize("change", [{"owner": "bob"}, {"model": "other"}, {"idempotency_key": ""}])
async def test_a_key_counts_for_its_owner_and_model_only(
    store: Store, change: dict[str, str]
) -> None:
    key = change.get("idempotency_key", "k")
    first = await store.submit(a_job(idempotency_key=key), ROOM)
    second = await store.submit(a_job(**{"idempotency_key": key, **change}), ROOM)
    assert second.id != first.id


async def test_simultaneous_submits_with_one_key_make_one_job(store: Store) -> None:
    made = await asyncio.gather(
        *(store.submit(a_job(idempotency_key="k"), ROOM) for _ in range(20))
    )
    assert len({job.id for job in made}) == 1
    assert len(await store.jobs()) == 1


async def test_a_full_queue_refuses_and_says_so_in_figures(store: Store) -> None:
    answers = await asyncio.gather(
        *(store.submit(a_job(), 3) for _ in range(10)), return_exceptions=True
    )
    refused = [a for a in answers if isinstance(a, QueueFull)]
    assert len(refused) == 7
    assert refused[0].extra == {"queue_length": 3, "max_queue_size": 3, "retry_after_s": 10}
    assert len(await store.jobs()) == 3


@pytest.mark.parametrize("how", ["start", "cancel"])
async def test_a_job_that_leaves_the_queue_makes_room_in_the_same_transaction(
    store: Store, database_url: str, how: str
) -> None:
    first = await store.submit(a_job(), 2)
    writing, _ = open_engines(database_url, 1)
    with writing.begin():  # another process holds the writer up: what comes meanwhile is one batch
        calls: list[Awaitable[object]] = [
            store.note_death(first.id, 0, worker=True),
            store.submit(a_job(), 2),
            store.start(first.id, 0, 1.0)
            if how == "start"
            else store.finish(ended(first, "cancelled")),
            store.submit(a_job(), 2),
            store.submit(a_job(), 2),
        ]
        answers = asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(0)
    _, second, left, third, refused = await answers
    assert isinstance(second, Job) and left is True and isinstance(third, Job)
    assert isinstance(refused, QueueFull)
    writing.dispose()


async def test_a_deleted_jobs_place_is_never_given_again(store: Store) -> None:
    job = await store.submit(a_job(), ROOM)
    await store.finish(ended(job))
    assert await store.delete(job.id)
    assert (await store.submit(a_job(), ROOM)).seq > job.seq


async def test_a_failing_item_spoils_nobody_elses(store: Store) -> None:
    taken = await store.submit(a_job(), ROOM)
    answers = await asyncio.gather(
        store.submit(a_job(), ROOM),
        store.submit(a_job(id=taken.id), ROOM),
        store.submit(a_job(), ROOM),
        return_exceptions=True,
    )
    assert [type(a) for a in answers] == [Job, Conflict, Job]
    assert len(await store.jobs()) == 3


async def test_an_owner_has_at_most_so_many_jobs_in_line(store: Store) -> None:
    """However many ask at once; others, and what no longer waits, do not count."""
    asked = (store.submit(a_job(), ROOM, most_queued=3) for _ in range(20))
    answers = await asyncio.gather(*asked, return_exceptions=True)
    taken = [a for a in answers if isinstance(a, Job)]
    refused = [a for a in answers if isinstance(a, TooManyRequests)]
    assert (len(taken), len(refused)) == (3, 17)
    assert refused[0].extra == {"queued": 3, "most_queued": 3, "retry_after_s": 10}
    await store.submit(a_job(owner="bob"), ROOM, most_queued=1)
    await store.submit(a_job(), ROOM)
    await store.start(taken[0].id, 0, 110.0)
    await store.start(taken[1].id, 0, 110.0)
    await store.submit(a_job(), ROOM, most_queued=3)
    with pytest.raises(TooManyRequests):
        await store.submit(a_job(), ROOM, most_queued=3)


# --- a job's life


async def test_a_finished_job_is_read_back_with_all_it_left(store: Store) -> None:
    job = await store.submit(a_job(), ROOM)
    assert await store.start(job.id, 0, 110.0)
    done = ended(
        job,
        stages=(StageRun("inflate", 1.5, "cpu", False, 7, 8), StageRun("export", 0, "cpu", True)),
        facts={"triangles": 12, "bounds": [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]},
        log="line\nline",
    )
    assert await store.finish(done)
    assert await store.get(job.id) == done


async def test_an_error_is_kept(store: Store) -> None:
    job = await store.submit(a_job(), ROOM)
    failed = ended(job, "failed", error=JobError("out_of_memory", "No room.", "Lower it."))
    assert await store.finish(failed)
    assert await store.get(job.id) == failed


async def test_the_first_end_wins(store: Store) -> None:
    job = await store.submit(a_job(), ROOM)
    answers = await asyncio.gather(
        store.finish(ended(job, "cancelled", at=131.0)), store.finish(ended(job, at=130.0))
    )
    assert answers == [True, False]
    found = await store.get(job.id)
    assert found is not None and found.status == "cancelled"


async def test_telling_the_same_end_twice_is_harmless(store: Store) -> None:
    """As after a connection that broke while the first was committed."""
    job = await store.submit(a_job(), ROOM)
    assert await store.finish(ended(job))
    assert await store.finish(ended(job))
    assert await store.get(job.id) == ended(job)


async def test_finish_refuses_what_is_no_end(store: Store) -> None:
    with pytest.raises(ValueError, match="not an end"):
        await store.finish(a_job(status="processing"))


async def test_outputs_of_an_earlier_attempt_do_not_stay(store: Store) -> None:
    job = await store.submit(a_job(), ROOM)
    await store.keep_stage(kept("k"), job.id, 0, [Asset("old.glb", a_file("old"))])
    await store.finish(ended(job))
    found = await store.get(job.id)
    assert found is not None
    assert {a.name for a in found.assets} == {"image.png", "model.glb"}


async def test_a_write_of_an_older_attempt_does_nothing(store: Store) -> None:
    job = await store.submit(a_job(), ROOM)
    (now,) = await store.take_over()
    assert now.attempt == 1
    assert not await store.start(job.id, 0, 1.0)
    assert not await store.note_death(job.id, 0, worker=True)
    assert not await store.keep_stage(kept("k"), job.id, 0, [Asset("a", a_file("a"))])
    assert not await store.finish(ended(job))
    assert await store.get(job.id) == now
    assert await store.find_stage("k") is None
    assert await store.finish(ended(now))


async def test_deaths_are_counted_apart_and_only_while_unfinished(store: Store) -> None:
    job = await store.submit(a_job(), ROOM)
    for worker in (True, True, False):
        assert await store.note_death(job.id, 0, worker)
    found = await store.get(job.id)
    assert found is not None and (found.worker_deaths, found.server_deaths) == (2, 1)
    await store.finish(ended(job))
    assert not await store.note_death(job.id, 0, worker=True)


async def test_take_over_queues_all_unfinished_again_in_order(store: Store) -> None:
    waiting, running, done = [await store.submit(a_job(), ROOM) for _ in range(3)]
    await store.start(running.id, 0, 110.0)
    await store.finish(ended(done))
    taken = await store.take_over()
    assert [(j.id, j.status, j.attempt, j.server_deaths, j.started_at) for j in taken] == [
        (waiting.id, "queued", 1, 0, None),
        (running.id, "queued", 1, 1, None),
    ]
    assert [j.server_deaths for j in await store.take_over()] == [0, 1]
    assert await store.get(done.id) == ended(done)


async def test_deaths_of_servers_are_counted_for_one_stage(store: Store) -> None:
    job = await store.submit(a_job(), ROOM)
    assert await store.note_death(job.id, 0, worker=False)
    assert await store.note_death(job.id, 0, worker=True)
    assert await store.keep_stage(kept("k"), job.id, 0, [])
    found = await store.get(job.id)
    assert found is not None
    assert (found.worker_deaths, found.server_deaths) == (1, 0)


async def test_what_an_orderly_stop_puts_back_has_no_death(store: Store) -> None:
    running, done = [await store.submit(a_job(), ROOM) for _ in range(2)]
    for job in (running, done):
        await store.start(job.id, 0, 110.0)
    await store.finish(ended(done))
    await store.put_back([running, done])
    await store.put_back([])
    assert await store.get(running.id) == running
    assert await store.get(done.id) == ended(done)
    assert [(j.id, j.server_deaths) for j in await store.take_over()] == [(running.id, 0)]


async def test_only_a_finished_job_is_deleted_and_with_it_its_files(store: Store) -> None:
    job = await store.submit(a_job(), ROOM)
    digests = {a_file(name).digest for name in ("seen", "uploaded", "mesh")}
    assert not await store.delete(job.id)
    await store.finish(ended(job))
    assert await store.unreferenced(digests) == set()
    assert await store.delete(job.id)
    assert not await store.delete(job.id)
    assert await store.get(job.id) is None
    assert await store.unreferenced(digests) == digests


async def test_writes_are_done_even_if_nobody_waits(store: Store) -> None:
    job = a_job()
    task = asyncio.create_task(store.submit(job, ROOM))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await store.submit(a_job(), ROOM)  # after it in the order of writes
    assert await store.get(job.id) is not None


async def test_text_that_no_database_takes_is_made_storable(store: Store) -> None:
    job = await store.submit(a_job(), ROOM)
    await store.finish(
        ended(job, log="a\0b\udc80", facts={"bounds": [[float("nan"), float("inf"), 1.0]]})
    )
    found = await store.get(job.id)
    assert found is not None
    assert found.log == "a\N{REPLACEMENT CHARACTER}b?"
    assert found.facts == {"bounds": [[None, None, 1.0]]}


# --- history


async def test_history_is_filtered_and_paged_newest_first(store: Store) -> None:
    made = [
        await store.submit(a_job(owner=o, model=m), ROOM)
        for o, m in [("ann", "x"), ("bob", "x"), ("ann", "y"), ("ann", "x")]
    ]
    await store.finish(ended(made[3], log="long"))
    ids = [job.id for job in made]

    async def page(**wanted: Any) -> Sequence[int]:
        return [ids.index(job.id) for job in await store.jobs(**wanted)]

    assert await page() == [3, 2, 1, 0]
    assert await page(limit=2) == [3, 2]
    assert await page(before=made[2].seq, limit=2) == [1, 0]
    assert await page(owner="ann") == [3, 2, 0]
    assert await page(owner="ann", model="x", status="queued") == [0]
    assert await page(status="completed") == [3]
    assert await page(owner="") == []
    assert (await store.jobs(limit=1))[0] == ended(made[3])


# --- what a job leaves


async def test_a_kept_stage_is_found_and_its_assets_are_the_jobs(store: Store) -> None:
    job = await store.submit(a_job(), ROOM)
    assert await store.keep_stage(kept("k"), job.id, 0, [Asset("cut.png", a_file("cut"))])
    assert await store.find_stage("k") == kept("k")
    assert await store.find_stage("other") is None
    found = await store.get(job.id)
    assert found is not None
    assert [a.name for a in found.assets] == ["image.png", "cut.png"]


async def test_an_existing_key_stays(store: Store) -> None:
    job = await store.submit(a_job(), ROOM)
    await store.keep_stage(kept("k"), job.id, 0, [])
    assert await store.keep_stage(kept("k", files={"n": a_file("new")}), job.id, 0, [])
    assert await store.find_stage("k") == kept("k")


async def test_a_stage_whose_files_are_gone_is_forgotten(store: Store) -> None:
    job = await store.submit(a_job(), ROOM)
    for key in ("k", "l"):
        await store.keep_stage(kept(key), job.id, 0, [])
    assert set(await store.stage_keys()) == {"k", "l"}
    await store.forget_stage("k")
    await store.forget_stage("no such key")
    assert await store.stage_keys() == ["l"]
    assert await store.unreferenced([a_file("mesh-k").digest]) == {a_file("mesh-k").digest}


async def test_an_ended_job_keeps_its_stage_but_gets_no_asset(store: Store) -> None:
    job = await store.submit(a_job(), ROOM)
    await store.finish(ended(job, "cancelled"))
    assert await store.keep_stage(kept("k"), job.id, 0, [Asset("late.png", a_file("late"))])
    assert await store.find_stage("k") is not None
    assert await store.get(job.id) == ended(job, "cancelled")


async def test_derived_assets_and_facts_come_after_the_end(store: Store) -> None:
    job = await store.submit(a_job(), ROOM)
    await store.finish(ended(job))
    view = Asset("view_0.png", a_file("view"), "derived")
    assert await store.add_asset(job.id, view)
    assert await store.add_asset(job.id, view)
    assert await store.set_facts(job.id, {"triangles": 2})
    found = await store.get(job.id)
    assert found is not None
    assert (found.assets, found.facts) == ((*ended(job).assets, view), {"triangles": 2})
    assert not await store.add_asset("no such job", view)
    assert not await store.set_facts("no such job", {})


async def test_stage_seconds_are_the_newest_of_each_kind(store: Store) -> None:
    job = await store.submit(a_job(), ROOM)
    for i in range(4):
        await store.keep_stage(kept(f"a{i}", "inflate", float(i)), job.id, 0, [])
    await store.keep_stage(kept("b", "texture", 9.0), job.id, 0, [])
    assert await store.stage_seconds(2) == [
        ("inflate", "texture", "cpu", "draft", 9.0),
        ("inflate", "inflate", "cpu", "draft", 3.0),
        ("inflate", "inflate", "cpu", "draft", 2.0),
    ]


async def test_images_are_their_owners(store: Store) -> None:
    files = {"uploaded": a_file("u"), "checked": a_file("c")}
    await store.add_image("i1", "ann", files)
    assert await store.image("i1", "ann") == files
    assert await store.image("i1", None) == files
    for image_id, owner in [("i1", "bob"), ("i2", "ann")]:
        with pytest.raises(NotFound, match="no image"):
            await store.image(image_id, owner)


async def test_bytes_are_counted_once_per_blob(store: Store) -> None:
    assert await store.total_bytes() == 0
    job = await store.submit(a_job(), ROOM)  # seen, uploaded
    await store.finish(ended(job))  # mesh
    await store.add_image("i", "ann", {"checked": a_file("seen"), "other": a_file("other")})
    assert await store.total_bytes() == 10 + 10 + 500 + 10


# --- open and close


async def test_a_store_keeps_its_id_and_jobs(database_url: str) -> None:
    first = await Store.open(database_url)
    job = await first.submit(a_job(), ROOM)
    await first.close()
    second = await Store.open(database_url)
    assert second.store_id == first.store_id
    assert await second.get(job.id) == job
    await second.close()


async def test_every_new_database_has_an_id_of_its_own(tmp_path: Path) -> None:
    stores = [await Store.open(f"sqlite:///{tmp_path}/{name}.db") for name in "ab"]
    assert len({store.store_id for store in stores}) == 2
    for store in stores:
        await store.close()


async def test_a_closed_store_refuses(store: Store) -> None:
    await store.close()
    with pytest.raises(Unavailable, match="closed"):
        await store.submit(a_job(), ROOM)
    with pytest.raises(Unavailable, match="closed"):
        await store.get("x")


async def test_reads_do_not_wait_for_another_process_that_writes(
    store: Store, database_url: str
) -> None:
    job = await store.submit(a_job(), ROOM)
    writing, _ = open_engines(database_url, 1)
    with writing.begin():
        started = asyncio.create_task(store.start(job.id, 0, 1.0))
        await asyncio.sleep(0)
        assert await store.get(job.id) == job
        assert not started.done()
    assert await started
    writing.dispose()


# --- faults


FULL_DISK = """
import asyncio, sys
from pathlib import Path
from polypod.errors import Unavailable
from polypod.jobs.job import Job, new_id
from polypod.jobs.store.store import Store

def a_job():
    params = {"text": "x" * 20_000}
    return Job(id=new_id(), model="m", owner="", inputs={}, params=params, created_at=1.0)

async def main(folder):
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(1_000_000))
    store = await Store.open(f"sqlite:///{folder}/polypod.db")
    stored = []
    for _ in range(2):  # full, room, full, room
        while True:
            made = [a_job() for _ in range(5)]
            answers = await asyncio.gather(
                *(store.submit(job, 10**6) for job in made), return_exceptions=True
            )
            if isinstance(answers[0], Exception):
                break
            stored += made
        assert all(isinstance(a, Unavailable) and "disk is full" in a.message for a in answers)
        assert await store.get(stored[0].id)
        if ballast.exists():
            ballast.unlink()
            stored.append(await store.submit(a_job(), 10**6))
    await store.close()
    store = await Store.open(f"sqlite:///{folder}/polypod.db")
    assert {job.id for job in await store.jobs(limit=10**6)} == {job.id for job in stored}
    print("stored", len(stored))

asyncio.run(main(Path(sys.argv[1])))
"""


def test_a_full_disk_is_told_and_recovered_from(tmp_path: Path) -> None:
    """On a disk of 3 MB: a tmpfs in a mount namespace of its own."""
    own_mounts = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.call([*own_mounts, "true"]):
        pytest.skip("this system lets nobody make a mount namespace")
    mount = 'mount -t tmpfs -o size=3m none "$0" && exec "$@"'
    child = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    command = [*own_mounts, "sh", "-c", mount, str(tmp_path), *child]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("stored "), done.stderr


SUBMITTER = """
import asyncio, sys
from polypod.jobs.job import Job, new_id
from polypod.jobs.store.store import Store

async def submit(store):
    while True:
        job = Job(id=new_id(), model="m", owner="", inputs={}, params={}, created_at=1.0)
        print((await store.submit(job, 10**6)).id, flush=True)

async def main(url):
    store = await Store.open(url)
    await asyncio.gather(*(submit(store) for _ in range(10)))

asyncio.run(main(sys.argv[1]))
"""


async def test_kill_9_loses_no_job_that_was_told(database_url: str) -> None:
    told = {job_id for _ in range(3) for job_id in _submit_until_killed(database_url)}
    store = await Store.open(database_url)
    found = {job.id for job in await store.jobs(limit=10**6)}
    await store.close()
    assert len(told) > 10
    assert told <= found


def _submit_until_killed(url: str) -> list[str]:
    """The ids that a child process was given before it was killed at a random moment."""
    child = subprocess.Popen(
        [sys.executable, "-c", SUBMITTER, url], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    first = child.stdout.readline()
    threading.Timer(random.uniform(0.0, 0.2), child.kill).start()
    lines = (first + child.stdout.read()).split("\n")
    assert child.wait() == -signal.SIGKILL
    return lines[:-1]  # the last may be cut


async def test_a_lost_connection_is_made_again(postgres_url: str, postgres_server: Any) -> None:
    store = await Store.open(postgres_url)
    job = await store.submit(a_job(), ROOM)
    admin = postgres_server.render_as_string(hide_password=False)
    name = postgres_url.split("?")[0].rsplit("/")[-1]
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"SELECT pg_terminate_backend(pid) {_backends(name)}")
        assert await store.get(job.id) == job
        assert await store.start(job.id, 0, 1.0)
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        connection.execute(f"SELECT pg_terminate_backend(pid) {_backends(name)}")
        with pytest.raises(Unavailable, match="database"):
            await store.get(job.id)
        waiting = asyncio.create_task(store.finish(ended(job)))
        await asyncio.sleep(0.1)
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        assert await waiting
    await store.close()


def _backends(name: str) -> str:
    return f"FROM pg_stat_activity WHERE datname = '{name}'"


# --- a job's life, whatever happens in whatever order

QUEUE_SIZE = 4


class Life(RuleBasedStateMachine):
    """Compares the store with a plain dictionary of jobs as they should be."""

    store: Store
    loop: asyncio.AbstractEventLoop
    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, Job] = {}
        self.ends: Counter[str] = Counter()
        self.clock = 1000.0
        self._do(_delete_all(self.store))

    def _do(self, what: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(what)

    def _queued(self) -> int:
        return sum(job.status == "queued" for job in self.jobs.values())

    @rule(target=ids, key=st.sampled_from(["", "k1", "k2"]), request=st.sampled_from("ab"))
    def submit(self, key: str, request: str) -> str | MultipleResults[str]:
        job = a_job(idempotency_key=key, request_digest=request)
        earlier = next((j for j in self.jobs.values() if key and j.idempotency_key == key), None)
        try:
            stored = self._do(self.store.submit(job, QUEUE_SIZE))
        except Conflict:
            assert earlier is not None and earlier.request_digest != request
            return multiple()
        except QueueFull as full:
            assert earlier is None
            assert self._queued() >= QUEUE_SIZE
            assert full.extra["queue_length"] == self._queued()
            return multiple()
        if earlier is not None:
            assert stored == earlier
            return multiple()
        assert self._queued() < QUEUE_SIZE
        self.jobs[job.id] = stored
        return job.id

    def _can_be_written(self, job_id: str, attempt: int) -> bool:
        job = self.jobs.get(job_id)
        return job is not None and job.status not in TERMINAL and job.attempt == attempt

    @rule(job_id=ids, behind=st.integers(0, 1))
    def start(self, job_id: str, behind: int) -> None:
        attempt = self._attempt(job_id) - behind
        started = self._do(self.store.start(job_id, attempt, 5.0))
        job = self.jobs.get(job_id)
        queued = job is not None and job.status == "queued"
        assert started == (queued and self._can_be_written(job_id, attempt))
        if started and job is not None:
            self.jobs[job_id] = replace(job, status="processing", started_at=5.0)

    @rule(
        job_id=ids,
        race=st.lists(
            st.tuples(st.sampled_from(["completed", "failed", "cancelled"]), st.integers(0, 1)),
            min_size=1,
            max_size=3,
        ),
    )
    def finish(self, job_id: str, race: list[tuple[str, int]]) -> None:
        """Several ends at once, some of an attempt that is over: the first that may, wins."""
        ends: list[Job] = []
        for status, behind in race:
            self.clock += 1
            job = self.jobs.get(job_id) or a_job(id=job_id)
            ends.append(ended(replace(job, attempt=job.attempt - behind), status, at=self.clock))
        may = [self._can_be_written(end.id, end.attempt) for end in ends]
        answers = self._do(_all(self.store.finish(end) for end in ends))
        first = may.index(True) if True in may else None
        assert answers == [i == first for i in range(len(ends))]
        if first is not None:
            self.ends[job_id] += 1
            self.jobs[job_id] = ends[first]

    @rule()
    def take_over(self) -> None:
        for job in self.jobs.values():
            if job.status not in TERMINAL:
                self.jobs[job.id] = replace(
                    job,
                    attempt=job.attempt + 1,
                    server_deaths=job.server_deaths + (job.status == "processing"),
                    status="queued",
                    started_at=None,
                )
        expected = [job for job in self.jobs.values() if job.status not in TERMINAL]
        assert self._do(self.store.take_over()) == expected

    @rule(job_id=ids, worker=st.booleans(), behind=st.integers(0, 1))
    def note_death(self, job_id: str, worker: bool, behind: int) -> None:
        attempt = self._attempt(job_id) - behind
        noted = self._do(self.store.note_death(job_id, attempt, worker))
        assert noted == self._can_be_written(job_id, attempt)
        if noted:
            job = self.jobs[job_id]
            name = "worker_deaths" if worker else "server_deaths"
            self.jobs[job_id] = replace(job, **{name: getattr(job, name) + 1})

    @rule(job_id=ids)
    def delete(self, job_id: str) -> None:
        job = self.jobs.get(job_id)
        finished = job is not None and job.status in TERMINAL
        assert self._do(self.store.delete(job_id)) == finished
        if finished:
            del self.jobs[job_id]

    def _attempt(self, job_id: str) -> int:
        return self.jobs[job_id].attempt if job_id in self.jobs else 0

    @invariant()
    def store_and_model_agree(self) -> None:
        assert all(count == 1 for count in self.ends.values())
        found = self._do(self.store.jobs(limit=1000))
        assert found == list(reversed(self.jobs.values()))


async def _all(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    return list(await asyncio.gather(*calls))


async def _delete_all(store: Store) -> None:
    await store.take_over()
    for job in await store.jobs(limit=1000):
        if job.status not in TERMINAL:
            await store.finish(ended(job, "cancelled"))
        await store.delete(job.id)


def test_life_of_jobs(database_url: str) -> None:
    loop = asyncio.new_event_loop()
    store = loop.run_until_complete(Store.open(database_url))
    machine = type("LifeOnThis", (Life,), {"store": store, "loop": loop})
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=40,
                stateful_step_count=25,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        loop.run_until_complete(store.close())
        loop.close()
