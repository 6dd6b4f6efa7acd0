from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request

from polypod.api.downloads import Relay, file_response, parse_range
from polypod.api.problems import RangeNotSatisfiable
from polypod.assets.blobs import media_type_of
from polypod.assets.storage import LocalBlobs
from polypod.jobs.job import Asset, Job, new_id
from tests.api.serving import Server, make_picture, until

PNG = make_picture()
SIZE = 3_000_000


@pytest.fixture(scope="module")
def job(server: Server) -> dict[str, Any]:
    return server.done(PNG, size_bytes=SIZE)


@pytest.fixture(scope="module")
def content(server: Server, job: dict[str, Any]) -> bytes:
    answer = server.client.get(job["download_url"])
    assert answer.status_code == 200
    return answer.content


def test_the_whole_file_and_its_headers(server: Server, job: Any, content: bytes) -> None:
    answer = server.client.get(job["download_url"])
    asset = next(a for a in job["assets"] if a["name"] == "model.glb")
    assert len(content) == SIZE == int(answer.headers["content-length"])
    assert answer.headers["etag"] == f'"{asset["sha256"]}"'
    assert answer.headers["content-type"] == "model/gltf-binary"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["x-content-type-options"] == "nosniff"
    name = f"stub-{job['job_id'][:8]}.glb"
    assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'
    assert server.client.get(asset["url"]).content == content


def test_head_has_the_headers_alone(server: Server, job: Any) -> None:
    whole, head = server.client.get(job["download_url"]), server.client.head(job["download_url"])
    assert head.content == b""
    drop = {"date"}
    assert {k: v for k, v in head.headers.items() if k not in drop} == {
        k: v for k, v in whole.headers.items() if k not in drop
    }


@pytest.mark.anyio
async def test_a_video_plays_in_the_browser_and_can_be_sought_in(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    ref = blobs.put_bytes(bytes(100), media_type_of("turntable.mp4"), "turntable.mp4")
    job = Job(new_id(), "stub", "", inputs={}, params={}, created_at=0.0)
    scope = {"type": "http", "method": "GET", "headers": [(b"range", b"bytes=10-19")]}
    asset = Asset("turntable.mp4", ref, "output")
    answer = await file_response(blobs, Request(scope), job, asset)
    assert (answer.status_code, answer.headers["content-type"]) == (206, "video/mp4")
    assert answer.headers["content-disposition"].startswith("inline; filename=")


@pytest.mark.parametrize(
    ("range_", "begin", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=1500000-", 1_500_000, SIZE),
        ("bytes=-100", SIZE - 100, SIZE),
        (f"bytes={SIZE - 1}-{SIZE * 9}", SIZE - 1, SIZE),
        ("bytes=100-2000000", 100, 2_000_001),
    ],
)
def test_a_range(
    server: Server, job: Any, content: bytes, range_: str, begin: int, end: int
) -> None:
    answer = server.client.get(job["download_url"], headers={"Range": range_})
    assert answer.status_code == 206
    assert answer.content == content[begin:end]
    assert answer.headers["content-range"] == f"bytes {begin}-{end - 1}/{SIZE}"


@pytest.mark.parametrize(
    "range_", ["bytes=5-2", "items=0-1", "bytes=a-b", "bytes=-", "bytes=0-1,5-6", "bytes=٣-", "x"]
)
def test_a_range_that_says_nothing_is_no_range(server: Server, job: Any, range_: str) -> None:
    headers = {"Range": range_.encode()}
    answer = server.client.get(job["download_url"], headers=headers)
    assert (answer.status_code, len(answer.content)) == (200, SIZE)


@pytest.mark.parametrize("range_", [f"bytes={SIZE}-", "bytes=-0", "bytes=99999999999-"])
def test_a_range_behind_the_end_is_416(server: Server, job: Any, range_: str) -> None:
    answer = server.client.get(job["download_url"], headers={"Range": range_})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{SIZE}"


@given(st.text(max_size=40) | st.from_regex(r"bytes=[0-9]{0,30}-[0-9]{0,30}"), st.integers(0, 99))
def test_any_range_header_is_read(text: str, size: int) -> None:
    try:
        begin, end = parse_range(text, size)
    except RangeNotSatisfiable:
        return
    assert (begin, end) == (0, size) or 0 <= begin < end <= size


def test_if_range_guards_against_another_file(server: Server, job: Any) -> None:
    etag = server.client.head(job["download_url"]).headers["etag"]
    same = {"Range": "bytes=0-9", "If-Range": etag}
    other = {"Range": "bytes=0-9", "If-Range": '"other"'}
    assert server.client.get(job["download_url"], headers=same).status_code == 206
    assert server.client.get(job["download_url"], headers=other).status_code == 200


def test_what_is_known_is_not_sent_again(server: Server, job: Any) -> None:
    etag = server.client.head(job["download_url"]).headers["etag"]
    for header in (etag, f'"a", W/{etag}', "*"):
        answer = server.client.get(job["download_url"], headers={"If-None-Match": header})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == etag
    assert server.client.get(job["download_url"], headers={"If-None-Match": '"a"'}).is_success


def test_other_formats_are_made_on_demand(server: Server, job: Any) -> None:
    small = server.done(PNG)
    answer = server.client.get(small["download_url"], params={"format": "stl"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-disposition"].endswith(f'-{small["job_id"][:8]}.stl"'[1:])
    again = server.client.get(f"/job/{small['job_id']}/result/model.stl")
    assert again.content == answer.content
    assert any(a["name"] == "model.stl" for a in server.job(small["job_id"])["assets"])
    assert server.client.get(small["download_url"], params={"format": "glb"}).content[:4] == b"glTF"
    wrong = server.client.get(small["download_url"], params={"format": "slt"})
    assert (wrong.status_code, "Did you mean 'stl'?" in wrong.text) == (422, True)
    assert server.client.get(small["download_url"], params={"format": "../x"}).status_code == 422


def test_a_picture_shows_in_the_browser(server: Server, job: Any) -> None:
    answer = server.client.get(f"/job/{job['job_id']}/result/image")
    name = f"stub-{job['job_id'][:8]}-image.png"
    assert answer.headers["content-disposition"] == f'inline; filename="{name}"'
    assert answer.headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    "name",
    [
        "../../polypod.db",
        "..%2f..%2fpolypod.db",
        "%2e%2e%2fpolypod.db",
        "%2Fetc%2Fpasswd",
        "..",
        ".",
        "%00",
        "model.glb%00.png",
        "model.glb/",
        "..%5c..%5cpolypod.db",
        "view_9.png",
        "model.exe",
        "x" * 3000,
    ],
)
def test_names_come_from_the_jobs_list_alone(server: Server, job: Any, name: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", f"/job/{job['job_id']}/result/{name}")
    answer = connection.getresponse()
    assert answer.status == 404, answer.read()[:200]
    connection.close()


def test_too_early_is_409_and_says_when_to_come_again(server: Server) -> None:
    job_id = server.submit(PNG, seconds=60)["job_id"]
    until(lambda: server.job(job_id)["status"] == "processing")
    for path in ("download", "download?format=obj", "result/model.glb"):
        answer = server.client.get(f"/job/{job_id}/{path}")
        assert answer.status_code == 409, answer.text
        assert int(answer.headers["retry-after"]) >= 1
    kept = f"/job/{job_id}/result/prepared.json"
    until(lambda: server.client.get(kept).status_code == 200)
    server.client.post(f"/job/{job_id}/cancel")
    ended = server.client.get(f"/job/{job_id}/download")
    assert ended.status_code == 409
    assert "retry-after" not in ended.headers


def test_a_failed_job_says_why_it_has_no_result(server: Server) -> None:
    job = server.ended(server.submit(PNG, fail="bad_input")["job_id"])
    answer = server.client.get(f"/job/{job['job_id']}/download")
    assert answer.status_code == 409
    assert job["error"]["message"] in answer.json()["error"]


def test_a_file_that_is_gone_is_410(server: Server) -> None:
    job = server.done(PNG)
    asset = next(a for a in job["assets"] if a["name"] == "model.glb")
    server.engine.blobs.delete(asset["sha256"])
    for path in ("download", "result/model.glb"):
        assert server.client.get(f"/job/{job['job_id']}/{path}").status_code == 410


def test_what_retention_removed_is_410(serve: Any, tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        job = server.done(PNG)
        stopped = server.done(PNG, until="prepare")
        assert server.client.get(f"/job/{stopped['job_id']}/download").status_code == 409
    with serve(tmp_path, keep_results_s=1, keep_inputs_s=1) as server:
        engine = server.engine
        server.on_loop(lambda: engine.store.expire(time.time() + 99, engine.settings))
        assert server.job(job["job_id"])["status"] == "completed"
        for one in (job, stopped):
            for path in ("download", "result/model.glb", "result/model.stl", "result/image"):
                answer = server.client.get(f"/job/{one['job_id']}/{path}")
                assert answer.status_code == 410, (path, answer.text)


def test_a_client_that_leaves_midway_costs_nothing(server: Server) -> None:
    job = server.done(PNG, size_bytes=50_000_000)
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(f"GET {job['download_url']} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 200")
    assert server.client.get("/health").status_code == 200


@pytest.mark.anyio
async def test_a_relay_ends_its_source_when_the_client_leaves() -> None:
    sent, ended, go_on = asyncio.Event(), threading.Event(), threading.Event()

    def source() -> Generator[bytes]:
        try:
            yield b"first"
            go_on.wait(30)
            yield b"second"
        finally:
            ended.set()

    async def receive() -> Any:
        await sent.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message.get("body") == b"first":
            sent.set()

    relay = await Relay(source(), 200, {}).begun()
    with pytest.raises(ClientDisconnect):
        await relay({"type": "http"}, receive, send)
    assert not ended.is_set()  # a thread is in it
    go_on.set()
    assert await asyncio.to_thread(ended.wait, 30)
