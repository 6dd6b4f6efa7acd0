from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from benchmarks.wire import Wire, per_second, together


async def echo(request: Request) -> Response:
    return PlainTextResponse(await request.body(), 201 if request.method == "POST" else 200)


async def large(request: Request) -> Response:
    return Response(b"x" * 3_000_000)


async def events(request: Request) -> Response:
    async def talk() -> AsyncIterator[bytes]:
        yield b": hello\n\nid: 1\nevent: status\nda"
        yield b'ta: {"status": "queued"}\n\n'
        yield b'data: {"status": "completed"}\n\n'

    return StreamingResponse(talk(), media_type="text/event-stream")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    routes = [
        Route("/echo", echo, methods=["GET", "POST"]),
        Route("/large", large),
        Route("/events", events),
    ]
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    end = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < end
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def test_one_connection_carries_many_answers(port: int) -> None:
    with Wire(port) as wire:
        assert wire.ask("POST", "/echo", b'{"a": 1}') == (201, b'{"a": 1}')
        assert wire.json("POST", "/echo", b'{"a": 1}') == {"a": 1}
        assert wire.fetch("/large") == 3_000_000
        status, body = wire.ask("GET", "/large")
        assert status == 200 and body == b"x" * 3_000_000
        assert list(wire.events("/events")) == [{"status": "queued"}, {"status": "completed"}]
        assert wire.ask("GET", "/echo") == (200, b"")
        with pytest.raises(RuntimeError, match="404"):
            wire.json("GET", "/nowhere")


def test_many_requests_at_once_are_each_timed(port: int) -> None:
    times = together(port, [("POST", "/echo", b"x" * n) for n in range(50)], 8)
    assert len(times) == 50 and min(times) > 0
    assert per_second(port, "/echo", 0.2, 4) > 0
    with pytest.raises(RuntimeError, match="404"):
        together(port, [("GET", "/nowhere", b"")], 1)
