"""What the service offers, one flow each."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast
from urllib.parse import urlencode

from polypod.client.calls import Call, Part, PictureSource, Submission, read_source
from polypod.client.commands import Backoff, Context, Do, Flow, Reply, settled
from polypod.client.errors import ApiError
from polypod.client.views import Health, JobView, Json, ModelCard, UploadedImage

PAGE = 100
"""Jobs asked for at once."""


def get(context: Context, *path: str, query: Mapping[str, str] | None = None) -> Flow[Any]:
    tail = f"?{urlencode(query)}" if query else ""
    call = Call("GET", context.server.path(*path) + tail)
    return (yield from settled(context, call)).json()


def generate(
    context: Context,
    image: PictureSource,
    *,
    model: str | None,
    params: Json | None,
    inputs: Mapping[str, PictureSource] | None,
    until: str,
    idempotency_key: str | None,
) -> Flow[JobView]:
    """Submits a job. Safe to repeat: the service knows the request again by its key."""
    sources = {"image": image, **(inputs or {})}

    def read() -> dict[str, Part | str | UploadedImage]:
        return {name: read_source(source) for name, source in sources.items()}

    submission = Submission((yield Do(read)), dict(params or {}), until)
    path = ("models", model, "generate") if model else ("generate",)
    call = submission.call(context.server.path(*path), idempotency_key or uuid.uuid4().hex)
    return _job_view((yield from settled(context, call)).json())


def continue_(
    context: Context, job_id: str, params: Json | None, until: str, idempotency_key: str | None
) -> Flow[JobView]:
    body = dict(params or {}) | ({"until": until} if until else {})
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    call = Call("POST", context.server.path("job", job_id, "continue"), headers, json=body)
    return _job_view((yield from settled(context, call)).json())


def job(context: Context, job_id: str) -> Flow[JobView]:
    return _job_view((yield from get(context, "job", job_id)))


def cancel(context: Context, job_id: str) -> Flow[JobView]:
    call = Call("POST", context.server.path("job", job_id, "cancel"))
    return _job_view((yield from settled(context, call)).json())


def delete(context: Context, job_id: str) -> Flow[None]:
    """Gone already is as good as deleted when an earlier try's answer was lost."""
    call = Call("DELETE", context.server.path("job", job_id))
    yield from settled(context, call, _gone_meanwhile)


def _gone_meanwhile(reply: Reply, tried: Backoff) -> bool:
    return reply.status == 404 and tried.failures > 0


def jobs_page(context: Context, filters: Mapping[str, str]) -> Flow[tuple[list[JobView], str]]:
    """One page of the history, newest first, and the cursor of the next; empty at the end."""
    answer = yield from get(context, "jobs", query={k: v for k, v in filters.items() if v})
    page = [_job_view(raw) for raw in _list(answer, "jobs")]
    return page, str(answer.get("next") or "")


def job_filters(model: str, status: str, limit: int | None) -> dict[str, str]:
    return {"model": model, "status": status, "limit": str(min(limit or PAGE, PAGE))}


def models(context: Context) -> Flow[list[ModelCard]]:
    answer = yield from get(context, "models")
    return [ModelCard.parse(_ours(raw, "name")) for raw in _list(answer, "models")]


def model(context: Context, name: str) -> Flow[ModelCard]:
    return ModelCard.parse(_ours((yield from get(context, "models", name)), "name"))


def health(context: Context) -> Flow[Health]:
    """Also of a service that says, with a 503, that it is not well."""
    call = Call("GET", context.server.path("health"))
    reply = yield from settled(context, call, lambda reply, _: Health.is_in(reply.document()))
    return Health.parse(_ours(reply.json(), "status"))


def upload_image(context: Context, image: PictureSource) -> Flow[UploadedImage]:
    part = yield Do(partial(read_source, image))
    if not isinstance(part, Part):
        raise ValueError("upload_image takes a path, bytes or a PIL image")
    call = Call("POST", context.server.path("images"), parts={"image": part})
    raw = _ours((yield from settled(context, call)).json(), "image_id")
    return UploadedImage(str(raw["image_id"]), raw)


def endpoints(context: Context) -> Flow[list[Json]]:
    answer = yield from get(context, "endpoints")
    return [_ours(raw, "id", "state") for raw in _list(answer, "endpoints")]


def add_endpoint(context: Context, url: str, name: str, api_key: str) -> Flow[Json]:
    body = {"url": url, "id": name, "api_key": api_key}
    call = Call("POST", context.server.path("endpoints"), json=body)
    return _ours((yield from settled(context, call)).json(), "id", "state")


def remove_endpoint(context: Context, name: str) -> Flow[Json]:
    call = Call("DELETE", context.server.path("endpoints", name))
    return _ours((yield from settled(context, call)).json(), "jobs")


def _job_view(raw: object) -> JobView:
    return JobView.parse(_ours(raw, "job_id", "status"))


def _list(raw: object, key: str) -> Sequence[object]:
    found = _ours(raw, key)[key]
    return cast(Sequence[object], found) if isinstance(found, list) else [_ours(None)]


def _ours(raw: object, *names: str) -> Json:
    """The answer, which is an object with these in it; else another kind of service gave it."""
    if not isinstance(raw, Mapping) or any(name not in raw for name in names):
        raise ApiError(
            200, "not_ours", "The answer is not that of a polypod service.", "Check the address."
        )
    return cast(Json, raw)
