"""The HTTP protocol of the two public wrappers around SyncHuman, for clients written for either.

Both answer `POST /generate` once all is done. Their fields and answers do not contradict each
other, so one answer has all of them; only `download` differs (docs/compat.md).
"""

from __future__ import annotations

import asyncio
import functools
import io
import re
import zipfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from polypod.access.keys import ANY, GENERATE
from polypod.api import submit
from polypod.api.body import Body, media_type, read_body, read_bytes
from polypod.api.compat.facade import Facade
from polypod.api.downloads import result_response
from polypod.api.endpoint import Api, Handler, needs
from polypod.api.problems import retry_after
from polypod.errors import BadRequest, Conflict, NotFound, Problem
from polypod.jobs.derived import VIEWS
from polypod.jobs.job import Job
from polypod.model import Model
from polypod.parts import first_part, has_passed

STEPS = {"stage1_steps": (50, 30, 100), "stage2_steps": (25, 15, 40)}
"""Default, least and most of each stage's."""
SWITCHES = ("download", "stage1_only", "graceful_fallback")
WITH_ZIP = {"stage1_only", "graceful_fallback"}
"""Fields of the wrapper whose downloads are archives; the other's is the GLB itself."""
ONLY_THEIRS = {"stage", "reuse_stage1", *SWITCHES}
"""Fields that no route of ours takes."""
STAGES = ("both", "stage1", "stage2")
PICTURES = tuple(f"{kind}_{n}" for kind in ("color", "normal") for n in range(5))
TRUE, FALSE = ("true", "1", "yes", "on", "t", "y"), ("false", "0", "no", "off", "f", "n", "")
KEPT_STATUSES = (401, 403, 404, 413, 415, 429, 503, 504)
"""Of other problems the status is 400, or 422 for a field of the wrong type."""

_JOB_ID = re.compile(r"[0-9a-f]{32}")
_WHOLE = TypeAdapter(int)
"""As FastAPI reads it: `50.0` too, which some forms send."""


@dataclass(frozen=True)
class Asked:
    """The fields of a request, as the wrappers read them."""

    stage: str = "both"
    stage1_steps: int = STEPS["stage1_steps"][0]
    stage2_steps: int = STEPS["stage2_steps"][0]
    reuse_stage1: str = ""
    download: bool = False
    as_zip: bool = False
    graceful: bool = False
    reason: str = ""
    """Why stage 2 is left out."""


async def generate(api: Api, request: Request) -> Response:
    """POST /generate: waits; the paths of what was made, or the files themselves."""
    async with _body(api, request) as body:
        asked = read(body.fields)
        job = await _submit(api, request, asked, body)
    job = await submit.wait_until_ended(api, request, job)
    reason = asked.reason
    if job.status != "completed":
        reason = _fallen_back(api, job, asked)
    if asked.download and asked.as_zip:
        return await _archive(api, job, with_model=not reason)
    if asked.download and not reason:
        response = await result_response(api, request, job, "")
        response.headers["content-type"] = "model/gltf-binary"
        response.headers["content-disposition"] = 'attachment; filename="synchuman.glb"'
        return response
    return JSONResponse(await _answer(api, job, asked, reason))


async def health(api: Api, _: Request) -> Response:
    """GET /health, below the base URL of this protocol."""
    told, ready = api.engine.health(), api.engine.ready
    message = "Both stages available" if ready else " ".join(map(str, told.get("reasons") or ()))
    stages = {f"stage{n}_available": ready for n in (1, 2)}
    return JSONResponse({"status": "ok" if ready else told["status"], **stages, "message": message})


async def info(api: Api, _: Request) -> Response:
    """GET /info."""
    told, model = api.engine.health(), FACADE.model_of(api)
    gpu: dict[str, Any] = told.get("gpu") or {}
    about = {"stage1": "multiview generation", "stage2": "mesh and texture"}
    asked = {
        name: f"{least}-{most} (default {usual})" for name, (usual, least, most) in STEPS.items()
    }
    answer: dict[str, Any] = {
        "service": model.title,
        "version": model.version,
        "stages": {n: {"available": api.engine.ready, "description": about[n]} for n in about},
        "request_parameters": {
            "image": "Image file (RGBA PNG)",
            "image_url": "Or image URL",
            "stage": "both, stage1 or stage2 (with reuse_stage1)",
            "reuse_stage1": "stage1_dir, or run_id, of an earlier answer",
            "stage1_only": "Skip Stage 2 (true/false)",
            "graceful_fallback": "Fall back to Stage 1 if Stage 2 fails (true/false)",
            **asked,
            "download": "Return the GLB, or with one of the two before a ZIP archive (true/false)",
        },
        "gpu_info": {
            "available": bool(told.get("cuda")),
            "device": gpu.get("name") or "CPU",
            "memory_gb": int(gpu.get("vram_gb") or 0),
        },
    }
    return JSONResponse(answer)


def claims(request: Request, fields: Mapping[str, Any]) -> bool:
    """Whether the body has what only callers of the wrappers send."""
    return "idempotency-key" not in request.headers and not ONLY_THEIRS.isdisjoint(fields)


def read(fields: Mapping[str, Any]) -> Asked:
    """The fields, with steps within their limits. BadRequest, WrongType: as the wrappers'."""
    on = {name: _switch(fields, name) for name in SWITCHES}
    stage = str(fields.get("stage") or "both")
    if stage not in STAGES:
        raise BadRequest("stage must be one of: both, stage1, stage2.")
    stage = "stage1" if on["stage1_only"] else stage
    reason = "stage1_only=true" if on["stage1_only"] else "stage=stage1"
    return Asked(
        stage=stage,
        **{name: _steps(fields, name) for name in STEPS},
        reuse_stage1=str(fields.get("reuse_stage1") or ""),
        download=on["download"],
        as_zip=not WITH_ZIP.isdisjoint(fields),
        graceful=on["graceful_fallback"],
        reason=reason if stage == "stage1" else "",
    )


def _steps(fields: Mapping[str, Any], name: str) -> int:
    usual, least, most = STEPS[name]
    given = fields.get(name)
    if given in (None, ""):
        return usual
    try:
        if isinstance(given, bool):
            raise ValueError
        return max(least, min(most, _WHOLE.validate_python(given)))
    except ValueError:
        raise WrongType(name, "int_parsing", "a valid integer", given) from None


def _switch(fields: Mapping[str, Any], name: str) -> bool:
    given = str(fields.get(name) or "").strip().lower()
    if given not in (*TRUE, *FALSE):
        raise WrongType(name, "bool_parsing", "a valid boolean", fields[name])
    return given in TRUE


async def _submit(api: Api, request: Request, asked: Asked, body: Body) -> Job:
    model = FACADE.model_of(api)
    steps = {name: getattr(asked, name) for name in STEPS if name in model.params.model_fields}
    await api.count_submit(request)
    if asked.stage == "stage2" and asked.reuse_stage1:
        parent = await _reused(api, request, model, asked.reuse_stage1)
        steps.pop("stage1_steps", None)
        return await submit.continue_from(api, request, parent, steps)
    image = body.files.get("image") or body.fields.get("image")
    url = body.fields.get("image_url")
    if image and url:
        raise BadRequest("Send either image or image_url, not both")
    if not image and not url:
        lacking = "stage2 requires reuse_stage1 or an image/image_url."
        usual = "Image or image_url is required for Stage1."
        raise BadRequest(lacking if asked.stage == "stage2" else usual)
    until = first_part(model)[-1].name if asked.stage == "stage1" else ""
    fields: dict[str, Any] = {**steps, "model": model.name, "until": until}
    if url:
        return await submit.submit_body(api, request, Body({**fields, "image_url": url}))
    if "image" in body.files:
        return await submit.submit_body(api, request, Body(fields, {"image": body.files["image"]}))
    return await submit.submit_body(api, request, Body({**fields, "image": image}))


async def _reused(api: Api, request: Request, model: Model, told: str) -> Job:
    """The job whose first part is meant: its `stage1_dir`, `run_id`, or a text that has it."""
    found = _JOB_ID.search(told)
    try:
        job = await api.job(found[0] if found else told, request)
    except NotFound:
        raise BadRequest(f"reuse_stage1 not found: {told[:200]}") from None
    if job.model != model.name or not has_passed(job, first_part(model)[-1].name):
        raise BadRequest(f"reuse_stage1 not found: {told[:200]} has no finished stage 1.")
    return job


def _fallen_back(api: Api, job: Job, asked: Asked) -> str:
    """Why there is only stage 1, where that will do; else raises what became of the job."""
    error = job.error
    words = f"{error.message} {error.hint}".strip() if error else f"Job {job.status}"
    first = [stage.name for stage in first_part(api.model(job.model))]
    if has_passed(job, first[-1]):
        if asked.graceful:
            return f"graceful_fallback: {words}"
        raise _Failed(500, f"Stage2 failed: {words}")
    if error and error.code == "bad_input" and not has_passed(job, first[0]):
        raise _Failed(400, f"Failed to prepare input: {words}")
    raise _Failed(500, f"Stage1 failed: {words}")


async def _answer(api: Api, job: Job, asked: Asked, reason: str) -> dict[str, Any]:
    """What both wrappers tell; each path of theirs is an address here."""
    folder = api.url(f"/job/{job.id}/result")
    first = api.url(f"/job/{job.parent}/result") if job.parent else folder
    names = {name.rpartition(".")[0]: name for name in _first_files(api, job)}
    result = api.model(job.model).result_name(job.params)
    answer: dict[str, Any] = {
        "job_id": job.id,
        "run_id": job.id,
        "status": "completed",
        "mode": "Fast (Stage 1 only)" if reason else "Official",
        "stage": asked.stage,
        "input_raw": None if job.parent else f"{folder}/image",
        "stage1_dir": first,
        **{name: job.params.get(name, getattr(asked, name)) for name in STEPS},
        "alpha_coverage": await _coverage(api, job),
        "stage1": {"status": "completed", "output_dir": folder, "files": names},
    }
    if reason:
        return {**answer, "stage2": {"status": "skipped", "reason": reason}}
    made = {"status": "completed", "output_dir": folder, "files": {"output.glb": result}}
    return {**answer, "stage2": made, "glb": f"{folder}/{result}"}


async def _archive(api: Api, job: Job, *, with_model: bool) -> Response:
    """A ZIP with `stage1/` and, if it was made, `stage2/output.glb`."""
    wanted = {f"stage1/{name}": name for name in _first_files(api, job)}
    if with_model:
        wanted["stage2/output.glb"] = api.model(job.model).result_name(job.params)
    paths = {name: (await api.engine.asset(job, asset))[1] for name, asset in wanted.items()}
    data = await asyncio.to_thread(_zipped, paths)
    named = {"content-disposition": f'attachment; filename="synchuman_{job.id}.zip"'}
    return Response(data, media_type="application/zip", headers=named)


def _zipped(paths: Mapping[str, Path]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:  # pictures are packed already
        for name, path in paths.items():
            archive.write(path, name)
    return packed.getvalue()


def _first_files(api: Api, job: Job) -> list[str]:
    """The files of stage 1; of a model that makes no such views those of its result."""
    made = {asset.name for asset in job.assets}
    own = [f"{name}.png" for name in PICTURES if f"{name}.png" in made]
    drawn = VIEWS if job.status == "completed" and not own and _has_result(api, job) else ()
    return [*own, *drawn, *({"input.png"} & made)]


def _has_result(api: Api, job: Job) -> bool:
    return job.asset(api.model(job.model).result_name(job.params)) is not None


async def _coverage(api: Api, job: Job) -> float | None:
    """The share of the picture where the cut-out has something; None where there is none."""
    try:
        _, path = await api.engine.asset(job, "input.png")
    except (NotFound, Conflict):
        return None
    return await asyncio.to_thread(_share, path)


def _share(path: Path) -> float:
    from PIL import Image

    with Image.open(path) as picture:
        counts = picture.convert("RGBA").getchannel("A").histogram()
    return 1 - counts[0] / sum(counts)


@asynccontextmanager
async def _body(api: Api, request: Request) -> AsyncGenerator[Body]:
    """JSON or a form; FastAPI also takes forms without files as browsers send them."""
    if media_type(request) == "application/x-www-form-urlencoded":
        text = bytes(await read_bytes(request)).decode(errors="replace")
        yield Body(dict(parse_qsl(text)), typed=False)
        return
    async with read_body(request, submit.max_text(api)) as body:
        yield body


class WrongType(BadRequest):
    """A field that FastAPI would not have taken."""

    def __init__(self, name: str, kind: str, wanted: str, given: Any) -> None:
        super().__init__(f"{name}: Input should be {wanted}")
        self.detail = [
            {
                "type": kind,
                "loc": ["body", name],
                "msg": f"Input should be {wanted}",
                "input": str(given)[:100],
            }
        ]


class _Failed(Problem):
    """The job did not end well."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.shown_status = status


def _route(scope: str, handler: Handler) -> Handler:
    """Problems as FastAPI words them: `detail`."""

    @functools.wraps(handler)
    async def handled(api: Api, request: Request) -> Response:
        try:
            return await handler(api, request)
        except WrongType as problem:
            return JSONResponse({"detail": problem.detail}, 422)
        except _Failed as problem:
            return JSONResponse({"detail": problem.message}, problem.shown_status)
        except Problem as problem:
            status = problem.status if problem.status in KEPT_STATUSES else 400
            detail = f"{problem.message} {problem.hint}".strip()
            return JSONResponse({"detail": detail}, status, retry_after(problem))

    return needs(scope)(handled)


FACADE = Facade(
    name="synchuman",
    claims=claims,
    forms=True,
    routes=(
        ("GET", "/health", _route(ANY, health)),
        ("GET", "/info", _route(ANY, info)),
        ("POST", "/generate", _route(GENERATE, generate)),
    ),
)
