"""What a router asks of a pod: keep these files, run this job under my id.

The job comes resolved: its files are in the blob store already, by digest, and its parameters are
those that the router checked against the pod's own card.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from base64 import b64decode
from collections.abc import Mapping
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from polypod.access.keys import DISPATCH
from polypod.api.bigjson import plain
from polypod.api.body import read_json
from polypod.api.downloads import FileSlice, parse_range
from polypod.api.endpoint import Api, needs, owner_of, seen_owner
from polypod.api.submit import accepted
from polypod.assets.storage import path_of, renew_all
from polypod.errors import BadInput, BadRequest, Conflict, NotFound, Problem
from polypod.jobs.engine import Submission
from polypod.jobs.finished import FinishedStage, file_of, finished_stages, stages_to_keep
from polypod.jobs.job import FileRef
from polypod.model import Model

_DIGEST = re.compile(r"[0-9a-f]{64}")
_JOB_ID = re.compile(r"[0-9a-f]{32}")
MOST_PRIORITY = 1000


@needs(DISPATCH)
async def put_blob(api: Api, request: Request) -> Response:
    """PUT /blobs/{sha256}: keep a file of a job that the router brings, and keeps, too."""
    digest = _digest(request)
    with api.engine.blobs.relayed.writer() as writer:
        async for chunk in request.stream():
            await asyncio.to_thread(writer.write, chunk)
        if writer.digest != digest:
            raise BadInput("The bytes that came have another SHA-256.", "Send them again.")
        await asyncio.to_thread(writer.commit)
    return Response(None, 204)


@needs(DISPATCH)
async def get_blob(api: Api, request: Request) -> Response:
    """GET and HEAD /blobs/{sha256}. What HEAD has found stays, as if it had been put now."""
    digest, blobs = _digest(request), api.engine.blobs
    if request.method == "HEAD" and await renew_all(blobs, [digest]):
        return Response(None)
    try:
        path = await path_of(blobs, digest)
    except KeyError:
        raise NotFound("There is no such file here.", "PUT it first.") from None
    size = (await asyncio.to_thread(path.stat)).st_size
    begin, end = parse_range(request.headers.get("range", ""), size)
    headers = {
        "content-type": "application/octet-stream",
        "content-length": str(end - begin),
        "etag": f'"{digest}"',
    }
    if end - begin == size:
        return FileSlice(path, begin, end, 200, headers)
    return FileSlice(
        path, begin, end, 206, headers | {"content-range": f"bytes {begin}-{end - 1}/{size}"}
    )


@needs(DISPATCH)
async def get_stages(api: Api, request: Request) -> Response:
    """GET /job/{job_id}/stages: what an unfinished job has done, for `PUT /job` elsewhere."""
    job = await api.job(request.path_params["job_id"], request)
    live = api.engine.queue.lives.get(job.id)
    kept = live.kept if live else []
    stages = finished_stages(api.model(job.model), job.inputs, job.params, kept)
    return JSONResponse({"stages": [stage.to_json() for stage in stages]})


@needs(DISPATCH)
async def withdraw(api: Api, request: Request) -> Response:
    """POST /job/{job_id}/withdraw: give back a job that waits here.

    Raises:
        Conflict: it is being worked on, or has ended.
    """
    job = await api.job(request.path_params["job_id"], request)
    if not await api.engine.withdraw(job):
        raise Conflict("The job is being worked on, or has ended.", "Follow it here.")
    return JSONResponse({"job_id": job.id, "status": "cancelled"})


@needs(DISPATCH)
async def put_job(api: Api, request: Request) -> Response:
    """PUT /job/{job_id}: run the router's job. Repeating it is harmless: 202 with the job as it is.

    An input that is small may come with its reference, as `content` in base64.
    `stages` may name those that are done, as `get_stages` of another pod tells them.

    Raises:
        Conflict: inputs or files of stages are `missing` here.
        BadInput: this version of the model does not take these parameters.
    """
    job_id = request.path_params["job_id"]
    if not _JOB_ID.fullmatch(job_id):
        raise BadRequest("A job's id is 32 hexadecimal digits.", "Let the router make it.")
    body = plain(await read_json(request))
    try:
        await api.engine.submit(await _submission(api, request, job_id, body))
    except Problem as refused:
        with contextlib.suppress(NotFound):  # what was accepted once stays so
            return accepted(api, await api.engine.job(job_id, seen_owner(request)))
        raise refused
    return accepted(api, await api.engine.job(job_id, seen_owner(request)))


async def _submission(
    api: Api, request: Request, job_id: str, body: Mapping[str, Any]
) -> Submission:
    """What is asked for, checked; its files and the stages that are done are kept."""
    model = api.model(str(body.get("model") or ""))
    inputs = _inputs(model, body.get("inputs"))
    await _keep_enclosed(api, inputs, body["inputs"])
    params = _params(model, body)
    stages = stages_to_keep(model, inputs, params, owner_of(request), _stages(body))
    files = [*inputs.values(), *(ref for stage in stages for ref in stage.files.values())]
    digests = [ref.digest for ref in files]
    missing = [d for d in digests if not await renew_all(api.engine.blobs, [d])]
    if missing:
        raise Conflict(
            "Files of the job are not here.", "PUT /blobs/SHA256 first.", missing=missing
        )
    until = str(body.get("until") or "")
    model.plan(params, until)
    parent = str(body.get("parent") or "")
    if parent and not _JOB_ID.fullmatch(parent):
        raise BadInput("`parent` is no id of a job.", "Leave it out, or name 32 hex digits.")
    await api.engine.keep_stages(stages)
    return Submission(
        id=job_id,
        model=model.name,
        inputs=inputs,
        uploads=inputs,
        params=params,
        until=until,
        parent=parent,
        owner=owner_of(request),
        priority=_priority(body.get("priority")),
        relayed=True,
        traceparent=request.headers.get("traceparent", ""),
    )


async def _keep_enclosed(api: Api, inputs: Mapping[str, FileRef], given: Mapping[str, Any]) -> None:
    """The files whose `content` (base64) came with their references."""
    for name, ref in inputs.items():
        if "content" not in given[name]:
            continue
        try:
            data = b64decode(given[name]["content"], validate=True)
        except (TypeError, ValueError):
            raise BadRequest(f"The content of input {name!r} is no base64.") from None
        if (hashlib.sha256(data).hexdigest(), len(data)) != (ref.digest, ref.size):
            raise BadInput(
                "The bytes that came have another SHA-256 or size than told.", "Send them again."
            )
        await asyncio.to_thread(api.engine.blobs.relayed.put_bytes, data, ref.media_type)


def _priority(given: Any) -> int:
    if given is None:
        return 0
    if not isinstance(given, int) or abs(given) > MOST_PRIORITY:
        raise BadRequest("`priority` is no small whole number.", "0 is usual; more goes first.")
    return given


def _params(model: Model, body: Mapping[str, Any]) -> dict[str, Any]:
    """As the router resolved them; checked again where it knew another version of the card."""
    given = body.get("params")
    if not isinstance(given, dict):
        raise BadRequest("`params` is not an object.", "Send all parameters, resolved.")
    try:
        return model.resolve(cast(dict[str, Any], given))
    except BadInput as problem:
        if body.get("card", model.card["digest"]) != model.card["digest"]:
            problem.message = (
                f"The job was checked for another version of {model.name} than the one that is"
                f" to run it ({model.version}). {problem.message}"
            )
        raise


def _stages(body: Mapping[str, Any]) -> list[FinishedStage]:
    try:
        return [FinishedStage.from_json(stage) for stage in body.get("stages") or ()]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BadRequest(
            "`stages` is not a list of finished stages.", "See GET /job/ID/stages."
        ) from None


def _inputs(model: Model, given: Any) -> dict[str, FileRef]:
    if not isinstance(given, dict):
        raise BadRequest("`inputs` is not an object.", "Send a file reference for each input.")
    inputs: dict[str, FileRef] = {}
    for name, ref in cast(dict[str, Any], given).items():
        if name not in model.inputs:
            raise BadInput(f"Model {model.name} has no input {name[:64]!r}.", "See GET /models.")
        try:
            inputs[name] = file_of(ref)
        except ValueError:
            raise BadRequest(
                f"Input {name[:64]!r} is not a file reference.",
                "Send digest (SHA-256), size, media_type and filename.",
            ) from None
    for name, declared in model.inputs.items():
        if declared.required and name not in inputs:
            raise BadInput(f"Input {name!r} is missing.", "Every required input must be there.")
    return inputs


def _digest(request: Request) -> str:
    digest = request.path_params["sha256"]
    if not _DIGEST.fullmatch(digest):
        raise BadRequest("This is not a SHA-256 in hexadecimal digits.")
    return digest
