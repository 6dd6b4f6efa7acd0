"""Whole servers whose files lie in S3: over HTTP, with faults on the way to it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from polypod.assets.s3 import S3Blobs
from polypod.client import Client
from polypod.errors import Unavailable
from polypod.jobs.engine import Engine
from polypod.jobs.sweep import Sweeper
from polypod.router.endpoint import Known
from polypod.settings import Settings
from tests.api.serving import Server, until
from tests.faulty_proxy import FaultyProxy
from tests.models.stub.model import MODEL
from tests.router.test_dispatch import Router
from tests.s3server import ENVIRONMENT, S3Server, s3_server

BUCKET = "kept-files"
KEY = "a-key-of-tests-for-all"
DAY = 86400.0
SIZE = 3_000_000


@pytest.fixture(scope="module", autouse=True)
def credentials() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def storage() -> Iterator[S3Server]:
    with s3_server() as running:
        running.client().create_bucket(Bucket=BUCKET)
        yield running


@pytest.fixture(scope="module")
def proxy(storage: S3Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(storage.port) as running:
        yield running


@pytest.fixture(scope="module")
def on_s3(proxy: FaultyProxy) -> Callable[..., Settings]:
    """Settings of a server with its files under `prefix`."""

    def make(data: Path, prefix: str, **other: Any) -> Settings:
        given = {"storage_endpoint": proxy.url, "storage_timeout_s": 2.0, "max_queue_size": 100}
        return Settings(
            data=data,
            storage=f"s3://{BUCKET}/{prefix}",
            storage_path_style=True,
            **(given | other),
        )

    return make


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[Server]:
    server = Server(settings, MODEL)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def pod(
    on_s3: Callable[..., Settings], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Asks for a key; sends clients to the bucket."""
    with serving(on_s3(tmp_path_factory.mktemp("pod"), "pod", api_keys=(KEY,))) as server:
        server.client.headers["X-API-Key"] = KEY
        yield server


@pytest.fixture(scope="module")
def streaming(
    on_s3: Callable[..., Settings], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Lets downloads come through itself, and keeps no copies."""
    settings = on_s3(tmp_path_factory.mktemp("streaming"), "streaming", storage_presign_s=0)
    with serving(settings) as server:
        yield server


def picture(seed: int = 0) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((64 + seed, 64), 80).save(out, "PNG")
    return out.getvalue()


def blobs_of(server: Server) -> S3Blobs:
    assert isinstance(server.engine.blobs, S3Blobs)
    return server.engine.blobs


def asset(job: dict[str, Any], name: str) -> dict[str, Any]:
    return next(a for a in job["assets"] if a["name"] == name)


def lose_copies(server: Server, job: dict[str, Any]) -> None:
    for each in job["assets"]:
        blobs_of(server).cache.drop(each["sha256"])


def keys(storage: S3Server, prefix: str) -> set[str]:
    answer = storage.client().list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/blobs/")
    return {entry["Key"].rpartition("/")[2] for entry in answer.get("Contents", ())}


# --- a pod


def test_a_jobs_files_are_in_the_bucket_and_downloads_are_sent_there(
    pod: Server, storage: S3Server, proxy: FaultyProxy
) -> None:
    job = pod.done(picture(), size_bytes=SIZE)
    assert {a["sha256"] for a in job["assets"]} <= keys(storage, "pod")
    answer = pod.client.get(job["download_url"])
    assert (answer.status_code, answer.content) == (307, b"")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["location"].startswith(proxy.url)
    there = httpx.get(answer.headers["location"], headers={"Range": "bytes=4-7"})
    assert (there.status_code, len(there.content)) == (206, 4)
    whole = pod.client.get(job["download_url"], follow_redirects=True)
    assert whole.content.startswith(b"glTF")
    assert len(whole.content) == asset(job, "model.glb")["size"]
    assert whole.headers["content-disposition"] == answer.headers["content-disposition"]
    assert whole.headers["content-type"] == "model/gltf-binary"
    head = pod.client.head(job["download_url"])
    assert (head.status_code, int(head.headers["content-length"])) == (200, len(whole.content))
    etag = {"If-None-Match": head.headers["etag"]}
    assert pod.client.get(job["download_url"], headers=etag).status_code == 304


def test_other_formats_and_previews_are_made_from_the_bucket(pod: Server) -> None:
    job = pod.done(picture())
    until(lambda: len(pod.job(job["job_id"])["assets"]) > len(job["assets"]))
    lose_copies(pod, job)
    stl = pod.client.get(f"/job/{job['job_id']}/download?format=stl", follow_redirects=True)
    assert (stl.status_code, stl.headers["content-type"]) == (200, "model/stl")
    assert len(stl.content) == 84 + 50 * 12
    view = pod.client.get(f"/job/{job['job_id']}/result/view_0.png", follow_redirects=True)
    assert view.content.startswith(b"\x89PNG")


def test_a_waiting_client_gets_the_file_itself(pod: Server) -> None:
    answer = pod.client.post("/generate/sync", files={"image": picture()}, data={"seed": "77"})
    assert (answer.status_code, answer.content[:4]) == (200, b"glTF")


def test_kept_stages_are_used_when_no_copy_is_left(pod: Server) -> None:
    one = picture()
    first = pod.done(one, seed=501)
    lose_copies(pod, first)
    again = pod.done(one, seed=501, size_bytes=5000)
    manifest = pod.client.get(asset(again, "manifest.json")["url"], follow_redirects=True)
    assert [s["kept"] for s in manifest.json()["stages"]] == [True, False]


def test_a_stage_whose_file_was_removed_is_computed_anew(pod: Server, storage: S3Server) -> None:
    one = picture()
    first = pod.done(one, seed=502)
    lost = asset(first, "model.glb")["sha256"]
    blobs_of(pod).delete(lost)
    assert lost not in keys(storage, "pod")
    again = pod.done(one, seed=502)
    assert asset(again, "model.glb")["sha256"] == lost
    assert lost in keys(storage, "pod")


def test_an_input_that_has_left_the_cache_is_fetched_for_the_start(
    pod: Server, proxy: FaultyProxy
) -> None:
    before = pod.submit(picture(), seconds=600, steps=1000)["job_id"]
    until(lambda: pod.job(before)["stage"] == "work")
    waiting = [pod.submit(picture(), seconds=1) for _ in range(3)]
    jobs = [pod.job(job["job_id"]) for job in waiting]
    lost = asset(jobs[2], "image")["sha256"]
    for job in jobs:
        lose_copies(pod, job)
    proxy.fail("status", "GET", asset(jobs[1], "image")["sha256"])
    blobs_of(pod).delete(lost)
    pod.client.post(f"/job/{before}/cancel")
    ends = [pod.ended(job["job_id"]) for job in waiting]
    assert [end["status"] for end in ends] == ["completed", "completed", "failed"]
    assert ends[2]["error"]["code"] == "file_lost"
    # the first stage may look ahead, so one of them may have begun before its copy was lost


# --- faults


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("status", {"times": 2}),
        ("status", {"times": 2, "status": 500, "code": "InternalError"}),
        ("cut request", {"after": 10}),
        ("stall request", {"after": 10}),
        ("lose response", {}),
    ],
    ids=["throttled", "500", "cut", "silent", "answer lost"],
)
def test_a_job_survives_faults_of_its_uploads(
    pod: Server, proxy: FaultyProxy, kind: Any, more: dict[str, Any]
) -> None:
    sent = picture()
    fault = proxy.fail(kind, "PUT", hashlib.sha256(sent).hexdigest(), **more)
    job_id = pod.submit(sent)["job_id"]
    assert fault.times == 0
    until(lambda: pod.job(job_id)["status"] != "queued")
    last = proxy.fail(kind, "PUT", "/pod/blobs/", **more)
    assert pod.ended(job_id)["status"] == "completed"
    last.times = 0


def test_a_large_result_survives_a_cut_of_one_of_its_parts(pod: Server, proxy: FaultyProxy) -> None:
    fault = proxy.fail("cut request", "PUT", "partNumber=2", after=100_000)
    job = pod.done(picture(), size_bytes=20_000_000)
    assert fault.times == 0
    whole = pod.client.get(job["download_url"], follow_redirects=True)
    assert len(whole.content) == asset(job, "model.glb")["size"] >= 20_000_000


def test_a_refused_upload_is_told_at_the_submit(pod: Server, proxy: FaultyProxy) -> None:
    sent = picture()
    digest = hashlib.sha256(sent).hexdigest()
    proxy.fail("status", "PUT", digest, status=403, code="AccessDenied")
    answer = pod.client.post("/generate", files={"image": sent})
    assert answer.status_code == 503
    assert "the key may not do this (s3:PutObject)" in answer.json()["error"]


def test_a_refused_result_fails_the_job_with_words(pod: Server, proxy: FaultyProxy) -> None:
    result = asset(pod.done(picture(), seed=503), "model.glb")["sha256"]
    blobs_of(pod).delete(result)
    proxy.fail("status", "PUT", result, status=403, code="QuotaExceeded")
    failed = pod.ended(pod.submit(picture(), seed=503)["job_id"])
    assert failed["status"] == "failed"
    assert "its quota is used up" in failed["error"]["message"]
    assert pod.done(picture(), seed=503)["status"] == "completed"


# --- downloads with the client


def test_the_client_resumes_at_the_bucket_and_keeps_its_key_to_itself(
    pod: Server, proxy: FaultyProxy, tmp_path: Path
) -> None:
    job = pod.done(picture(), size_bytes=SIZE)
    digest = asset(job, "model.glb")["sha256"]
    proxy.fail("cut response", "GET", digest, after=1_000_000)
    with Client(pod.url, api_key=KEY) as client:
        saved = client.download(job["job_id"], tmp_path / "model.glb")
    # a request with both signature and key would have been refused
    assert (saved.sha256, saved.resumed) == (digest, 1)
    assert [range_ for m, p, range_ in proxy.requests if m == "GET" and digest in p] == [
        "",
        "bytes=1000000-",
    ]


def test_the_client_notices_damage_on_the_way_from_the_bucket(
    pod: Server, proxy: FaultyProxy, tmp_path: Path
) -> None:
    job = pod.done(picture(), size_bytes=SIZE)
    digest = asset(job, "model.glb")["sha256"]
    damage = proxy.fail("damage response", "GET", digest, after=500_000)
    with Client(pod.url, api_key=KEY) as client:
        assert client.download(job["job_id"], tmp_path / "model.glb").sha256 == digest
    assert damage.times == 0


def test_the_client_runs_a_picture_of_the_history_again(pod: Server) -> None:
    job = pod.done(picture())
    with Client(pod.url, api_key=KEY) as client:
        again = client.generate(client.job(job["job_id"]).view, "stub", {"seed": 4711}).wait()
    assert again.status == "completed"
    assert again.asset("image").sha256 == asset(job, "image")["sha256"]


# --- downloads through the server


def test_downloads_come_through_the_server_where_that_is_set(streaming: Server) -> None:
    job = streaming.done(picture(), size_bytes=SIZE)
    url = job["download_url"]
    whole = streaming.client.get(url)
    assert (whole.status_code, len(whole.content)) == (200, asset(job, "model.glb")["size"])
    lose_copies(streaming, job)
    assert streaming.client.get(url).content == whole.content
    part = streaming.client.get(url, headers={"Range": "bytes=1000000-1999999"})
    assert (part.status_code, part.content) == (206, whole.content[1_000_000:2_000_000])
    assert part.headers["content-range"] == f"bytes 1000000-1999999/{len(whole.content)}"
    assert not blobs_of(streaming).here(asset(job, "model.glb")["sha256"])


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("status", {"times": 2}),
        ("status", {"times": 2, "status": 500, "code": "InternalError"}),
        ("lose response", {}),
        ("stall response", {"after": 500_000}),
        ("cut response", {"after": 1_500_000}),
    ],
    ids=["throttled", "500", "reset", "silent", "cut"],
)
def test_a_download_survives_faults(
    streaming: Server, proxy: FaultyProxy, kind: Any, more: dict[str, Any]
) -> None:
    job = streaming.done(picture(), size_bytes=SIZE)
    lose_copies(streaming, job)
    digest = asset(job, "model.glb")["sha256"]
    fault = proxy.fail(kind, "GET", digest, **more)
    whole = streaming.client.get(job["download_url"])
    assert len(whole.content) == asset(job, "model.glb")["size"]
    assert fault.times == 0


def test_a_download_that_cannot_be_is_told(
    streaming: Server, proxy: FaultyProxy, storage: S3Server
) -> None:
    job = streaming.done(picture())
    lose_copies(streaming, job)
    digest = asset(job, "model.glb")["sha256"]
    proxy.fail("status", "GET", digest, status=403, code="AccessDenied")
    refused = streaming.client.get(job["download_url"])
    assert refused.status_code == 503
    assert "the key may not do this (s3:GetObject)" in refused.json()["error"]
    storage.client().delete_object(Bucket=BUCKET, Key=f"streaming/blobs/{digest[:2]}/{digest}")
    assert streaming.client.get(job["download_url"]).status_code == 410


def test_damage_in_the_bucket_is_never_delivered_whole(
    streaming: Server, storage: S3Server
) -> None:
    job = streaming.done(picture(), size_bytes=SIZE)
    lose_copies(streaming, job)
    result = asset(job, "model.glb")
    key = f"streaming/blobs/{result['sha256'][:2]}/{result['sha256']}"
    storage.client().put_object(Bucket=BUCKET, Key=key, Body=bytes(result["size"]))
    with pytest.raises(httpx.RemoteProtocolError):
        streaming.client.get(job["download_url"])


# --- the life of a server


def test_a_restart_with_an_empty_cache_goes_on(
    on_s3: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = on_s3(tmp_path / "data", "restart")
    with serving(settings) as server:
        done = server.done(picture())
        interrupted = server.submit(picture(), seconds=600, steps=1000)["job_id"]
        waiting = server.submit(picture())["job_id"]
        until(lambda: server.job(interrupted)["stage"] == "work")
    shutil.rmtree(tmp_path / "data/cache")
    with serving(settings) as server:
        until(lambda: server.job(interrupted)["stage"] == "work")
        server.client.post(f"/job/{interrupted}/cancel")
        assert server.ended(waiting)["status"] == "completed"
        old = server.client.get(done["download_url"], follow_redirects=True)
        assert old.content.startswith(b"glTF")
        more = server.client.post(f"/job/{done['job_id']}/continue", json={"size_bytes": 9000})
        assert server.ended(more.json()["job_id"])["status"] == "completed"


def test_files_can_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data", storage=f"file://{tmp_path}/files")
    with serving(settings) as server:
        job = server.done(picture())
        glb = server.client.get(job["download_url"])
        assert (glb.status_code, glb.content[:4]) == (200, b"glTF")
        digest = asset(job, "model.glb")["sha256"]
    assert (tmp_path / "files/blobs" / digest[:2] / digest).read_bytes() == glb.content
    assert not (tmp_path / "data/blobs").exists()


def test_a_prefix_belongs_to_one_database(
    pod: Server, on_s3: Callable[..., Settings], tmp_path: Path
) -> None:
    assert pod.engine.store.store_id

    async def start() -> None:
        await Engine([MODEL], on_s3(tmp_path / "other", "pod")).start()

    with pytest.raises(Unavailable, match="belongs to the database of another polypod"):
        asyncio.run(start())


def test_retention_marks_first_and_removes_after_the_life_of_a_url(
    on_s3: Callable[..., Settings], tmp_path: Path, storage: S3Server
) -> None:
    with serving(on_s3(tmp_path, "retention")) as server:
        job = server.done(picture())
        digest = asset(job, "model.glb")["sha256"]
        url = server.client.get(job["download_url"]).headers["location"]
        engine, blobs = server.engine, blobs_of(server)
        ages = {"keep_results_s": 10 * DAY, "keep_stages_s": 1.0}
        settings = engine.settings.model_copy(update=ages)
        in_hand: set[str] = set()
        parts = (settings, engine.store, blobs, set, lambda: in_hand, engine.forgot)
        sweeper = Sweeper(*parts, engine.budget)

        def sweep() -> int:
            return server.on_loop(lambda: sweeper.sweep(time.time() + 20 * DAY))

        assert sweep() == 0
        assert server.client.get(job["download_url"]).status_code == 410
        assert httpx.get(url).content.startswith(b"glTF")
        storage.age(BUCKET, f"retention/marks/{digest}", blobs.grace_s - 60)
        assert sweep() == 0
        storage.age(BUCKET, f"retention/marks/{digest}", 120)
        in_hand.add(digest)
        assert sweep() == 0
        in_hand.clear()
        assert sweep() == 1
        assert digest not in keys(storage, "retention")
        assert server.job(job["job_id"])["status"] == "completed"


# --- a router


def test_history_and_results_survive_the_pods(
    on_s3: Callable[..., Settings], tmp_path: Path, storage: S3Server, proxy: FaultyProxy
) -> None:
    with contextlib.ExitStack() as stack:
        pod = stack.enter_context(serving(on_s3(tmp_path / "pod", "fleet/pod")))
        router = Router(on_s3(tmp_path / "router", "fleet/router"), [Known("pod0", pod.url)])
        stack.callback(router.stop)
        until(lambda: router.state("pod0") == "ready")
        proxy.fail("status", "PUT", "/fleet/router/blobs/", times=2)
        proxy.fail("cut response", "GET", "/fleet/pod/blobs/", after=100)
        job_id = router.submit(picture(), size_bytes=SIZE, prepare_seconds=1)["job_id"]
        full = proxy.fail("status", "PUT", "/fleet/router/", status=403, code="QuotaExceeded")
        job = router.ended(job_id)  # its files wait on the pod until there is room
        assert (job["status"], full.times) == ("completed", 0)
        lose_copies(router, {"assets": [asset(job, "image")]})
        again = {"image_id": job["job_id"], "seed": 31, "size_bytes": 100_000}
        answer = router.client.post("/generate", json=again)
        second = router.ended(answer.json()["job_id"])
        assert second["status"] == "completed"
        assert asset(second, "image")["sha256"] == asset(job, "image")["sha256"]
        pod.stop()
        shutil.rmtree(tmp_path / "pod")
        assert {a["sha256"] for a in job["assets"]} <= keys(storage, "fleet/router")
        assert router.history() == [second["job_id"], job["job_id"]]
        for each in (job, second):
            glb = router.client.get(each["download_url"], follow_redirects=True)
            assert len(glb.content) == asset(each, "model.glb")["size"]
