"""Jobs as they are: one, many, the queue; cancelled or deleted."""

from __future__ import annotations

import base64
import binascii
import re

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from polypod.access.keys import GENERATE, READ
from polypod.api.endpoint import Api, compact, needs, seen_owner
from polypod.errors import BadInput
from polypod.jobs.job import TERMINAL, Job

STATUSES = ("queued", "processing", "completed", "failed", "cancelled")
MOST = 200
DEFAULT_LIMIT = 50

_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")


@needs(READ)
async def get_job(api: Api, request: Request) -> Response:
    """GET /job/{job_id}. The one that clients ask again and again."""
    job = await api.job(request.path_params["job_id"], request)
    return shown(api, job)


@needs(READ)
async def list_jobs(api: Api, request: Request) -> Response:
    """GET /jobs: the caller's jobs, newest first, page by page."""
    query = request.query_params
    limit = page_size(query.get("limit", str(DEFAULT_LIMIT)))
    found = await api.engine.store.jobs(
        owner=seen_owner(request),
        model=_filter(query.get("model"), "model"),
        status=_status(query.get("status")),
        before=_position(query["cursor"]) if "cursor" in query else None,
        limit=limit + 1,
    )
    page = found[:limit]
    cursor = _cursor(page[-1].seq) if len(found) > limit else None
    jobs = [api.describe(api.engine.current(job)) for job in page]
    return Response(compact({"jobs": jobs, "next": cursor}), media_type="application/json")


@needs(READ)
async def get_queue(api: Api, _: Request) -> Response:
    """GET /queue."""
    return JSONResponse(api.engine.figures())


@needs(GENERATE)
async def cancel_job(api: Api, request: Request) -> Response:
    """POST /job/{job_id}/cancel: never deletes; a job that has ended stays as it ended."""
    job = await api.job(request.path_params["job_id"], request)
    if job.status not in TERMINAL:
        await api.note_if_others(request, "job cancelled", job)
    return shown(api, await api.engine.cancel(job))


@needs(GENERATE)
async def delete_job(api: Api, request: Request) -> Response:
    """DELETE /job/{job_id}: 204 when deleted; 200 with the job when it was cancelled instead."""
    job = await api.job(request.path_params["job_id"], request)
    await api.note_if_others(request, "job deleted", job)
    cancelled = await api.engine.delete(job)
    return shown(api, cancelled) if cancelled else Response(None, 204)


def shown(api: Api, job: Job) -> Response:
    return Response(compact(api.describe(job)), media_type="application/json")


def page_size(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text[:9]) <= MOST:
        raise BadInput(f"`limit` is not a number from 1 to {MOST}.", parameter="limit")
    return int(text)


def _status(text: str | None) -> str | None:
    if text is not None and text not in STATUSES:
        raise BadInput(
            f"There is no status {text[:50]!r}.",
            f"Use one of: {', '.join(STATUSES)}.",
            parameter="status",
        )
    return text


def _filter(text: str | None, name: str) -> str | None:
    if text is not None and not _NAME.fullmatch(text):
        raise BadInput(f"`{name}` is not a name.", parameter=name)
    return text


def _cursor(seq: int) -> str:
    return base64.urlsafe_b64encode(f"before:{seq}".encode()).decode().rstrip("=")


def _position(cursor: str) -> int:
    try:
        text = base64.urlsafe_b64decode(cursor[:100].encode() + b"==").decode("ascii")
    except (binascii.Error, ValueError):
        text = ""
    match = re.fullmatch(r"before:([0-9]{1,18})", text)
    if match is None:
        raise BadInput("This cursor is not from here.", "Take `next` of the page before.")
    return int(match[1])
