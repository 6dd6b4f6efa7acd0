"""The client against a real HTTP service, faults included; each test runs blocking and async."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import gzip
import hashlib
import importlib.util
import inspect
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import polypod
from polypod.client import ApiError, ClientError, Damaged, JobFailed, Unreachable
from polypod.client.calls import Call, Server
from polypod.client.commands import Backoff
from polypod.client.fetch import Arriving
from polypod.client.sse import EventParser, Message
from polypod.client.views import JobView, unix_time

_spec = importlib.util.spec_from_file_location(
    "small_service", Path(__file__).with_name("small_service.py")
)
assert _spec and _spec.loader
small_service = sys.modules.setdefault("small_service", importlib.util.module_from_spec(_spec))
if not hasattr(small_service, "SmallService"):
    _spec.loader.exec_module(small_service)
SmallService = small_service.SmallService

PICTURE = b"\x89PNG bytes of a picture"


class Blocking:
    """An AsyncClient used from blocking code, so that one test serves both clients."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = polypod.AsyncClient(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            if inspect.isasyncgen(result):
                return self._items(result)
            return self._loop.run_until_complete(result)

        return call

    def _items(self, items: Any) -> Any:
        try:
            while True:
                try:
                    yield self._loop.run_until_complete(anext(items))
                except StopAsyncIteration:
                    return
        finally:
            self._loop.run_until_complete(items.aclose())

    def close(self) -> None:
        self._loop.run_until_complete(self._client.aclose())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


@pytest.fixture
def service():
    with SmallService() as running:
        yield running


@pytest.fixture(params=["blocking", "async"])
def connect(request):
    """Makes a client of either kind."""
    kind = polypod.Client if request.param == "blocking" else Blocking
    with contextlib.ExitStack() as stack:

        def make(url: str, **options: Any) -> Any:
            client = kind(url, **{"patience_s": 20, "silence_s": 2} | options)
            stack.callback(client.close)
            return client

        yield make


@pytest.fixture
def client(connect, service):
    return connect(service.url)


def finished(client: Any, **params: Any) -> str:
    job = client.generate(PICTURE, params={"seconds": 0, **params})
    client.wait(job.id)
    return job.id


# --- submitting -----------------------------------------------------------------------------------


def test_a_picture_becomes_a_file(client, service, tmp_path):
    photo = tmp_path / "my photo.png"
    photo.write_bytes(PICTURE)
    job = client.generate(photo, "inflate", {"seconds": 0.05, "relief": True, "name": "x"})
    assert job.view.status in ("queued", "processing")
    seen: list[Any] = []
    view = client.wait(job, on_event=seen.append)
    assert (view.status, view.progress, view.facts["triangles"]) == ("completed", 100, 12)
    assert view.created_at == unix_time("2026-01-02T03:04:05+00:00")
    assert {"progress", "status"} <= {event.kind for event in seen}
    assert seen[-1].job.status == "completed"
    saved = client.download(job, tmp_path / "out" / "photo.glb")
    stored = service.jobs[job.id]
    assert saved.path.read_bytes() == stored.result()
    assert saved.sha256 == hashlib.sha256(stored.result()).hexdigest()
    assert saved.media_type == "model/gltf-binary"
    assert stored.inputs == {"image": PICTURE}
    assert stored.params == {"seconds": "0.05", "relief": "true", "name": "x"}
    assert [p.name for p in saved.path.parent.iterdir()] == ["photo.glb"]


def test_parameters_that_a_form_cannot_hold_go_as_json(client, service):
    job = client.generate(PICTURE, params={"seed": None, "views": [1, 2]}, until="prepare")
    stored = service.jobs[job.id]
    assert stored.params["seed"] is None and stored.params["views"] == [1, 2]
    assert stored.until == "prepare"
    assert base64.b64decode(stored.params["image"]) == PICTURE


def test_further_inputs_urls_and_uploads(client, service, tmp_path):
    mask = tmp_path / "mask.png"
    mask.write_bytes(b"mask")
    job = client.generate("https://example.com/a.png", inputs={"mask": mask})
    stored = service.jobs[job.id]
    assert stored.inputs == {"mask": b"mask"}
    assert stored.params["image_url"] == "https://example.com/a.png"
    image = client.upload_image(PICTURE)
    first, second = (client.generate(image, params={"seconds": s}) for s in (0, 1))
    assert first.id != second.id
    assert service.jobs[first.id].inputs == {"image": PICTURE}


def test_a_pil_image_is_sent_as_png(client, service):
    image = pytest.importorskip("PIL.Image").new("RGB", (3, 2), "red")
    job = client.generate(image)
    assert service.jobs[job.id].inputs["image"].startswith(b"\x89PNG\r\n\x1a\n")


def test_a_file_that_is_not_there(client, tmp_path):
    with pytest.raises(FileNotFoundError):
        client.generate(tmp_path / "none.png")


def test_an_answer_that_was_lost_submits_once(client, service):
    service.breaks("/generate", lost=True)
    job = client.generate(PICTURE)
    assert list(service.jobs) == [job.id]
    keys = {s.headers["idempotency-key"] for s in service.requests("POST", "/generate")}
    assert len(keys) == 1 and len(service.requests("POST", "/generate")) == 2


@pytest.mark.parametrize("status", [502, 503, 504])
def test_what_passes_is_tried_again(client, service, status):
    service.breaks("/generate", status=status, times=2)
    client.generate(PICTURE)
    assert len(service.requests("POST", "/generate")) == 3


@pytest.mark.parametrize("status", [400, 403, 404, 409, 422, 500])
def test_what_does_not_pass_is_told_at_once(client, service, status):
    service.breaks("/generate", status=status, times=9)
    with pytest.raises(ApiError) as caught:
        client.generate(PICTURE)
    assert caught.value.status == status
    assert len(service.requests("POST", "/generate")) == 1


def test_retry_after_is_honoured(client, service):
    service.breaks("/health", status=503, headers={"Retry-After": "1"})
    before = time.monotonic()
    assert client.health().status == "healthy"
    assert time.monotonic() - before >= 1


def test_retry_after_beyond_our_patience_is_told_at_once(connect, service):
    service.breaks("/generate", status=503, headers={"Retry-After": "600"}, times=9)
    with pytest.raises(ApiError) as caught:
        connect(service.url).generate(PICTURE)
    assert caught.value.retry_after_s == 600
    assert len(service.requests("POST", "/generate")) == 1


def test_a_full_queue_says_so(connect):
    with SmallService(max_queue_size=0) as service, pytest.raises(ApiError) as caught:
        connect(service.url, patience_s=0).generate(PICTURE)
    assert (caught.value.status, caught.value.code) == (503, "queue_full")
    assert caught.value.extra["queue_length"] == 0


def test_errors_carry_message_and_hint(client):
    with pytest.raises(ApiError) as caught:
        client.generate(PICTURE, params={"colour": "red"})
    error = caught.value
    assert (error.status, error.code) == (422, "bad_input")
    assert error.message == "Unknown parameter 'colour'." and error.hint == "Use: seconds."


def test_no_service_at_all(connect):
    with SmallService() as service:
        url = service.url
    with pytest.raises(Unreachable) as caught:
        connect(url, patience_s=0).health()
    assert "connection refused" in str(caught.value) and url in str(caught.value)


def test_a_service_that_comes_back_is_found_again(connect):
    service = SmallService()
    with service:
        client = connect(service.url)
        assert client.health().version == "1.2.3"
    back = threading.Timer(0.5, service.__enter__)
    back.start()
    assert client.health().version == "1.2.3"
    back.join()
    service.__exit__()


def test_something_else_at_the_address(client, service):
    service.breaks("/models", status=200, body=b"<html>")
    with pytest.raises(ApiError, match="not a polypod service"):
        client.models()


@pytest.mark.parametrize("body", [b"[]", b'"ok"', b"{}", b'{"status": 5, "jobs": 1, "name": 1}'])
def test_another_kind_of_service_that_speaks_json(client, service, body):
    service.breaks("", status=200, body=body, times=99)
    calls = ("generate", PICTURE), ("job", "a"), ("cancel", "a"), ("upload_image", PICTURE)
    for name, *more in (*calls, ("models",), ("add_endpoint", "http://a"), ("endpoints",)):
        with pytest.raises(ApiError, match="not that of a polypod service"):
            getattr(client, name)(*more)
    with pytest.raises(ApiError, match="not that of a polypod service"):
        list(client.jobs())


@pytest.mark.parametrize("packed", ["", "gzip"])
def test_an_answer_without_end_is_not_read_to_the_end(client, service, packed):
    endless = gzip.compress(b"[" * (65 << 20), 1) if packed else b"[" * (65 << 20)
    service.breaks("/models", status=200, body=endless, headers={"content-encoding": packed})
    with pytest.raises(ClientError, match="larger than 64 MiB"):
        client.models()


def test_an_answer_that_cannot_be_unpacked(connect, service):
    service.breaks("/models", status=200, body=b"[]", headers={"content-encoding": "gzip"})
    with pytest.raises(Unreachable, match="incorrect header"):
        connect(service.url, patience_s=0).models()


# --- following ------------------------------------------------------------------------------------


def test_a_job_that_fails(client):
    job = client.generate(PICTURE, params={"fail": True, "seconds": 0})
    with pytest.raises(JobFailed, match=r"It is empty\. Try another\.") as caught:
        client.wait(job)
    assert caught.value.job.error.code == "bad_input"
    assert client.wait(job, check=False).status == "failed"


def test_many_jobs_on_one_connection(client, service):
    jobs = [client.generate(PICTURE, params={"seconds": 0.05}) for _ in range(4)]
    ended = {e.job.id for e in client.events(*jobs) if e.job.done}
    assert ended == {job.id for job in jobs}
    assert len(service.requests("GET", "/events")) == 1


def test_events_go_on_where_they_were_cut(client, service):
    service.breaks("/events", cut=900, times=3)
    job = client.generate(PICTURE, params={"seconds": 1})
    events = list(client.events(job))
    assert events[-1].job.status == "completed"
    ids = [int(e.id.partition("-")[2]) for e in events]
    assert ids == sorted(set(ids)), "each event once, in order"
    streams = service.requests("GET", "/events")
    assert len(streams) == 4
    assert all("last-event-id" in s.headers for s in streams[1:])
    assert not service.requests("GET", f"/job/{job.id}")[4:], "no polling was needed"


def test_events_of_a_service_that_restarts(connect):
    service = SmallService()
    with service:
        client = connect(service.url)
        job = client.generate(PICTURE, params={"hold": True, "seconds": 0})
        events = client.events(job)
        assert next(events).job.id == job.id
    back = threading.Timer(0.3, service.__enter__)
    back.start()
    stored = service.jobs[job.id]
    stored.status, stored.progress = "completed", 100
    rest = list(events)
    assert rest[-1].kind == "snapshot" and rest[-1].job.status == "completed"
    back.join()
    service.__exit__()


@pytest.mark.parametrize(
    "fault", [{"cut": 0}, {"mute": True}, {"status": 404}, {"status": 200, "body": b"{}"}]
)
def test_polls_where_events_do_not_come_through(connect, service, fault):
    client = connect(service.url, silence_s=0.5)
    service.breaks("/events", times=99, **fault)
    job = client.generate(PICTURE, params={"seconds": 0.3})
    events = list(client.events(job))
    assert events[-1].job.status == "completed"
    assert events[-1].kind == "snapshot"
    assert len(service.requests("GET", "/events")) <= 2


def test_a_server_error_in_front_of_the_events_passes(client, service):
    job = client.generate(PICTURE, params={"seconds": 0.1})
    service.breaks("/events", status=503, times=2)
    assert list(client.events(job))[-1].job.done
    assert len(service.requests("GET", "/events")) == 3


def test_events_of_no_known_job(client):
    with pytest.raises(ApiError) as caught:
        list(client.events("none"))
    assert caught.value.status == 404


def test_leaving_events_early_closes_the_connection(client, service):
    job = client.generate(PICTURE, params={"hold": True, "seconds": 0})
    events = client.events(job)
    next(events)
    events.close()
    deadline = time.monotonic() + 5
    while service.hub._ring(job.id).listeners and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not service.hub._ring(job.id).listeners
    service.release()
    assert client.wait(job).status == "completed"


def test_cancel_and_delete(client, service):
    job = client.generate(PICTURE, params={"hold": True})
    assert client.cancel(job).status == "cancelled"
    with pytest.raises(JobFailed, match="cancelled"):
        client.wait(job)
    service.breaks("/job/", method="DELETE", lost=True)
    client.delete(job)
    assert job.id not in service.jobs
    with pytest.raises(ApiError):
        client.job(job)


def test_continue_is_a_new_job(client):
    first = client.generate(PICTURE, params={"seconds": 0}, until="prepare")
    client.wait(first)
    second = client.continue_(first, {"size": 5})
    assert second.id != first.id
    assert client.wait(second).parent == first.id


def test_history_over_pages(client):
    ids = [finished(client) for _ in range(5)]
    assert [job.id for job in client.jobs()] == ids[::-1]
    assert [job.id for job in client.jobs(limit=3)] == ids[:1:-1]
    assert list(client.jobs(status="failed")) == []


def test_models(client):
    (card,) = client.models()
    assert (card.name, list(card.presets)) == ("inflate", ["draft", "high"])
    assert client.model("inflate") == card


# --- downloads ------------------------------------------------------------------------------------


def test_a_download_goes_on_after_cuts(client, service, tmp_path):
    job = finished(client, size=3_000_000)
    service.breaks("/download", cut=1_000_000, times=2)
    saved = client.download(job, tmp_path / "a.glb")
    assert saved.path.read_bytes() == service.jobs[job].result()
    assert saved.resumed == 2
    ranges = [s.headers.get("range") for s in service.requests("GET", "/download")]
    assert ranges[0] is None and all(r and r != "bytes=0-" for r in ranges[1:])
    assert os_names(tmp_path) == ["a.glb"]


def test_a_file_that_changed_in_between_is_fetched_anew(client, service, tmp_path):
    job = finished(client, size=500_000)
    service.breaks("/download", cut=200_000, headers={"etag": '"an-older-file"'})
    saved = client.download(job, tmp_path / "a.glb")
    assert saved.path.read_bytes() == service.jobs[job].result()


def test_a_refused_range_starts_anew(client, service, tmp_path):
    job = finished(client, size=500_000)
    service.breaks("/download", cut=200_000)
    service.breaks("/download", status=416)
    saved = client.download(job, tmp_path / "a.glb")
    assert saved.path.read_bytes() == service.jobs[job].result()


def test_damage_is_noticed_and_mended(client, service, tmp_path):
    job = finished(client, size=500_000)
    service.breaks("/download", change=lambda data: b"x" + data[1:])
    saved = client.download(job, tmp_path / "a.glb")
    assert saved.path.read_bytes() == service.jobs[job].result()


def test_lasting_damage_is_an_error_and_leaves_the_old_file(client, service, tmp_path):
    job = finished(client, size=500_000)
    (tmp_path / "a.glb").write_bytes(b"older")
    service.breaks("/download", change=lambda data: b"x" + data[1:], times=2)
    with pytest.raises(Damaged, match="SHA-256"):
        client.download(job, tmp_path / "a.glb")
    assert os_names(tmp_path) == ["a.glb"]
    assert (tmp_path / "a.glb").read_bytes() == b"older"


def test_assets_formats_and_names(client, service, tmp_path):
    job = finished(client)
    assert client.download(job, tmp_path).path == tmp_path / "model.glb"
    assert client.download(job, tmp_path, "view_2.png").path.name == "view_2.png"
    stl = client.download(job, tmp_path / "x.stl", format="stl")
    assert stl.path.read_bytes().startswith(b"stl")
    with pytest.raises(ApiError) as caught:
        client.download(job, tmp_path, "../../etc/passwd")
    assert caught.value.status == 404


def test_a_name_from_the_service_stays_in_the_folder(client, service, tmp_path):
    job = finished(client)
    folder = tmp_path / "in" / "side"
    folder.mkdir(parents=True)
    evil = {"content-disposition": 'attachment; filename="../../evil.glb"'}
    service.breaks("/download", headers=evil)
    assert client.download(job, folder).path == folder / "evil.glb"


def test_a_result_that_is_not_there_yet(client, service, tmp_path):
    job = client.generate(PICTURE, params={"hold": True})
    with pytest.raises(ApiError) as caught:
        client.download(job, tmp_path / "a.glb")
    assert caught.value.status == 409
    client.cancel(job)
    with pytest.raises(JobFailed):
        client.download(job, tmp_path / "a.glb")
    assert os_names(tmp_path) == []


def test_an_unwritable_place_is_an_os_error(client, service, tmp_path):
    job = finished(client)
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        client.download(job, tmp_path / "file" / "a.glb")


def test_a_device_is_not_replaced(client, service, tmp_path):
    job = finished(client)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no file that can be replaced"):
        client.download(job, tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo() and os_names(tmp_path) == ["pipe"]


def test_a_full_disk_leaves_nothing_behind(client, service, tmp_path):
    job = finished(client, size=200_000)
    service.breaks("/download", cut=3000)  # what waits to be written when the disk is full
    most, limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit))
    try:
        with pytest.raises(OSError, match="File too large"):
            client.download(job, tmp_path / "a.glb")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limit))
    assert os_names(tmp_path) == []


# --- addresses and the key ------------------------------------------------------------------------


class FullDisk:
    """A sink that takes `room` bytes."""

    digest = ""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, chunk: bytes) -> None:
        self.room -= len(chunk)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    def restart(self) -> None:
        raise AssertionError("nothing was cut")


@pytest.mark.parametrize("room", [0, 1_500_000])
def test_a_sink_that_fails_while_more_comes_ends_the_fetch(service, room):
    client = Blocking(service.url)
    try:
        job = finished(client, size=3_000_000)
        with pytest.raises(OSError, match="No space"):
            client.fetch(f"/job/{job}/download", Arriving(FullDisk(room)))
    finally:
        client.close()


@pytest.mark.parametrize("size", [999, 1001])
def test_a_file_of_another_size_than_wanted_is_refused(service, size):
    client = Blocking(service.url)
    try:
        job = finished(client, size=1000)
        with pytest.raises(Damaged, match=f"1000 bytes instead of {size}"):
            client.fetch(f"/job/{job}/download", Arriving(FullDisk(9999), size))
    finally:
        client.close()


def test_a_service_behind_a_path_prefix_with_a_key(connect, tmp_path):
    with SmallService(prefix="/pods/a", key="secret") as service:
        client = connect(service.url + "/", api_key="secret")
        job = finished(client)
        client.download(job, tmp_path / "a.glb")
        service.public_url = service.url.removesuffix("/pods/a")
        client.download(job, tmp_path / "b.glb", "view_0.png")
        with pytest.raises(ApiError, match="API key"):
            connect(service.url, api_key="").models()


def test_the_key_comes_from_the_environment(connect, monkeypatch):
    monkeypatch.setenv("POLYPOD_API_KEY", "from-env")
    with SmallService(key="from-env") as service:
        assert connect(service.url).models()


@pytest.mark.parametrize("how", ["redirect", "download_url"])
def test_the_key_goes_to_no_other_host(connect, tmp_path, how):
    with SmallService(key="secret") as service, SmallService() as store:
        client = connect(service.url, api_key="secret")
        job = finished(client)
        store.jobs[job] = service.jobs[job]
        if how == "redirect":
            service.redirect_downloads_to = store.url
        else:
            service.public_url = store.url
        saved = client.download(job, tmp_path / "a.glb")
        assert saved.path.read_bytes() == service.jobs[job].result()
        fetched = store.requests("GET", "/download")
        assert len(fetched) == 1
        assert all("authorization" not in s.headers for s in store.seen)


def test_a_download_url_that_knows_us_not_falls_back(connect, tmp_path):
    with SmallService(key="secret") as service, SmallService(key="other") as elsewhere:
        client = connect(service.url, api_key="secret")
        job = finished(client)
        service.public_url = elsewhere.url
        client.download(job, tmp_path / "a.glb")
        assert elsewhere.requests("GET", "/download")


def test_a_picture_is_not_sent_on_to_another_host(client, service):
    service.breaks("/generate", status=307, headers={"Location": "http://203.0.113.1/generate"})
    with pytest.raises(ApiError, match="another host"):
        client.generate(PICTURE)


def test_redirects_end(client, service):
    service.breaks("/models", status=302, headers={"Location": "/models"}, times=99)
    with pytest.raises(ApiError, match="circles"):
        client.models()


def test_a_proxy_from_the_environment_is_not_asked_for_this_machine(connect, service, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert connect(service.url).health().status == "healthy"


def test_a_key_from_a_file_ends_with_a_line_break(connect):
    with SmallService(key="secret") as service:
        assert connect(service.url, api_key="secret\n").models()
        for odd in ("sec\nret", "sécret"):
            with pytest.raises(ValueError, match="holds characters") as caught:
                connect(service.url, api_key=odd)
            assert "ret" not in str(caught.value)


def test_a_header_that_cannot_be_sent_is_told_at_once(client, service):
    with pytest.raises(Unreachable, match="Illegal header"):
        client.generate(PICTURE, idempotency_key="a\nb")
    assert not service.seen


def test_a_password_in_the_address_is_not_shown(connect, service):
    url = service.url.replace("://", "://me:hunter2@")
    assert connect(url).health()
    with pytest.raises(Unreachable) as caught:
        connect("http://me:hunter2@127.0.0.1:9", patience_s=0).health()
    assert "hunter2" not in f"{caught.value} {caught.value.url}"


def test_a_proxy_that_cannot_be_used_is_told(connect, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(ValueError, match="proxy that the environment names"):
        connect("http://127.0.0.1:8000")


def test_addresses():
    server = Server("http://host:8/pre", "k")
    assert server.resolve("/job/1") == "http://host:8/pre/job/1"
    assert server.resolve("/pre/job/1") == "http://host:8/pre/job/1"
    assert server.resolve("job/1") == "http://host:8/pre/job/1"
    assert server.resolve("https://other/x") == "https://other/x"
    assert server.path("job", "a/../b") == "http://host:8/pre/job/a%2F..%2Fb"
    for url in ("https://host:8/x", "http://host/x", "http://host:80/x", "http://host:8@evil/x"):
        assert "Authorization" not in server.sign(Call("GET", url)).headers
    assert Server.of("localhost:8000", "").url == "http://localhost:8000"
    assert "secret" not in repr(Server("http://host", "secret"))
    for url in ("ftp://host", "host:port", "host:99999", "http://[::1", "host/?a", "a\0"):
        with pytest.raises(ValueError, match="is not the address"):
            Server.of(url, None)


# --- the parts ------------------------------------------------------------------------------------


def test_event_text_in_any_pieces():
    text = (
        ': hi\r\nid: 1\r\nevent: status\r\ndata: {"a":\r\ndata: 1}\r\n\r\n'
        "retry: 250\rid\rdata:é\r\revent: dropped\n\ndata\n\nid: 7\ndata: cut"
    ).encode()
    for size in (1, 2, 3, 7, len(text)):
        parser = EventParser("0")
        found: list[Message] = []
        for at in range(0, len(text), size):
            found += parser.feed(text[at : at + size])
        assert found == [
            Message("status", '{"a":\n1}', "1"),
            Message("message", "é", ""),
            Message("message", "", ""),
        ]


def test_waits_grow_and_end():
    backoff = Backoff(patience_s=100)
    waits = [backoff.next_s() for _ in range(12)]
    assert all(0.5 * min(0.25 * 2**i, 8) <= w <= min(0.25 * 2**i, 8) for i, w in enumerate(waits))
    assert Backoff(patience_s=1).next_s(retry_after_s=5) is None
    assert Backoff(patience_s=10).next_s(retry_after_s=5) >= 5
    assert Backoff(patience_s=0).next_s() is None


def test_a_view_takes_what_it_does_not_know():
    view = JobView.parse({"job_id": "a", "status": "queued", "new": 1, "assets": None})
    assert view.id == "a" and not view.done and view.raw["new"] == 1


def test_importing_polypod_brings_no_http():
    code = "import polypod, sys; print([m for m in ('httpx', 'typer') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError):
        polypod.nothing  # noqa: B018


def os_names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# --- the real service -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """`inflate` under BentoML, in its own process."""
    from tests.bento import bentoml_serve

    with bentoml_serve(tmp_path_factory.mktemp("real")) as server:
        yield f"http://127.0.0.1:{server.port}"


def test_the_real_service(connect, real, tmp_path):
    Image, Draw = (pytest.importorskip(f"PIL.{name}") for name in ("Image", "ImageDraw"))
    picture = Image.new("RGB", (96, 96), "white")
    Draw.Draw(picture).ellipse((20, 10, 70, 80), fill="red")
    client = connect(real)
    assert client.health().status == "healthy"
    (card,) = client.models()
    assert card == client.model(card.name)
    params = {"preset": "draft", "seed": None}
    job = client.generate(picture, card.name, params, idempotency_key="one")
    assert client.generate(picture, card.name, params, idempotency_key="one").id == job.id
    seen: list[Any] = []
    view = client.wait(job, on_event=seen.append)
    assert view.progress == 100 and isinstance(view.seed, int) and view.created_at
    assert seen[-1].job.id == job.id
    saved = client.download(job, tmp_path / "a.glb")
    result = view.asset("model.glb")
    assert (saved.sha256, saved.size) == (result.sha256, result.size)
    assert client.download(job, tmp_path / "a.stl", format="stl").size > 84
    assert client.download(job, tmp_path, "view_0.png").path.read_bytes()[1:4] == b"PNG"
    assert client.job(job).view.facts["watertight"] is True
    image = client.upload_image(picture)
    second = client.generate(image, params={"seed": 1}, until="cutout")
    third = client.continue_(second, {"seed": 2})
    ended = {e.job.id: e.job.status for e in client.events(second, third) if e.job.done}
    assert ended == {second.id: "completed", third.id: "completed"}
    assert client.job(third).view.parent == second.id
    assert [j.id for j in client.jobs(limit=3)] == [third.id, second.id, job.id]
    assert client.cancel(job).status == "completed"
    client.delete(job)
    with pytest.raises(ApiError) as caught:
        client.job(job)
    assert caught.value.code == "not_found"
    with pytest.raises(ApiError, match="Did you mean 'depth'"):
        client.generate(picture, params={"depht": 1})
