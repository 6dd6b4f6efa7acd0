"""The OpenAPI document (3.1), made from the table below and the models' declarations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from polypod import __version__
from polypod.api import problems
from polypod.api.compat import schemas as compat
from polypod.api.compat.protocol import WAIT_MS, WAIT_RANGE_MS
from polypod.api.events import MOST_ENCLOSED
from polypod.api.jobs import DEFAULT_LIMIT, MOST, STATUSES
from polypod.api.schemas import COMPONENTS, Schema, component_name, request_schemas
from polypod.model import Model

ALWAYS = (401, 403, 500)
"""Errors that any route may answer."""


@dataclass(frozen=True)
class Operation:
    """How one route is described. `answers`: the component, or the media type of a file."""

    method: str
    path: str
    tag: str
    summary: str
    answers: Mapping[int, str]
    errors: Sequence[int] = ()
    query: Mapping[str, Schema] = field(default_factory=dict[str, Schema])
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: str = ""
    """`generate`, `changes`, `picture`, `job`, `file` or `runpod`."""


_FILE = "application/octet-stream"
_EVENTS = "text/event-stream"
_SUBMIT_ERRORS = (400, 404, 408, 409, 410, 413, 415, 422, 429, 503)
_KEY = {"Idempotency-Key": "Repeating a request with the same key makes no second job."}
_OR_WAIT = ", or wait for its result (Accept: model/gltf-binary)"
_RANGE = {"Range": "One range of bytes.", "If-None-Match": "An ETag.", "If-Range": "An ETag."}
_LAST = {"Last-Event-ID": "Goes on after this event; an unknown one is harmless."}
_LAST_QUERY: Schema = {"type": "string", "description": _LAST["Last-Event-ID"]}
_ENCLOSED: Schema = {
    "type": "integer",
    "maximum": MOST_ENCLOSED,
    "description": "Files of up to so many bytes come with the first event that tells of them:"
    " `content` of the asset, base64.",
}
_RUNPOD_ERRORS = (400, 404, 429)
_WAIT: Schema = {
    "type": "integer",
    "minimum": WAIT_RANGE_MS[0],
    "maximum": WAIT_RANGE_MS[1],
    "default": WAIT_MS,
    "description": "Milliseconds.",
}
_FORMAT: Schema = {"type": "string", "description": "File format; converted where it must be."}

OPERATIONS = (
    Operation(
        *("POST", "/generate", "Jobs", f"Submit a job{_OR_WAIT}"),
        answers={202: "Accepted", 200: _FILE},
        errors=(*_SUBMIT_ERRORS, 504),
        headers=_KEY,
        body="generate",
    ),
    Operation(
        *("POST", "/generate/sync", "Jobs", "Submit a job and wait for its result"),
        answers={200: _FILE},
        errors=(*_SUBMIT_ERRORS, 504),
        headers=_KEY,
        body="generate",
    ),
    Operation(
        *("POST", "/models/{model}/generate", "Jobs", f"Submit a job for this model{_OR_WAIT}"),
        answers={202: "Accepted", 200: _FILE},
        errors=(*_SUBMIT_ERRORS, 504),
        headers=_KEY,
        body="generate",
    ),
    Operation(
        *("POST", "/models/{model}/generate/sync", "Jobs", "Submit a job and wait for its result"),
        answers={200: _FILE},
        errors=(*_SUBMIT_ERRORS, 504),
        headers=_KEY,
        body="generate",
    ),
    Operation(
        *("GET", "/job/{job_id}", "Jobs", "How a job is"),
        answers={200: "Job"},
        errors=(404, 503),
    ),
    Operation(
        *("DELETE", "/job/{job_id}", "Jobs", "Delete a finished job, or cancel an unfinished one"),
        answers={200: "Job", 204: ""},
        errors=(404, 503),
    ),
    Operation(
        *("POST", "/job/{job_id}/cancel", "Jobs", "Cancel a job"),
        answers={200: "Job"},
        errors=(404, 503),
    ),
    Operation(
        *("POST", "/job/{job_id}/continue", "Jobs", "Go on from a job, with other parameters"),
        answers={202: "Accepted"},
        errors=_SUBMIT_ERRORS,
        headers=_KEY,
        body="changes",
    ),
    Operation(
        *("GET", "/job/{job_id}/events", "Events", "What happens to a job, as it happens"),
        answers={200: _EVENTS, 204: ""},
        errors=(404, 503),
        query={"last_event_id": _LAST_QUERY, "files": _ENCLOSED},
        headers=_LAST,
    ),
    Operation(
        *("GET", "/events", "Events", "The same for many jobs on one connection"),
        answers={200: _EVENTS, 204: ""},
        errors=(404, 422, 503),
        query={
            "jobs": {"type": "string", "description": "Job ids, separated by commas."},
            "last_event_id": _LAST_QUERY,
            "files": _ENCLOSED,
        },
        headers=_LAST,
    ),
    Operation(
        *("GET", "/job/{job_id}/download", "Results", "The main result"),
        answers={200: _FILE, 206: _FILE, 304: "", 307: ""},
        errors=(404, 409, 410, 416, 422, 503),
        query={"format": _FORMAT},
        headers=_RANGE,
    ),
    Operation(
        *("GET", "/job/{job_id}/result/{asset}", "Results", "Any file of a job"),
        answers={200: _FILE, 206: _FILE, 304: "", 307: ""},
        errors=(404, 409, 410, 416, 422, 503),
        headers=_RANGE,
    ),
    Operation(
        *("POST", "/images", "Jobs", "Store a picture once, for several jobs"),
        answers={201: "Image"},
        errors=(400, 408, 413, 415, 422, 503),
        body="picture",
    ),
    Operation(
        *("PUT", "/job/{job_id}", "Routers", "Run a router's job, under its id"),
        answers={202: "Accepted"},
        errors=(400, 404, 408, 409, 413, 415, 422, 503),
        body="job",
    ),
    Operation(
        *("GET", "/job/{job_id}/stages", "Routers", "What an unfinished job has done"),
        answers={200: "FinishedStages"},
        errors=(404,),
    ),
    Operation(
        *("POST", "/job/{job_id}/withdraw", "Routers", "Give back a job that waits"),
        answers={200: "Withdrawn"},
        errors=(404, 409),
    ),
    Operation(
        *("GET", "/blobs/{sha256}", "Routers", "A file by its digest"),
        answers={200: _FILE, 206: _FILE},
        errors=(400, 404, 416),
    ),
    Operation(
        *("PUT", "/blobs/{sha256}", "Routers", "Keep a file"),
        answers={204: ""},
        errors=(400, 408, 413, 422, 503),
        body="file",
    ),
    Operation(
        *("GET", "/jobs", "Jobs", "Your jobs, newest first"),
        answers={200: "Jobs"},
        errors=(422, 503),
        query={
            "model": {"type": "string"},
            "status": {"type": "string", "enum": list(STATUSES)},
            "limit": {"type": "integer", "minimum": 1, "maximum": MOST, "default": DEFAULT_LIMIT},
            "cursor": {"type": "string", "description": "`next` of the page before."},
        },
    ),
    Operation(*("GET", "/queue", "Service", "The queue's figures"), answers={200: "Queue"}),
    Operation(*("GET", "/health", "Service", "How the service is"), answers={200: "Health"}),
    Operation(*("GET", "/models", "Service", "What is served here"), answers={200: "Models"}),
    Operation(
        *("GET", "/models/{model}", "Service", "One model: inputs, parameters, licence"),
        answers={200: "ModelCard"},
        errors=(404,),
    ),
    Operation(
        *("GET", "/v2/{model}/status/{job_id}", "RunPod", "How a job is, and its output"),
        answers={200: "RunPodJob"},
        errors=_RUNPOD_ERRORS,
    ),
    Operation(
        *("GET", "/v2/{model}/stream/{job_id}", "RunPod", "The files made since it was asked last"),
        answers={200: "RunPodStream"},
        errors=_RUNPOD_ERRORS,
    ),
    Operation(
        *("POST", "/v2/{model}/run", "RunPod", "Submit a job"),
        answers={200: "RunPodState"},
        errors=_RUNPOD_ERRORS,
        headers=_KEY,
        body="runpod",
    ),
    Operation(
        *("POST", "/v2/{model}/runsync", "RunPod", "Submit a job and wait for its output"),
        answers={200: "RunPodJob"},
        errors=_RUNPOD_ERRORS,
        query={"wait": _WAIT},
        headers=_KEY,
        body="runpod",
    ),
    Operation(
        *("POST", "/v2/{model}/cancel/{job_id}", "RunPod", "Cancel a job"),
        answers={200: "RunPodState"},
        errors=_RUNPOD_ERRORS,
    ),
    Operation(
        *("POST", "/v2/{model}/retry/{job_id}", "RunPod", "Try a failed job again"),
        answers={200: "RunPodState"},
        errors=_RUNPOD_ERRORS,
    ),
    Operation(
        *("POST", "/v2/{model}/purge-queue", "RunPod", "Cancel the jobs that wait"),
        answers={200: "RunPodPurge"},
        errors=_RUNPOD_ERRORS,
    ),
    Operation(
        *("GET", "/v2/{model}/health", "RunPod", "Figures of a model's jobs"),
        answers={200: "RunPodHealth"},
        errors=_RUNPOD_ERRORS,
    ),
    Operation(
        *("GET", "/audit", "Service", "What was administrated, newest first"),
        answers={200: "Audit"},
        errors=(422, 503),
        query={"limit": {"type": "integer", "minimum": 1, "maximum": MOST, "default": 50}},
    ),
    Operation(*("GET", "/", "Service", "Where to begin"), answers={200: "Index"}),
)


def openapi_document(models: Sequence[Model]) -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(
            operation, models
        )
    requests = {name: s for model in models for name, s in request_schemas(model).items()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "polypod",
            "version": __version__,
            "description": "A photograph in, a 3D model out. Errors are problem documents "
            "(RFC 9457) that also carry a plain `error` string.",
        },
        "paths": paths,
        "components": {
            "schemas": {**COMPONENTS, **compat.COMPONENTS, **requests},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
        "security": [{}, {"bearer": []}, {"key": []}],
    }


def _operation(operation: Operation, models: Sequence[Model]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "tags": [operation.tag],
        "summary": operation.summary,
        "operationId": _id(operation),
        "parameters": _parameters(operation, models),
        "responses": {
            **{str(status): _answer(status, what) for status, what in operation.answers.items()},
            **{str(s): _error(operation, s) for s in sorted({*operation.errors, *ALWAYS})},
        },
    }
    if operation.body:
        needed = operation.body != "changes"
        described["requestBody"] = {"required": needed, "content": _body(operation, models)}
    return described


def _id(operation: Operation) -> str:
    words = [w.strip("{}") for w in operation.path.split("/") if w]
    return "_".join([operation.method.lower(), *(words or ["index"])])


def _parameters(operation: Operation, models: Sequence[Model]) -> list[dict[str, Any]]:
    in_path = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    names: Schema = {"type": "string", "enum": [model.name for model in models]}
    return [
        *(
            {
                "name": name,
                "in": "path",
                "required": True,
                "schema": names if name == "model" else {"type": "string", "minLength": 1},
            }
            for name in in_path
        ),
        *(
            {"name": name, "in": "query", "required": name == "jobs", "schema": schema}
            for name, schema in operation.query.items()
        ),
        *(
            {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}
            for name, text in operation.headers.items()
        ),
    ]


def _body(operation: Operation, models: Sequence[Model]) -> dict[str, Any]:
    if operation.body == "picture":
        part = {"type": "string", "format": "binary"}
        fields = {"image": {"type": "string", "contentEncoding": "base64"}}
        one_of: Schema = {"image_url": {"type": "string", "format": "uri"}, **fields}
        return {
            "application/json": {
                "schema": {"type": "object", "properties": one_of, "additionalProperties": False}
            },
            "multipart/form-data": {"schema": {"type": "object", "properties": {"image": part}}},
            "image/png": {"schema": part},
            "image/jpeg": {"schema": part},
            "image/webp": {"schema": part},
        }
    if operation.body == "file":
        return {_FILE: {"schema": {"type": "string", "format": "binary"}}}
    if operation.body == "job":
        return {"application/json": {"schema": {"$ref": "#/components/schemas/DispatchedJob"}}}
    if operation.body == "runpod":
        return {"application/json": {"schema": compat.order(_any_of(models, "Json"))}}
    if operation.body == "changes":
        return {"application/json": {"schema": _any_of(models, "Changes")}}
    return {
        "application/json": {"schema": _any_of(models, "Json")},
        "multipart/form-data": {"schema": _any_of(models, "Form")},
    }


def _any_of(models: Sequence[Model], kind: str) -> Schema:
    refs = [{"$ref": f"#/components/schemas/{component_name(model)}{kind}"} for model in models]
    return refs[0] if len(refs) == 1 else {"anyOf": refs}


def _answer(status: int, what: str) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if what == _FILE:
        answer["content"] = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
        answer["headers"] = {
            name: {"schema": {"type": "string"}} for name in ("ETag", "Accept-Ranges")
        }
    elif status == 307:
        where = "The file in the storage, for a while; not for the API key."
        answer["headers"] = {"Location": {"schema": {"type": "string"}, "description": where}}
    elif what == _EVENTS:
        answer["content"] = {_EVENTS: {"schema": {"$ref": "#/components/schemas/Event"}}}
    elif what:
        ref = {"$ref": f"#/components/schemas/{what}"}
        answer["content"] = {"application/json": {"schema": ref}}
    return answer


def _error(operation: Operation, status: int) -> dict[str, Any]:
    content = {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    if operation.tag == "RunPod":
        content["application/json"] = {"schema": {"$ref": "#/components/schemas/RunPodError"}}
    error: dict[str, Any] = {"description": HTTPStatus(status).phrase, "content": content}
    if status in (409, 429, 503):
        wait = {"type": "integer", "description": "Seconds after which to try again."}
        error["headers"] = {"Retry-After": {"schema": wait}}
    return error
