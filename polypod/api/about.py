"""What the service says of itself: health, models, and a first page for people."""

from __future__ import annotations

import html
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from polypod import __version__
from polypod.access.keys import ANY
from polypod.api.endpoint import KEY, Api, needs, seen_owner

JOB_DATA = ("job", "stage", "since")
"""What of a slot is told only to those who may see its job."""


@needs(ANY)
async def health(api: Api, request: Request) -> Response:
    """GET /health: always at once, also without a key, then without job data."""
    body = api.engine.health()
    return JSONResponse(body | {"slots": seen_slots(api, request, body)})


def seen_slots(api: Api, request: Request, health: dict[str, Any]) -> list[dict[str, Any]]:
    """The slots, without jobs that the caller may not see."""
    slots: list[dict[str, Any]] = health.get("slots", [])
    return [slot if _may_see(api, request, slot) else _without_job(slot) for slot in slots]


def _may_see(api: Api, request: Request, slot: dict[str, Any]) -> bool:
    """Whether the slot's job is the caller's to see."""
    if KEY in request.scope and request.scope[KEY] is None:
        return False
    owner = seen_owner(request)
    live = api.engine.queue.lives.get(slot.get("job") or "")
    return owner is None or (live is not None and live.job.owner == owner)


def _without_job(slot: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in slot.items() if name not in JOB_DATA}


@needs(ANY)
async def models(api: Api, _: Request) -> Response:
    """GET /models: all cards."""
    return JSONResponse({"models": [model.card for model in api.engine.models.values()]})


@needs(ANY)
async def model(api: Api, request: Request) -> Response:
    """GET /models/{model}: one card."""
    return JSONResponse(api.model(request.path_params["model"]).card)


@needs(ANY)
async def index(api: Api, request: Request) -> Response:
    """GET /: a page for browsers, JSON for programs."""
    if "text/html" in request.headers.get("accept", ""):
        return HTMLResponse(_page(api, request))
    names = {name: api.url(f"/models/{name}") for name in api.engine.models}
    links = {name: api.url(f"/{name}") for name in ("docs", "health", "jobs", "queue")}
    return JSONResponse({"name": "polypod", "version": __version__, "models": names, **links})


def _page(api: Api, request: Request) -> str:
    base = api.settings.public_url.rstrip("/") or f"{request.url.scheme}://{request.url.netloc}"
    key = " -H 'X-API-Key: KEY'" if KEY in request.scope else ""
    command = f"curl -F image=@photo.jpg{key} {base}/generate"
    items = "".join(
        f'<li><a href="models/{name}">{html.escape(model.title)}</a>: '
        f"{html.escape(model.summary)}</li>"
        for name, model in api.engine.models.items()
    )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>polypod</title>
<meta name="viewport" content="width=device-width">
<style>body{{font:1rem/1.5 system-ui;max-width:42rem;margin:3rem auto;padding:0 1rem}}
pre{{background:#8882;padding:.8rem;overflow:auto}}:root{{color-scheme:light dark}}</style>
<h1>polypod</h1><p>A photograph in, a 3D model out. Served here:</p><ul>{items}</ul>
<pre>{html.escape(command)}</pre>
<p>It answers with <code>status_url</code>: follow it, then download the result.</p>
<p><a href="docs">API</a> · <a href="health">health</a> · <a href="queue">queue</a> ·
<a href="jobs">jobs</a></p></html>
"""
