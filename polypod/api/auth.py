"""Who may call: API keys; without keys only programs on this machine, and browsers' own pages.

`Auth` is plain ASGI middleware, so it also covers what others mount beside our routes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from polypod.access.keyring import Keyring
from polypod.api.endpoint import KEY
from polypod.api.problems import problem_response
from polypod.errors import Forbidden, Problem, Unauthorized

OPEN_PATHS = frozenset({"/health", "/livez", "/readyz"})


class Auth:
    """Lets a request through, or answers 401 or 403.

    Which scope a route takes is the route's own affair (`endpoint.needs`). Where no keys are asked
    for, the socket, `Host` and `Origin` must be of this machine or in `origins`: that keeps out web
    pages that reach for localhost, also by DNS rebinding.
    """

    def __init__(self, app: ASGIApp, keyring: Keyring, origins: Sequence[str] = ()) -> None:
        self._app = app
        self._keyring = keyring
        self._local = _Local(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            problem = self._by_key(scope) if self._keyring.asks else self._local.refuses(scope)
            if problem:
                await _refuse(problem, scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _by_key(self, scope: Scope) -> Problem | None:
        """Notes whose key it is; says why the request is refused, if it is."""
        secret = _given_key(scope)
        scope[KEY] = key = self._keyring.find(secret) if secret else None
        if key or scope["path"] in OPEN_PATHS:
            return None
        return Unauthorized(
            "This API key is not known." if secret else "An API key is needed.",
            "Send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`.",
        )


class _Local:
    """The rule where there are no keys."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = {origin.rstrip("/").lower() for origin in origins}
        self._hosts = {urlsplit(origin).netloc for origin in self._origins}
        self._any = "*" in self._origins
        self._allows_host = lru_cache(256)(self._allows_host_uncached)
        self._allows_origin = lru_cache(256)(self._allows_origin_uncached)

    def refuses(self, scope: Scope) -> Problem | None:
        client = scope.get("client")
        if client and not _loopback(client[0]):
            return Forbidden(
                "Without API keys only this machine is served.",
                "Set POLYPOD_API_KEYS on the server and send a key, or POLYPOD_AUTH=off.",
            )
        for name, value in scope["headers"]:
            if name == b"host" and not self._allows_host(value):
                return Forbidden(
                    f"Host {value.decode('latin-1')[:100]!r} is not this machine.",
                    "Use http://localhost or http://127.0.0.1, or set POLYPOD_API_KEYS.",
                )
            if name == b"origin" and not self._allows_origin(value):
                return Forbidden(
                    f"Pages of {value.decode('latin-1')[:100]!r} may not use this server.",
                    "Add the origin to CORS_ORIGINS on the server to admit it.",
                )
        return None

    def _allows_host_uncached(self, host: bytes) -> bool:
        text = host.decode("latin-1").lower()
        return self._any or text in self._hosts or _loopback(_host_of(f"//{text}"))

    def _allows_origin_uncached(self, origin: bytes) -> bool:
        text = origin.decode("latin-1").lower()
        return self._any or text in self._origins or _loopback(_host_of(text))


def _given_key(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            return value.strip()
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() == b"bearer":
                return key.strip()
            if not key:  # the bare key, as RunPod's own examples send it
                return value.strip()
    return b""


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


async def _refuse(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": problem.message})
    else:
        await problem_response(problem)(scope, receive, send)
