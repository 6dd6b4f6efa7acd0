"""A router's engine on a real PostgreSQL; a store stands for another router."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from polypod.errors import Unavailable
from polypod.jobs.engine import Submission
from polypod.jobs.job import Job, new_id
from polypod.jobs.store.store import Store
from polypod.router import shared
from polypod.router.app import make_engine
from polypod.router.dispatch import Dispatcher
from polypod.router.endpoint import Known
from polypod.router.routed import RoutedLive
from polypod.router.scaler import Scaled, Scaler
from polypod.router.shared import SharedEngine
from polypod.router.told import STATE
from polypod.settings import Settings
from tests.bento import free_port
from tests.models.stub.model import MODEL

pytestmark = pytest.mark.anyio
LIMIT_S = 20


@contextlib.asynccontextmanager
async def leading(url: str) -> AsyncIterator[Store]:
    """The router that leads, as far as the database knows: no engine is behind it."""
    async with joined(url) as store:
        await store.routers.lead()
        run(url, "UPDATE routers SET expires_at = expires_at + 3600")
        yield store


@contextlib.asynccontextmanager
async def joined(url: str) -> AsyncIterator[Store]:
    store = await Store.open(url)
    await store.put_card("stub", MODEL.card, 0.0)
    await store.routers.join("leader")
    yield store
    await store.close()


@contextlib.asynccontextmanager
async def running(url: str, data: Path) -> AsyncIterator[SharedEngine]:
    """A router with an endpoint `pod` that never answers."""
    known = Known("pod", f"http://127.0.0.1:{free_port()}")
    engine = make_engine([known], Settings(data=data, database_url=url))
    assert isinstance(engine, SharedEngine)
    await engine.start()
    yield engine
    await engine.stop()


def run(url: str, *statements: str) -> None:
    """In one transaction."""
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement)  # pyright: ignore[reportArgumentType, reportCallIssue]


async def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


def places(engine: SharedEngine) -> set[str]:
    """The jobs that `pod` has, as the engine knows it."""
    assert isinstance(engine.runner, Dispatcher)
    return engine.runner.endpoints["pod"].jobs


async def submitted(store: Store) -> Job:
    params = MODEL.resolve({})
    return await store.submit(Job(new_id(), "stub", "", {}, params, time.time()), 100)


def at_pod(job: Job) -> tuple[str, str, dict[str, Any]]:
    """What a leader tells of a job that its endpoint works on."""
    told = {"status": "processing", "started_at": time.time(), "endpoint": "pod"}
    state = {"stage": "work", "message": "", "progress": 1.0, "eta_seconds": None}
    return "status", job.id, told | state


async def test_a_lead_of_which_the_answer_was_lost_is_taken_again(
    postgres_url: str, tmp_path: Path
) -> None:
    """The database knows that this router leads, so no other one will."""
    async with leading(postgres_url), running(postgres_url, tmp_path) as engine:
        assert not engine.leads
        taken = f"UPDATE routers SET leads = true WHERE id = '{engine.id}'"
        run(postgres_url, "DELETE FROM routers WHERE id = 'leader'", taken)
        await until(lambda: engine.leads)


async def test_who_takes_over_finds_the_places_of_endpoints_free(
    postgres_url: str, tmp_path: Path
) -> None:
    """Until they say what they have: the job may go elsewhere, and its place would stay taken."""
    async with leading(postgres_url) as leader, running(postgres_url, tmp_path) as engine:
        job = await submitted(leader)
        await until(lambda: job.id in engine.queue.lives)
        await leader.routers.tell([at_pod(job)])
        await until(lambda: places(engine) == {job.id})
        await leader.routers.leave()
        await until(lambda: engine.leads)
        assert places(engine) == set()


async def test_a_mirror_that_begins_anew_shows_where_jobs_are(
    postgres_url: str, tmp_path: Path
) -> None:
    async with leading(postgres_url) as leader, running(postgres_url, tmp_path) as engine:
        job = await submitted(leader)
        await until(lambda: job.id in engine.queue.lives)
        await leader.routers.tell([at_pod(job)])
        await until(lambda: places(engine) == {job.id})
        before = engine.queue.lives[job.id]
        await leader.routers.lead()  # as another router that took over would
        await until(lambda: engine.queue.lives.get(job.id) not in (before, None))
        await leader.routers.tell([at_pod(job)])
        await until(lambda: engine.queue.lives[job.id].job.status == "processing")
        assert places(engine) == {job.id}


async def test_what_was_read_before_a_takeover_does_not_undo_it(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue is read slowly, since another one led; that one ends before the answer is there."""
    async with leading(postgres_url) as leader, running(postgres_url, tmp_path) as engine:
        job = await submitted(leader)
        await until(lambda: job.id in engine.queue.lives)
        unfinished = engine.store.routers.unfinished
        read, go_on = asyncio.Event(), asyncio.Event()

        async def slowly() -> list[Job]:
            found = await unfinished()
            if not read.is_set():
                read.set()
                await go_on.wait()
            return found

        monkeypatch.setattr(engine.store.routers, "unfinished", slowly)
        await leader.routers.lead()
        await read.wait()
        await leader.routers.leave()
        await until(lambda: engine.leads)
        go_on.set()
        later = await submitted(leader)
        await until(lambda: later.id in engine.queue.lives)
        kept = await engine.store.get(job.id)
        assert kept and engine.queue.lives[job.id].job.attempt == kept.attempt


async def test_news_that_were_gone_before_they_were_read_are_made_good(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The router is stopped just before it reads, for longer than news are kept."""
    async with leading(postgres_url) as leader, running(postgres_url, tmp_path) as engine:
        job = await submitted(leader)
        await leader.routers.keep_endpoint("other", "http://127.0.0.1:1", "")
        await until(lambda: job.id in engine.queue.lives and "other" in endpoints(engine))
        now = shared._clock
        with psycopg.connect(postgres_url) as connection:
            connection.execute("LOCK TABLE news")
            await until(lambda: connection.execute(WAITING).fetchone())
            monkeypatch.setattr(shared, "_clock", lambda: now() + 180)
            connection.execute("UPDATE jobs SET status = 'cancelled', finished_at = 1")
            connection.execute("DELETE FROM endpoints")
        await until(lambda: job.id not in engine.queue.lives)
        assert endpoints(engine) == {"pod"}


WAITING = "SELECT 1 FROM pg_locks WHERE relation = 'news'::regclass AND NOT granted"


def endpoints(engine: SharedEngine) -> set[str]:
    assert isinstance(engine.runner, Dispatcher)
    return set(engine.runner.endpoints)


async def test_what_could_not_be_told_is_made_good(postgres_url: str, tmp_path: Path) -> None:
    async with leading(postgres_url) as other, running(postgres_url, tmp_path) as engine:
        job = await submitted(other)
        await other.routers.leave()
        await until(lambda: engine.leads)
        await other.routers.join("other")
        run(postgres_url, "UPDATE routers SET expires_at = expires_at + 3600 WHERE id = 'other'")
        await until(lambda: engine.health()["router"]["others"])
        live = engine.queue.lives[job.id]
        assert isinstance(live, RoutedLive)
        live.endpoint = "pod"
        after = await other.routers.newest()
        run(postgres_url, "ALTER TABLE news ADD CHECK (kind <> 'status')")
        engine.moved(live)
        end = time.monotonic() + LIMIT_S
        while [news.kind for news in await other.routers.news(after)] != [STATE]:
            assert time.monotonic() < end
            await asyncio.sleep(0.02)


async def test_a_leader_does_a_job_of_which_the_answer_was_lost(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is committed, so it stands in the line that everybody sees."""
    async with running(postgres_url, tmp_path) as engine:
        await engine.store.put_card("stub", MODEL.card, 0.0)
        engine.learn([MODEL])
        submit = engine.store.submit

        async def lost(*args: Any, **kwargs: Any) -> Job:
            await submit(*args, **kwargs)
            raise Unavailable("The database cannot be reached or did not answer.", "Try again.")

        monkeypatch.setattr(engine.store, "submit", lost)
        with pytest.raises(Unavailable):
            await engine.submit(Submission("stub", {}, {}, MODEL.resolve({})))
        await until(lambda: engine.queue.queued)
        assert await engine.store.jobs(status="queued")


class Woken:
    """Pods of which none answers: what is asked of them is all there is."""

    def __init__(self) -> None:
        self.asked = list[str]()

    async def start(self, came: Callable[[Known], object]) -> None: ...

    async def stop(self) -> None: ...

    async def dismiss(self, pod: str) -> None: ...

    def wake(self, pod: str) -> None:
        self.asked.append(f"wake {pod}")

    def put_to_sleep(self, pod: str) -> None:
        self.asked.append(f"stop {pod}")


async def test_who_leads_no_more_wakes_no_pod_and_stops_none(
    postgres_url: str, tmp_path: Path
) -> None:
    pods = Woken()
    known = [Known(name, "", "local", models=("stub",)) for name in ("one-1", "one-2")]
    engine = make_engine(known, Settings(data=tmp_path, database_url=postgres_url), pods)
    assert isinstance(engine, SharedEngine)
    await engine.start()
    assert isinstance(engine.runner, Dispatcher)
    await until(lambda: engine.leads)
    scaler = Scaler((Scaled("stub", 0, 2, 1.0, ("one-1", "one-2")),), engine.runner)
    idle = engine.runner.endpoints["one-2"]
    idle.state = "ready"
    scaler.step(0.0)
    async with joined(postgres_url) as other:
        run(
            postgres_url,
            f"DELETE FROM routers WHERE id = '{engine.id}'",
            "UPDATE routers SET leads = true, expires_at = expires_at + 3600",
        )
        await until(lambda: not engine.leads)
        scaler.step(100.0)
        idle.state = "stopped"
        await submitted(other)
        await until(lambda: engine.queue.queued == 1)
        scaler.step(100.0)
        assert pods.asked == []
        await other.routers.leave()
    await until(lambda: engine.leads)
    scaler.step(100.0)
    assert pods.asked == ["wake one-1"]
    await engine.stop()


async def test_a_lead_that_was_lost_by_a_mere_pause_is_no_death_that_jobs_are_to_blame_for(
    postgres_url: str, tmp_path: Path
) -> None:
    def seen(what: str) -> list[Any]:
        with psycopg.connect(postgres_url) as connection:
            return [row[0] for row in connection.execute(f"SELECT {what} FROM jobs ORDER BY seq")]

    async with joined(postgres_url) as other, running(postgres_url, tmp_path) as engine:
        await until(lambda: engine.leads)
        jobs = [await submitted(other) for _ in range(2)]
        await until(lambda: engine.queue.queued == 2)
        engine.began(engine.queue.lives[jobs[0].id], time.time())
        await until(lambda: seen("status") == ["processing", "queued"])
        taken = None
        while taken is None:  # it may renew its lease in that moment
            run(postgres_url, f"UPDATE routers SET expires_at = 0 WHERE id = '{engine.id}'")
            taken = await other.routers.lead()
        run(postgres_url, "UPDATE routers SET expires_at = expires_at + 3600 WHERE leads")
        assert [job.server_deaths for job in taken] == [1, 0]
        await until(lambda: not engine.leads)
        await until(lambda: seen("server_deaths") == [0, 0])
