"""ProtoScale's protocol as its browser speaks it, field by field and from another origin."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from polypod.api.compat.protoscale import translated
from services.hunyuan21.model import MODEL as HUNYUAN
from services.inflate.model import MODEL as INFLATE
from tests.api.compat.hunyuan_server import ORIGIN, hunyuan_server
from tests.api.serving import Server, make_picture, until

FIELDS = {"job_id", "status", "progress", "stage", "error"}


class Browser:
    """Calls as the front end's store does, with the origin of its page."""

    def __init__(self, server: Server, base: str = "") -> None:
        self.http = httpx.Client(base_url=server.url + base, headers={"Origin": ORIGIN}, timeout=30)

    def upload(self, picture: bytes, **options: Any) -> str:
        form = {"remove_bg": "true", "enhanced_detail": "false", **options}
        answer = self.http.post(
            "/api/upload", files={"file": ("photo.png", picture, "image/png")}, data=form
        )
        assert answer.status_code == 200, answer.text
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert set(answer.json()) == {"job_id"}
        job_id = answer.json()["job_id"]
        assert str(uuid.UUID(job_id)) == job_id
        return job_id

    def trigger(self, job_id: str, what: str) -> dict[str, Any]:
        answer = self.http.post(f"/api/jobs/{job_id}/{what}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def status(self, job_id: str) -> dict[str, Any]:
        answer = self.http.get(f"/api/jobs/{job_id}/status")
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert set(answer.json()) == FIELDS
        return answer.json()

    def done(self, job_id: str) -> list[dict[str, Any]]:
        """Polls as it does: until `completed` or `failed`. All that was told."""
        told: list[dict[str, Any]] = []

        def ended() -> bool:
            told.append(self.status(job_id))
            return told[-1]["status"] in ("completed", "failed")

        until(ended)
        return told

    def result(self, job_id: str, name: str) -> httpx.Response:
        return self.http.get(f"/api/jobs/{job_id}/result/{name}")


def photo() -> bytes:
    image = Image.new("RGBA", (80, 64))
    image.paste((60, 40, 30, 255), (16, 16, 60, 48))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def hunyuan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with hunyuan_server(tmp_path_factory.mktemp("protoscale")) as server:
        yield server


@pytest.fixture(params=["", "/compat/protoscale"])
def browser(hunyuan: Server, request: pytest.FixtureRequest) -> Browser:
    return Browser(hunyuan, request.param)


def test_from_upload_to_mesh(browser: Browser, hunyuan: Server) -> None:
    job_id = browser.upload(photo())
    shown = {"job_id": job_id, "progress": 0, "error": None}
    assert browser.status(job_id) == {**shown, "status": "pending", "stage": None}
    assert browser.result(job_id, "view_0.png").json() == {"detail": "View not ready"}

    answer = browser.trigger(job_id, "generate-multiangle")
    assert answer == {**shown, "status": "processing", "stage": "multiview"}
    told = browser.done(job_id)
    assert told[-1] == {**shown, "status": "completed", "progress": 100, "stage": "multiview"}
    assert {one["status"] for one in told} <= {"processing", "completed"}
    for number in range(4):
        view = browser.result(job_id, f"view_{number}.png")
        assert view.status_code == 200 and view.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(view.content)).size == (512, 512)
    white = browser.result(job_id, "model.glb")
    assert white.status_code == 200 and white.content[:4] == b"glTF"

    answer = browser.trigger(job_id, "generate-3d")  # the end before is not taken for this one's
    assert answer == {**shown, "status": "processing", "stage": "3d_generation"}
    told = browser.done(job_id)
    assert told[-1] == {**shown, "status": "completed", "progress": 100, "stage": "3d_generation"}
    assert all(one["stage"] == "3d_generation" for one in told)
    model = browser.result(job_id, "model.glb")
    assert model.status_code == 200 and model.content[:4] == b"glTF"
    assert model.headers["content-type"] == "model/gltf-binary"
    assert model.content != white.content, "painted by now"
    assert browser.result(job_id, "view_3.png").status_code == 200
    newest = hunyuan.history()[0]
    manifest = hunyuan.client.get(f"/job/{newest}/result/manifest.json").json()
    assert [run["kept"] for run in manifest["stages"]][:3] == [True] * 3, "nothing is done twice"


def test_a_mesh_without_views_first(browser: Browser, hunyuan: Server) -> None:
    job_id = browser.upload(photo(), enhanced_detail="true", remove_bg="false")
    browser.trigger(job_id, "generate-3d")
    assert browser.done(job_id)[-1]["status"] == "completed"
    assert browser.result(job_id, "model.glb").status_code == 200
    params = hunyuan.job(hunyuan.history()[0])["params"]
    assert (params["num_inference_steps"], params["octree_resolution"]) == (100, 512)
    assert params["remove_background"] is False


def test_asking_again_while_it_runs_starts_nothing_more(hunyuan: Server) -> None:
    browser, before = Browser(hunyuan), len(hunyuan.history())
    job_id = browser.upload(photo())
    for _ in range(3):
        browser.trigger(job_id, "generate-3d")
    browser.done(job_id)
    assert len(hunyuan.history()) <= before + 4
    browser.trigger(job_id, "generate-3d")
    assert browser.done(job_id)[-1]["progress"] == 100


def test_errors_are_details(browser: Browser) -> None:
    nobody = str(uuid.uuid4())
    for path in (f"{nobody}/status", f"{nobody}/result/model.glb", "nonsense/status"):
        answer = browser.http.get(f"/api/jobs/{path}")
        assert (answer.status_code, answer.json()) == (404, {"detail": "Job not found"})
    for what in ("generate-3d", "generate-multiangle"):
        answer = browser.http.post(f"/api/jobs/{nobody}/{what}")
        assert (answer.status_code, answer.json()) == (404, {"detail": "Job not found"})
    text = browser.http.post("/api/upload", files={"file": ("a.txt", b"words", "text/plain")})
    assert (text.status_code, text.json()) == (400, {"detail": "Only image files are accepted"})
    missing = browser.http.post("/api/upload", files={"other": ("a.png", photo(), "image/png")})
    assert missing.status_code == 400
    job_id = browser.upload(photo())
    assert browser.result(job_id, "model.glb").json() == {"detail": "Model not ready"}
    unknown = browser.result(job_id, "model.obj")
    assert (unknown.status_code, unknown.json()) == (400, {"detail": "Unknown asset: model.obj"})


def test_a_failure_is_told_in_the_status(hunyuan: Server) -> None:
    """A picture without an object; the browser shows `error`."""
    browser, nothing = Browser(hunyuan), io.BytesIO()
    Image.new("RGBA", (64, 64)).save(nothing, "PNG")
    job_id = browser.upload(nothing.getvalue())
    browser.trigger(job_id, "generate-3d")
    last = browser.done(job_id)[-1]
    assert last["status"] == "failed" and "none was found" in last["error"]


def test_preflight_of_another_origin(hunyuan: Server) -> None:
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    answer = hunyuan.client.options("/api/upload", headers=asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in answer.headers["access-control-allow-methods"]
    stranger = hunyuan.client.get("/health", headers={"Origin": "http://stranger.example"})
    assert "access-control-allow-origin" not in stranger.headers


def test_gpu_metrics(browser: Browser, hunyuan: Server) -> None:
    job_id = browser.upload(photo(), enhanced_detail="false")
    browser.trigger(job_id, "generate-3d")
    browser.done(job_id)
    told = browser.http.get("/api/jobs/metrics/gpu").json()
    assert set(told) == {
        *("total_jobs_processed", "uptime_seconds", "current_slots", "avg_stage_times"),
    }
    assert isinstance(told["total_jobs_processed"], int) and told["total_jobs_processed"] > 0
    assert isinstance(told["uptime_seconds"], float)
    assert set(told["avg_stage_times"]) == {"rembg", "geometry", "texture"}
    assert told["avg_stage_times"]["geometry"] > 0
    assert set(told["current_slots"]) == {"cpu", "cuda:0"}


def test_slots_say_what_they_run(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with hunyuan_server(tmp_path, STANDIN_GATE=str(gate)) as server:
        browser = Browser(server)
        job_id = browser.upload(photo())
        browser.trigger(job_id, "generate-3d")

        def painting() -> dict[str, Any] | None:
            slot = browser.http.get("/api/jobs/metrics/gpu").json()["current_slots"]["cuda:0"]
            return slot if slot and slot["stage"] == "paint" else None

        slot = until(painting)
        assert set(slot) == {"job_id", "stage", "started_at"}
        assert datetime.fromisoformat(slot["started_at"]).tzinfo is not None
        until(lambda: browser.status(job_id)["progress"] > 0)
        gate.touch()
        assert browser.done(job_id)[-1]["status"] == "completed"


def test_slots_say_nothing_of_the_jobs_of_others(serve: Callable[..., Any], tmp_path: Path) -> None:
    with serve(tmp_path, compat={"protoscale": "stub"}, api_keys=("mine", "other")) as server:
        server.client.headers["X-API-Key"] = "mine"
        job_id = server.submit(make_picture(), seconds=600, steps=1000)["job_id"]
        until(lambda: server.job(job_id)["stage"] == "work")
        for path, slots in (("/api/jobs/metrics/gpu", "current_slots"), ("/health", "slots")):
            for key, seen in (("mine", True), ("other", False)):
                answer = server.client.get(f"/compat/protoscale{path}", headers={"X-API-Key": key})
                assert (job_id in answer.text) == seen, (path, key)
                assert answer.json()[slots]
        server.client.post(f"/job/{job_id}/cancel")


def test_health_is_ours_at_the_root(hunyuan: Server) -> None:
    assert "queue" in hunyuan.client.get("/health").json()
    theirs = hunyuan.client.get("/compat/protoscale/health").json()
    assert theirs["status"] == "ok" and set(theirs["slots"]) == {"cpu", "cuda:0"}


def test_a_model_that_makes_no_views_of_its_own(serve: Callable[..., Any], tmp_path: Path) -> None:
    """A front end can be developed against any model: views are drawn from its result."""
    with serve(tmp_path, compat={"protoscale": "stub"}, cors_origins=(ORIGIN,)) as server:
        browser = Browser(server)
        job_id = browser.upload(make_picture())
        browser.trigger(job_id, "generate-multiangle")
        last = browser.done(job_id)[-1]
        assert (last["status"], last["stage"]) == ("completed", "multiview")
        view = browser.result(job_id, "view_2.png")
        assert view.status_code == 200 and view.headers["content-type"] == "image/png"
        browser.trigger(job_id, "generate-3d")
        assert browser.done(job_id)[-1]["status"] == "completed"
        assert browser.result(job_id, "model.glb").content[:4] == b"glTF"


def test_without_its_model_the_protocol_says_what_to_set(server: Server) -> None:
    files = {"file": ("a.png", make_picture(), "image/png")}
    answer = server.client.post("/api/upload", files=files)
    assert answer.status_code == 404
    assert "POLYPOD_COMPAT=protoscale=MODEL" in answer.json()["detail"]


def test_switches_become_parameters_of_the_model() -> None:
    usual = translated({"remove_bg": "true", "enhanced_detail": "false"}, HUNYUAN)
    assert usual == {"remove_background": True}
    assert translated({"enhanced_detail": "true"}, INFLATE) == {"preset": "high"}
    assert translated({}, INFLATE) == {}
