"""The router's `/docs`: its OpenAPI document, shown without any other server's help."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from polypod.api import problems
from polypod.api.openapi import openapi_document
from polypod.api.page import docs_page
from polypod.jobs.engine import Engine

ASSETS = "_internal/server/static_content"
"""Where BentoML keeps Swagger UI, which pods show too."""


def docs_routes(engine: Engine) -> list[BaseRoute]:
    async def document(_: Request) -> Response:
        return Response(_document(engine), media_type="application/json")

    async def page(_: Request) -> Response:
        return HTMLResponse(docs_page("polypod"))

    return [
        Route("/docs", page),
        Route("/docs.json", document),
        Route("/openapi.json", document),  # where generators of clients look
        Mount("/static_content", StaticFiles(directory=_bentoml() / ASSETS)),
    ]


def _document(engine: Engine) -> bytes:
    """Made when it is asked for: models come and go."""
    document = openapi_document([*engine.models.values()])
    document["paths"].update(PATHS)
    document["components"]["schemas"].update({"Endpoint": ENDPOINT, "NewEndpoint": NEW_ENDPOINT})
    return json.dumps(document, ensure_ascii=False).encode()


def _bentoml() -> Path:
    """The folder of the package, which is not imported for it."""
    spec = importlib.util.find_spec("bentoml")
    assert spec and spec.origin
    return Path(spec.origin).parent


def _text(description: str, *types: str) -> dict[str, Any]:
    return {"type": list(types) or "string", "description": description}


ENDPOINT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": _text("Its name in the fleet."),
        "url": _text("Where it is; null: nowhere now.", "string", "null"),
        "provider": _text("`local`: a process beside the router; `fixed`: runs elsewhere."),
        "models": {"type": "array", "items": {"type": "string"}},
        "state": {
            "type": "string",
            "enum": ["stopped", "starting", "ready", "busy", "draining", "lost", "unusable"],
        },
        "reason": _text("Why it is in this state.", "string", "null"),
        "job": _text("The job that runs there now.", "string", "null"),
        "jobs": {
            "type": "array",
            "items": {"type": "string"},
            "description": "The router's jobs that are there.",
        },
        "queue": {"type": ["object", "null"], "description": "Its own queue's figures."},
        "slots": {"type": ["array", "null"]},
        "gpu": {"type": ["object", "null"]},
        "version": _text("Of polypod, there.", "string", "null"),
        "store_id": _text("New with every new data folder.", "string", "null"),
        "uptime_s": _text("Seconds since it started.", "number", "null"),
        "cost_usd": _text("So far; null: not known here.", "number", "null"),
        "since": _text("When it came into this state: Unix seconds.", "number"),
    },
    "required": ["id", "url", "provider", "models", "state", "jobs", "since"],
}
NEW_ENDPOINT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "url": {"type": "string", "format": "uri"},
        "id": _text("What to call it; else it is made from the address."),
        "api_key": _text("The endpoint's own API key."),
    },
    "required": ["url"],
}
_ONE = {"application/json": {"schema": {"$ref": "#/components/schemas/Endpoint"}}}
_MANY = {
    "application/json": {
        "schema": {
            "type": "object",
            "properties": {
                "endpoints": {
                    "type": "array",
                    "items": {"$ref": "#/components/schemas/Endpoint"},
                }
            },
            "required": ["endpoints"],
        }
    }
}


def _refusals(*statuses: int) -> dict[str, Any]:
    problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
    refusal = {"description": "Refused", "content": {problems.MEDIA_TYPE: problem}}
    return {str(status): refusal for status in (401, 403, *statuses)}


def _plain(summary: str, *errors: int) -> dict[str, Any]:
    """A GET that answers with text."""
    answer = {"description": "OK", "content": {"text/plain": {"schema": {"type": "string"}}}}
    told = {"tags": ["Service"], "summary": summary}
    return {"get": {**told, "responses": {"200": answer, **_refusals(*errors)}}}


PATHS: dict[str, Any] = {
    "/livez": _plain("Whether the process is alive"),
    "/readyz": _plain("Whether it takes jobs", 503),
    "/metrics": _plain("Figures for Prometheus"),
    "/endpoints": {
        "get": {
            "tags": ["Endpoints"],
            "summary": "Where models are served",
            "operationId": "get_endpoints",
            "responses": {"200": {"description": "OK", "content": _MANY}, **_refusals()},
        },
        "post": {
            "tags": ["Endpoints"],
            "summary": "Send jobs to a service that runs already",
            "operationId": "post_endpoints",
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/NewEndpoint"}}
                },
            },
            "responses": {
                "201": {"description": "Created", "content": _ONE},
                **_refusals(400, 409, 422),
            },
        },
    },
    "/endpoints/{endpoint}": {
        "delete": {
            "tags": ["Endpoints"],
            "summary": "Drain an endpoint, then forget it",
            "operationId": "delete_endpoints_endpoint",
            "parameters": [
                {"name": "endpoint", "in": "path", "required": True, "schema": {"type": "string"}}
            ],
            "responses": {"202": {"description": "Accepted", "content": _ONE}, **_refusals(404)},
        }
    },
}
