"""Webhooks in the store, on both databases: due with the end, claimed once, noted once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polypod.jobs.job import Job, new_id
from polypod.jobs.store.store import Store

pytestmark = pytest.mark.anyio
URL = "https://example.com:8443/hook?token=1"
END = 2_000_000_000.0


async def submitted(store: Store, url: str = URL) -> Job:
    job = Job(new_id(), "stub", "", inputs={}, params={}, created_at=END - 10)
    return await store.submit(job, 100, webhook_url=url)


async def finished(store: Store, url: str = URL, status="completed", at: float = END) -> Job:
    job = replace(await submitted(store, url), status=status, finished_at=at)
    assert await store.finish(job)
    return job


async def test_it_is_due_with_the_end_and_not_before(store: Store) -> None:
    job = await submitted(store)
    assert await store.due_deliveries(END + 1e6) == []
    assert await store.next_delivery_at() is None
    kept = await store.delivery(job.id)
    assert kept and (kept.url, kept.host, kept.event) == (URL, "example.com:8443", "")

    await store.finish(replace(job, status="failed", finished_at=END))
    assert await store.due_deliveries(END - 1) == []
    assert await store.next_delivery_at() == END
    (due,) = await store.due_deliveries(END)
    assert (due.id, due.job_id) == (kept.id, job.id)
    assert (due.event, due.event_at, due.attempts) == ("job.failed", END, 0)


async def test_only_the_first_end_makes_it_due(store: Store) -> None:
    job = await finished(store)
    assert not await store.finish(replace(job, status="cancelled", finished_at=END + 5))
    (due,) = await store.due_deliveries(END + 10)
    assert (due.event, due.event_at) == ("job.completed", END)


async def test_jobs_without_a_webhook_have_none(store: Store) -> None:
    job = await finished(store, url="")
    assert await store.delivery(job.id) is None
    assert await store.due_deliveries(END) == []


async def test_only_one_claims_it_and_it_comes_back_unless_noted(store: Store) -> None:
    job = await finished(store)
    due = await store.due_deliveries(END)
    (claimed,) = await store.claim_deliveries(due, END + 12)
    assert await store.claim_deliveries(due, END + 12) == []
    assert await store.due_deliveries(END + 11) == []
    (again,) = await store.due_deliveries(END + 12)
    assert (again.id, again.attempts) == (claimed.id, 1)

    (second,) = await store.claim_deliveries([again], END + 24)
    late = replace(claimed, next_at=None, done_at=END + 13, last_status=200)
    assert not await store.note_delivery(late), "another attempt is under way"
    failed = replace(second, next_at=END + 30, last_status=500, last_error="it answered 500\0")
    assert await store.note_delivery(failed)
    (third,) = await store.claim_deliveries(await store.due_deliveries(END + 30), END + 42)
    assert await store.note_delivery(replace(third, next_at=None, done_at=END + 31))
    assert await store.next_delivery_at() is None
    kept = await store.delivery(job.id)
    assert kept and (kept.attempts, kept.done_at) == (3, END + 31)
    assert await store.claim_deliveries([kept], END + 99) == [], "it is done"


async def test_a_busy_host_is_passed_over(store: Store) -> None:
    for i in range(3):
        await finished(store, "http://slow.example/", at=END + i)
    other = await finished(store, "http://quick.example/", at=END + 5)
    due = await store.due_deliveries(END + 9, most=2)
    assert {d.host for d in due} == {"slow.example"}
    due = await store.due_deliveries(END + 9, ["slow.example"], most=2)
    assert [d.job_id for d in due] == [other.id]


async def test_it_goes_with_its_job(store: Store) -> None:
    job = await finished(store)
    await store.delete(job.id)
    assert await store.due_deliveries(END) == []


async def test_every_store_has_a_secret_of_its_own(store: Store, sqlite_url: str) -> None:
    secret = await store.webhook_secret()
    assert len(secret) == 64
    assert await store.webhook_secret() == secret
    other = await Store.open(sqlite_url + "2")
    assert await other.webhook_secret() != secret
    await other.close()
