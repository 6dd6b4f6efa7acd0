"""Makes the BentoML service of a Model: our API under BentoML's server, docs and metrics.

    Inflate = service(MODEL)

Importing it starts nothing and imports little: engine and API come to life only in the API
process of `bentoml serve`.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import importlib
import json
import os
import sys
from collections.abc import AsyncGenerator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import bentoml
from bentoml import Service
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.service.openapi.specification import Info, OpenAPISpecification, PathItem
from bentoml._internal.utils.analytics import usage_stats
from bentoml._internal.utils.cattr import bentoml_cattr
from bentoml.exceptions import BentoMLException
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send, StatelessLifespan

from polypod import lifetime, logs, tracing
from polypod.api.page import docs_page
from polypod.command import typed
from polypod.model import Model
from polypod.settings import Settings

if TYPE_CHECKING:
    from polypod.api.app import App
    from polypod.jobs.engine import Engine

TIMEOUT_S = 7 * 86400.0
DROPPED = frozenset({"TimeoutMiddleware", "ContextMiddleware"})
"""BentoML's layers that serve only its own API methods. Its time limit also holds some kilobytes
for every request until the limit has passed, long after the answer."""
PATH = "polypod.path"


def service(model: Model) -> Service[Any]:
    """The BentoML service of `model`; assign it to a variable of the calling module."""
    _never_track()
    model = model.configured(os.environ)
    settings = _settings()
    slots = {**model.slot_devices(os.environ), **settings.slots}
    settings = settings.model_copy(update={"slots": slots})
    made = bentoml.service(
        name=model.name,
        description=model.summary,
        labels={"model": model.name},
        service_class=ModelService,
        workers=1,
        traffic={"timeout": TIMEOUT_S},
        http={"host": settings.host, "port": settings.port},  # pyright: ignore[reportArgumentType]
        logging={"access": {"enabled": False}},
    )(type(model.name, (Hooks,), {"__doc__": model.summary}))
    made = cast(ModelService, made)
    made.model = model
    made.settings = settings
    object.__setattr__(made, "_caller_module", sys._getframe(1).f_globals["__name__"])  # pyright: ignore[reportPrivateUsage]
    return made


def chosen() -> Service[Any]:
    """The service of the model that `--arg model=NAME` names: what the root bentofile builds."""
    name = str(getattr(bentoml.use_arguments(), "model", "inflate"))
    folders = [Path(path) for path in importlib.import_module("services").__path__]
    names = sorted({file.parent.name for f in folders for file in f.glob("*/service.py")})
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        raise BentoMLException(
            f"There is no model {name!r} under services/."
            + (f" Did you mean {near[0]!r}?" if near else f" There are: {', '.join(names)}.")
        )
    module = importlib.import_module(f"services.{name}.service")
    return next(value for value in vars(module).values() if isinstance(value, ModelService))


class ModelService(Service[Any]):
    """BentoML's service, with an engine and our API that are made when first asked for."""

    model: Model
    settings: Settings

    @cached_property
    def engine(self) -> Engine:
        from polypod.jobs.engine import Engine

        return Engine([self.model], self.settings)

    @cached_property
    def requests(self) -> lifetime.OpenRequests:
        return lifetime.OpenRequests()

    @cached_property
    def app(self) -> App:
        """Our API, mounted where BentoML finds it for docs and schema."""
        from polypod.api.app import create_app

        app = create_app(self.engine, self.settings)
        inner = cast("StatelessLifespan[Any]", app.router.lifespan_context)
        app.router.lifespan_context = self._lifespan(inner)
        self.mount_asgi_app(app, path="/")
        return app

    def _lifespan(self, inner: StatelessLifespan[Any]) -> StatelessLifespan[Any]:
        """The engine's life, told in words when it cannot begin."""

        @contextlib.asynccontextmanager
        async def lifespan(app: Any) -> AsyncGenerator[None]:
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_callback(asyncio.to_thread, tracing.stop)
                try:
                    lifetime.check_address(self.settings)
                    lifetime.check_database(self.settings)
                    await stack.enter_async_context(inner(app))
                except Exception as error:
                    lifetime.fail(error)
                self.requests.end_on_signal()
                lifetime.freeze_memory()
                yield

        return lifespan

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """What uvicorn serves. BentoML calls it once, in the API process."""
        try:
            return self._assemble(is_main)
        except Exception as error:
            lifetime.fail(error)

    def _assemble(self, is_main: bool) -> ASGIApp:
        logs.configure(self.settings.log)
        tracing.start("polypod-pod")
        lifetime.end_with_parent()
        if address := lifetime.bound_address():
            host, port = address
            self.settings = self.settings.model_copy(update={"host": host, "port": port})
        _count_in_memory()
        from polypod.api.middleware import middleware
        from polypod.api.problems import on_http_exception

        for layer in middleware(self.settings, [self.model], self.app.keyring):
            self.add_asgi_middleware(cast(Any, layer.cls), **layer.kwargs)
        made = super().to_asgi(is_main)
        assert isinstance(made, Starlette)
        made.router.routes[:] = [
            Route("/docs", self._docs_page, name="docs"),
            Route("/docs.json", self._docs_json, name="docs-json"),
            *made.routes,
        ]
        made.add_exception_handler(HTTPException, on_http_exception)
        counting, *others = made.user_middleware
        made.user_middleware = [
            Middleware(lifetime.EndOnStop, requests=self.requests),
            Middleware(_LabelPath, routes=[*made.routes, *self.app.routes]),
            counting,
            Middleware(_RestorePath),
            *(layer for layer in others if _needed(layer)),
        ]
        return made

    @property
    def doc(self) -> str:
        return f"{self.model.title}. {self.model.summary}"

    @property
    def openapi_spec(self) -> OpenAPISpecification:
        """BentoML's document with our routes, which it cannot read from signatures."""
        ours = self.app.openapi()
        theirs = super().openapi_spec
        paths = {
            path: bentoml_cattr.structure(item, PathItem) for path, item in ours["paths"].items()
        }
        components = dict(cast("dict[str, dict[str, Any]]", theirs.components or {}))
        for kind, named in ours.get("components", {}).items():
            components[kind] = {**components.get(kind, {}), **named}
        return OpenAPISpecification(
            openapi=ours["openapi"],
            info=Info(
                title=theirs.info.title,
                version=theirs.info.version,
                description=theirs.info.description,
            ),
            servers=theirs.servers,
            tags=theirs.tags,
            paths={**paths, **theirs.paths},
            components=cast(Any, components),
        )

    def schema(self) -> dict[str, Any]:
        self.app  # noqa: B018
        return super().schema()

    @cached_property
    def _openapi(self) -> bytes:
        return json.dumps(self.openapi_spec.asdict(), ensure_ascii=False).encode()

    async def _docs_json(self, request: Request) -> Response:
        body = await asyncio.to_thread(lambda: self._openapi)
        return Response(body, media_type="application/json")

    async def _docs_page(self, request: Request) -> Response:
        return HTMLResponse(docs_page(self.model.title))


class Hooks:
    """What BentoML calls on the service: once in the parent, then in the API process."""

    bento_service: ModelService

    @bentoml.on_deployment
    @staticmethod
    def announce() -> None:
        logs.configure(_settings().log)
        lifetime.announce_parent()

    async def __is_ready__(self) -> bool:
        return self.bento_service.engine.ready

    async def __metrics__(self, theirs: str) -> str:
        from polypod import metrics

        engine = self.bento_service.engine
        return theirs + metrics.exposition(
            engine.figures(), engine.health(), engine.ready, engine.queue.counts()
        )


class _LabelPath:
    """Shows BentoML's request metrics a route for its path: `/job/{id}`, not each job's own.

    They keep a series per path for ever, also of requests that are refused.
    """

    def __init__(self, app: ASGIApp, routes: list[Any]) -> None:
        self._app = app
        paths: list[str] = [route.path for route in routes if isinstance(route.path, str)]
        self._plain = {path for path in paths if "{" not in path}
        self._patterns = [(r.path_regex, r.path) for r in routes if "{" in r.path]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            path = scope["path"]
            scope = {**scope, "path": self._label(path), PATH: path}
        await self._app(scope, receive, send)

    def _label(self, path: str) -> str:
        if path in self._plain:
            return path
        found = (label for pattern, label in self._patterns if pattern.match(path))
        return next(found, "/other")


class _RestorePath:
    """Behind the request metrics: the path as it was asked for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if PATH in scope:
            scope["path"] = scope.pop(PATH)
        await self._app(scope, receive, send)


def _needed(layer: Middleware) -> bool:
    """Whether a layer of BentoML's does something here."""
    name = getattr(layer.cls, "__name__", "")
    if name == "OpenTelemetryMiddleware":  # a third of the time of a small request
        return bool(BentoMLContainer.tracing.exporter_type.get())
    return name not in DROPPED


def _settings() -> Settings:
    try:
        return Settings()  # pyright: ignore[reportCallIssue]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise BentoMLException(
            f"Setting {name}: {first['msg']} (got {first.get('input')!r:.80}). "
            f"`{typed('settings')}` lists every setting."
        ) from None


def _never_track() -> None:
    """BentoML reports each command to its makers; by now it has looked whether it may."""
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    usage_stats.do_not_track.cache_clear()


def _count_in_memory() -> None:
    """BentoML counts in files for several API processes; here is one, and it is faster so.

    In such files our own figures would be counted twice. Before `prometheus_client` is imported.
    """
    from bentoml._internal.server.metrics.prometheus import PrometheusClient

    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    BentoMLContainer.metrics_client.set(PrometheusClient(multiproc=False))
