from __future__ import annotations

import json

from polypod.api.problems import internal_error, job_failed, problem_response
from polypod.errors import BadInput, Conflict, QueueFull, Unauthorized, Unavailable
from polypod.jobs.job import JobError


def test_a_full_queue_says_when_to_come_again_and_its_figures() -> None:
    response = problem_response(
        QueueFull("Full.", "Wait.", queue_length=10, max_queue_size=10, retry_after_s=7.4)
    )
    assert response.status_code == 503
    assert response.headers["retry-after"] == "7"
    assert response.headers["content-type"] == "application/problem+json"
    assert json.loads(bytes(response.body)) == {
        "type": "urn:polypod:problem:queue_full",
        "title": "Queue full",
        "status": 503,
        "detail": "Full.",
        "hint": "Wait.",
        "error": "Full.",
        "code": "queue_full",
        "queue_length": 10,
        "max_queue_size": 10,
    }


def test_retry_after_is_there_where_waiting_helps() -> None:
    assert problem_response(Unavailable("x")).headers["retry-after"] == "5"
    assert problem_response(Conflict("x", retry_after_s=0.2)).headers["retry-after"] == "1"
    assert "retry-after" not in problem_response(Conflict("x")).headers


def test_a_missing_key_says_how_to_send_one() -> None:
    assert problem_response(Unauthorized("x")).headers["www-authenticate"] == "Bearer"


def test_any_text_can_be_told() -> None:
    response = problem_response(BadInput("lone \ud800 surrogate", parameter="\ud800"))
    assert json.loads(bytes(response.body))["parameter"] == "\ud800"


def test_a_failed_job_has_a_fitting_status() -> None:
    assert job_failed(JobError("bad_input", "Nothing there."), {}).status_code == 422
    assert job_failed(JobError("out_of_memory", "Too big."), {}).status_code == 500


def test_internals_stay_inside() -> None:
    assert b"Traceback" not in bytes(internal_error().body)
