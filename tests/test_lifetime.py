"""How the API process ends: streams at once, other requests soon, jobs not at all."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from pathlib import Path

import httpx

from polypod.lifetime import bound_socket
from tests.bento import ROOT, Server, all_gone, bentoml_serve, is_free, wait_until

STUB = "tests.stub_service:Stub"
UNWATCHED = "tests.unwatched_service:Stub"
PHOTO = next((ROOT / "examples").glob("*.jpg"))


def generate(server: Server, path: str = "/generate", **params: object) -> httpx.Response:
    with PHOTO.open("rb") as photo:
        data = {name: str(value) for name, value in params.items()}
        return server.http.post(path, files={"image": photo}, data=data, timeout=120)


def test_a_stop_ends_streams_and_waits_and_keeps_the_job(tmp_path: Path) -> None:
    with bentoml_serve(tmp_path, STUB) as server:
        job = generate(server, seconds=30).json()["job_id"]
        wait_until(lambda: server.http.get(f"/job/{job}").json()["status"] == "processing")
        family = server.family()
        lines: list[str] = []
        waits: list[httpx.Response] = []
        opened = threading.Event()

        def follow() -> None:
            with server.http.stream("GET", f"/events?jobs={job}") as stream:
                for line in stream.iter_lines():
                    lines.append(line)
                    opened.set()
            lines.append("ended")

        def wait() -> None:
            waits.append(generate(server, "/generate/sync", seconds=30, seed=7))

        threads = [threading.Thread(target=follow), threading.Thread(target=wait)]
        for thread in threads:
            thread.start()
        assert opened.wait(20)
        wait_until(lambda: len(server.http.get("/jobs").json()["jobs"]) == 2)

        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 0, server.log
        for thread in threads:
            thread.join(10)
        assert lines[-1] == "ended", "as a stream ends, not as a broken line"
        assert "event: stopping" in lines
        assert waits[0].status_code == 503
        assert waits[0].json()["error"] == "The server is stopping."
        assert all_gone(family)
        assert is_free(server.port)
        assert "Traceback" not in server.log

    with bentoml_serve(tmp_path, STUB) as server:
        for told in server.http.get("/jobs").json()["jobs"]:
            assert told["status"] in ("queued", "processing"), told


def test_a_closed_terminal_ends_it_unless_it_was_started_with_nohup(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            stays = stack.enter_context(bentoml_serve(tmp_path, STUB))
        finally:
            signal.signal(signal.SIGHUP, before)
        ends = stack.enter_context(bentoml_serve(tmp_path, STUB, POLYPOD_DATA=str(tmp_path / "b")))
        serving, gone = stays.api(), ends.family()
        for server in (stays, ends):  # the API process is in a session of its own
            server.process.send_signal(signal.SIGHUP)
        assert ends.process.wait(20) == 0, ends.log
        assert all_gone(gone)
        assert stays.http.get("/readyz").status_code == 200
        assert stays.api() == serving


def test_it_stops_while_the_engine_waits_for_the_data(tmp_path: Path) -> None:
    with (
        bentoml_serve(tmp_path, STUB) as first,
        bentoml_serve(tmp_path, STUB, ready=False) as second,
    ):
        wait_until(lambda: second.process.poll() is not None or len(second.family()) > 1)
        second.process.send_signal(signal.SIGTERM)
        second.process.wait(30)
        assert first.http.get("/readyz").status_code == 200


def test_a_killed_api_process_is_replaced_without_bentomls_own_check(tmp_path: Path) -> None:
    with bentoml_serve(tmp_path, UNWATCHED) as server:
        store = server.http.get("/health").json()["store_id"]
        old = server.api()
        workers = old.children(recursive=True)
        old.kill()
        wait_until(lambda: all_gone([old, *workers]))
        server.wait_ready()
        assert server.api().pid != old.pid
        assert server.http.get("/health").json()["store_id"] == store


def test_small_answers_are_not_held_back_for_more() -> None:
    async def connected() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            found.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listening = bound_socket("127.0.0.1", 0)
        async with await asyncio.start_server(accept, sock=listening):
            await asyncio.open_connection(*listening.getsockname())
            return await asyncio.wait_for(found, 30)

    assert asyncio.run(connected())
