"""The HTTP protocol of Hunyuan3D's own API server, which its Blender add-on speaks.

Its first version (Hunyuan3D-2, `api_server.py` at 9bcf302) says little of errors; where that would
leave a client waiting for ever, this follows the later one, which has `error` (docs/compat.md).
"""

from __future__ import annotations

import asyncio
import base64
import functools
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from polypod.access.keys import ANY, GENERATE, READ
from polypod.api import submit
from polypod.api.body import Body, read_json
from polypod.api.compat.facade import Facade
from polypod.api.downloads import check_format, result_response
from polypod.api.endpoint import Api, Handler, needs
from polypod.api.problems import retry_after
from polypod.errors import BadRequest, NotFound, Problem
from polypod.jobs.job import Job

ONLY_THEIRS = {"texture", "text", "type"}
"""Fields that no route of ours takes; the add-on always sends `texture`."""
SAME = ("seed", "octree_resolution", "num_inference_steps", "guidance_scale", "num_chunks",
        "face_count", "remove_background")  # fmt: skip
KEPT_STATUSES = (401, 403, 429, 503, 504)
"""All other problems are a 404 there."""
GLB = "model/gltf-binary"


async def generate(api: Api, request: Request) -> Response:
    """POST /generate: waits, and answers with the file."""
    fields = await read_json(request)
    kind = str(fields.get("type") or "glb")
    check_format(kind, FACADE.model_of(api))  # not when the job is done
    job = await submit.wait_until_ended(api, request, await _submit(api, request, fields))
    if job.status != "completed":
        raise BadRequest(_words(api.describe(job)))
    return await result_response(api, request, job, "" if kind == "glb" else kind)


async def send(api: Api, request: Request) -> Response:
    """POST /send: an id to ask for."""
    job = await _submit(api, request, await read_json(request))
    return JSONResponse({"uid": str(uuid.UUID(job.id))})


async def status(api: Api, request: Request) -> Response:
    """GET /status/{uid}: with the file in it once it is there."""
    try:
        job = await api.job(uuid.UUID(request.path_params["uid"]).hex, request)
    except (ValueError, NotFound):
        raise NotFound("There is no job with this uid.") from None
    if job.status == "completed":
        name = api.model(job.model).result_name(job.params)
        _, path = await api.engine.asset(job, name)
        data = await asyncio.to_thread(_base64, path)
        return JSONResponse({"status": "completed", "model_base64": data})
    if job.status in ("failed", "cancelled"):
        return JSONResponse({"status": "error", "message": _words(api.describe(job))}, 500)
    shaped = any(a.kind == "output" and a.file.media_type == GLB for a in job.assets)
    return JSONResponse({"status": "texturing" if shaped else "processing"})


async def health(api: Api, _: Request) -> Response:
    """GET /health, below the base URL of this protocol."""
    told = api.engine.health()
    return JSONResponse({"status": told["status"], "worker_id": str(told["store_id"])[:6]})


def claims(request: Request, fields: Mapping[str, Any]) -> bool:
    """Whether the body has what only callers of that server send."""
    return "idempotency-key" not in request.headers and not ONLY_THEIRS.isdisjoint(fields)


def translated(fields: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Its parameters as ours, those that are `known`; what is not sent is the model's default."""
    asked = {name: fields[name] for name in SAME if fields.get(name) is not None}
    asked["with_texture"] = bool(fields.get("texture", False))
    return {name: value for name, value in asked.items() if name in known}


async def _submit(api: Api, request: Request, fields: Mapping[str, Any]) -> Job:
    model = FACADE.model_of(api)
    if not fields.get("image"):
        raise BadRequest("This server makes models from pictures: choose an image, not a text.")
    if fields.get("mesh") and "mesh" not in model.inputs:
        raise BadRequest(f"{model.title} cannot texture a mesh that exists already.")
    files = {name: fields[name] for name in ("image", "mesh") if fields.get(name)}
    params = translated(fields, model.params.model_fields)
    await api.count_submit(request)
    return await submit.submit_body(api, request, Body({**files, **params, "model": model.name}))


def _words(shown: Mapping[str, Any]) -> str:
    error = shown["error"]
    return f"{error['message']} {error['hint']}".strip() if error else f"Job {shown['status']}"


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _route(scope: str, handler: Handler) -> Handler:
    """Problems as that server words them; its add-on shows the text of any status but 200."""

    @functools.wraps(handler)
    async def handled(api: Api, request: Request) -> Response:
        try:
            return await handler(api, request)
        except Problem as problem:
            status = problem.status if problem.status in KEPT_STATUSES else 404
            text = f"{problem.message} {problem.hint}".strip()
            return JSONResponse({"text": text, "error_code": 1}, status, retry_after(problem))

    return needs(scope)(handled)


FACADE = Facade(
    name="hunyuan",
    model="hunyuan21",
    claims=claims,
    routes=(
        ("GET", "/health", _route(ANY, health)),
        ("POST", "/generate", _route(GENERATE, generate)),
        ("POST", "/send", _route(GENERATE, send)),
        ("GET", "/status/{uid}", _route(READ, status)),
    ),
)
