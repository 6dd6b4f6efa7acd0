"""RunPod's protocol as data: tables of what becomes what."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from polypod.api.compat import protocol
from polypod.api.compat.protocol import Policy
from polypod.errors import (
    BadInput,
    BadRequest,
    Conflict,
    Forbidden,
    NotFound,
    QueueFull,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from polypod.jobs.job import Job, JobError, new_id


def job(status: Any = "queued", code: str = "", **changes: Any) -> Job:
    error = JobError(code, "It broke.", "Mend it.") if code else None
    known: dict[str, Any] = {"created_at": 100.0, "params": {}, "inputs": {}, **changes}
    return Job(id=new_id(), model="stub", owner="", status=status, error=error, **known)


@pytest.mark.parametrize(
    ("status", "code", "state"),
    [
        ("queued", "", "IN_QUEUE"),
        ("processing", "", "IN_PROGRESS"),
        ("completed", "", "COMPLETED"),
        ("cancelled", "", "CANCELLED"),
        ("failed", "upstream_failure", "FAILED"),
        ("failed", "timeout", "TIMED_OUT"),
    ],
)
def test_states(status: str, code: str, state: str) -> None:
    assert protocol.state_of(job(status, code)) == state
    assert protocol.stream_state(job(status, code), drained=False) == state


@pytest.mark.parametrize(
    ("status", "state"),
    [("cancelled", "FAILED"), ("completed", "COMPLETED"), ("queued", "IN_QUEUE")],
)
def test_an_emptied_stream_of_a_cancelled_job_says_failed(status: str, state: str) -> None:
    assert protocol.stream_state(job(status), drained=True) == state


@pytest.mark.parametrize(
    ("started_at", "finished_at", "told"),
    [
        (None, None, {}),
        (101.5, None, {"delayTime": 1500}),
        (101.5, 103.75, {"delayTime": 1500, "executionTime": 2250}),
        (None, 104.0, {"delayTime": 4000, "executionTime": 0}),
        (99.0, 98.0, {"delayTime": 0, "executionTime": 0}),
    ],
)
def test_times_are_milliseconds(
    started_at: float | None, finished_at: float | None, told: dict[str, int]
) -> None:
    assert protocol.times(job(started_at=started_at, finished_at=finished_at)) == told


def test_ids_look_like_runpods_and_lead_back() -> None:
    own = new_id()
    dashed = str(uuid.UUID(own))
    assert protocol.shown_id(own, sync=True) == f"sync-{dashed}"
    assert protocol.shown_id(own, sync=False) == f"{dashed}-u1"
    for shown in (f"sync-{dashed}", f"{dashed}-u1", dashed, own):
        assert protocol.own_id(shown) == own
    assert protocol.own_id("another-u1") == "another-u1"


def test_a_retry_has_an_id_of_its_own_and_always_the_same() -> None:
    own = new_id()
    again = protocol.retry_id(own)
    assert again == protocol.retry_id(own) != own
    assert protocol.retry_id(again) not in (own, again)
    assert uuid.UUID(again).hex == again


def test_the_answer_of_a_failure_tells_why_in_one_string() -> None:
    told = protocol.answer("x-u1", job("failed", "error", finished_at=101.0), None)
    assert told == {
        "id": "x-u1",
        "status": "FAILED",
        "delayTime": 1000,
        "executionTime": 0,
        "error": "It broke. Mend it.",
    }


def test_policies_are_read() -> None:
    policy = {"executionTimeout": 5000, "ttl": 604_800_000, "lowPriority": True}
    order = protocol.read_order({"input": {"a": 1}, "policy": policy})
    assert order.input == {"a": 1}
    assert order.policy == Policy(5000, 604_800_000, True)
    for none in ({}, {"policy": None}, {"policy": {}}, {"webhook": None, "s3Config": None}):
        assert protocol.read_order({"input": {}, **none}).policy == Policy()
    assert not Policy().limits and Policy(ttl_ms=10_000).limits


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": None},
        {"input": "text"},
        {"input": []},
        {"image_url": "https://example.com/a.png"},
        {"input": {}, "policy": 5},
        {"input": {}, "policy": {"executionTimeout": 4999}},
        {"input": {}, "policy": {"executionTimeout": 604_800_001}},
        {"input": {}, "policy": {"executionTimeout": "5000"}},
        {"input": {}, "policy": {"executionTimeout": 5000.5}},
        {"input": {}, "policy": {"ttl": 9999}},
        {"input": {}, "policy": {"ttl": True}},
        {"input": {}, "policy": {"lowPriority": 1}},
        {"input": {}, "policy": {"executiontimeout": 5000}},
        {"input": {}, "s3Config": {"bucketName": "b"}},
        {"input": {"webhook_url": "https://a.example"}, "webhook": "https://b.example"},
    ],
)
def test_what_cannot_be_done_is_refused_with_words(body: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as caught:
        protocol.read_order(body)
    assert caught.value.message


@pytest.mark.parametrize(("text", "seconds"), [(None, 90), ("1000", 1), ("300000", 300)])
def test_waits(text: str | None, seconds: float) -> None:
    assert protocol.read_wait(text) == seconds


@pytest.mark.parametrize("text", ["", "999", "300001", "-5", "1e4", "10000.5", "9" * 5000, "٣٠٠٠"])
def test_waits_outside_of_the_range_are_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        protocol.read_wait(text)


def test_limits_count_from_submission_and_from_the_start() -> None:
    policy = Policy(execution_timeout_ms=5000, ttl_ms=10_000)
    waiting, running = job(), job("processing", started_at=103.0)
    assert not policy.overran(waiting, 1e9)
    assert not policy.overran(running, 107.9)
    assert policy.overran(running, 108.0)
    assert not policy.expired(running, 109.9)
    assert policy.expired(waiting, 110.0) and policy.expired(running, 110.0)
    assert not Policy().expired(waiting, 1e9) and not Policy().overran(running, 1e9)


@pytest.mark.parametrize(
    ("problem", "status"),
    [
        (BadRequest("x"), 400),
        (BadInput("x"), 400),
        (TooLarge("x"), 400),
        (Conflict("x"), 400),
        (Unauthorized("x"), 401),
        (Forbidden("x"), 401),
        (NotFound("x"), 404),
        (QueueFull("x"), 429),
        (Unavailable("x"), 500),
    ],
)
def test_errors_have_the_statuses_of_the_protocol(problem: Any, status: int) -> None:
    assert protocol.error_status(problem) == status


def test_workers() -> None:
    assert protocol.workers(3, 1) == {"idle": 2, "running": 1}
    assert protocol.workers(1, 2) == {"idle": 0, "running": 1}
    assert protocol.workers(0, 0) == {"idle": 0, "running": 0}
