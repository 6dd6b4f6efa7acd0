"""What every request passes before a route, also the routes of others beside ours.

Plain ASGI: `for m in middleware(settings, models): service.add_asgi_middleware(m.cls, **m.kwargs)`.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polypod.access.keyring import Keyring
from polypod.api.auth import Auth
from polypod.api.problems import problem_response
from polypod.errors import TooLarge
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


MOST_BLOB_BYTES = 4 * GIB
"""Of one file of a job on its way between servers."""


def middleware(
    settings: Settings, models: Iterable[Model], keyring: Keyring | None = None
) -> list[Middleware]:
    """The layers, outermost first: refusals, too, can be read by admitted browser apps."""
    layers = [Middleware(BodyLimit, max_bytes=max_body_bytes(settings, models))]
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


class BodyLimit:
    """Answers 413 when a body is larger than `max_bytes`: at once if it says so, else midway."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

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
        count = 0
        started = False

        async def counted() -> Message:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > most:
                raise _too_large(most)
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, counted, noted)
        except TooLarge as problem:
            if started:
                raise
            await problem_response(problem)(scope, receive, send)


def _brings_file(scope: Scope) -> bool:
    """Whether it is what a router sends, such as what a stage left elsewhere: never in memory."""
    return scope["type"] == "http" and scope["path"].startswith("/blobs/")


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
