"""How a request reaches its handler: an ASGI app per path, without further layers.

A handler is `async (api, request) -> Response` and raises `Problem` for what the user should know.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from polypod.access.keyring import Keyring
from polypod.access.keys import ADMIN, ANY, Key
from polypod.api.problems import internal_error, problem_response
from polypod.errors import (
    BadRequest,
    DiskFull,
    Forbidden,
    NotFound,
    Problem,
    Unauthorized,
    Unavailable,
    is_disk_full,
)
from polypod.jobs.describe import with_urls
from polypod.jobs.events import Event
from polypod.jobs.job import Job
from polypod.model import Model, nearest
from polypod.settings import Settings

if TYPE_CHECKING:
    from polypod.jobs.engine import Engine, Submission

log = logging.getLogger("polypod.api")

KEY = "polypod.key"
"""Key in the ASGI scope, set by `auth.Auth`: the caller's API key; None for a caller without one
where keys are asked for (open paths only); not there where there are no keys."""

BODY_DONE = "polypod.body_done"
"""Key in the ASGI scope, set by `middleware.BodyLimit`: to be called once the request's body is no
longer in memory, where its answer may take long."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

_UNUSABLE = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.EMFILE, errno.ENFILE, errno.ESTALE),
}
"""A data folder that was moved away, mounted anew, or is on a bad disk; too many open files."""

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

T = TypeVar("T")


def owner_of(request: Request) -> str:
    """Whose it will be, what the caller makes; empty where there are no keys."""
    key: Key | None = request.scope.get(KEY)
    return key.id if key else ""


def seen_owner(request: Request) -> str | None:
    """Whose jobs the caller may see; None: everybody's."""
    if KEY not in request.scope:
        return None
    key: Key | None = request.scope[KEY]
    if key is None:
        raise Unauthorized("An API key is needed.")
    return None if key.sees_all_jobs else key.id


@dataclass(frozen=True)
class Api:
    """What every handler needs."""

    engine: Engine
    settings: Settings
    keyring: Keyring = field(default_factory=Keyring)

    async def count_submit(self, request: Request) -> None:
        """Before anything is done for a new job. Raises TooManyRequests."""
        key: Key | None = request.scope.get(KEY)
        if key and key.submits_per_minute:
            await self.keyring.count_submit(key, self.engine.store.routers.count_submit)

    async def submit(self, request: Request, submission: Submission) -> Job:
        """`Engine.submit`, within the limits of the caller's key. The inputs are kept by now."""
        request.scope.get(BODY_DONE, lambda: None)()
        key: Key | None = request.scope.get(KEY)
        limit = key.most_queued if key else None
        sent = request.headers.get("traceparent", "")
        return await self.engine.submit(replace(submission, most_queued=limit, traceparent=sent))

    async def note(self, request: Request, act: str, about: str) -> None:
        """Keep an administrative act. Done before the act: there is none without its line."""
        key: Key | None = request.scope.get(KEY)
        await self.engine.store.access.note(key.id if key else "local", act, about)

    async def note_if_others(self, request: Request, act: str, job: Job) -> None:
        """Keep what is done to a job that is not the caller's own."""
        if KEY in request.scope and job.owner != owner_of(request):
            await self.note(request, act, f"{job.id} of {job.owner or 'nobody'}")

    def url(self, path: str) -> str:
        return self.settings.public_url.rstrip("/") + path

    def describe(self, job: Job) -> dict[str, Any]:
        """The body of `GET /job/{id}`."""
        return self.with_urls(self.engine.describe(job))

    def with_urls(self, shown: dict[str, Any]) -> dict[str, Any]:
        """With the public prefix before its addresses, where there is one."""
        return with_urls(shown, self.settings.public_url)

    def follow(self, ids: Sequence[str], last_event_id: str = "") -> AsyncGenerator[Event]:
        """What happens to these jobs until all have ended; each begins with a snapshot of it."""

        async def snapshot(job_id: str) -> dict[str, Any]:
            return self.engine.describe(await self.engine.job(job_id, None))

        return self.engine.events.stream(ids, snapshot, last_event_id)

    async def job(self, job_id: str, request: Request) -> Job:
        """The caller's job. NotFound for any other."""
        if not _ID.fullmatch(job_id):
            raise NotFound(f"There is no job {job_id[:64]!r}.", "GET /jobs lists your jobs.")
        return await self.engine.job(job_id, seen_owner(request))

    def model(self, name: str) -> Model:
        """The model of that name; the only one where `name` is empty."""
        models = self.engine.models
        if not name and len(models) == 1:
            return next(iter(models.values()))
        if name in models:
            return models[name]
        if not models:
            raise Unavailable(
                "No model is known here yet: no endpoint has come up since the first start.",
                "GET /endpoints shows how they are; try again in a minute.",
            )
        names = ", ".join(models)
        if not name:
            raise BadRequest("Several models are served here.", f"Name one in `model`: {names}.")
        raise NotFound(
            f"There is no model {name[:64]!r} here.{nearest(name[:64], models)}",
            f"Models served here: {names}.",
        )


def compact(answer: dict[str, Any]) -> bytes:
    """As JSON; what models print may hold half a character, which becomes a question mark."""
    return _encode(answer).encode("utf-8", "replace")


Handler = Callable[[Api, Request], Awaitable[Response]]

_SCOPE = "polypod_scope"


def needs(scope: str) -> Callable[[Handler], Handler]:
    """Says of a handler which scope of a key it takes. One of which nothing is said takes `admin`:
    what is forgotten is not open."""

    def mark(handler: Handler) -> Handler:
        vars(handler)[_SCOPE] = scope  # also what `functools.wraps` copies
        return handler

    return mark


def needed_scope(handler: Handler) -> str:
    return vars(handler).get(_SCOPE, ADMIN)


class Endpoint:
    """The ASGI app of one path: its handlers by method."""

    def __init__(self, api: Api, handlers: Mapping[str, Handler]) -> None:
        self._api = api
        self._handlers = dict(handlers)
        if "GET" in handlers:
            self._handlers.setdefault("HEAD", handlers["GET"])

    @property
    def methods(self) -> list[str]:
        return list(self._handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        handler = self._handlers.get(scope["method"])
        if handler is None:
            raise HTTPException(405, headers={"Allow": ", ".join(self._handlers)})
        try:
            _check_scope(request, needed_scope(handler))
            response = await handler(self._api, request)
        except Problem as problem:
            response = problem_response(problem)
        except ClientDisconnect:
            return
        except Exception as error:
            response = _unexpected(error, scope)
        with contextlib.suppress(ClientDisconnect):
            await response(scope, receive, send)


def _check_scope(request: Request, scope: str) -> None:
    key: Key | None = request.scope.get(KEY)
    if KEY not in request.scope or scope == ANY or (key and key.may(scope)):
        return
    raise Forbidden(
        f"This API key may not do that: it has not the scope {scope!r}.",
        f"Use a key that has it: `polypod keys create NAME --scope {scope}` makes one.",
    )


def _unexpected(error: Exception, scope: Scope) -> Response:
    if is_disk_full(error):
        log.error("%s %s: disk full: %s", scope["method"], scope["path"], error)
        return problem_response(DiskFull("The disk is full.", "Try again later.", retry_after_s=60))
    log.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
    if isinstance(error, OSError) and error.errno in _UNUSABLE:
        return problem_response(
            Unavailable(
                f"The server cannot use its files: {os.strerror(error.errno)}.",
                "Who runs it: look at the data folder and its disk; the server's log says more.",
                retry_after_s=60,
            )
        )
    return internal_error()


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The outcome of `work`, which is cancelled as soon as the client goes away.

    The request's body must have been read. Raises ClientDisconnect.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
