"""The router's HTTP application: the same routes as a pod, and those for its endpoints."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from itertools import chain
from typing import cast

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from polypod import metrics
from polypod.access.keys import ADMIN, ANY
from polypod.api.app import create_app
from polypod.api.body import read_json
from polypod.api.endpoint import Api, Endpoint, Handler, needs
from polypod.errors import BadInput, Conflict, NotFound, Unavailable
from polypod.jobs.engine import Engine
from polypod.jobs.runner import Book, Runner
from polypod.router.dispatch import Dispatcher
from polypod.router.docs import docs_routes
from polypod.router.endpoint import Known
from polypod.router.endpoints import Pods
from polypod.router.registered import keep, mark_draining, registered
from polypod.settings import Settings

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LIKE_THIS = 'Send {"url": "http://...", "api_key": "..."}; no login, ? or # in the url.'


def make_engine(endpoints: Iterable[Known], settings: Settings, pods: Pods | None = None) -> Engine:
    """`endpoints` are asked for once the data folder is this engine's alone.

    Those that were registered earlier come beside them.
    """
    shared = settings.database_url.startswith("postgres")
    known = endpoints if shared else chain(endpoints, registered(settings.data))

    def runner(book: Book) -> Runner:
        return Dispatcher(book, known, pods)

    if not shared:
        return Engine((), settings, runner)
    from polypod.router.shared import SharedEngine  # brings PostgreSQL's driver

    return SharedEngine(settings, runner)


def create_router(engine: Engine, settings: Settings) -> FastAPI:
    """The app of a router; `engine` comes from `make_engine`."""
    app = create_app(engine, settings, guarded=True)
    api = app.api
    routes: dict[str, dict[str, Handler]] = {
        "/endpoints": {"GET": list_endpoints, "POST": register},
        "/endpoints/{endpoint}": {"DELETE": drain},
        "/metrics": {"GET": show_metrics},
        "/livez": {"GET": live},
        "/readyz": {"GET": ready},
    }
    ours = [Route(path, Endpoint(api, of)) for path, of in routes.items()]
    app.router.routes[:0] = [*ours, *docs_routes(engine)]
    return app


@needs(ADMIN)
async def list_endpoints(api: Api, _: Request) -> Response:
    dispatcher = _dispatcher(api)
    endpoints = [dispatcher.describe_endpoint(e) for e in dispatcher.endpoints.values()]
    return JSONResponse({"endpoints": endpoints})


@needs(ADMIN)
async def register(api: Api, request: Request) -> Response:
    """POST /endpoints: `url`, and if wanted `id` and `api_key`."""
    body = await read_json(request)
    url, name = str(body.get("url") or ""), str(body.get("id") or "")
    name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", url.partition("://")[2]).strip("-")
    known = Known(name, url.rstrip("/"), "fixed", str(body.get("api_key") or ""))
    if not url or known.fault:
        raise BadInput(f"This is no endpoint: {known.fault or 'there is no url'}.", _LIKE_THIS)
    if not _ID.fullmatch(name):
        raise BadInput("`id` is not a name.", "Use letters, digits, dots, dashes; at most 64.")
    dispatcher = _dispatcher(api)
    if name in dispatcher.endpoints:
        raise Conflict(f"There is an endpoint {name!r} already.", "DELETE it, or give another id.")
    if api.engine.store.routers.id:
        await api.engine.store.routers.keep_endpoint(known.id, known.url, known.api_key)
    else:
        await asyncio.to_thread(keep, api.settings.data, known)
    await api.note(request, "endpoint registered", f"{name} {url}")
    return JSONResponse(dispatcher.describe_endpoint(dispatcher.endpoints.register(known)), 201)


@needs(ADMIN)
async def drain(api: Api, request: Request) -> Response:
    """DELETE /endpoints/{endpoint}: it finishes what it has, then it is forgotten."""
    dispatcher = _dispatcher(api)
    endpoint = dispatcher.endpoints.get(request.path_params["endpoint"])
    if endpoint is None:
        raise NotFound("There is no such endpoint.", "GET /endpoints lists them.")
    if api.engine.store.routers.id:
        await api.engine.store.routers.forget_endpoint(endpoint.id)
    else:
        await asyncio.to_thread(mark_draining, api.settings.data, endpoint.id)
    await api.note(request, "endpoint removed", endpoint.id)
    dispatcher.endpoints.drain(endpoint)
    return JSONResponse(dispatcher.describe_endpoint(endpoint), 202)


@needs(ANY)
async def show_metrics(api: Api, _: Request) -> Response:
    engine, dispatcher = api.engine, _dispatcher(api)
    endpoints = [dispatcher.describe_endpoint(e) for e in dispatcher.endpoints.values()]
    shown = (engine.figures(), engine.health(), engine.ready, engine.queue.counts(), endpoints)
    return PlainTextResponse(metrics.exposition(*shown), media_type=metrics.CONTENT_TYPE)


@needs(ANY)
async def live(_: Api, __: Request) -> Response:
    return PlainTextResponse("")


@needs(ANY)
async def ready(api: Api, _: Request) -> Response:
    if not api.engine.ready:
        raise Unavailable("The router is not ready.", "Try again in a moment.")
    return PlainTextResponse("")


def _dispatcher(api: Api) -> Dispatcher:
    return cast(Dispatcher, api.engine.runner)
