"""What a pod may send: a broken one must not fill the router's memory, nor hold it for ever.

Bodies of `GET /blobs/...` are let through: whoever fetches a file knows its size.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import cast

import httpx

MOST_BYTES = 32 << 20
"""Of one answer."""
MOST_EVENT_BYTES = 4 << 20
"""Of one event of a stream."""
MOST_S = 60.0
"""Until an answer is whole; a stream of events may last."""


class Guarded(httpx.AsyncBaseTransport):
    """A transport to one pod, and to no other server, that breaks off what is endless."""

    def __init__(self, url: str) -> None:
        self._inner = httpx.AsyncHTTPTransport(verify=url.startswith("https"))
        self._pod = _origin(httpx.URL(url))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if _origin(request.url) != self._pod:
            raise httpx.UnsupportedProtocol("it sends us on to another server", request=request)
        response = await self._inner.handle_async_request(request)
        if request.url.path.startswith("/blobs/"):
            return response
        stream = cast(httpx.AsyncByteStream, response.stream)
        events = response.headers.get("content-type", "").startswith("text/event-stream")
        return httpx.Response(
            response.status_code,
            headers=response.headers,
            stream=_Bounded(stream, request, events=events),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


class _Bounded(httpx.AsyncByteStream):
    def __init__(
        self, inner: httpx.AsyncByteStream, request: httpx.Request, *, events: bool
    ) -> None:
        self._inner = inner
        self._request = request
        self._events = events

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size, end = 0, time.monotonic() + MOST_S
        most = MOST_EVENT_BYTES if self._events else MOST_BYTES
        async for chunk in self._inner:
            size = 0 if self._events and b"\n\n" in chunk else size + len(chunk)
            if size > most:
                raise httpx.RemoteProtocolError("the answer has no end", request=self._request)
            if not self._events and time.monotonic() > end:
                raise httpx.ReadTimeout("the answer does not end", request=self._request)
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()
