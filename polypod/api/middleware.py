"""What every request passes before a route, also the routes of others beside ours.

Plain ASGI: `for m in middleware(settings, models): service.add_asgi_middleware(m.cls, **m.kwargs)`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from functools import partial

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polypod.access.keyring import Keyring
from polypod.api.auth import Auth
from polypod.api.endpoint import BODY_DONE
from polypod.api.problems import problem_response
from polypod.errors import Busy, TooLarge, TooSlow
from polypod.model import Model
from polypod.settings import GIB, MIB, Settings

REQUEST_HEADERS = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-None-Match",
    "If-Range",
    "Last-Event-ID",
    "Range",
    "X-API-Key",
)
ANSWER_HEADERS = (
    "Accept-Ranges",
    "Content-Disposition",
    "Content-Length",
    "Content-Range",
    "ETag",
    "Location",
    "Retry-After",
)


SMALL_BODY = 128 * 1024
"""Bytes of a body that always pass."""
WAIT_S = 10.0
SILENT_S = 30.0
"""So long nothing may come while a body is not complete."""
PATIENCE_S = 60.0
LEAST_PACE = 4096
"""Bytes a second that must come, all in all, of what takes longer than `PATIENCE_S`."""
MOST_BLOB_BYTES = 4 * GIB
"""Of one file of a job on its way between servers."""


def middleware(
    settings: Settings, models: Iterable[Model], keyring: Keyring | None = None
) -> list[Middleware]:
    """The layers, outermost first: refusals, too, can be read by admitted browser apps."""
    most = max_body_bytes(settings, models)
    layers = [Middleware(BodyLimit, max_bytes=most, bodies=Bodies(settings.max_bodies_bytes))]
    if settings.auth == "on":
        keyring = keyring or Keyring(settings.api_keys)
        layers.insert(0, Middleware(Auth, keyring=keyring, origins=settings.cors_origins))
    if settings.cors_origins:
        layers.insert(
            0,
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=("GET", "HEAD", "POST", "DELETE"),
                allow_headers=REQUEST_HEADERS,
                expose_headers=ANSWER_HEADERS,
                max_age=3600,
            ),
        )
    return layers


def max_body_bytes(settings: Settings, models: Iterable[Model]) -> int:
    """Room for every input of the model with the most, in base64, and the rest of the request."""
    inputs = max((len(model.inputs) for model in models), default=1)
    return settings.max_upload_bytes * 4 // 3 * inputs + MIB


class Bodies:
    """Bounds what is in memory of all requests' bodies together: `most` bytes, and one body more.

    What comes above that waits for others to be done, and is refused when that takes long. The one
    that came first never waits, so there is always one that gets done.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = dict[object, int]()
        """Bytes by body; the oldest is the first."""
        self._less = asyncio.Event()

    async def take(self, body: object, size: int) -> None:
        """`size` bytes of the body have come. Raises Busy."""
        if size <= SMALL_BODY:
            return
        self._held[body] = size
        end = time.monotonic() + WAIT_S
        while sum(self._held.values()) > self._most and next(iter(self._held)) is not body:
            try:
                await asyncio.wait_for(self._less.wait(), end - time.monotonic())
            except asyncio.TimeoutError:
                raise Busy(
                    "More is being sent to this server at once than it has memory for.",
                    "Try again in a few seconds. Who runs it: POLYPOD_MAX_BODIES_BYTES may be"
                    " larger where there is more memory.",
                    retry_after_s=5,
                ) from None

    def done(self, body: object) -> None:
        """It is in memory no longer."""
        if self._held.pop(body, None):
            self._less.set()
            self._less = asyncio.Event()


class BodyLimit:
    """Answers 413 when a body is larger than `max_bytes`: at once if it says so, else midway; 503
    when all `bodies` together are too large, and 408 when one hardly comes."""

    def __init__(self, app: ASGIApp, max_bytes: int, bodies: Bodies) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        declared = _declared_length(scope) if scope["type"] == "http" else 0
        most = max(MOST_BLOB_BYTES, self._max_bytes) if _brings_file(scope) else self._max_bytes
        if declared == 0:
            await self._app(scope, receive, send)
        elif declared is not None and declared > most:
            await problem_response(_too_large(most))(scope, receive, send)
        else:
            await self._counted(scope, receive, send, most)

    async def _counted(self, scope: Scope, receive: Receive, send: Send, most: int) -> None:
        count, waited_s = 0, 0.0
        complete = slow = started = False
        body, streamed = object(), _brings_file(scope)

        async def counted() -> Message:
            nonlocal count, waited_s, complete, slow
            if complete:
                return await receive()
            since = time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), SILENT_S)
            except asyncio.TimeoutError:
                slow = True
                raise _too_slow(
                    f"Nothing came of the rest of the request for {SILENT_S:g} s."
                ) from None
            waited_s += time.monotonic() - since
            count += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if not complete and is_too_slow(count, waited_s):
                slow = True
                raise _too_slow(f"The request came with less than {LEAST_PACE} bytes a second.")
            if count > most:
                raise _too_large(most)
            if not streamed:
                await self._bodies.take(body, count)
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            if slow and message["type"] == "http.response.start":  # nor is the rest waited for
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        scope[BODY_DONE] = partial(self._bodies.done, body)
        try:
            await self._app(scope, counted, noted)
        except (TooLarge, TooSlow, Busy) as problem:
            if started:
                raise
            await problem_response(problem)(scope, receive, noted)
        finally:
            self._bodies.done(body)


def _brings_file(scope: Scope) -> bool:
    """Whether it is what a router sends, such as what a stage left elsewhere: never in memory."""
    return scope["type"] == "http" and scope["path"].startswith("/blobs/")


def is_too_slow(count: int, waited_s: float) -> bool:
    """Whether so few bytes in this time come of no honest client; a phone's 40 MB may."""
    return waited_s > PATIENCE_S and count < waited_s * LEAST_PACE


def _too_slow(what: str) -> TooSlow:
    return TooSlow(what, "Send it again over a better connection, or send a smaller file.")


def _too_large(most: int) -> TooLarge:
    return TooLarge(
        f"The request is larger than {most // MIB} MiB.",
        "Send a smaller file, or have POLYPOD_MAX_UPLOAD_BYTES raised.",
    )


def _declared_length(scope: Scope) -> int | None:
    """What the request says of its body's size; 0: there is none; None: it is not known."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value[-20:]) if value.isdigit() else None
        if name == b"transfer-encoding":
            return None
    return 0 if scope.get("http_version", "1.1").startswith("1") else None
