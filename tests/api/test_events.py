from __future__ import annotations

import asyncio
import json
import socket
from base64 import b64decode
from typing import Any

import pytest

from polypod.api import events
from tests.api.serving import Server, make_picture, until

PNG = make_picture()


def read(server: Server, path: str, headers: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """All events of a stream that ends."""
    with server.client.stream("GET", path, headers=headers) as stream:
        assert stream.status_code == 200
        return parse("".join(stream.iter_text()))


def parse(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            event = dict(line.split(": ", 1) for line in lines)
            found.append({**event, "data": json.loads(event["data"])})
    return found


def test_from_the_first_snapshot_to_the_end(server: Server) -> None:
    job_id = server.submit(PNG, seconds=0.5, say="hello\nworld")["job_id"]
    found = read(server, f"/job/{job_id}/events")
    kinds = [event["event"] for event in found]
    assert kinds[0] == "snapshot"
    assert {"status", "progress", "log", "asset"} <= set(kinds)
    assert [e["data"]["line"] for e in found if e["event"] == "log"] == ["hello", "world"]
    assert (found[-1]["event"], found[-1]["data"]["status"]) == ("status", "completed")
    assert all(event["data"]["job_id"] == job_id for event in found)
    shares = [e["data"]["progress"] for e in found if "progress" in e["data"]]
    assert shares == sorted(shares)
    assert shares[-1] == 100


def test_small_files_come_with_the_events_that_tell_of_them_once(server: Server) -> None:
    job_id = server.submit(PNG, seconds=0.2, size_bytes=3000)["job_id"]
    found = read(server, f"/job/{job_id}/events?files=2000")
    told = [a for e in found for a in (e["data"], *e["data"].get("assets", ())) if "sha256" in a]
    enclosed = [(a["name"], a["content"]) for a in told if "content" in a]
    assert sorted(name for name, _ in enclosed) == ["manifest.json", "prepared.json"]
    for name, content in enclosed:
        assert b64decode(content) == server.client.get(f"/job/{job_id}/result/{name}").content
    (snapshot,) = read(server, f"/job/{job_id}/events?files={'9' * 5000}")
    large = {a["name"] for a in snapshot["data"]["assets"] if "content" in a}
    assert large == {"manifest.json", "prepared.json", "model.glb"}, "the inputs are known"
    for none in ("", "0", "-1", "many"):
        (snapshot,) = read(server, f"/job/{job_id}/events?files={none}")
        assert not any("content" in asset for asset in snapshot["data"]["assets"])


def test_headers_that_proxies_and_browsers_need(server: Server) -> None:
    job = server.done(PNG)
    with server.client.stream("GET", f"/job/{job['job_id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["cache-control"] == "no-cache, no-transform"
        assert stream.headers["x-accel-buffering"] == "no"
        assert "content-encoding" not in stream.headers
        assert "content-length" not in stream.headers
    assert server.client.head(f"/job/{job['job_id']}/events").status_code == 200


def test_a_finished_job_is_one_snapshot(server: Server) -> None:
    job = server.done(PNG)
    found = read(server, f"/job/{job['job_id']}/events")
    assert [event["event"] for event in found] == ["snapshot"]
    assert found[0]["data"]["download_url"] == job["download_url"]


@pytest.mark.parametrize("by_header", [True, False])
def test_last_event_id_goes_on_where_it_broke_off(server: Server, by_header: bool) -> None:
    job_id = server.submit(PNG, seconds=0.2, say="one\ntwo\nthree")["job_id"]
    whole = read(server, f"/job/{job_id}/events")
    cut = next(i for i, event in enumerate(whole) if event["data"].get("line") == "one")
    last = whole[cut]["id"]
    headers = {"Last-Event-ID": last} if by_header else {}
    query = "" if by_header else f"?last_event_id={last}"
    rest = read(server, f"/job/{job_id}/events{query}", headers)
    until_end = whole[cut + 1 :]
    assert [event["id"] for event in rest][: len(until_end)] == [e["id"] for e in until_end]


def test_an_unknown_last_event_id_is_harmless(server: Server) -> None:
    job = server.done(PNG)
    for last in ("nonsense", "ffffffff-99999", "\xe9"):
        headers = {"Last-Event-ID": last.encode("latin-1")}
        found = read(server, f"/job/{job['job_id']}/events", headers)  # type: ignore[arg-type]
        assert found[0]["event"] == "snapshot"


def test_a_browser_that_comes_back_after_the_end_is_told_to_stop(server: Server) -> None:
    job = server.done(PNG)
    url = f"/job/{job['job_id']}/events"
    last = read(server, url)[-1]["id"]
    assert server.client.get(url, headers={"Last-Event-ID": last}).status_code == 204


def test_many_jobs_on_one_connection(server: Server) -> None:
    ids = [server.submit(PNG, seconds=0.2)["job_id"] for _ in range(3)]
    found = read(server, f"/events?jobs={','.join(ids)},{ids[0]}")
    assert {e["data"]["job_id"] for e in found if e["event"] == "snapshot"} == set(ids)
    ends = [e for e in found if e["data"].get("status") == "completed"]
    assert {e["data"]["job_id"] for e in ends} == set(ids)
    assert [e for e in found if e["id"].endswith(events.END)] == [found[-1]]


def test_jobs_that_are_not_there(server: Server) -> None:
    job = server.done(PNG)
    assert server.client.get("/events").status_code == 422
    assert server.client.get("/events?jobs=,").status_code == 422
    assert server.client.get(f"/events?jobs={','.join(['a'] * 201)}").status_code == 422
    assert server.client.get(f"/events?jobs={job['job_id']},nope").status_code == 404


def test_a_client_that_leaves_is_forgotten_at_once(server: Server) -> None:
    job_id = server.submit(PNG, seconds=60)["job_id"]
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(f"GET /job/{job_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        until(lambda: _listeners(server, job_id) == 1)
    until(lambda: _listeners(server, job_id) == 0, 5)
    server.client.post(f"/job/{job_id}/cancel")


def test_a_client_that_does_not_read_costs_no_memory(server: Server) -> None:
    """What the ring has dropped meanwhile is made good by a snapshot, not kept for the client."""
    job_id = server.submit(PNG, seconds=60)["job_id"]
    count, line = 4000, "x" * 10_000

    def flood() -> None:
        for _ in range(count):
            server.engine.events.publish(job_id, "log", {"line": line})

    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(f"GET /job/{job_id}/events HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        until(lambda: _listeners(server, job_id) == 1)
        server.on_loop(flood)
        server.client.post(f"/job/{job_id}/cancel")
        server.on_loop(flood)
        received = b"".join(iter(lambda: raw.recv(1 << 16), b""))
    assert received.count(b"event: snapshot") >= 2
    assert len(received) < count * len(line) / 2


def test_silence_is_broken_by_comments() -> None:
    """Proxies cut what is silent; time is the test's own here."""

    async def main() -> list[bytes]:
        sent: list[bytes] = []
        enough = asyncio.Event()

        async def send(message: Any) -> None:
            sent.append(message["body"])
            if len(sent) == 3:
                enough.set()

        line = events.Line(send, interval_s=0.01)
        task = asyncio.ensure_future(line.keep_alive())
        await enough.wait()
        task.cancel()
        return sent

    assert set(asyncio.run(main())) == {b": still here\n\n"}
    assert events.COMMENT_INTERVAL_S == 15


def _listeners(server: Server, job_id: str) -> int:
    ring = server.engine.events._rings.get(job_id)
    return len(ring.listeners) if ring else 0
