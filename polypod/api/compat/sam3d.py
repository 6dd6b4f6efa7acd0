"""The HTTP protocol of the public wrapper around SAM 3D Objects, for clients written for it.

Its server and the client beside it speak two versions: the client waits for `success` and
`model_data` in the answer of `/generate`, the server gives a job to ask for. Both are here; which
one is meant is seen by the fields (docs/compat.md).
"""

from __future__ import annotations

import asyncio
import base64
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from polypod.access.keys import ANY, GENERATE, READ
from polypod.api import submit
from polypod.api.body import Body, read_json
from polypod.api.compat.facade import Facade
from polypod.api.downloads import result_response
from polypod.api.endpoint import Api, Handler, needs
from polypod.api.problems import Gone
from polypod.errors import BadRequest, Conflict, NotFound, Problem, QueueFull, Timeout
from polypod.jobs.job import Job

CLIENT_FIELDS = {"seed", "simplify", "texture_size", "with_texture", "mask_mode"}
"""What the client always sends, beside the picture."""
SERVER_FIELDS = {
    *("inference_steps", "remove_invisible_faces", "fill_holes_resolution"),
    "fill_holes_num_views",
}
"""What only callers of the server send."""
MOST_VIEW_PIXELS = 2048
STATUSES = {"cancelled": "failed"}
UNTOLD = (401, 403, 404, 429, 503)
"""Problems that are no answer to the client's picture: they keep their status."""


async def generate(api: Api, request: Request) -> Response:
    """POST /generate: a job; to the client, once it is done, the file in the answer."""
    fields = await read_json(request)
    if _is_client(fields):
        return await _answer_client(api, request, fields)
    if wants_file(request):
        return await _file(api, request, await _finished(api, request, _asked(fields)))
    job = await _submit(api, request, _asked(fields))
    position = _position(api, job.id)
    answer = {
        "job_id": job.id,
        "status": "queued",
        "position": position,
        "status_url": api.url(f"/job/{job.id}"),
        "message": f"Job queued at position {position}. Poll status_url for updates.",
    }
    return JSONResponse(answer)


async def generate_sync(api: Api, request: Request) -> Response:
    """POST /generate/sync: the file."""
    fields = await read_json(request)
    return await _file(api, request, await _finished(api, request, _asked(fields)))


async def generate_file(api: Api, request: Request) -> Response:
    """POST /generate-file: a GLB."""
    asked = {**_asked(await read_json(request)), "output_format": "glb"}
    return await _file(api, request, await _finished(api, request, asked))


async def generate_ply(api: Api, request: Request) -> Response:
    """POST /generate-ply: `image` and `seed`; a PLY."""
    asked = {**_asked(await read_json(request)), "output_format": "ply"}
    return await _file(api, request, await _finished(api, request, asked))


async def get_job(api: Api, request: Request) -> Response:
    """GET /job/{job_id}: with a link when done, the error when failed, else a message."""
    shown = api.describe(await _job(api, request))
    status = STATUSES.get(shown["status"], shown["status"])
    answer = {
        "job_id": shown["job_id"],
        "status": status,
        "position": _position(api, shown["job_id"]),
        "queue_length": shown["queue_length"],
    }
    if status == "completed":
        answer["download_url"] = shown["download_url"]
        answer["processing_time"] = round(shown["processing_time"] or 0, 1)
    elif status == "failed":
        answer["error"] = _words(shown)
    elif status == "processing":
        answer["message"] = "Your job is being processed now"
    else:
        answer["message"] = f"Waiting in queue, position {answer['position']}"
    return JSONResponse(answer)


async def download(api: Api, request: Request) -> Response:
    """GET /job/{job_id}/download: `model.glb` or `model.ply`."""
    job = await _job(api, request)
    if job.status != "completed":
        raise Conflict(f"Job not ready, status: {STATUSES.get(job.status, job.status)}")
    return await _file(api, request, job)


async def queue(api: Api, _: Request) -> Response:
    """GET /queue."""
    return JSONResponse(_queue(api))


async def health(api: Api, _: Request) -> Response:
    """GET /health."""
    told = api.engine.health()
    answer = {
        "status": "healthy" if told["status"] == "healthy" else told["status"],
        "model_loaded": api.engine.ready,  # its client waits for this before it sends anything
        "cuda": bool(told.get("cuda")),
        "gpu": told.get("gpu") or {},
        "queue": _queue(api),
        "worker_alive": api.engine.ready,
    }
    return JSONResponse(answer)


def claims(request: Request, fields: Mapping[str, Any]) -> bool:
    """Whether the body has what only callers of the wrapper send."""
    ours = "idempotency-key" in request.headers
    return not ours and (_is_client(fields) or not SERVER_FIELDS.isdisjoint(fields))


def translated(given: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The wrapper's parameters as ours, with the wrapper's defaults; those that are `known`."""
    textured = bool(given.get("with_texture", True))
    texture_size, steps = given.get("texture_size", 2048), given.get("inference_steps", 50)
    asked: dict[str, Any] = {
        "seed": given.get("seed", 42),
        "output_format": "ply" if given.get("output_format") == "ply" else "glb",
        "with_texture": textured,
        "mask_mode": {"center": "center", "full": "full"}.get(str(given.get("mask_mode")), "auto"),
    }
    if asked["output_format"] == "glb":
        asked |= {
            "texture_size": texture_size,
            "simplify": given.get("simplify", 0.3 if textured else 0.0),
            "stage1_inference_steps": steps,
            "stage2_inference_steps": steps,
            "nviews": given.get("nviews", 200),
            "view_resolution": texture_size,
        }
        if isinstance(texture_size, int):
            asked["view_resolution"] = min(texture_size, MOST_VIEW_PIXELS)
    return {name: value for name, value in asked.items() if name in known}


def _is_client(fields: Mapping[str, Any]) -> bool:
    return fields.keys() - {"image", "image_url"} == CLIENT_FIELDS


def _asked(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields. Raises BadRequest without a picture, or with two."""
    pictures = [name for name in ("image", "image_url") if fields.get(name) is not None]
    if not pictures:
        raise BadRequest("Need image or image_url")
    if len(pictures) > 1:
        raise BadRequest("Send either image or image_url, not both")
    return dict(fields)


def wants_file(request: Request) -> bool:
    return "model/gltf-binary" in request.headers.get("accept", "")


async def _submit(api: Api, request: Request, fields: Mapping[str, Any]) -> Job:
    model = FACADE.model_of(api)
    picture = {name: fields[name] for name in ("image", "image_url") if name in fields}
    params = translated(fields, model.params.model_fields)
    await api.count_submit(request)
    return await submit.submit_body(api, request, Body({**picture, **params, "model": model.name}))


async def _finished(api: Api, request: Request, fields: Mapping[str, Any]) -> Job:
    """The job once it is completed. Raises Timeout, or Conflict when it failed."""
    job = await submit.wait_until_ended(api, request, await _submit(api, request, fields))
    if job.status != "completed":
        raise _JobFailed(_words(api.describe(job)))
    return job


async def _answer_client(api: Api, request: Request, fields: Mapping[str, Any]) -> Response:
    """What the client reads; it shows an `error` only where the status is 200."""
    try:
        job = await _finished(api, request, _asked(fields))
    except Problem as problem:
        if problem.status in UNTOLD:
            raise
        return JSONResponse(
            {"success": False, "error": f"{problem.message} {problem.hint}".strip()}
        )
    _, path = await api.engine.asset(job, FACADE.model_of(api).result_name(job.params))
    data = await asyncio.to_thread(_base64, path)
    answer = {
        "success": True,
        "model_data": data,
        "format": job.params["output_format"],
        "file_size_mb": round(path.stat().st_size / (1 << 20), 2),
        "inference_time_s": round(api.describe(job)["processing_time"] or 0.0, 2),
    }
    return JSONResponse(answer)


async def _file(api: Api, request: Request, job: Job) -> Response:
    try:
        response = await result_response(api, request, job, "")
    except Gone:
        raise NotFound("Result file no longer exists") from None
    kind = job.params["output_format"]
    response.headers["content-disposition"] = f"attachment; filename=model.{kind}"
    media = "model/gltf-binary" if kind == "glb" else "application/octet-stream"
    response.headers["content-type"] = media
    return response


async def _job(api: Api, request: Request) -> Job:
    try:
        return await api.job(request.path_params["job_id"], request)
    except NotFound:
        raise NotFound("Job not found") from None


def _position(api: Api, job_id: str) -> int:
    """How many unfinished jobs came before it; those at work count too, unlike in ours."""
    lives = api.engine.queue.lives
    if job_id not in lives:
        return 0
    own = lives[job_id].job.seq
    return sum(live.job.seq < own for live in lives.values())


def _queue(api: Api) -> dict[str, int]:
    figures = api.engine.figures()
    names = ("queued", "processing", "max_queue_size", "max_concurrent")
    return {name: figures[name] for name in names}


def _words(shown: Mapping[str, Any]) -> str:
    error = shown["error"]
    return f"{error['message']} {error['hint']}".strip() if error else f"Job {shown['status']}"


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


class _JobFailed(Problem):
    """The job did not end well."""


def _route(scope: str, handler: Handler) -> Handler:
    """Problems as the wrapper words them: a JSON object with `error`."""

    @functools.wraps(handler)
    async def handled(api: Api, request: Request) -> Response:
        try:
            return await handler(api, request)
        except QueueFull as full:
            names = ("queue_length", "max_queue_size")
            told = {name: full.extra.get(name) for name in names}
            return JSONResponse({"error": "Queue full, try again later", **told}, 503)
        except Timeout:
            return JSONResponse({"error": "Timeout waiting for job"}, 504)
        except Problem as problem:
            error = f"{problem.message} {problem.hint}".strip()
            status = 400 if problem.status in (409, 422) else problem.status
            return JSONResponse({"error": error}, status)

    return needs(scope)(handled)


FACADE = Facade(
    name="sam3d",
    claims=claims,
    routes=(
        ("GET", "/health", _route(ANY, health)),
        ("GET", "/queue", _route(READ, queue)),
        ("POST", "/generate", _route(GENERATE, generate)),
        ("POST", "/generate/sync", _route(GENERATE, generate_sync)),
        ("POST", "/generate-file", _route(GENERATE, generate_file)),
        ("POST", "/generate-ply", _route(GENERATE, generate_ply)),
        ("GET", "/job/{job_id}", _route(READ, get_job)),
        ("GET", "/job/{job_id}/download", _route(READ, download)),
    ),
)
