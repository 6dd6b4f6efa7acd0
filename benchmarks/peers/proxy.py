"""A plain reverse proxy: what comes from the server behind it is sent on as it comes."""

from __future__ import annotations

import os

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

CHUNK = 1 << 20
PASSED = ("content-length", "content-type", "etag")

behind = httpx.AsyncClient(base_url=os.environ["BEHIND"], timeout=60, trust_env=False)


async def health(_: Request) -> Response:
    return PlainTextResponse('"healthy"')


async def pass_on(request: Request) -> Response:
    answer = await behind.send(behind.build_request("GET", request.url.path), stream=True)
    headers = {name: answer.headers[name] for name in PASSED if name in answer.headers}
    return StreamingResponse(
        answer.aiter_raw(CHUNK),
        answer.status_code,
        headers,
        background=BackgroundTask(answer.aclose),
    )


app = Starlette(routes=[Route("/health", health), Route("/{path:path}", pass_on)])
