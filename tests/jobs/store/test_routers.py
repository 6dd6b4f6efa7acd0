"""Leases, ownership and news of routers that share a real PostgreSQL."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace

import psycopg
import pytest

from polypod.access.keys import new_key
from polypod.errors import Conflict, QueueFull, Unavailable
from polypod.jobs.job import Job, new_id
from polypod.jobs.store.routers import ENDED, JOINED, LEADS, LEFT, NEW
from polypod.jobs.store.store import Store

pytestmark = pytest.mark.anyio


def a_job(**changes: object) -> Job:
    job = Job(id=new_id(), model="stub", owner="", inputs={}, params={}, created_at=100.0)
    return replace(job, **changes)


def ended(job: Job, status: str) -> Job:
    return replace(job, status=status, started_at=110.0, finished_at=120.0)


@asynccontextmanager
async def routers(url: str, *names: str) -> AsyncIterator[list[Store]]:
    async with AsyncExitStack() as stack:
        stores = []
        for name in names:
            store = await Store.open(url)
            stack.push_async_callback(store.close)
            await store.routers.join(name)
            stores.append(store)
        yield stores


def expire(url: str, router: str) -> None:
    """As if the router had not been heard for the time of its lease."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE routers SET expires_at = 0 WHERE id = %s", (router,))


async def test_one_leads_until_its_lease_is_over(postgres_url: str) -> None:
    async with routers(postgres_url, "a", "b") as (a, b):
        lease = await a.routers.renew()
        assert lease and (lease.leads, lease.others, lease.vacant) == (False, 1, True)
        assert await a.routers.lead() == []
        assert await b.routers.lead() is None
        lease = await b.routers.renew()
        assert lease and (lease.leads, lease.vacant) == (False, False)
        expire(postgres_url, "a")
        lease = await b.routers.renew()
        assert lease and (lease.others, lease.vacant) == (0, True)
        assert await b.routers.lead() == []
        assert await a.routers.renew() is None, "it has to join again"
        assert await a.routers.lead() is None


async def test_a_leader_that_was_slow_but_not_replaced_leads_on(postgres_url: str) -> None:
    async with routers(postgres_url, "a", "b") as (a, _):
        await a.routers.lead()
        expire(postgres_url, "a")
        lease = await a.routers.renew()
        assert lease and lease.leads


TAKES_THE_LEAD = """
import asyncio, sys
from polypod.jobs.store.store import Store

async def main():
    store = await Store.open(sys.argv[1])
    await store.routers.join("stopped")
    await store.routers.lead()

asyncio.run(main())
"""
READS_JOBS = """SELECT 1 FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event = 'ClientWrite'"""


async def test_one_that_is_stopped_while_it_reads_what_it_leads_holds_nobody_up(
    postgres_url: str,
) -> None:
    """PostgreSQL waits for it for ever: it counts as under way, not as idle in a transaction."""
    async with routers(postgres_url, "a") as (a,):
        for _ in range(300):
            await a.submit(a_job(params={"text": "x" * 100_000}), 1000)
        with stopped_while_it_reads(postgres_url):
            await a.submit(a_job(), 1000)


@contextmanager
def stopped_while_it_reads(url: str) -> Iterator[None]:
    child = subprocess.Popen([sys.executable, "-c", TAKES_THE_LEAD, url])
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            while not connection.execute(READS_JOBS).fetchone():
                assert child.poll() is None
        child.send_signal(signal.SIGSTOP)
        yield
    finally:
        child.kill()
        child.wait()


async def test_the_leader_owns_what_any_router_accepts(postgres_url: str) -> None:
    async with routers(postgres_url, "a", "b") as (a, b):
        before = await b.submit(a_job(), 10)
        taken = await a.routers.lead()
        assert taken and [(job.id, job.attempt) for job in taken] == [(before.id, 1)]
        job = await b.submit(a_job(), 10)
        assert not await b.start(job.id, 0, 110.0), "it is not b's"
        assert await a.start(job.id, 0, 110.0)
        assert await a.finish(ended(job, "completed"))


async def test_what_a_lost_owner_writes_has_no_effect(postgres_url: str) -> None:
    async with routers(postgres_url, "a", "b") as (a, b):
        await a.routers.lead()
        job = await a.submit(a_job(), 10)
        await a.start(job.id, 0, 110.0)
        expire(postgres_url, "a")
        taken = await b.routers.lead()
        assert taken and (taken[0].attempt, taken[0].status) == (1, "queued")
        assert not await a.start(job.id, 0, 111.0)
        assert not await a.note_death(job.id, 0, worker=True)
        assert not await a.finish(ended(job, "completed"))
        assert not await a.finish(ended(taken[0], "completed")), "nor with the new attempt"
        await a.put_back([job, taken[0]])
        assert await b.finish(ended(taken[0], "completed"))
        assert not await a.finish(ended(job, "failed"))
        new = await a.submit(a_job(), 10)  # accepted by the lost one, owned by the other
        assert not await a.start(new.id, 0, 112.0)
        assert await b.start(new.id, 0, 112.0)


async def test_a_job_is_cancelled_by_whoever_is_asked(postgres_url: str) -> None:
    async with routers(postgres_url, "a", "b") as (a, b):
        await a.routers.lead()
        job = await a.submit(a_job(), 10)
        assert await b.finish(ended(job, "cancelled"))
        assert not await a.finish(ended(job, "completed"))
        assert not await b.finish(replace(ended(job, "cancelled"), finished_at=121.0))


async def test_a_job_is_ended_for_its_user_by_whoever_is_asked(postgres_url: str) -> None:
    """When its time is over, for instance; in the attempt that is known there."""
    async with routers(postgres_url, "a", "b") as (a, b):
        job = await a.submit(a_job(), 10)
        await a.routers.lead()
        assert not await b.finish(ended(job, "failed"), as_owner=False)
        assert not await b.finish(ended(replace(job, attempt=1), "failed"))
        assert await b.finish(ended(replace(job, attempt=1), "failed"), as_owner=False)


async def test_a_server_that_is_no_router_does_not_take_their_jobs(postgres_url: str) -> None:
    async with routers(postgres_url, "a") as (a,):
        pod = await Store.open(postgres_url)
        with pytest.raises(Unavailable, match="Routers work on this database"):
            await pod.take_over()
        await a.routers.leave()
        assert await pod.take_over() == []
        await pod.close()


async def test_a_router_that_leaves_gives_its_jobs_up_at_once(postgres_url: str) -> None:
    async with routers(postgres_url, "a", "b") as (a, b):
        await a.routers.lead()
        job = await a.submit(a_job(), 10)
        await a.start(job.id, 0, 110.0)
        await a.put_back([job])
        await a.routers.leave()
        taken = await b.routers.lead()
        assert taken and (taken[0].id, taken[0].server_deaths) == (job.id, 0)


async def test_the_queue_is_bounded_over_all_routers(postgres_url: str) -> None:
    async with routers(postgres_url, "a", "b") as (a, b):
        await a.submit(a_job(), 2)
        await b.submit(a_job(), 2)
        for store in (a, b):
            with pytest.raises(QueueFull):
                await store.submit(a_job(), 2)


async def test_everyone_hears_what_the_others_tell_in_order(postgres_url: str) -> None:
    async with routers(postgres_url, "a", "b") as (a, b):
        after = await b.routers.newest()
        await a.routers.lead()
        job = await a.submit(a_job(), 10)
        await a.routers.tell([("log", job.id, {"line": "x" * 20_000})])
        await b.submit(a_job(), 10)
        await a.finish(ended(job, "failed"))
        await a.routers.leave()
        heard = await b.routers.news(after)
        assert [news.kind for news in heard] == [LEADS, NEW, "log", ENDED, LEFT]
        assert [news.about for news in heard[1:4]] == [job.id] * 3
        assert heard[2].data == {"line": "x" * 20_000}
        assert await b.routers.news(heard[-1].id) == []
        assert JOINED in {news.kind for news in await a.routers.news(0)}


async def test_a_refused_write_tells_nothing(postgres_url: str) -> None:
    async with routers(postgres_url, "a", "b") as (a, b):
        job = await a.submit(a_job(), 10)
        after = await b.routers.newest()
        with pytest.raises(Conflict):
            await a.submit(replace(a_job(), id=job.id), 10)
        assert await b.routers.news(after) == []


async def test_a_server_that_is_no_router_tells_nothing(store: Store) -> None:
    await store.submit(a_job(), 10)
    assert await store.routers.newest() == 0


async def test_a_keys_submits_are_counted_for_all(postgres_url: str) -> None:
    _, key = new_key("a", ["generate"], at=1.0, submits_per_minute=4)
    _, other = new_key("b", ["generate"], at=1.0, submits_per_minute=1)
    async with routers(postgres_url, "a", "b") as (a, b):
        for each in (key, other):
            await a.access.add(each, "ann")
        asked = (store.routers.count_submit(key.id) for store in (a, b) * 10)
        waits = await asyncio.gather(*asked)
        assert waits.count(0.0) == 4
        assert all(0 < wait_s <= 15 for wait_s in waits if wait_s)
        assert await b.routers.count_submit(other.id) == 0.0
        assert 15 < await a.routers.count_submit(other.id) <= 60
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("UPDATE api_keys SET full_at = full_at - 15")  # so long ago
        assert sum([await s.routers.count_submit(key.id) == 0.0 for s in (a, b)]) == 1
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("UPDATE api_keys SET full_at = full_at - 3600")
        waits = [await s.routers.count_submit(key.id) for s in (a, b) * 3]
        assert waits.count(0.0) == 4, "no more than a minute's worth is saved up"
        assert {*await a.access.keys()} == {key, other}
    store = await Store.open(postgres_url)
    assert await store.routers.count_submit(other.id) == 0.0, "it is no router"
    await store.close()
