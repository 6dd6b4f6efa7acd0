"""The routes of RunPod's serverless protocol: `/v2/{model}/run` and its kin.

For clients that were written for api.runpod.ai; their endpoint id is a model's name here.
"""

from __future__ import annotations

import asyncio
import base64
import functools
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive

from polypod import metrics
from polypod.access.keys import GENERATE, READ
from polypod.api.body import Body, read_json
from polypod.api.compat import protocol
from polypod.api.compat.desk import Desk
from polypod.api.endpoint import (
    Api,
    Handler,
    compact,
    needs,
    owner_of,
    seen_owner,
    unless_disconnected,
)
from polypod.api.problems import Gone, retry_after
from polypod.api.submit import submit_body
from polypod.assets.storage import renew_all
from polypod.errors import BadRequest, Conflict, NotFound, Problem, TooLarge
from polypod.jobs.engine import Submission
from polypod.jobs.job import TERMINAL, Job
from polypod.model import Model, digest_of

INLINE_BYTES = 1 << 20
"""Results up to this size are also in the answer, as base64."""


async def run(api: Api, request: Request) -> Response:
    """POST /v2/{model}/run: the job's id, at once."""
    job = await _submit(api, request, protocol.RUN_BYTES)
    return _json({"id": protocol.shown_id(job.id, sync=False), "status": protocol.state_of(job)})


async def runsync(api: Api, request: Request) -> Response:
    """POST /v2/{model}/runsync: the result, or how far the job is when the wait is over."""
    wait_s = protocol.read_wait(request.query_params.get("wait"))
    job = await _submit(api, request, protocol.RUNSYNC_BYTES)
    shown = protocol.shown_id(job.id, sync=True)
    waiting = asyncio.wait_for(_ended(api, job.id), min(wait_s, api.settings.sync_timeout_s))
    with suppress(asyncio.TimeoutError):
        await unless_disconnected(request.receive, waiting)
    return await _answer(api, shown, await api.engine.job(job.id, None))


async def status(api: Api, request: Request) -> Response:
    """GET /v2/{model}/status/{job_id}."""
    return await _answer(api, request.path_params["job_id"], await _job(api, request))


async def stream(api: Api, request: Request) -> Response:
    """GET /v2/{model}/stream/{job_id}: the files made since it was asked last."""
    job = await _job(api, request)
    made = [asset for asset in api.describe(job)["assets"] if asset["kind"] == "output"]
    fresh = _desk(api, request).take(job.id, made) if request.method == "GET" else []
    state = protocol.stream_state(job, drained=not fresh)
    return _json({"status": state, "stream": [{"output": asset} for asset in fresh]})


async def cancel(api: Api, request: Request) -> Response:
    """POST /v2/{model}/cancel/{job_id}: a job that has ended stays as it ended."""
    job = await _job(api, request)
    if job.status not in TERMINAL:
        await api.note_if_others(request, "job cancelled", job)
        job = await api.engine.cancel(job)
    return _json({"id": request.path_params["job_id"], "status": protocol.state_of(job)})


async def retry(api: Api, request: Request) -> Response:
    """POST /v2/{model}/retry/{job_id}: once more, under the same id for the client.

    Ends are final here, so it is a new job, which the failed one leads to.
    """
    failed = await _job(api, request)
    await api.count_submit(request)
    if failed.status != "failed":
        raise BadRequest(
            f"The job is {protocol.state_of(failed)}.",
            "Only a FAILED or TIMED_OUT job can be tried again.",
        )
    await _check_inputs(api, failed)
    job = await api.submit(
        request,
        Submission(
            id=protocol.retry_id(failed.id),
            model=failed.model,
            inputs=failed.inputs,
            uploads={a.name: a.file for a in failed.assets if a.kind == "input"},
            params=failed.params,
            until=failed.until,
            owner=failed.owner,
            idempotency_key=f"retry of {failed.id}",  # two at once are one
            request_digest=digest_of({"retry": failed.id}),
            parent=failed.id,
            priority=failed.priority,
        ),
    )
    desk = _desk(api, request)
    desk.retried[job.model] += 1
    desk.keep_to(job, desk.policy(failed.id))
    return _json({"id": request.path_params["job_id"], "status": protocol.state_of(job)})


async def purge_queue(api: Api, request: Request) -> Response:
    """POST /v2/{model}/purge-queue: cancels what waits; what runs goes on."""
    model, owner = _model(api, request), seen_owner(request)
    waiting = [
        live
        for live in api.engine.queue.lives.values()
        if live.job.status == "queued"
        and live.job.model == model.name
        and owner in (None, live.job.owner)
    ]
    others = sum(live.job.owner != owner_of(request) for live in waiting)
    if others:
        await api.note(request, "queue purged", f"{others} jobs of others, model {model.name}")
    ended = await asyncio.gather(*(api.engine.cancel(live.job) for live in waiting))
    removed = sum(job.status == "cancelled" for job in ended)
    return _json({"removed": removed, "status": "completed"})


async def health(api: Api, request: Request) -> Response:
    """GET /v2/{model}/health."""
    model = _model(api, request)
    lives = api.engine.queue.lives.values()
    states = [live.job.status for live in lives if live.job.model == model.name]
    jobs = {
        "completed": _ended_since_start(model, "completed"),
        "failed": _ended_since_start(model, "failed"),
        "inProgress": states.count("processing"),
        "inQueue": states.count("queued"),
        "retried": _desk(api, request).retried[model.name],
    }
    return _json({"jobs": jobs, "workers": _workers(api)})


def _route(scope: str, handler: Handler) -> Handler:
    """For keys of this scope. Problems become statuses of the protocol, in a body that no client
    takes for a job."""

    @functools.wraps(handler)
    async def handled(api: Api, request: Request) -> Response:
        try:
            return await handler(api, request)
        except Problem as problem:
            body = {"error": problem.message, "hint": problem.hint, "code": problem.code()}
            return JSONResponse(body, protocol.error_status(problem), retry_after(problem))

    return needs(scope)(handled)


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/v2/{model}/status/{job_id}", _route(READ, status)),
    ("GET", "/v2/{model}/stream/{job_id}", _route(READ, stream)),
    ("POST", "/v2/{model}/run", _route(GENERATE, run)),
    ("POST", "/v2/{model}/runsync", _route(GENERATE, runsync)),
    ("POST", "/v2/{model}/cancel/{job_id}", _route(GENERATE, cancel)),
    ("POST", "/v2/{model}/retry/{job_id}", _route(GENERATE, retry)),
    ("POST", "/v2/{model}/purge-queue", _route(GENERATE, purge_queue)),
    ("GET", "/v2/{model}/health", _route(READ, health)),
)


async def _submit(api: Api, request: Request, most_bytes: int) -> Job:
    _model(api, request)
    await api.count_submit(request)
    limited = Request(request.scope, _at_most(request.receive, most_bytes))
    order = protocol.read_order(await read_json(limited))
    webhook = {"webhook_url": order.webhook} if order.webhook else {}
    body = Body({**order.input, **webhook})
    job = await submit_body(api, request, body, priority=-1 if order.policy.low_priority else 0)
    _desk(api, request).keep_to(job, order.policy)
    return job


async def _job(api: Api, request: Request) -> Job:
    """The caller's job of this model; the newest of its tries."""
    model = _model(api, request)
    job = await api.job(protocol.own_id(request.path_params["job_id"]), request)
    if job.model != model.name:
        raise NotFound(f"Model {model.name} has no such job.", "Is it another model's?")
    while job.status == "failed":
        try:
            job = await api.engine.job(protocol.retry_id(job.id), None)
        except NotFound:
            break
    return job


def _model(api: Api, request: Request) -> Model:
    return api.model(request.path_params["model"])


async def _ended(api: Api, job_id: str) -> None:
    async with aclosing(api.follow([job_id])) as events:
        async for _ in events:
            pass


async def _answer(api: Api, shown: str, job: Job) -> Response:
    output = await _output(api, job) if job.status == "completed" else None
    return _json(protocol.answer(shown, job, output))


async def _output(api: Api, job: Job) -> dict[str, Any]:
    model = api.engine.models.get(job.model)
    result = model.result_name(job.params) if model else ""
    asset = job.asset(result)
    data = None
    if asset and asset.file.size <= INLINE_BYTES:
        with suppress(NotFound, Conflict, FileNotFoundError):  # retention has just taken it
            _, path = await api.engine.asset(job, result)
            data = await asyncio.to_thread(_base64, path)
    return protocol.output_of(api.describe(job), result, data)


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


async def _check_inputs(api: Api, job: Job) -> None:
    if not await renew_all(api.engine.blobs, [ref.digest for ref in job.inputs.values()]):
        raise Gone(
            "The inputs of this job were removed when their time was over.",
            "Run a new job with the picture.",
        )


def _at_most(receive: Receive, most_bytes: int) -> Receive:
    count = 0

    async def counted() -> Message:
        nonlocal count
        message = await receive()
        count += len(message.get("body", b""))
        if count > most_bytes:
            raise TooLarge(
                f"The body is larger than {most_bytes >> 20} MB.",
                "Send `image_url`, or store the picture with POST /images and send `image_id`.",
            )
        return message

    return counted


def _desk(api: Api, request: Request) -> Desk:
    state = request.app.state
    if not hasattr(state, "runpod"):
        state.runpod = Desk(api.engine)
    return cast(Desk, state.runpod)


def _workers(api: Api) -> dict[str, int]:
    """A router's endpoints, or a pod's places."""
    processing = len(api.engine.queue.processing)
    endpoints = api.engine.health().get("endpoints")
    if endpoints is not None:
        return {"idle": int(endpoints["ready"]), "running": processing}
    capacity = api.settings.max_concurrent if api.engine.ready else 0
    return protocol.workers(capacity, processing)


def _ended_since_start(model: Model, status: str) -> int:
    labels = {"model": model.name, "status": status}
    return int(metrics.REGISTRY.get_sample_value("polypod_jobs_ended_total", labels) or 0)


def _json(answer: dict[str, Any]) -> Response:
    return Response(compact(answer), media_type="application/json")
