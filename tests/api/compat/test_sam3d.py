"""The protocol of the public SAM 3D wrapper, field by field: its server's and its client's."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image as Picture

from polypod.api.compat.sam3d import translated
from polypod.image import Image
from polypod.settings import Settings
from services.sam3d.model import MODEL as SAM3D
from tests.api.serving import Server, make_picture, until
from tests.contracts.sam3d import environment

PICTURE = base64.b64encode(make_picture()).decode()
SEEDS = itertools.count(90_000)
AT = "/compat/sam3d"

Serve = Callable[..., contextlib.AbstractContextManager[Server]]


@pytest.fixture(scope="module")
def wrapper(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose stub answers for SAM 3D."""
    with serve(tmp_path_factory.mktemp("data"), compat={"sam3d": "stub"}) as one:
        until(lambda: one.client.get("/readyz").status_code == 200 or one.engine.ready)
        yield one


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of sam3d itself, on stand-ins of upstream."""
    folder = tmp_path_factory.mktemp("own")
    model = replace(SAM3D, image=Image(env={**SAM3D.image.env, **environment(folder)}))
    server = Server(Settings(data=folder / "data", doctor="off", needs="off"), model)
    try:
        yield server
    finally:
        server.stop()


def body(**fields: Any) -> dict[str, Any]:
    return {"image": PICTURE, "seed": next(SEEDS), **fields}


def client_body(**fields: Any) -> dict[str, Any]:
    """What the older client sends, with its defaults."""
    sent = body(simplify=0.95, texture_size=1024, with_texture=True, mask_mode="alpha")
    return {**sent, **fields}


def ended(server: Server, status_url: str) -> dict[str, Any]:
    def state() -> dict[str, Any] | None:
        told = server.client.get(AT + status_url).json()
        return told if told["status"] in ("completed", "failed") else None

    return until(state)


def test_a_job_as_the_server_gives_it(wrapper: Server) -> None:
    answer = wrapper.client.post(f"{AT}/generate", json=body(output_format="glb"))
    assert answer.status_code == 200
    told = answer.json()
    assert set(told) == {"job_id", "status", "position", "status_url", "message"}
    assert told["status"] == "queued" and told["position"] == 0
    assert told["message"] == "Job queued at position 0. Poll status_url for updates."
    assert told["status_url"] == f"/job/{told['job_id']}"
    job = ended(wrapper, told["status_url"])
    assert set(job) == {
        *("job_id", "status", "position", "queue_length", "download_url", "processing_time"),
    }
    assert job["status"] == "completed" and job["position"] == 0 and job["queue_length"] == 0
    assert round(job["processing_time"], 1) == job["processing_time"]
    file = wrapper.client.get(AT + job["download_url"])
    assert file.status_code == 200 and file.content[:4] == b"glTF"
    assert file.headers["content-type"] == "model/gltf-binary"
    assert file.headers["content-disposition"] == "attachment; filename=model.glb"
    ours = wrapper.client.get(told["status_url"]).json()  # the same job at our own address
    assert ours["status"] == "completed" and ours["progress"] == 100


def test_a_ply_is_a_plain_download(wrapper: Server) -> None:
    answer = wrapper.client.post(f"{AT}/generate/sync", json=body(output_format="ply"))
    assert answer.status_code == 200 and answer.content[:3] == b"ply"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == "attachment; filename=model.ply"


def test_health_and_queue(wrapper: Server) -> None:
    health = wrapper.client.get(f"{AT}/health")
    assert health.status_code == 200
    told = health.json()
    assert set(told) == {"status", "model_loaded", "cuda", "gpu", "queue", "worker_alive"}
    assert told["status"] == "healthy" and told["model_loaded"] is True
    queue = {"queued": 0, "processing": 0, "max_queue_size": 10, "max_concurrent": 1}
    assert told["queue"] == wrapper.client.get(f"{AT}/queue").json() == queue


@pytest.mark.parametrize("path", ["/generate", "/generate/sync"])
def test_a_request_needs_one_picture(wrapper: Server, path: str) -> None:
    answer = wrapper.client.post(AT + path, json={"seed": 1})
    assert (answer.status_code, answer.json()) == (400, {"error": "Need image or image_url"})
    both = wrapper.client.post(AT + path, json=body(image_url="http://example.org/a.png"))
    assert (both.status_code, list(both.json())) == (400, ["error"])
    assert "not both" in both.json()["error"]
    empty = wrapper.client.post(AT + path, json=body(image=None, image_url=None))
    assert empty.json() == {"error": "Need image or image_url"}
    assert wrapper.client.post(AT + path, json=body(image_url=None)).status_code == 200


def test_malformed_requests(wrapper: Server) -> None:
    malformed = wrapper.client.post(
        f"{AT}/generate", content=b"{", headers={"content-type": "application/json"}
    )
    assert malformed.status_code == 400
    other = wrapper.client.post(f"{AT}/generate", content=b"x", headers={"content-type": "a/b"})
    assert other.status_code == 415


def test_jobs_that_are_not_there_or_not_ready(serve: Serve, tmp_path: Path) -> None:
    with serve(tmp_path, compat={"sam3d": "stub"}, max_queue_size=1) as server:
        for path in ("/job/12345678", "/job/12345678/download"):
            answer = server.client.get(AT + path)
            assert (answer.status_code, answer.json()) == (404, {"error": "Job not found"})
        held = server.submit(make_picture(), seconds=600, steps=1000)
        until(lambda: server.job(held["job_id"])["status"] == "processing")
        early = server.client.get(f"{AT}/job/{held['job_id']}/download")
        told = (early.status_code, early.json())
        assert told == (400, {"error": "Job not ready, status: processing"})
        shown = server.client.get(f"{AT}/job/{held['job_id']}").json()
        assert shown == {
            "job_id": held["job_id"],
            "status": "processing",
            "position": 0,
            "queue_length": 0,
            "message": "Your job is being processed now",
        }
        waiting = server.client.post(f"{AT}/generate", json=body()).json()
        assert waiting["position"] == 1
        shown = server.client.get(AT + waiting["status_url"]).json()
        if shown["status"] == "queued":  # else its CPU stage has begun
            assert shown["message"] == f"Waiting in queue, position {shown['position']}"

        def full() -> httpx.Response | None:
            answer = server.client.post(f"{AT}/generate", json=body())
            return answer if answer.status_code != 200 else None

        refused = until(full)
        assert refused.status_code == 503
        error = {"error": "Queue full, try again later", "queue_length": 1, "max_queue_size": 1}
        assert refused.json() == error
        server.client.post(f"/job/{held['job_id']}/cancel")
        failed = ended(server, f"/job/{held['job_id']}")
        assert failed["status"] == "failed" and failed["error"] == "Job cancelled"


def test_waiting_too_long_is_told(serve: Serve, tmp_path: Path) -> None:
    with serve(tmp_path, compat={"sam3d": "stub"}, sync_timeout_s=0.05) as server:
        held = server.submit(make_picture(), seconds=600, steps=1000)
        answer = server.client.post(f"{AT}/generate/sync", json=body())
        assert (answer.status_code, answer.json()) == (504, {"error": "Timeout waiting for job"})
        for job in (held["job_id"], *server.history()):
            server.client.post(f"/job/{job}/cancel")


def test_the_older_client_gets_the_file_in_the_answer(wrapper: Server) -> None:
    sent = client_body()
    answer = wrapper.client.post("/generate", json=sent)
    assert answer.status_code == 200
    told = answer.json()
    again = wrapper.client.post("/generate", json=sent).json()  # all of its stages are kept
    assert again["model_data"] == told["model_data"] and again["inference_time_s"] < 60
    assert set(told) == {"success", "model_data", "format", "file_size_mb", "inference_time_s"}
    assert told["success"] is True and told["format"] == "glb"
    assert base64.b64decode(told["model_data"])[:4] == b"glTF"
    assert all(isinstance(told[name], float) for name in ("file_size_mb", "inference_time_s"))


def test_the_older_client_is_told_in_words_what_failed(wrapper: Server) -> None:
    noise = base64.b64encode(b"no picture").decode()
    with_noise = wrapper.client.post("/generate", json=client_body(image=noise))
    assert with_noise.status_code == 200 and with_noise.json()["success"] is False
    assert "picture" in with_noise.json()["error"]
    both = wrapper.client.post("/generate", json=client_body(image_url="http://example.org/a.png"))
    assert both.json() == {"success": False, "error": "Send either image or image_url, not both"}


def test_the_older_clients_other_addresses(wrapper: Server) -> None:
    splat = wrapper.client.post("/generate-ply", json=body())
    assert splat.status_code == 200 and splat.content[:3] == b"ply"
    mesh = wrapper.client.post("/generate-file", json=body())
    assert mesh.status_code == 200 and mesh.content[:4] == b"glTF"
    assert wrapper.client.get("/health").json()["status"] == "healthy"


def test_a_caller_of_the_server_is_known_by_its_fields(wrapper: Server) -> None:
    theirs = wrapper.client.post("/generate", json=body(inference_steps=25, nviews=100))
    assert theirs.status_code == 200
    ours = wrapper.client.post("/generate", json=body(output_format="glb"))
    assert ours.status_code == 202
    keyed = wrapper.client.post(
        "/generate", json=client_body(), headers={"Idempotency-Key": "ours"}
    )
    assert keyed.status_code == 422  # the stub has no such parameters, and says so


@pytest.mark.parametrize("path", ["/generate", f"{AT}/generate"])
def test_who_accepts_a_glb_waits_for_it(wrapper: Server, path: str) -> None:
    headers = {"Accept": "model/gltf-binary"}
    answer = wrapper.client.post(path, json=body(), headers=headers)
    assert answer.status_code == 200 and answer.content[:4] == b"glTF"


def test_without_its_model_the_protocol_says_what_to_set(server: Server) -> None:
    answer = server.client.post(f"{AT}/generate", json=body())
    assert answer.status_code == 404
    assert "POLYPOD_COMPAT=sam3d=MODEL" in answer.json()["error"]
    unclaimed = server.client.post("/generate", json=client_body())
    assert unclaimed.status_code == 422


def test_its_own_model_answers_without_a_setting(own: Server) -> None:
    """The older client's request, through all stages; its `simplify` reaches the model."""
    answer = own.client.post("/generate", json=client_body(mask_mode="center", simplify=0.5))
    assert answer.status_code == 200 and answer.json()["success"] is True, answer.text
    job = own.job(own.history()[0])
    asked = {"simplify": 0.5, "mask_mode": "center", "texture_size": 1024, "nviews": 200}
    assert asked.items() <= job["params"].items()
    manifest = own.client.get(f"/job/{job['job_id']}/result/manifest.json").json()
    assert manifest["outputs"]["model.glb"]["note"].startswith("glTF axes: +Y up")
    splat = own.client.post(f"{AT}/generate-ply", json=body(mask_mode="full"))
    assert splat.content[:3] == b"ply"
    told = own.client.get(f"/job/{own.history()[0]}/result/manifest.json").json()
    assert told["outputs"]["model.ply"]["note"].startswith("Z up, unlike the GLB")


def test_a_failure_is_told_to_both_kinds_of_callers(own: Server) -> None:
    """A picture that is transparent everywhere."""
    nothing = io.BytesIO()
    Picture.new("RGBA", (64, 64)).save(nothing, "PNG")
    empty = {"image": base64.b64encode(nothing.getvalue()).decode()}
    client = own.client.post("/generate", json=client_body(**empty)).json()
    assert client["success"] is False and "too small, or none was found" in client["error"]
    sync = own.client.post(f"{AT}/generate/sync", json=body(**empty))
    assert sync.status_code == 500 and set(sync.json()) == {"error"}


def test_parameters_become_those_of_the_model() -> None:
    known = SAM3D.params.model_fields
    usual = translated({"image": "..."}, known)
    assert SAM3D.resolve(usual)["simplify"] == 0.3
    assert usual["texture_size"] == usual["view_resolution"] == 2048 and usual["nviews"] == 200
    assert usual["stage1_inference_steps"] == usual["stage2_inference_steps"] == 50
    large = translated({"texture_size": 4096, "inference_steps": 100, "nviews": 300}, known)
    assert SAM3D.resolve(large)["view_resolution"] == 2048
    plain = translated({"with_texture": False}, known)
    assert plain["simplify"] == 0.0 and plain["with_texture"] is False
    splat = translated({"output_format": "ply", "inference_steps": 99}, known)
    assert SAM3D.resolve(splat)["stage1_inference_steps"] == 25
    assert translated({"mask_mode": "alpha"}, known)["mask_mode"] == "auto"
    assert translated({"mask_mode": []}, known)["mask_mode"] == "auto"
    assert translated({"mask_mode": "center"}, known)["mask_mode"] == "center"
    assert set(translated({}, {"seed", "texture_size"})) == {"seed", "texture_size"}
