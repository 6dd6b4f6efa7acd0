from __future__ import annotations

import asyncio
import errno
import json
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from polypod.api.endpoint import Endpoint, unless_disconnected
from polypod.errors import NotFound


def call(error: Exception, method: str = "GET") -> tuple[int, Any]:
    """The answer of an endpoint whose handler raises."""
    sent: list[Any] = []

    async def handler(_: Any, request: Request) -> Response:
        raise error

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": method, "path": "/x", "headers": []}
    asyncio.run(Endpoint(None, {"GET": handler})(scope, receive, send))  # type: ignore[arg-type]
    return (sent[0]["status"], json.loads(sent[1]["body"])) if sent else (0, None)


def test_problems_are_told_and_internals_are_not(caplog: pytest.LogCaptureFixture) -> None:
    assert call(NotFound("No such thing."))[1]["error"] == "No such thing."
    status, body = call(RuntimeError("secret inside"))
    assert (status, body["code"]) == (500, "internal_error")
    assert "secret" not in json.dumps(body)
    assert "secret inside" in caplog.text


def test_a_full_disk_is_503(caplog: pytest.LogCaptureFixture) -> None:
    status, body = call(OSError(errno.ENOSPC, "no space"))
    assert (status, "disk is full" in body["error"]) == (503, True)


def test_a_data_folder_that_cannot_be_used_is_503(caplog: pytest.LogCaptureFixture) -> None:
    for number in (errno.EROFS, errno.ENOENT, errno.EIO):
        status, body = call(OSError(number, "x", "/data/tmp/secret"))
        assert (status, body["code"]) == (503, "unavailable")
        assert "files" in body["error"] and "secret" not in json.dumps(body)
        assert "/data/tmp/secret" in caplog.text


def test_a_client_that_left_gets_no_answer() -> None:
    assert call(ClientDisconnect()) == (0, None)


def test_a_method_that_is_not_there() -> None:
    with pytest.raises(HTTPException) as caught:
        call(NotFound("x"), "POST")
    assert caught.value.headers == {"Allow": "GET, HEAD"}


def test_work_ends_when_the_client_leaves() -> None:
    async def main() -> list[str]:
        left = asyncio.Event()
        story: list[str] = []

        async def receive() -> Any:
            await left.wait()
            return {"type": "http.disconnect"}

        async def work() -> None:
            story.append("begun")
            left.set()
            try:
                await asyncio.Event().wait()
            finally:
                story.append("ended")

        with pytest.raises(ClientDisconnect):
            await unless_disconnected(receive, work())
        return story

    assert asyncio.run(main()) == ["begun", "ended"]


def test_work_that_ends_first_gives_its_outcome() -> None:
    async def main() -> int:
        async def receive() -> Any:
            await asyncio.Event().wait()

        async def work() -> int:
            return 7

        return await unless_disconnected(receive, work())

    assert asyncio.run(main()) == 7
