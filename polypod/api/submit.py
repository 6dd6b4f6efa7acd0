"""New jobs: `generate`, at once or waited for, `continue`, and pictures stored beforehand."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from polypod.access.keys import GENERATE
from polypod.api import params as parameters
from polypod.api.body import Body, media_type, read_body, read_bytes, read_json
from polypod.api.downloads import result_response
from polypod.api.endpoint import Api, needs, owner_of, seen_owner, unless_disconnected
from polypod.api.inputs import (
    CHECKED,
    UPLOADED,
    Kept,
    Source,
    find_sources,
    keep_input,
    keep_picture,
)
from polypod.api.problems import Gone, job_failed, problem_response
from polypod.assets.storage import renew_all
from polypod.errors import BadRequest, Conflict, Timeout
from polypod.jobs.engine import Submission
from polypod.jobs.job import TERMINAL, Job, new_id
from polypod.model import Input, Model, digest_of

TEXT_SLACK = 1024
"""Room beside the base64 of an input in one form field."""


@needs(GENERATE)
async def generate(api: Api, request: Request) -> Response:
    """POST /generate: 202 and the job; for who accepts only a GLB, what `generate_sync` answers."""
    if "model/gltf-binary" in request.headers.get("accept", ""):
        return await generate_sync(api, request)
    return accepted(api, await _submit(api, request))


@needs(GENERATE)
async def generate_sync(api: Api, request: Request) -> Response:
    """POST /generate/sync: the result itself, or 504 while the job goes on."""
    job = await wait_until_ended(api, request, await _submit(api, request))
    links = _links(api, job)
    if job.status == "failed" and job.error:
        return job_failed(job.error, links)
    if job.status != "completed":
        return problem_response(Conflict(f"The job was {job.status}.", "Submit it again.", **links))
    response = await result_response(api, request, job, "")
    response.headers["location"] = links["status_url"]
    return response


@needs(GENERATE)
async def continue_job(api: Api, request: Request) -> Response:
    """POST /job/{job_id}/continue: 202 and a new job that inherits from this one."""
    parent = await api.job(request.path_params["job_id"], request)
    await api.count_submit(request)
    return accepted(api, await continue_from(api, request, parent, await read_json(request)))


@needs(GENERATE)
async def store_image(api: Api, request: Request) -> Response:
    """POST /images: a picture as multipart, JSON or the body itself."""
    await api.engine.check_room()
    kind = media_type(request)
    if kind.startswith("image/") or kind == "application/octet-stream":
        data = bytes(await read_bytes(request))
        kept = await keep_picture(api, data)
    else:
        async with read_body(request, max_text(api)) as body:
            kept = await _only_picture(api, body)
    image_id = new_id()
    files = {CHECKED: kept.file, UPLOADED: kept.upload}
    await api.engine.store.add_image(image_id, owner_of(request), files)
    assert kept.picture
    answer = {
        "image_id": image_id,
        "width": kept.picture.width,
        "height": kept.picture.height,
        "media_type": kept.file.media_type,
        "size": kept.file.size,
    }
    return JSONResponse(answer, 201)


def accepted(api: Api, job: Job) -> Response:
    """The 202 that existing clients know."""
    shown = api.engine.describe(job)
    status, position = shown["status"], shown["position"]
    status_url = api.url(f"/job/{job.id}")
    at = f"queued at position {position}" if status == "queued" else f"is {status}"
    answer = {
        "job_id": job.id,
        "status": status,
        "position": position,
        "status_url": status_url,
        "message": f"Job {at}. Poll status_url for updates.",
    }
    if job.parent:
        answer["parent"] = job.parent
    return JSONResponse(answer, 202, {"location": status_url})


def _links(api: Api, job: Job) -> dict[str, str]:
    return {"job_id": job.id, "status_url": api.url(f"/job/{job.id}")}


def idempotency_key(request: Request) -> str:
    key = request.headers.get("idempotency-key", "")
    if len(key) > 255 or not all(" " <= c <= "~" for c in key):
        raise BadRequest(
            "The Idempotency-Key is not plain ASCII of at most 255 characters.",
            "Use a random UUID, a new one for every new job.",
        )
    return key.strip()


def take_webhook(api: Api, fields: dict[str, Any]) -> str:
    """Removes `webhook_url` and returns it; empty where there is none. BadInput: it is refused."""
    url = parameters.take_text(fields, "webhook_url").strip()
    if url:
        from polypod.webhooks.post import check_url  # brings httpx, which few requests need

        check_url(url, allow_private=api.settings.allow_private_urls)
    return url


async def wait_until_ended(api: Api, request: Request, job: Job) -> Job:
    """The job once it has ended, however it did. Raises Timeout, and the job goes on."""
    timeout_s = api.settings.sync_timeout_s
    try:
        return await unless_disconnected(
            request.receive, asyncio.wait_for(_ended(api, job), timeout_s)
        )
    except asyncio.TimeoutError:
        links = _links(api, job)
        raise Timeout(
            f"The result was not there after {timeout_s:g} s; the job goes on.",
            f"Follow {links['status_url']}.",
            **links,
        ) from None


async def _submit(api: Api, request: Request) -> Job:
    """Read the request, and put its job in line."""
    idempotency_key(request)
    await api.count_submit(request)
    async with read_body(request, max_text(api)) as body:
        return await submit_body(api, request, body)


async def submit_body(api: Api, request: Request, body: Body, priority: int = 0) -> Job:
    """Check what a request asks for, keep its files, and put the job in line."""
    key = idempotency_key(request)
    fields = dict(body.fields)
    model = api.model(_model_name(request, fields))
    until = parameters.take_text(fields, "until")
    webhook_url = take_webhook(api, fields)
    sources, rest = find_sources(model.inputs, Body(fields, body.files, body.typed))
    given = rest if body.typed else parameters.from_form(model, rest)
    resolved = parameters.resolve(model, given)
    model.plan(resolved, until)
    await api.engine.check_room(model.name, owner_of(request), key)
    inputs = await _keep_inputs(api, seen_owner(request), model.inputs, sources)
    return await api.submit(
        request,
        Submission(
            model=model.name,
            inputs={name: k.file for name, k in inputs.items()},
            uploads={name: k.upload for name, k in inputs.items()},
            params=parameters.draw_seed(resolved),
            until=until,
            owner=owner_of(request),
            idempotency_key=key,
            request_digest=_digest(model, inputs, resolved, until, webhook_url),
            webhook_url=webhook_url,
            priority=priority,
        ),
    )


async def continue_from(api: Api, request: Request, parent: Job, given: Mapping[str, Any]) -> Job:
    """A new job that inherits from the parent what `given` does not change."""
    fields = dict(given)
    model = api.model(parent.model)
    until = parameters.take_text(fields, "until")
    webhook_url = take_webhook(api, fields)
    resolved = parameters.inherit(model, parent.params, fields)
    model.plan(resolved, until)
    await _check_inputs(api, model, parent)
    submission = Submission(
        model=parent.model,
        inputs=parent.inputs,
        uploads={a.name: a.file for a in parent.assets if a.kind == "input"},
        params=parameters.draw_seed(resolved),
        until=until,
        owner=parent.owner,
        idempotency_key=idempotency_key(request),
        request_digest=digest_of(
            {"parent": parent.id, "params": resolved, "until": until} | _told(webhook_url)
        ),
        webhook_url=webhook_url,
        parent=parent.id,
        priority=parent.priority,
    )
    return await api.submit(request, submission)


async def _keep_inputs(
    api: Api, owner: str | None, declared: Mapping[str, Input], sources: Mapping[str, Source]
) -> dict[str, Kept]:
    """All at once; each has ended, well or not, when this does."""
    work = [keep_input(api, owner, declared[name], source) for name, source in sources.items()]
    kept = dict[str, Kept]()
    for name, one in zip(sources, await asyncio.gather(*work, return_exceptions=True), strict=True):
        if isinstance(one, BaseException):
            raise one
        kept[name] = one
    return kept


async def _check_inputs(api: Api, model: Model, parent: Job) -> None:
    """Gone where retention has taken what the parent was given."""
    required = {name for name, declared in model.inputs.items() if declared.required}
    digests = [ref.digest for ref in parent.inputs.values()]
    if required - set(parent.inputs) or not await renew_all(api.engine.blobs, digests):
        raise Gone(
            "The inputs of this job were removed when their time was over.",
            "Submit a new job with the picture.",
        )


def _model_name(request: Request, fields: dict[str, Any]) -> str:
    named = parameters.take_text(fields, "model")
    in_path = request.path_params.get("model", "")
    if named and in_path and named != in_path:
        raise BadRequest(
            f"The address says model {in_path!r}, the body {named[:64]!r}.", "Name it once."
        )
    return named or in_path


def _digest(
    model: Model,
    inputs: Mapping[str, Kept],
    params: Mapping[str, Any],
    until: str,
    webhook_url: str,
) -> str:
    """What two requests with one idempotency key must share. An undrawn seed counts as null."""
    digests = {name: kept.file.digest for name, kept in inputs.items()}
    given = {"model": model.name, "inputs": digests, "params": params, "until": until}
    return digest_of(given | _told(webhook_url))


def _told(webhook_url: str) -> dict[str, str]:
    return {"webhook_url": webhook_url} if webhook_url else {}


async def _ended(api: Api, job: Job) -> Job:
    """The job once it has ended; told by events, not asked for again and again."""
    async with aclosing(api.follow([job.id])) as events:
        async for _ in events:
            pass
    ended = await api.engine.job(job.id, None)
    assert ended.status in TERMINAL
    return ended


async def _only_picture(api: Api, body: Body) -> Kept:
    """The one picture of a request that brings nothing else."""
    inputs = {"image": Input(required=True)}
    sources, rest = find_sources(inputs, body)
    if rest or sources["image"].how == "id":
        name = next(iter(rest), "image_id")
        raise BadRequest(f"There is no field {name[:100]!r} here.", "Send `image` or `image_url`.")
    return await keep_input(api, None, inputs["image"], sources["image"])


def max_text(api: Api) -> int:
    """Characters of the longest form field: a file in base64."""
    return api.settings.max_upload_bytes * 4 // 3 + TEXT_SLACK
