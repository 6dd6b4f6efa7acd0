"""ProtoScale's HTTP protocol: a picture is uploaded, then asked for four views, then for a mesh.

There one job passes through both; ours have one end. So the upload is a job that stops after the
first stage, and each trigger a job that goes on from it, with an id that follows from the upload's.
What is shown of the upload is its newest trigger (docs/compat.md).
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from polypod import metrics
from polypod.access.keys import ANY, GENERATE, READ
from polypod.api import params as parameters
from polypod.api import submit
from polypod.api.about import seen_slots
from polypod.api.body import Body, read_body
from polypod.api.compat.facade import Facade
from polypod.api.downloads import file_response
from polypod.api.endpoint import Api, Handler, needs
from polypod.api.problems import retry_after
from polypod.errors import BadRequest, Conflict, NotFound, Problem
from polypod.jobs.derived import VIEWS
from polypod.jobs.engine import Submission
from polypod.jobs.job import TERMINAL, Asset, Job
from polypod.model import Model, digest_of

MULTIVIEW, MESH = "multiview", "3d_generation"
"""The triggers, as `stage` names them."""
ENHANCED = {"num_inference_steps": 100, "octree_resolution": 512}
"""What `enhanced_detail` asks for, of a model that has these parameters."""
GLB = "model/gltf-binary"

_TRIGGERS = uuid.UUID("0c9dbf6e-7d3f-4b0e-9a3d-6f1c52f0a4b7")


async def upload(api: Api, request: Request) -> Response:
    """POST /api/upload: the upload's id."""
    await api.count_submit(request)
    async with read_body(request, max_text=1024) as body:
        file = body.files.get("file")
        if not isinstance(file, UploadFile) or not (file.content_type or "").startswith("image/"):
            raise BadRequest("Only image files are accepted")
        model = FACADE.model_of(api)
        asked = {
            **translated(body.fields, model),
            "model": model.name,
            "until": model.stages[0].name,
        }
        job = await submit.submit_body(api, request, Body(asked, {"image": file}))
    return JSONResponse({"job_id": str(uuid.UUID(job.id))})


async def generate_multiangle(api: Api, request: Request) -> Response:
    """POST /api/jobs/{job_id}/generate-multiangle."""
    return await _trigger(api, request, MULTIVIEW)


async def generate_3d(api: Api, request: Request) -> Response:
    """POST /api/jobs/{job_id}/generate-3d."""
    return await _trigger(api, request, MESH)


async def status(api: Api, request: Request) -> Response:
    """GET /api/jobs/{job_id}/status: `pending` until a trigger; then progress is the trigger's."""
    uploaded = await _uploaded(api, request)
    triggers = await _triggers(api, uploaded)
    kind, job = triggers[-1] if triggers else (None, uploaded)
    shown = api.describe(job)
    waits = kind is None and job.status not in ("failed", "cancelled")
    states = {"completed": "completed", "failed": "failed", "cancelled": "failed"}
    state = "pending" if waits else states.get(job.status, "processing")
    progress = 0 if waits else int(shown["progress"])
    return _status(request, state, progress, kind, _words(shown))


async def result(api: Api, request: Request) -> Response:
    """GET /api/jobs/{job_id}/result/{asset}: `model.glb`, or `view_0.png` to `view_3.png`."""
    uploaded, name = await _uploaded(api, request), request.path_params["asset"]
    if name != "model.glb" and not (name.startswith("view_") and name.endswith(".png")):
        raise BadRequest(f"Unknown asset: {name[:100]}")
    for _, job in reversed(await _triggers(api, uploaded)):
        asset = _mesh(api, job) if name == "model.glb" else await _view(api, job, name)
        if asset:
            response = await file_response(api.engine.blobs, request, job, asset)
            if name == "model.glb" and response.status_code == 200:
                response.headers["content-disposition"] = 'attachment; filename="model.glb"'
            return response
    raise NotFound("Model not ready" if name == "model.glb" else "View not ready")


async def gpu_metrics(api: Api, request: Request) -> Response:
    """GET /api/jobs/metrics/gpu."""
    health = api.engine.health()
    model = FACADE.model_of(api)
    answer = {
        "total_jobs_processed": _count("polypod_jobs_ended_total", model, status="completed"),
        "uptime_seconds": float(health["uptime_s"]),
        "current_slots": _slots(api, request, health),
        "avg_stage_times": {name: _mean_seconds(model, stage) for name, stage in _roles(model)},
    }
    return JSONResponse(answer)


async def health(api: Api, request: Request) -> Response:
    """GET /health, below the base URL of this protocol: its `ok`, and the slots."""
    told = api.engine.health()
    ok = told["status"] == "healthy"
    slots = _slots(api, request, told)
    return JSONResponse({"status": "ok" if ok else told["status"], "slots": slots})


def translated(fields: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """The switches of the upload as parameters of the model, as far as it has them."""
    known = model.params.model_fields
    asked: dict[str, Any] = {"remove_background": _on(fields.get("remove_bg", "true"))}
    if _on(fields.get("enhanced_detail", "false")):
        asked |= ENHANCED
        if not ENHANCED.keys() <= known.keys() and model.presets:
            asked["preset"] = list(model.presets)[-1]
    return {name: value for name, value in asked.items() if name in known or name == "preset"}


async def _trigger(api: Api, request: Request, kind: str) -> Response:
    """Starts what is asked for, unless it is being done, and answers as if nothing was done yet:
    the browser would take an end before it asks again for that of its last trigger."""
    uploaded = await _uploaded(api, request)
    triggers = await _triggers(api, uploaded)
    if not triggers or triggers[-1][0] != kind or triggers[-1][1].status in TERMINAL:
        await api.count_submit(request)
        model = api.model(uploaded.model)
        until = _views_stage(model) if kind == MULTIVIEW else ""
        asked = {"upload": uploaded.id, "kind": kind, "number": len(triggers)}
        await api.submit(
            request,
            Submission(
                id=_trigger_id(uploaded, len(triggers), kind),
                model=uploaded.model,
                inputs=uploaded.inputs,
                uploads={a.name: a.file for a in uploaded.assets if a.kind == "input"},
                params=parameters.draw_seed(uploaded.params),
                until=until,
                owner=uploaded.owner,
                idempotency_key=f"{kind} {len(triggers)} of {uploaded.id}",  # two at once are one
                request_digest=digest_of(asked),
                parent=uploaded.id,
            ),
        )
    return _status(request, "processing", 0, kind, None)


def _views_stage(model: Model) -> str:
    """The stage that makes the views; empty where they are made from the result."""
    return next((stage.name for stage in model.stages if VIEWS[0] in stage.assets), "")


async def _uploaded(api: Api, request: Request) -> Job:
    try:
        job_id = uuid.UUID(request.path_params["job_id"]).hex
        return await api.job(job_id, request)
    except (ValueError, NotFound):
        raise NotFound("Job not found") from None


async def _triggers(api: Api, uploaded: Job) -> list[tuple[str, Job]]:
    """Kind and job of each trigger, the oldest first."""
    found: list[tuple[str, Job]] = []
    while newest := await _find_trigger(api, uploaded, len(found)):
        found.append(newest)
    return found


async def _find_trigger(api: Api, uploaded: Job, number: int) -> tuple[str, Job] | None:
    for kind in (MULTIVIEW, MESH):
        try:
            return kind, await api.engine.job(_trigger_id(uploaded, number, kind), None)
        except NotFound:
            continue
    return None


def _trigger_id(uploaded: Job, number: int, kind: str) -> str:
    return uuid.uuid5(_TRIGGERS, f"{uploaded.id} {number} {kind}").hex


def _mesh(api: Api, job: Job) -> Asset | None:
    """The result, or the newest mesh that the job has on the way to it."""
    meshes = [a for a in job.assets if a.file.media_type == GLB and a.kind == "output"]
    result = api.model(job.model).result_name(job.params)
    return next((a for a in meshes if a.name == result), meshes[-1] if meshes else None)


async def _view(api: Api, job: Job, name: str) -> Asset | None:
    if name not in VIEWS:
        return None
    try:
        return await api.engine.find_asset(job, name)
    except (NotFound, Conflict):
        return None


def _status(
    request: Request, state: str, progress: int, stage: str | None, error: str | None
) -> Response:
    job_id = str(uuid.UUID(request.path_params["job_id"]))
    shown = {"job_id": job_id, "status": state, "progress": progress}
    return JSONResponse({**shown, "stage": stage, "error": error})


def _words(shown: Mapping[str, Any]) -> str | None:
    if shown["status"] == "cancelled":
        return "The job was cancelled."
    error = shown["error"]
    return f"{error['message']} {error['hint']}".strip() if error else None


def _slots(api: Api, request: Request, health: dict[str, Any]) -> dict[str, Any]:
    """By device; one that runs what the caller may not see seems idle."""
    return {slot["device"]: _slot(slot) for slot in seen_slots(api, request, health)}


def _slot(slot: Mapping[str, Any]) -> dict[str, Any] | None:
    if not slot.get("job"):
        return None
    began = slot["since"] and datetime.fromtimestamp(slot["since"], timezone.utc).isoformat()
    return {"job_id": slot["job"], "stage": slot["stage"], "started_at": began or None}


def _roles(model: Model) -> list[tuple[str, str]]:
    """The stages that its three stand for: the first, the longest, the one that textures."""
    params = model.resolve({})
    others = model.plan({**params, "with_texture": False})[1:]
    planned = model.plan({**params, "with_texture": True})[1:]
    textures = [stage for stage in planned if stage not in others]
    longest = max(others, key=lambda stage: stage.share, default=model.stages[0])
    texture = textures[0].name if textures else ""
    return [("rembg", model.stages[0].name), ("geometry", longest.name), ("texture", texture)]


def _mean_seconds(model: Model, stage: str) -> float:
    sums, counts = (
        sum(
            sample.value
            for metric in metrics.REGISTRY.collect()
            if metric.name == "polypod_stage_seconds"
            for sample in metric.samples
            if sample.name == f"polypod_stage_seconds_{which}"
            and (sample.labels["model"], sample.labels["stage"]) == (model.name, stage)
        )
        for which in ("sum", "count")
    )
    return round(sums / counts, 3) if counts else 0.0


def _count(name: str, model: Model, **labels: str) -> int:
    return int(metrics.REGISTRY.get_sample_value(name, {"model": model.name, **labels}) or 0)


def _on(value: Any) -> bool:
    return str(value).strip().lower() in ("true", "1", "on", "yes")


def _route(scope: str, handler: Handler) -> Handler:
    """Problems as FastAPI words them, which is what its browser expects."""

    @functools.wraps(handler)
    async def handled(api: Api, request: Request) -> Response:
        try:
            return await handler(api, request)
        except Problem as problem:
            detail = f"{problem.message} {problem.hint}".strip()
            return JSONResponse({"detail": detail}, problem.status, retry_after(problem))

    return needs(scope)(handled)


FACADE = Facade(
    name="protoscale",
    model="hunyuan21",
    routes=(
        ("GET", "/health", _route(ANY, health)),
        ("POST", "/api/upload", _route(GENERATE, upload)),
        ("GET", "/api/jobs/metrics/gpu", _route(READ, gpu_metrics)),
        ("POST", "/api/jobs/{job_id}/generate-multiangle", _route(GENERATE, generate_multiangle)),
        ("POST", "/api/jobs/{job_id}/generate-3d", _route(GENERATE, generate_3d)),
        ("GET", "/api/jobs/{job_id}/status", _route(READ, status)),
        ("GET", "/api/jobs/{job_id}/result/{asset}", _route(READ, result)),
    ),
)
