from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from polypod.jobs.job import Asset, FileRef, Job, KeptStage, StageRun, new_id
from polypod.jobs.store.forget import BATCH, Forgotten
from polypod.jobs.store.store import Store
from polypod.settings import Settings

pytestmark = pytest.mark.anyio
ROOM = 10_000
NOW = 1_000_000.0
FOR_EVER = 1e12


def a_file(name: str, size: int = 100) -> FileRef:
    return FileRef(name, size, "application/octet-stream")


def keep(**seconds: float) -> Settings:
    ages = ("keep_results_s", "keep_stages_s", "keep_inputs_s", "keep_jobs_s")
    return Settings(**{name: FOR_EVER for name in ages} | seconds)  # type: ignore[arg-type]


async def a_job(
    store: Store, name: str, finished_at: float | None = None, relayed: bool = False
) -> Job:
    """Files: NAME-in, NAME-up, and when finished NAME-out, NAME-view."""
    job = Job(
        id=new_id(),
        model="m",
        owner="",
        inputs={"image": a_file(f"{name}-in")},
        params={},
        created_at=1.0,
        relayed=relayed,
        assets=(Asset("image", a_file(f"{name}-up"), "input"),),
    )
    job = await store.submit(job, ROOM)
    if finished_at is not None:
        out = Asset("model.glb", a_file(f"{name}-out"))
        job = replace(job, status="completed", finished_at=finished_at, assets=(*job.assets, out))
        await store.finish(job)
        await store.add_asset(job.id, Asset("view", a_file(f"{name}-view"), "derived"))
    return job


async def a_stage(store: Store, job: Job, key: str, used_at: float, *files: FileRef) -> None:
    run = StageRun("s", 1.0, "cpu", False)
    named = {file.digest: file for file in files or [a_file(f"{key}-file")]}
    await store.keep_stage(KeptStage(key, "m", "s", "", named, run, "", used_at), job.id, 0, [])


async def gone(store: Store, *names: str) -> set[str]:
    return await store.unreferenced(names)


async def test_old_results_go_and_the_job_stays(store: Store) -> None:
    old = await a_job(store, "old", NOW - 101)
    new = await a_job(store, "new", NOW - 99)
    assert await store.expire(NOW, keep(keep_results_s=100)) == Forgotten(results=[old.id])
    names = [f"{job}-{kind}" for job in ("old", "new") for kind in ("in", "up", "out", "view")]
    assert await gone(store, *names) == {"old-out", "old-view"}
    found = await store.get(old.id)
    assert found is not None
    assert (found.status, [a.name for a in found.assets]) == ("completed", ["image"])
    assert await store.expire(NOW, keep(keep_results_s=100)) == Forgotten()
    assert await store.get(new.id) is not None


async def test_old_inputs_and_images_go_but_not_those_of_unfinished_jobs(store: Store) -> None:
    old = await a_job(store, "old", NOW - 101)
    await a_job(store, "waiting")
    await store.add_image("i", "", {"checked": a_file("image")})
    later = 1e11  # images are made now
    forgotten = await store.expire(later, keep(keep_inputs_s=100))
    assert forgotten == Forgotten(inputs=[old.id], images=["i"])
    names = ["old-in", "old-up", "old-out", "waiting-in", "waiting-up", "image"]
    assert await gone(store, *names) == {"old-in", "old-up", "image"}
    found = await store.get(old.id)
    assert found is not None and found.inputs == {}


async def test_old_jobs_go_with_everything_but_not_unfinished_ones(store: Store) -> None:
    old = await a_job(store, "old", NOW - 101)
    waiting = await a_job(store, "waiting")
    assert await store.expire(NOW, keep(keep_jobs_s=100)) == Forgotten(jobs=[old.id])
    assert await store.get(old.id) is None
    assert await store.get(waiting.id) == waiting
    names = ["old-in", "old-up", "old-out", "old-view"]
    assert await gone(store, *names) == set(names)


async def test_stages_go_by_their_last_use_unless_pinned(store: Store) -> None:
    job = await a_job(store, "j")
    for key in ("old", "pinned", "used"):
        await a_stage(store, job, key, NOW - 101)
    assert await store.find_stage("used") is not None  # noted as used now: long after NOW
    assert await store.expire(NOW, keep(keep_stages_s=100), {"pinned"}) == Forgotten(stages=["old"])
    assert await gone(store, "old-file", "pinned-file", "used-file") == {"old-file"}


async def test_more_than_a_batch_goes_even_behind_many_pinned(store: Store) -> None:
    job = await a_job(store, "j")
    keys = [f"k{i:04}" for i in range(2 * BATCH + 3)]
    await asyncio.gather(*(a_stage(store, job, key, 1.0 + i) for i, key in enumerate(keys)))
    pinned = set(keys[:BATCH])
    forgotten = await store.expire(NOW, keep(keep_stages_s=0), pinned)
    assert forgotten.stages == keys[BATCH:]


async def test_eviction_takes_unused_stages_then_what_users_have_the_oldest_first(
    store: Store,
) -> None:
    first = await a_job(store, "first", 10.0)
    second = await a_job(store, "second", 20.0)
    running = await a_job(store, "running")
    await a_stage(store, running, "b", 2.0)
    await a_stage(store, running, "a", 1.0)
    await a_stage(store, running, "pinned", 0.5)
    await store.add_image("i", "", {"checked": a_file("image")})  # made now: the newest of all
    assert await store.evict(1, {"pinned"}) == Forgotten(stages=["a"])
    assert await store.evict(150, {"pinned"}) == Forgotten(stages=["b"], results=[first.id])
    assert await store.evict(0, {"pinned"}) == Forgotten()
    assert await store.evict(350, {"pinned"}, 20.0) == Forgotten(inputs=[first.id])
    assert await store.evict(10**9, {"pinned"}, 20.1) == Forgotten(
        results=[second.id], inputs=[second.id]
    )
    assert await store.evict(10**9, {"pinned"}) == Forgotten(images=["i"])
    assert await store.evict(10**9, {"pinned"}) == Forgotten()
    assert await gone(store, "pinned-file", "running-in", "running-up") == set()


async def test_a_routers_results_are_not_evicted_before_it_has_them(store: Store) -> None:
    """It deletes the job then. One that never comes back is no reason to keep them for ever."""
    relayed = await a_job(store, "relayed", 10.0, relayed=True)
    own = await a_job(store, "own", 20.0)
    assert await store.evict(10**9) == Forgotten(results=[own.id], inputs=[relayed.id, own.id])
    assert await gone(store, "relayed-out") == set()
    assert (await store.expire(NOW, keep(keep_results_s=0))).results == [relayed.id]


async def test_only_bytes_that_nothing_else_points_to_count_as_freed(store: Store) -> None:
    job = await a_job(store, "j", 10.0)
    await a_stage(store, await a_job(store, "k"), "shared", 1.0, a_file("j-out"))
    await a_stage(store, await a_job(store, "l"), "alone", 2.0)
    forgotten = await store.evict(100)
    assert forgotten == Forgotten(stages=["shared", "alone"])
    assert await store.get(job.id) is not None
    assert await gone(store, "j-out") == set()


async def test_the_total_falls_by_what_was_evicted(store: Store) -> None:
    for i in range(5):
        await a_job(store, f"j{i}", float(i + 1))
    before = await store.total_bytes()
    forgotten = await store.evict(550)
    assert (len(forgotten.results), len(forgotten.inputs)) == (2, 1)  # two files of 100 bytes each
    assert await store.total_bytes() == before - 600


@pytest.mark.parametrize("count", [0, 1, 1700])
async def test_unreferenced_takes_any_number(store: Store, count: int) -> None:
    job = await a_job(store, "j")
    digests: set[Any] = {f"d{i}" for i in range(count)}
    assert await store.unreferenced(digests | {"j-in"}) == digests
    assert job.inputs
