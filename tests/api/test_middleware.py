from __future__ import annotations

import asyncio
import hashlib
import io
import os
import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from polypod.api import middleware as layers
from polypod.api.middleware import MOST_BLOB_BYTES, max_body_bytes, middleware
from polypod.model import Model
from polypod.settings import Settings
from tests.api.serving import Server, make_picture, until

APP = "https://app.example"


@pytest.fixture(scope="module")
def open_server(serve: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    data = tmp_path_factory.mktemp("cors")
    with serve(data, cors_origins=(APP,), api_keys=("k",), max_upload_bytes=100_000) as server:
        yield server


def preflight(server: Server, origin: str, method: str, headers: str) -> Any:
    return server.client.options(
        "/generate",
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": headers,
        },
    )


def test_preflight_admits_the_apps_that_are_named(open_server: Server) -> None:
    wanted = "x-api-key, authorization, content-type, range, idempotency-key, last-event-id"
    answer = preflight(open_server, APP, "POST", wanted)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == APP
    assert "DELETE" in answer.headers["access-control-allow-methods"]
    other = preflight(open_server, "https://evil.example", "POST", wanted)
    assert other.status_code == 400
    assert "access-control-allow-origin" not in other.headers


def test_a_browser_app_reads_results_and_refusals(open_server: Server) -> None:
    headers = {"Origin": APP, "X-API-Key": "k"}
    job = open_server.client.post("/generate", files={"image": make_picture()}, headers=headers)
    assert job.headers["access-control-allow-origin"] == APP
    exposed = job.headers["access-control-expose-headers"]
    for name in ("Content-Range", "ETag", "Location", "Retry-After", "Content-Disposition"):
        assert name in exposed
    refused = open_server.client.get("/jobs", headers={"Origin": APP})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == APP
    other = open_server.client.get("/health", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


def test_nobody_is_admitted_by_default(server: Server) -> None:
    answer = preflight(server, APP, "POST", "content-type")
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_a_body_that_says_it_is_too_large_is_refused_unread(open_server: Server) -> None:
    with socket.create_connection(("127.0.0.1", open_server.port)) as raw:
        raw.sendall(
            b"POST /generate HTTP/1.1\r\nHost: localhost\r\nX-API-Key: k\r\n"
            b"Content-Length: 99999999\r\nContent-Type: application/json\r\n\r\n"
        )
        answer = raw.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"application/problem+json" in answer


def test_a_length_of_many_digits_is_a_number(open_server: Server) -> None:
    with socket.create_connection(("127.0.0.1", open_server.port)) as raw:
        raw.sendall(
            b"POST /generate HTTP/1.1\r\nHost: localhost\r\nX-API-Key: k\r\n"
            b"Content-Length: " + b"0" * 5000 + b"2\r\nContent-Type: application/json\r\n\r\n{}"
        )
        answer = raw.recv(4096)
    assert answer.startswith(b"HTTP/1.1 422")


def test_a_router_brings_files_larger_than_an_upload(open_server: Server) -> None:
    """What a stage left on another pod may be."""
    limit = max_body_bytes(open_server.engine.settings, open_server.engine.models.values())
    file, key = bytes(limit + 1), {"X-API-Key": "k"}
    path = f"/blobs/{hashlib.sha256(file).hexdigest()}"
    assert open_server.client.put(path, content=file, headers=key).status_code == 204
    with socket.create_connection(("127.0.0.1", open_server.port)) as raw:
        head = f"PUT {path} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: k\r\n"
        raw.sendall(f"{head}Content-Length: {MOST_BLOB_BYTES + 1}\r\n\r\n".encode())
        assert raw.recv(4096).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "kind", ["application/json", "multipart/form-data; boundary=b", "image/png"]
)
def test_a_body_that_only_grows_is_refused_on_the_way(open_server: Server, kind: str) -> None:
    limit = max_body_bytes(open_server.engine.settings, open_server.engine.models.values())
    url = "/images" if kind == "image/png" else "/generate"
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    with socket.create_connection(("127.0.0.1", open_server.port)) as raw:
        raw.sendall(
            f"POST {url} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: k\r\n"
            f"Transfer-Encoding: chunked\r\nContent-Type: {kind}\r\n\r\n".encode()
        )
        for chunk in (part, *[bytes(65536)] * (limit // 65536 + 1)):
            raw.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        answer = raw.recv(4096)  # before the body has ended
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"application/problem+json" in answer


@pytest.fixture
def tight(serve: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """It has memory for one large body at a time, and lets others wait for a moment only."""
    monkeypatch.setattr(layers, "WAIT_S", 0.05)
    with serve(tmp_path, max_bodies_bytes=0) as server:
        yield server


@pytest.fixture(scope="module")
def large() -> bytes:
    out = io.BytesIO()
    Image.frombytes("RGB", (500, 400), os.urandom(600_000)).save(out, "PNG")
    return out.getvalue()


def begin(
    server: Server,
    path: str,
    picture: bytes,
    fields: dict[bytes, bytes] | None = None,
    method: str = "POST",
) -> tuple[socket.socket, bytes]:
    """Sends half of a request; returns the connection and the rest."""
    part = b'--b\r\nContent-Disposition: form-data; name="'
    body = b"".join(
        part + name + b'"\r\n\r\n' + value + b"\r\n" for name, value in (fields or {}).items()
    )
    body += part + b'image"; filename="a.png"\r\n\r\n' + picture + b"\r\n--b--\r\n"
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    raw = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    kind = "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    half = len(body) // 2
    raw.sendall((head + kind).encode() + body[:half])
    return raw, body[half:]


def test_large_bodies_share_the_memory_and_small_ones_always_pass(
    tight: Server, large: bytes
) -> None:
    def send(picture: bytes) -> Any:
        return tight.client.post("/generate", files={"image": ("a.png", picture)})

    raw, rest = begin(tight, "/generate", large)
    with raw:
        refused = until(lambda: (answer := send(large)).status_code == 503 and answer)
        assert (refused.json()["code"], refused.headers["retry-after"]) == ("busy", "5")
        assert "POLYPOD_MAX_BODIES_BYTES" in refused.json()["hint"]
        assert send(make_picture()).status_code == 202
        path = f"/blobs/{hashlib.sha256(large).hexdigest()}"
        assert tight.client.put(path, content=large).status_code == 204, "never in memory"
        raw.sendall(rest)
        assert raw.recv(4096).startswith(b"HTTP/1.1 202"), "who came first goes on"
    assert send(large).status_code == 202


@pytest.mark.anyio
async def test_a_body_waits_until_another_is_done() -> None:
    bodies, first, second = layers.Bodies(2**20), object(), object()
    await bodies.take(first, 2**20)
    waiting = asyncio.create_task(bodies.take(second, 2**20))
    await asyncio.sleep(0)
    assert not waiting.done()
    bodies.done(first)
    await waiting


def test_a_body_that_broke_off_is_in_memory_no_longer(tight: Server, large: bytes) -> None:
    def status() -> int:
        return tight.client.post("/images", files={"image": ("a.png", large)}).status_code

    raw, _ = begin(tight, "/images", large)
    with raw:
        until(lambda: status() == 503)
    until(lambda: status() == 201)


@pytest.mark.parametrize("path", ["/generate", "/images", f"/blobs/{'0' * 64}"])
def test_who_stops_sending_is_let_go(
    server: Server, large: bytes, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(layers, "SILENT_S", 0.2)
    raw, _ = begin(server, path, large, method="PUT" if "blobs" in path else "POST")
    with raw:
        answer = b"".join(iter(lambda: raw.recv(4096), b""))  # until it is closed
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"Nothing came of the rest" in answer


def test_who_sends_a_byte_now_and_then_is_let_go(
    server: Server, large: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "PATIENCE_S", 0.2)
    monkeypatch.setattr(layers, "LEAST_PACE", 10**9)
    raw, rest = begin(server, "/generate", large)
    with raw:
        sent = 0
        while not select.select([raw], [], [], 0.02)[0]:
            raw.sendall(rest[sent : sent + 1])
            sent += 1
        assert raw.recv(4096).startswith(b"HTTP/1.1 408")
    assert sent < len(rest)


@pytest.mark.parametrize(
    ("count", "waited_s", "slow"),
    [
        (0, 59, False),
        (2, 61, True),
        (40_000_000, 320, False),  # 1 Mbit/s
        (3_000_000, 320, False),  # of 40 MB over 75 kbit/s
        (1_000_000, 320, True),
        (4 * 2**30, 34_000, False),
    ],
)
def test_a_slow_phone_is_waited_for(count: int, waited_s: float, slow: bool) -> None:
    assert layers.is_too_slow(count, waited_s) is slow


def test_who_waits_for_a_result_keeps_no_memory_from_others(tight: Server, large: bytes) -> None:
    slow = {b"seconds": b"600", b"steps": b"100"}
    raw, rest = begin(tight, "/generate/sync", large, slow)
    with raw:
        raw.sendall(rest)
        job = until(tight.history)[0]
        assert tight.client.post("/images", files={"image": ("a.png", large)}).status_code == 201
        assert tight.job(job)["status"] in ("queued", "processing")
        tight.client.post(f"/job/{job}/cancel")


def test_the_key_is_asked_before_the_body_is_read(open_server: Server) -> None:
    answer = open_server.client.post("/generate", content=b"x" * 99)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"


def test_layers_follow_the_settings(stub: Model) -> None:
    def names(**changes: Any) -> list[str]:
        return [m.cls.__name__ for m in middleware(Settings(**changes), [stub])]

    assert names() == ["Auth", "BodyLimit"]
    assert names(auth="off") == ["BodyLimit"]
    assert names(cors_origins=(APP,)) == ["CORSMiddleware", "Auth", "BodyLimit"]


def test_a_room_for_every_input(stub: Model) -> None:
    settings = Settings(max_upload_bytes=3_000_000)
    assert max_body_bytes(settings, [stub]) == 4_000_000 * 3 + 2**20
