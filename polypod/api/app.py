"""The HTTP application: every route of DESIGN section 4 in one table.

It is mounted on the BentoML service, or runs by itself under any ASGI server. Routes go straight
to their handlers (`endpoint`): a status request costs less than a bare FastAPI route. What FastAPI
would derive from signatures, `openapi` derives from the declarations of the models.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.routing import Route

from polypod import __version__
from polypod.access.keyring import Keyring
from polypod.api import about, audit, dispatch, downloads, events, jobs, submit
from polypod.api.compat import mounted, runpod
from polypod.api.endpoint import Api, Endpoint, Handler
from polypod.api.middleware import middleware
from polypod.api.openapi import openapi_document
from polypod.api.problems import on_http_exception
from polypod.settings import Settings

if TYPE_CHECKING:
    from polypod.jobs.engine import Engine

ROUTES: tuple[tuple[str, str, Handler], ...] = (
    # Looked through from the top: what is asked most comes first.
    ("GET", "/job/{job_id}", jobs.get_job),
    ("DELETE", "/job/{job_id}", jobs.delete_job),
    ("POST", "/generate", submit.generate),
    ("GET", "/health", about.health),
    ("GET", "/job/{job_id}/download", downloads.download),
    ("GET", "/job/{job_id}/result/{asset}", downloads.result),
    ("GET", "/job/{job_id}/events", events.job_events),
    ("GET", "/events", events.events),
    ("POST", "/job/{job_id}/continue", submit.continue_job),
    ("POST", "/job/{job_id}/cancel", jobs.cancel_job),
    ("POST", "/generate/sync", submit.generate_sync),
    ("POST", "/models/{model}/generate", submit.generate),
    ("POST", "/models/{model}/generate/sync", submit.generate_sync),
    ("POST", "/images", submit.store_image),
    ("PUT", "/job/{job_id}", dispatch.put_job),
    ("GET", "/job/{job_id}/stages", dispatch.get_stages),
    ("POST", "/job/{job_id}/withdraw", dispatch.withdraw),
    ("GET", "/blobs/{sha256}", dispatch.get_blob),
    ("PUT", "/blobs/{sha256}", dispatch.put_blob),
    ("GET", "/jobs", jobs.list_jobs),
    ("GET", "/queue", jobs.get_queue),
    ("GET", "/models", about.models),
    ("GET", "/models/{model}", about.model),
    ("GET", "/audit", audit.list_acts),
    *runpod.ROUTES,
    ("GET", "/", about.index),
)


def create_app(engine: Engine, settings: Settings, *, guarded: bool = False) -> App:
    """The application; its lifespan starts and stops the engine.

    `guarded` puts the layers of `middleware` around it, for use without BentoML; there they
    belong on the service, so that they also cover its own routes.
    """
    app = App(engine, settings)
    if guarded:
        for layer in reversed(middleware(settings, engine.models.values(), app.keyring)):
            app.add_middleware(layer.cls, *layer.args, **layer.kwargs)
    return app


class App(FastAPI):
    def __init__(self, engine: Engine, settings: Settings) -> None:
        keyring = Keyring(settings.api_keys)

        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
            try:
                await engine.start()
                async with keyring.following(engine.store.access):
                    yield
            finally:
                await engine.stop()

        super().__init__(
            title="polypod",
            version=__version__,
            docs_url=None,  # BentoML's, which show our routes too
            redoc_url=None,
            redirect_slashes=False,
            lifespan=lifespan,
            exception_handlers={HTTPException: on_http_exception},
        )
        self._engine = engine
        self.keyring = keyring
        self.api = Api(engine, settings, keyring)
        self.router.routes[:0] = _routes(self.api)

    @cached_property
    def _document(self) -> dict[str, Any]:
        return openapi_document([*self._engine.models.values()])

    def openapi(self) -> dict[str, Any]:
        return self._document


def _routes(api: Api) -> list[Route]:
    by_path: dict[str, dict[str, Handler]] = defaultdict(dict)
    for method, path, handler in mounted.with_facades(ROUTES):
        by_path[path][method] = handler
    return [Route(path, Endpoint(api, handlers)) for path, handlers in by_path.items()]
