"""Errors as answers: problem documents (RFC 9457) that also carry a plain `error` string."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from polypod.errors import Problem
from polypod.jobs.job import JobError

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 5
"""Said with a 503 that names no time of its own."""


class Gone(Problem):
    """It was there, and was removed when its time was over."""

    status = 410


class RangeNotSatisfiable(Problem):
    """The range begins behind the end of the file."""

    status = 416


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The answer for `problem`; its `extra` values become members of the document."""
    extra = {name: value for name, value in problem.extra.items() if name != "retry_after_s"}
    headers = {**(headers or {}), **retry_after(problem)}
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer"
    if isinstance(problem, RangeNotSatisfiable):
        headers["content-range"] = f"bytes */{problem.extra['size']}"
    return respond(
        problem.status, problem.code(), problem.message, problem.hint, extra, headers=headers
    )


def retry_after(problem: Problem) -> dict[str, str]:
    """The header that says when to try again, where that is known or worth it."""
    wait = problem.extra.get("retry_after_s", RETRY_AFTER_S if problem.status == 503 else None)
    return {} if wait is None else {"retry-after": str(max(1, round(wait)))}


def respond(
    status: int,
    code: str,
    message: str,
    hint: str = "",
    extra: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem document; `error` and `code` are for clients that want one string."""
    document = {
        **(extra or {}),
        "type": f"urn:polypod:problem:{code}",
        "title": code.replace("_", " ").capitalize(),
        "status": status,
        "detail": message,
        "hint": hint,
        "error": message,
        "code": code,
    }
    return Response(json.dumps(document), status, headers, MEDIA_TYPE)


def job_failed(error: JobError, extra: Mapping[str, Any]) -> Response:
    """A job's failure, told to a request that waited for its result."""
    status = 422 if error.code == "bad_input" else 500
    return respond(status, error.code, error.message, error.hint, extra)


def internal_error() -> Response:
    """A 500 that tells nothing of what went wrong inside: that is in the log."""
    return respond(
        500,
        "internal_error",
        "Something went wrong in the server.",
        "Try again. If it stays, the server's log says what happened.",
    )


async def on_http_exception(request: Request, error: Exception) -> Response:
    """What the router itself refuses: no such path, or not with this method."""
    assert isinstance(error, HTTPException)
    status, headers = error.status_code, error.headers or {}
    if status == 404:
        message = f"There is nothing at {request.url.path}."
        return respond(404, "not_found", message, "GET /docs lists every address.")
    if status == 405:
        message = f"{request.method} is not possible on {request.url.path}."
        hint = f"Use one of: {headers.get('Allow', '')}."
        return respond(405, "method_not_allowed", message, hint, headers=headers)
    phrase = HTTPStatus(status).phrase
    code = phrase.lower().replace(" ", "_").replace("-", "_")
    return respond(status, code, f"{phrase}.", headers=headers)
