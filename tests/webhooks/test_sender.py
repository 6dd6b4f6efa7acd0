"""The sender, with a real store and real receivers on loopback that fail in every way."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polypod.jobs.job import Job, new_id
from polypod.jobs.store.deliveries import Delivery
from polypod.jobs.store.store import Store
from polypod.safe_http import tls_context
from polypod.settings import Settings
from polypod.webhooks.schedule import PER_HOST
from polypod.webhooks.sender import Sender
from tests.webhooks.receiver import Receiver

pytestmark = pytest.mark.anyio
LIMIT_S = 20


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def other() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
async def kept(sqlite_url: str) -> AsyncIterator[Store]:
    store = await Store.open(sqlite_url)
    yield store
    await store.close()


async def show(job_id: str) -> dict[str, Any]:
    return {"job_id": job_id, "status": "completed", "log": "half a character \ud800"}


@contextlib.asynccontextmanager
async def sending(store: Store, **changes: Any) -> AsyncIterator[Sender]:
    given = {"allow_private_urls": True, "webhook_timeout_s": 5, "webhook_secret": "s", **changes}
    sender = Sender(store, Settings(data=Path("unused"), **given), show)
    await sender.start()
    yield sender
    await sender.stop()


async def finished(store: Store, url: str) -> Job:
    job = Job(new_id(), "stub", "", inputs={}, params={}, created_at=time.time())
    job = replace(await store.submit(job, 1000, webhook_url=url), status="completed")
    await store.finish(replace(job, finished_at=time.time()))
    return job


async def noted(store: Store, job: Job, attempts: int = 1) -> Delivery:
    """The delivery once this attempt has been noted."""
    end = time.monotonic() + LIMIT_S
    while True:
        found = await store.delivery(job.id)
        assert found
        if found.attempts >= attempts and (found.last_error or found.done_at):
            return found
        assert time.monotonic() < end, found
        await asyncio.sleep(0.02)


async def hasten(store: Store, failed: Delivery) -> None:
    """Let the next attempt be due now."""
    assert failed.next_at and failed.next_at > time.time()
    assert await store.note_delivery(replace(failed, next_at=time.time(), last_error=""))


async def test_it_arrives_once_and_is_signed(kept: Store, receiver: Receiver) -> None:
    async with sending(kept) as sender:
        job = await finished(kept, receiver.url())
        sender.wake()
        done = await noted(kept, job)
    (got,) = receiver.got
    assert done.done_at and done.next_at is None
    assert (done.attempts, done.last_status, done.last_error) == (1, 200, "")
    assert got.headers["content-type"] == "application/json"
    assert got.headers["x-polypod-event"] == got.json["event"] == "job.completed"
    assert got.headers["x-polypod-delivery"] == got.json["delivery_id"] == done.id
    assert got.json["job"]["job_id"] == job.id
    at, _, digest = got.headers["x-polypod-signature"].partition(",v1=")
    assert abs(int(at.removeprefix("t=")) - time.time()) < 60
    signed = at.removeprefix("t=").encode() + b"." + got.body
    assert digest == hmac.new(b"s", signed, hashlib.sha256).hexdigest()


async def test_what_this_server_cannot_send_is_tried_again_later_each_time(
    kept: Store, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "there is none"))
    tls_context.cache_clear()
    async with sending(kept) as sender:
        job = await finished(kept, receiver.url())
        sender.wake()
        failed = await noted(kept, job)
    assert "failed to send it" in failed.last_error and failed.next_at
    assert receiver.got == []


async def test_a_500_is_tried_again_under_the_same_id(kept: Store, receiver: Receiver) -> None:
    receiver.answers["/hook"] = lambda h: h.say(500 if len(h.server.got) == 1 else 204, b"")
    async with sending(kept) as sender:
        job = await finished(kept, receiver.url())
        sender.wake()
        failed = await noted(kept, job)
        assert (failed.last_status, failed.last_error) == (500, "The receiver answered 500.")
        assert 3 < (failed.next_at or 0) - time.time() < 7
        await hasten(kept, failed)
        sender.wake()
        done = await noted(kept, job, attempts=2)
    assert done.last_status == 204
    first, second = receiver.got
    assert first.headers["x-polypod-delivery"] == second.headers["x-polypod-delivery"]
    assert [g.headers["x-polypod-attempt"] for g in receiver.got] == ["1", "2"]


async def test_a_receiver_that_hangs_holds_up_nobody_else(
    kept: Store, receiver: Receiver, other: Receiver
) -> None:
    receiver.answers["/hook"] = lambda h: h.hang()
    slow = [await finished(kept, receiver.url()) for _ in range(PER_HOST + 3)]
    async with sending(kept, webhook_timeout_s=1.5):
        assert await asyncio.to_thread(receiver.wait, PER_HOST)
        began = time.monotonic()
        quick = await finished(kept, other.url())
        async with sending(kept, webhook_timeout_s=1.5):  # another server of the same database
            assert (await noted(kept, quick)).done_at
        assert len(receiver.got) <= 2 * PER_HOST
        failed = [await noted(kept, job) for job in slow]
        assert time.monotonic() - began < LIMIT_S
    assert {f.last_error for f in failed} == {"No answer came within 1.5 s."}
    assert all(f.next_at and f.done_at is None for f in failed)


async def test_redirects_are_not_followed(kept: Store, receiver: Receiver, other: Receiver) -> None:
    receiver.answers["/hook"] = lambda h: h.say(307, Location=other.url())
    job = await finished(kept, receiver.url())
    async with sending(kept):
        failed = await noted(kept, job)
    assert failed.last_error == "The receiver answered 307; redirects are not followed."
    assert failed.next_at
    assert other.got == []


async def test_private_addresses_are_not_called(kept: Store, receiver: Receiver) -> None:
    _, _, port = receiver.host.partition(":")
    urls = [receiver.url(), f"http://localhost:{port}/", f"http://[::ffff:127.0.0.1]:{port}/"]
    jobs = [await finished(kept, url) for url in urls]
    async with sending(kept, allow_private_urls=False):
        for job in jobs:
            assert "not on the public internet" in (await noted(kept, job)).last_error
    assert receiver.got == []


async def test_410_ends_it(kept: Store, receiver: Receiver) -> None:
    receiver.answers["/hook"] = lambda h: h.say(410)
    job = await finished(kept, receiver.url())
    async with sending(kept):
        ended = await noted(kept, job)
    assert ended.done_at and ended.next_at is None
    assert (ended.last_status, ended.last_error) == (410, "The receiver answered 410.")


async def test_after_a_day_it_is_given_up(kept: Store, receiver: Receiver) -> None:
    receiver.answers["/hook"] = lambda h: h.say(503)
    job = Job(new_id(), "stub", "", inputs={}, params={}, created_at=1.0)
    job = await kept.submit(job, 1000, webhook_url=receiver.url())
    await kept.finish(replace(job, status="failed", finished_at=time.time() - 86_399))
    async with sending(kept):
        ended = await noted(kept, job)
    assert ended.done_at and ended.next_at is None
    assert ended.last_error == "The receiver answered 503."


async def test_an_answer_without_end_is_an_answer(kept: Store, receiver: Receiver) -> None:
    receiver.answers["/hook"] = lambda h: h.say_without_end()
    job = await finished(kept, receiver.url())
    async with sending(kept):
        assert (await noted(kept, job)).last_status == 200


async def test_nobody_there_is_told_in_words(kept: Store) -> None:
    with Receiver() as gone:
        url = gone.url()
    job = await finished(kept, url)
    async with sending(kept):
        failed = await noted(kept, job)
    assert failed.last_error == "`webhook_url`: could not connect to 127.0.0.1."
    assert failed.next_at


async def test_a_stop_in_the_middle_loses_nothing(kept: Store, receiver: Receiver) -> None:
    receiver.answers["/hook"] = lambda h: h.hang() if len(h.server.got) == 1 else h.say()
    job = await finished(kept, receiver.url())
    async with sending(kept, webhook_timeout_s=0.5):
        await asyncio.to_thread(receiver.wait)
    async with sending(kept):
        assert (await noted(kept, job, attempts=2)).done_at


async def test_two_servers_on_one_database_send_each_once(
    database_url: str, receiver: Receiver
) -> None:
    one, two = await Store.open(database_url), await Store.open(database_url)
    jobs = [await finished(one, receiver.url()) for _ in range(25)]
    async with sending(one), sending(two):
        for job in jobs:
            assert (await noted(one, job)).done_at
    await one.close()
    await two.close()
    per_job = Counter(got.json["job"]["job_id"] for got in receiver.got)
    assert per_job == {job.id: 1 for job in jobs}
