"""Which façades there are, and how their addresses and ours are one table."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive

from polypod.api.body import media_type, read_body, read_bytes
from polypod.api.compat import hunyuan, protoscale, sam3d, synchuman
from polypod.api.compat.facade import Facade
from polypod.api.endpoint import Api, Handler
from polypod.api.submit import max_text

FACADES: tuple[Facade, ...] = (
    sam3d.FACADE,
    hunyuan.FACADE,
    protoscale.FACADE,
    synchuman.FACADE,
)

Row = tuple[str, str, Handler]


def with_facades(ours: Sequence[Row], facades: Sequence[Facade] = FACADES) -> list[Row]:
    """Our routes, which give to façades what their clients send there, and theirs."""
    known = {(method, path) for method, path, _ in ours}
    rows = [(m, p, _shared(h, _rivals(m, p, facades))) for m, p, h in ours]
    for facade in facades:
        for method, path, handler in facade.routes:
            if (method, path) not in known:
                rows.append((method, path, handler))
                known.add((method, path))
            rows.append((method, f"/compat/{facade.name}{path}", handler))
    return rows


def _rivals(method: str, path: str, facades: Sequence[Facade]) -> list[tuple[Facade, Handler]]:
    if method != "POST":
        return []
    return [(f, h) for f in facades for m, p, h in f.routes if (m, p) == (method, path)]


def _shared(ours: Handler, rivals: Sequence[tuple[Facade, Handler]]) -> Handler:
    """`ours`, unless a façade that is served here claims the body."""
    if not rivals:
        return ours

    @functools.wraps(ours)
    async def handler(api: Api, request: Request) -> Response:
        kind = media_type(request)
        served = [(f, theirs) for f, theirs in rivals if f.serves(api) and _speaks(f, kind)]
        if not served:
            return await ours(api, request)
        body = bytes(await read_bytes(request))
        async with read_body(_again(request, body), max_text(api)) as read:
            claimed = [theirs for f, theirs in served if f.claims(request, read.fields)]
        return await next(iter(claimed), ours)(api, _again(request, body))

    return handler


def _speaks(facade: Facade, kind: str) -> bool:
    return kind == "application/json" or (facade.forms and kind == "multipart/form-data")


def _again(request: Request, body: bytes) -> Request:
    """The request as it was before its body was read."""
    return Request(request.scope, _replay(body, request.receive))


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed
