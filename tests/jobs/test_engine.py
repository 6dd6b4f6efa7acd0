"""The engine on real parts: a real store, a real blob store, real worker processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import threading
import time
from dataclasses import replace

import pytest

from polypod.errors import Conflict, NotFound, QueueFull, Unavailable
from polypod.jobs.engine import Engine, Submission
from polypod.jobs.job import TERMINAL
from polypod.jobs.sweep import GRACE_S, Sweeper
from polypod.model import Fault, Stage
from polypod.settings import Settings
from tests.models.stub.model import MODEL

LIMIT_S = 30
ONLY_GPU = replace(MODEL, stages=tuple(replace(s, slot="gpu") for s in MODEL.stages))
"""Both stages are a chain in one worker."""


def run(scenario, tmp_path, model=MODEL, **settings):
    """Run `scenario(engine)` on an engine of its own."""

    async def main():
        async with engine_on(tmp_path, model, **settings) as engine:
            return await asyncio.wait_for(scenario(engine), LIMIT_S)

    return asyncio.run(main())


@contextlib.asynccontextmanager
async def engine_on(tmp_path, model=MODEL, **settings):
    engine = Engine([model], Settings(data=tmp_path / "data", **settings))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def submit(engine, picture=b"a picture", until="", key="", parent="", **params):
    image = engine.blobs.put_bytes(picture, "image/png", "photo.png")
    return await engine.submit(
        Submission(
            model="stub",
            inputs={"image": image},
            uploads={"image": image},
            params=engine.models["stub"].resolve(params),
            until=until,
            parent=parent,
            idempotency_key=key,
            request_digest=json.dumps(params, sort_keys=True),
        )
    )


async def ended(engine, *jobs):
    """The jobs once they have ended, as the store has them."""
    out = []
    for job in jobs:
        stream = engine.events.stream([job.id], lambda j: snapshot(engine, j))
        async for _ in stream:
            pass
        out.append(await engine.store.get(job.id))
    return out if len(out) > 1 else out[0]


async def snapshot(engine, job_id):
    return engine.describe(await engine.job(job_id, None))


async def running(engine, job, stage="work"):
    """Wait until the job is in this stage."""
    async for event in engine.events.stream([job.id], lambda j: snapshot(engine, j)):
        if event.data.get("stage") == stage or event.ends_job:
            return


async def until(condition):
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def kept(job):
    return {r.stage: r.kept for r in job.stages}


def test_a_job_runs_to_its_end(tmp_path):
    async def scenario(engine):
        job = await submit(engine, say=f"hello from the model in {tmp_path}/data/work/x")
        assert (job.status, engine.describe(job)["position"]) == ("queued", 1)
        done = await ended(engine, job)
        assert done.status == "completed"
        assert kept(done) == {"prepare": False, "work": False}
        assert {"image", "prepared.json", "model.glb", "manifest.json"} <= {
            a.name for a in done.assets
        }
        assert "hello from the model in {work}/x" in done.log
        shown = engine.describe(await engine.job(job.id, None))
        assert (shown["position"], shown["progress"]) == (0, 100.0)
        assert shown["download_url"] == f"/job/{job.id}/download"
        asset, path = await engine.asset(done, "manifest.json")
        manifest = json.loads(path.read_text())
        assert [s["stage"] for s in manifest["stages"]] == ["prepare", "work"]
        assert manifest["outputs"]["model.glb"]["sha256"] == done.asset("model.glb").file.digest
        assert manifest["stages"][1]["peak_memory_bytes"] > 0
        assert asset.kind == "manifest"

    run(scenario, tmp_path)


def test_events_tell_the_story_in_order(tmp_path):
    async def scenario(engine):
        job = await submit(engine, seconds=0.5)
        stream = engine.events.stream([job.id], lambda j: snapshot(engine, j))
        return [event async for event in stream]

    events = run(scenario, tmp_path)
    assert events[0].kind == "snapshot"
    assert events[-1].data["status"] == "completed"
    shown = [e.data["progress"] for e in events if "progress" in e.data]
    assert shown == sorted(shown)
    assert len(shown) > 3
    assert {"asset", "progress", "status"} <= {e.kind for e in events}


def test_a_finished_stage_is_never_computed_again(tmp_path):
    async def scenario(engine):
        first = await ended(engine, await submit(engine))
        same = await ended(engine, await submit(engine))
        other_size = await ended(engine, await submit(engine, size_bytes=5000))
        other_seed = await ended(engine, await submit(engine, seed=7))
        other_picture = await ended(engine, await submit(engine, b"another"))
        return first, same, other_size, other_seed, other_picture

    first, same, other_size, other_seed, other_picture = run(scenario, tmp_path)
    assert kept(first) == {"prepare": False, "work": False}
    assert kept(same) == {"prepare": True, "work": True}
    assert same.asset("model.glb").file.digest == first.asset("model.glb").file.digest
    assert kept(other_size) == {"prepare": True, "work": False}
    assert kept(other_seed) == {"prepare": False, "work": False}
    assert kept(other_picture) == {"prepare": False, "work": False}


def test_a_kept_stage_whose_file_is_gone_is_computed_again(tmp_path):
    async def scenario(engine):
        first = await ended(engine, await submit(engine))
        engine.blobs.delete(first.asset("prepared.json").file.digest)
        again = await ended(engine, await submit(engine, size_bytes=5000))
        third = await ended(engine, await submit(engine, size_bytes=6000))
        return again, third

    again, third = run(scenario, tmp_path)
    assert kept(again) == {"prepare": False, "work": False}
    assert kept(third) == {"prepare": True, "work": False}


def test_a_job_whose_picture_is_gone_fails_in_words_and_the_next_completes(tmp_path):
    async def scenario(engine):
        busy = [await submit(engine, b"%d" % i, prepare_seconds=0.3) for i in range(3)]
        lost = await submit(engine, b"to be lost")
        after = await submit(engine, b"another")
        engine.blobs.delete(lost.inputs["image"].digest)
        return await ended(engine, *busy, lost, after)

    *busy, lost, after = run(scenario, tmp_path)
    assert [job.status for job in (*busy, after)] == ["completed"] * 4
    assert lost.status == "failed"
    assert lost.error.code == "file_lost"
    assert lost.error.hint


def test_equal_jobs_at_once_compute_once(tmp_path):
    async def scenario(engine):
        jobs = [await submit(engine, prepare_seconds=0.3, seconds=0.3) for _ in range(4)]
        return await ended(engine, *jobs)

    jobs = run(scenario, tmp_path)
    assert [j.status for j in jobs] == ["completed"] * 4
    assert sum(not r.kept for j in jobs for r in j.stages) == 2


def test_who_waits_for_an_equal_stage_takes_over_when_it_fails(tmp_path):
    async def scenario(engine):
        first = await submit(engine, prepare_seconds=600, steps=1000)
        await running(engine, first, "prepare")
        second = await submit(engine, prepare_seconds=600, steps=1000)
        await engine.cancel(first)
        await running(engine, second, "prepare")
        await engine.cancel(second)
        return await ended(engine, first, second)

    assert [j.status for j in run(scenario, tmp_path)] == ["cancelled", "cancelled"]


def test_until_and_continue(tmp_path):
    async def scenario(engine):
        part = await ended(engine, await submit(engine, until="prepare"))
        shown = engine.describe(part)
        assert (part.status, shown["download_url"]) == ("completed", None)
        assert shown["remaining_stages"] == ["work"]
        with pytest.raises(Conflict):
            await engine.asset(part, "model.glb")
        rest = await submit(engine, parent=part.id, **part.params)
        assert rest.id != part.id
        return part, await ended(engine, rest)

    part, rest = run(scenario, tmp_path)
    assert rest.parent == part.id
    assert rest.params["seed"] == part.params["seed"]
    assert kept(rest) == {"prepare": True, "work": False}


def test_positions_are_right_at_every_moment(tmp_path):
    async def scenario(engine):
        jobs = [await submit(engine, b"%d" % i, seconds=600, steps=1000) for i in range(5)]
        await running(engine, jobs[0])

        def positions():
            return [engine.describe(engine.queue.lives[j.id].view())["position"] for j in jobs[1:]]

        assert positions()[1:] == [1, 2, 3]  # the second is prepared already: processing
        await engine.cancel(jobs[2])
        del jobs[2]
        assert positions()[1:] == [1, 2]
        for job in jobs:
            await engine.cancel(job)

    run(scenario, tmp_path)


def test_the_cpu_stage_of_the_next_job_overlaps_the_gpu_stage_of_this_one(tmp_path):
    async def scenario(engine):
        first = await submit(engine, b"1", seconds=600, steps=1000)
        await running(engine, first)
        others = [await submit(engine, b"%d" % i, seconds=600, steps=1000) for i in range(2, 5)]
        await until(lambda: engine.queue.lives[others[0].id].done == 1)
        states = [(await engine.job(j.id, None)).status for j in others]
        for job in (first, *others):
            await engine.cancel(job)
        return states

    assert run(scenario, tmp_path) == ["processing", "queued", "queued"]


def test_all_slots_may_be_one_device(tmp_path):
    async def scenario(engine):
        jobs = [await submit(engine, b"%d" % i, seconds=0.05) for i in range(3)]
        return await ended(engine, *jobs)

    jobs = run(scenario, tmp_path, slots={"gpu": "cpu"})
    assert [j.status for j in jobs] == ["completed"] * 3


def test_a_full_queue_refuses_with_its_figures(tmp_path):
    async def scenario(engine):
        first = await submit(engine, b"1", seconds=600, steps=1000)
        await running(engine, first)
        second = await submit(engine, b"2", seconds=600, steps=1000)
        await running(engine, second, "prepare")
        await submit(engine, b"3", seconds=600, steps=1000, key="k")
        with pytest.raises(QueueFull) as refused:
            await submit(engine, b"4")
        again = await submit(engine, b"3", seconds=600, steps=1000, key="k")
        assert again.asset("image").name == "image"
        return refused.value.extra

    extra = run(scenario, tmp_path, max_queue_size=1)
    assert (extra["queue_length"], extra["max_queue_size"]) == (1, 1)


@pytest.mark.parametrize("how", ["queued", "running"])
def test_cancel_ends_the_job_and_frees_the_worker(tmp_path, how):
    async def scenario(engine):
        first = await submit(engine, b"1", seconds=600, steps=1000)
        await running(engine, first)
        second = await submit(engine, b"2", seconds=0)
        victim = second if how == "queued" else first
        cancelled = await engine.cancel(victim)
        assert cancelled.status == "cancelled"
        assert (await engine.cancel(victim)).status == "cancelled"
        if how == "queued":
            await engine.cancel(first)
        else:
            assert (await ended(engine, second)).status == "completed"
        third = await ended(engine, await submit(engine, b"3"))
        assert third.status == "completed"

    run(scenario, tmp_path)


def test_a_job_cancelled_while_its_stage_is_published_holds_up_no_equal_one(tmp_path):
    entered, go_on = threading.Event(), threading.Event()

    async def scenario(engine):
        put_file = engine.blobs.put_file

        def held(*args):
            entered.set()
            go_on.wait(LIMIT_S)
            return put_file(*args)

        engine.blobs.put_file = held
        first = await submit(engine, seconds=1, steps=100)
        await until(entered.is_set)
        await engine.cancel(first)
        go_on.set()
        while not await engine.store.stage_keys():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return await ended(engine, await submit(engine, seconds=1, steps=100))

    job = run(scenario, tmp_path, ONLY_GPU)
    assert (job.status, kept(job)) == ("completed", {"prepare": True, "work": False})


def test_delete_cancels_what_runs_and_removes_what_ended(tmp_path):
    async def scenario(engine):
        job = await submit(engine, seconds=600, steps=1000)
        await running(engine, job)
        assert (await engine.delete(job)).status == "cancelled"
        done = await ended(engine, await submit(engine))
        assert await engine.delete(done) is None
        with pytest.raises(NotFound):
            await engine.job(done.id, None)

    run(scenario, tmp_path)


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("bad_input", "bad_input"),
        ("error", "upstream_failure"),
        ("exit", "upstream_failure"),
        ("memory", "out_of_memory"),
    ],
)
def test_a_failure_is_told_and_the_queue_moves_on(tmp_path, how, code):
    async def scenario(engine):
        failed, after = await ended(
            engine, await submit(engine, b"1", fail=how), await submit(engine, b"2")
        )
        assert (failed.status, failed.error.code) == ("failed", code)
        assert failed.error.message
        assert after.status == "completed"

    run(scenario, tmp_path)


def test_a_job_that_kills_its_worker_three_times_fails(tmp_path):
    async def scenario(engine):
        poison, after = await ended(
            engine, await submit(engine, b"1", fail="kill"), await submit(engine, b"2")
        )
        assert (poison.status, poison.worker_deaths) == ("failed", 3)
        assert poison.error.code in ("worker_died", "out_of_memory")
        assert kept(poison) == {"prepare": False}
        assert (after.status, after.worker_deaths) == ("completed", 0)

    run(scenario, tmp_path)


def test_a_killed_worker_costs_one_attempt_and_no_job(tmp_path):
    async def scenario(engine):
        job = await submit(engine, seconds=1, steps=20)
        waiting = await submit(engine, b"2")
        await running(engine, job)
        async for event in engine.events.stream([waiting.id], lambda j: snapshot(engine, j)):
            if "prepared.json" in str(event.data):  # what prepared it is killed as well
                break
        for path in (tmp_path / "data" / "workers").glob("*.json"):
            os.kill(int(path.stem), signal.SIGKILL)
        job, waiting = await ended(engine, job, waiting)
        assert (job.status, job.worker_deaths) == ("completed", 1)
        assert kept(job) == {"prepare": False, "work": False}
        assert (waiting.status, waiting.worker_deaths) == ("completed", 0)

    run(scenario, tmp_path)


def test_a_new_engine_goes_on_where_the_last_one_stopped(tmp_path):
    async def scenario():
        async with engine_on(tmp_path) as engine:
            jobs = [await submit(engine, b"%d" % i, seconds=2) for i in range(3)]
            await running(engine, jobs[0])
        async with engine_on(tmp_path) as engine:
            return await asyncio.wait_for(ended(engine, *jobs), LIMIT_S)

    jobs = asyncio.run(scenario())
    assert [j.status for j in jobs] == ["completed"] * 3
    assert kept(jobs[0]) == {"prepare": True, "work": False}


def test_a_job_that_the_model_no_longer_takes_fails_and_the_others_go_on(tmp_path):
    """The declaration may change between two starts: here a stage has gone, and one is new."""
    prepare, work = MODEL.stages
    drawn = replace(work, name="drawn", when=({"draw": True},))
    changed = replace(MODEL, stages=(prepare, drawn, replace(work, name="new", params=("new",))))

    async def scenario():
        async with engine_on(tmp_path) as engine:
            first = await submit(engine, b"1", seconds=600, steps=1000)
            await running(engine, first)
            jobs = [await submit(engine, b"2", until=stage) for stage in ("work", "prepare", "")]
        async with engine_on(tmp_path, changed) as engine:
            await engine.cancel(await engine.job(first.id, None))
            described = [await snapshot(engine, job.id) for job in jobs]
            return described, await asyncio.wait_for(ended(engine, *jobs), LIMIT_S)

    described, (gone, same, added) = asyncio.run(scenario())
    assert [job["model"] for job in described] == ["stub"] * 3
    assert same.status == "completed"
    assert (gone.status, gone.error.code) == ("failed", "model_changed")
    assert (added.status, added.error.code) == ("failed", "model_changed")


def test_max_concurrent_runs_as_many_at_once(tmp_path):
    async def scenario(engine):
        jobs = [await submit(engine, b"%d" % i, seconds=600, steps=1000) for i in range(3)]

        def busy():
            return {s["job"] for s in engine.health()["slots"] if s["stage"] == "work"}

        await until(lambda: len(busy()) == 2)
        for job in jobs:
            await engine.cancel(job)

    run(scenario, tmp_path, max_concurrent=2)


def test_what_is_reserved_moves_to_the_place_that_is_free_first(tmp_path):
    async def scenario(engine):
        long = await submit(engine, b"1", seconds=600, steps=1000)
        short = await submit(engine, b"2", seconds=1)
        await running(engine, long)
        await running(engine, short)
        more = [await submit(engine, b"%d" % i) for i in range(3, 6)]
        done = await ended(engine, short, *more)
        await engine.cancel(long)
        return done

    jobs = run(scenario, tmp_path, ONLY_GPU, max_concurrent=2)
    assert [j.status for j in jobs] == ["completed"] * 4


def test_a_chain_that_has_begun_is_not_taken_back_in_part(tmp_path):
    async def scenario(engine):
        await running(engine, await submit(engine, b"1", seconds=0.3))
        second = await submit(engine, b"2", prepare_seconds=0.5)
        pool = engine.runner.pool
        lane = next(lane for lane in pool._lanes.values() if "gpu" in lane.slots)
        await until(lambda: lane.reserved)
        channel = lane.workers["stub", "gpu"]._channel._socket
        come = b""
        while second.id.encode() not in come:  # the loop stands still: it begins, and none knows
            select.select([channel], [], [])
            come = channel.recv(1 << 16, socket.MSG_PEEK)
        pool.revoke(lane.id)
        return await ended(engine, second)

    assert run(scenario, tmp_path, ONLY_GPU).status == "completed"


def test_an_idle_worker_is_ended_and_loaded_again_for_the_next_job(tmp_path):
    async def scenario(engine):
        await ended(engine, await submit(engine, b"1"))
        await until(lambda: not engine.health()["model_loaded"])
        health = engine.health()
        assert (health["model_loaded"], health["status"], engine.ready) == (False, "healthy", True)
        await until(lambda: not list((tmp_path / "data" / "workers").glob("*.json")))
        assert (await ended(engine, await submit(engine, b"2"))).status == "completed"

    run(scenario, tmp_path, model_idle_timeout_s=0.4)


def test_a_job_that_comes_while_its_idle_worker_ends_is_run_once(tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    monkeypatch.setenv("STUB_RUNS", str(runs))

    async def scenario(engine):
        await ended(engine, await submit(engine, b"1"))
        workers = [w for lane in engine.runner.pool._lanes.values() for w in lane.workers.values()]
        for worker in workers:
            os.kill(worker.pid, signal.SIGSTOP)  # their end takes its whole grace
        await until(lambda: not engine.health()["model_loaded"])
        runs.write_text("")
        job = await ended(engine, await submit(engine, b"2", seconds=3))
        return job, runs.read_text().split()[::2]

    job, stages = run(scenario, tmp_path, model_idle_timeout_s=0.4)
    assert (job.status, stages) == ("completed", ["prepare", "work"])


def test_the_first_committed_end_wins(tmp_path):
    async def scenario(engine):
        outcomes = set()
        for i in range(12):
            job = await submit(engine, b"%d" % i, seconds=0.01 * (i % 4), steps=1)
            await running(engine, job)
            await asyncio.sleep(0.004 * (i % 5))
            told = await engine.cancel(job)
            stored = await ended(engine, job)
            assert stored.status == told.status
            assert stored.status in TERMINAL
            assert (stored.status == "completed") == (stored.asset("manifest.json") is not None)
            outcomes.add(stored.status)
        return outcomes

    assert run(scenario, tmp_path) <= {"completed", "cancelled"}


def test_views_and_formats_are_made_from_the_result(tmp_path):
    async def scenario(engine):
        done = await ended(engine, await submit(engine))
        asset, path = await engine.asset(done, "view_2.png")
        assert path.read_bytes().startswith(b"\x89PNG")
        stl, path = await engine.asset(done, "model.stl")
        assert (stl.kind, stl.file.media_type) == ("derived", "model/stl")
        facts = engine.describe(await engine.job(done.id, None))["facts"]
        assert facts["triangles"] == 12
        stored = await engine.store.get(done.id)
        assert {"view_0.png", "view_3.png", "model.stl"} <= {a.name for a in stored.assets}
        with pytest.raises(NotFound):
            await engine.asset(done, "../polypod.db")
        return asset

    assert run(scenario, tmp_path).kind == "derived"


@pytest.mark.parametrize("name", ["model.stl", "view_0.png"])
def test_who_asks_for_a_file_does_not_wait_for_what_nobody_asked_for(tmp_path, name):
    async def scenario(engine):
        jobs = await ended(engine, *[await submit(engine, seed=seed) for seed in range(8)])
        await engine.asset(jobs[-1], name)
        stored = [await engine.store.get(job.id) for job in jobs[:-1]]
        return sum(job.asset("view_0.png") is not None for job in stored)

    assert run(scenario, tmp_path) < 7


def test_a_job_deleted_while_its_views_are_made_stays_deleted(tmp_path):
    async def scenario(engine):
        done = await ended(engine, await submit(engine))
        making = list(engine.derived._making.values())
        assert making and await engine.delete(done) is None
        await asyncio.wait(making)
        with pytest.raises(NotFound):
            await engine.job(done.id, None)

    run(scenario, tmp_path)


def test_the_sweeper_leaves_what_a_waiting_job_will_read(tmp_path):
    """Also where the stage that made it is not kept, as when its commit failed."""
    prepare = replace(MODEL.stages[0], assets=())

    async def scenario(engine):
        long = await submit(engine, b"1", seconds=600, steps=1000)
        await running(engine, long)
        job = await submit(engine, b"2")
        live = engine.queue.lives[job.id]
        await until(lambda: live.done)
        await engine.store.forget_stage(live.kept[0].key)
        parts = (engine.settings, engine.store, engine.blobs, engine._pinned, engine._in_hand)
        await Sweeper(*parts, engine.forgot, engine.budget).sweep(time.time() + 2 * GRACE_S)
        there = engine.blobs.here(live.files["prepared.json"].digest)
        await engine.cancel(long)
        return there

    assert run(scenario, tmp_path, replace(MODEL, stages=(prepare, *MODEL.stages[1:])))


@pytest.mark.parametrize("how", ["cancel", "delete"])
def test_a_job_whose_model_is_no_longer_served_can_be_cancelled(tmp_path, how):
    """It would fill the queue for ever."""

    async def scenario():
        async with engine_on(tmp_path) as engine:
            job = await submit(engine, seconds=600)
        async with engine_on(tmp_path, replace(MODEL, name="other")) as engine:
            await getattr(engine, how)(await engine.job(job.id, None))
            return await engine.store.get(job.id)

    job = asyncio.run(scenario())
    assert job.status == "cancelled" and job.asset("image")


def test_a_job_that_a_router_sends_twice_at_once_is_one(tmp_path):
    async def scenario(engine):
        image = engine.blobs.put_bytes(b"a picture", "image/png", "photo.png")
        params = engine.models["stub"].resolve({})
        sent = Submission("stub", {"image": image}, {}, params, id="a" * 32, relayed=True)
        both = await asyncio.gather(engine.submit(sent), engine.submit(sent))
        again = await engine.submit(sent)
        assert {job.id for job in (*both, again)} == {sent.id}
        assert (await ended(engine, again)).status == "completed"
        assert (await engine.submit(sent)).status == "completed"

    run(scenario, tmp_path)


STUBBORN = """
from pathlib import Path

def load(worker, settings):
    if not Path(__file__).with_name("mended").exists():
        raise RuntimeError("No module named 'diffusers'")

def run(stage, state, job):
    (job.outputs / "model.glb").write_bytes(b"glTF")
"""


def test_a_data_folder_that_cannot_be_one_is_told(tmp_path):
    (tmp_path / "data").write_text("a file")

    async def start():
        async with engine_on(tmp_path):
            pass

    with pytest.raises(Unavailable, match="cannot be written: File exists") as told:
        asyncio.run(start())
    assert "POLYPOD_DATA" in told.value.hint


def test_a_job_says_what_it_waits_for_while_the_model_does_not_load(tmp_path):
    (tmp_path / "worker.py").write_text(STUBBORN)
    fault = Fault("No module named", "A package is missing.", "Ask the doctor.")
    work = Stage("work", inputs=("image",), outputs=("model.glb",), assets=("model.glb",))
    model = replace(MODEL, folder=tmp_path, stages=(work,), faults=(fault,))

    async def scenario(engine):
        job = await submit(engine)
        stream = engine.events.stream([job.id], lambda j: snapshot(engine, j))
        async for event in stream:
            if "does not load" in event.data["message"]:
                break
        shown = await snapshot(engine, job.id)
        health = engine.health()
        assert "A package is missing." in shown["message"] and shown["status"] == "queued"
        assert health["status"] == "degraded" and not health["model_loaded"]
        assert "Ask the doctor." in health["reasons"][0]
        (tmp_path / "mended").touch()
        done = await ended(engine, job)
        assert done.status == "completed" and done.worker_deaths == 0

    run(scenario, tmp_path, model)
