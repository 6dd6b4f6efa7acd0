"""Server-sent events: what happens to jobs, as it happens."""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from polypod.access.keys import READ
from polypod.api.endpoint import Api, compact, needs, unless_disconnected
from polypod.assets.storage import BlobStore, content_of
from polypod.errors import BadInput
from polypod.jobs.events import Event

COMMENT_INTERVAL_S = 15.0
"""Proxies before rented pods cut what is silent for 100 s."""
MOST_JOBS = 200
MOST_ENCLOSED = 1 << 16
"""Bytes of a file that comes with an event."""

STOPPING = b"event: stopping\ndata: {}\n\n"
"""The last word of a server that is told to stop: its jobs wait until it runs again."""
END = ".end"
"""Marks the id of an event after which nothing comes: a browser that reconnects with it is told
to stop (204)."""


@needs(READ)
async def job_events(api: Api, request: Request) -> Response:
    """GET /job/{job_id}/events; with `files=BYTES` what is not larger comes with them."""
    return await _stream(api, request, [request.path_params["job_id"]])


@needs(READ)
async def events(api: Api, request: Request) -> Response:
    """GET /events?jobs=a,b: many jobs on one connection."""
    ids = [i for i in request.query_params.get("jobs", "").split(",") if i]
    if not 0 < len(ids) <= MOST_JOBS:
        raise BadInput(
            f"`jobs` names {len(ids)} jobs.",
            f"Name 1 to {MOST_JOBS} job ids, separated by commas.",
            parameter="jobs",
        )
    return await _stream(api, request, list(dict.fromkeys(ids)))


async def _stream(api: Api, request: Request, ids: list[str]) -> Response:
    for job_id in ids:
        await api.job(job_id, request)
    last = request.headers.get("last-event-id") or request.query_params.get("last_event_id", "")
    if last.endswith(END):
        return Response(None, 204)
    files = request.query_params.get("files", "")
    digits = files[:9] if files.isascii() and files.isdecimal() else "0"  # of any number of them
    most = min(int(digits), MOST_ENCLOSED)
    return EventStream(api, ids, last, Enclosing(api.engine.blobs, most))


class EventStream(Response):
    """Runs until all its jobs have ended, or the client goes away."""

    media_type = "text/event-stream"

    def __init__(self, api: Api, ids: list[str], last_event_id: str, enclosing: Enclosing) -> None:
        headers = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
        super().__init__(None, 200, headers)
        del self.headers["content-length"]
        self._api, self._ids, self._last_event_id = api, ids, last_event_id
        self._enclosing = enclosing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        if scope["method"] != "HEAD":
            try:
                await unless_disconnected(receive, self._talk(send))
            except asyncio.CancelledError:
                await send({"type": "http.response.body", "body": STOPPING, "more_body": True})
                raise
        await send({"type": "http.response.body", "body": b""})

    async def _talk(self, send: Send) -> None:
        line = Line(send)
        await line.write(b": polypod\n\n")
        comments = asyncio.ensure_future(line.keep_alive())
        try:
            running = set(self._ids)
            async with aclosing(self._api.follow(self._ids, self._last_event_id)) as events:
                async for event in events:
                    if event.ends_job:
                        running.discard(event.job_id)
                    event = await self._enclosing.into(event)
                    await line.write(encode(self._api, event, last=not running))
        finally:
            comments.cancel()


class Enclosing:
    """Puts the small files of one stream into its events, as `content` (base64), each once."""

    def __init__(self, blobs: BlobStore, most_bytes: int) -> None:
        self._blobs = blobs
        self._most_bytes = most_bytes
        self._sent: set[tuple[str, str]] = set()

    async def into(self, event: Event) -> Event:
        """The event, or one like it with the files that it is the first to tell of."""
        if not self._most_bytes:
            return event
        data = event.data
        if event.kind == "asset":
            data = await self._with_content(event.job_id, data)
        elif "assets" in data:
            assets = [await self._with_content(event.job_id, each) for each in data["assets"]]
            data = data | {"assets": assets}
        return replace(event, data=data)

    async def _with_content(self, job_id: str, asset: dict[str, Any]) -> dict[str, Any]:
        file = (job_id, asset["sha256"])
        if asset["kind"] == "input" or asset["size"] > self._most_bytes or file in self._sent:
            return asset
        try:
            content = await content_of(self._blobs, asset["sha256"])
        except (KeyError, OSError):
            return asset
        self._sent.add(file)
        return asset | {"content": b64encode(content).decode()}


class Line:
    """The connection. Writing waits while the client does not read, so nothing piles up."""

    def __init__(self, send: Send, interval_s: float = COMMENT_INTERVAL_S) -> None:
        self._send = send
        self._interval_s = interval_s
        self._free = asyncio.Lock()
        self._last = time.monotonic()

    async def write(self, data: bytes) -> None:
        async with self._free:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
            self._last = time.monotonic()

    async def keep_alive(self) -> None:
        while True:
            quiet = time.monotonic() - self._last
            if quiet >= self._interval_s:
                await self.write(b": still here\n\n")
            else:
                await asyncio.sleep(self._interval_s - quiet)


def encode(api: Api, event: Event, *, last: bool) -> bytes:
    """One event as the standard (WHATWG HTML, 9.2) writes it."""
    data = {"job_id": event.job_id, **api.with_urls(event.data)}
    end = END if last else ""
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (
        f"{event.id}{end}".encode(),
        event.kind.encode(),
        compact(data),
    )
