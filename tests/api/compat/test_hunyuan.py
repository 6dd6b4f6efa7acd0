"""Hunyuan3D's own protocol and its add-on's requests, on the real engine with stand-ins behind."""

from __future__ import annotations

import base64
import io
import itertools
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trimesh
from PIL import Image

from tests.api.compat.hunyuan_server import hunyuan_server
from tests.api.serving import Server, until

AT = "/compat/hunyuan"
SEEDS = itertools.count(2000)


def picture() -> str:
    image = Image.new("RGBA", (64, 64))
    image.paste((60, 40, 30, 255), (16, 16, 48, 48))
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


@pytest.fixture(scope="module")
def hunyuan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with hunyuan_server(tmp_path_factory.mktemp("hunyuan")) as server:
        yield server


def add_on(**more: Any) -> dict[str, Any]:
    """What the add-on sends for a picture, with its defaults."""
    sent = {"octree_resolution": 128, "num_inference_steps": 20, "guidance_scale": 5.5}
    return {"image": picture(), **sent, "texture": False, "seed": next(SEEDS), **more}


@pytest.mark.parametrize("path", ["/generate", f"{AT}/generate"])
def test_generate_answers_with_the_file(hunyuan: Server, path: str) -> None:
    answer = hunyuan.client.post(path, json=add_on())
    assert answer.status_code == 200, answer.text
    assert answer.content[:4] == b"glTF"
    job = hunyuan.job(hunyuan.history()[0])
    assert job["params"]["octree_resolution"] == 128
    assert job["params"]["num_inference_steps"] == 20
    assert job["params"]["guidance_scale"] == 5.5
    assert job["params"]["with_texture"] is False


def test_generate_with_texture_and_another_type(hunyuan: Server) -> None:
    answer = hunyuan.client.post("/generate", json=add_on(texture=True, face_count=2000))
    mesh: Any = trimesh.load(io.BytesIO(answer.content), file_type="glb", force="mesh")
    assert mesh.visual.material.baseColorTexture is not None
    assert hunyuan.job(hunyuan.history()[0])["params"]["face_count"] == 2000
    ply = hunyuan.client.post("/generate", json=add_on(type="ply"))
    assert ply.status_code == 200 and ply.content[:3] == b"ply"


def test_a_given_mesh_is_textured(hunyuan: Server) -> None:
    """As the add-on does it with what is selected in Blender."""
    box = base64.b64encode(trimesh.creation.box().export(file_type="glb")).decode()
    answer = hunyuan.client.post("/generate", json=add_on(mesh=box, texture=True))
    assert answer.status_code == 200, answer.text
    mesh: Any = trimesh.load(io.BytesIO(answer.content), file_type="glb", force="mesh")
    assert len(mesh.faces) == 12 and mesh.visual.material.baseColorTexture is not None
    noise = base64.b64encode(b"no mesh").decode()
    refused = hunyuan.client.post("/generate", json=add_on(mesh=noise, texture=True))
    assert refused.status_code == 404 and "GLB" in refused.json()["text"]


def test_what_is_not_a_picture_is_told_in_text(hunyuan: Server) -> None:
    text = {name: value for name, value in add_on(text="a duck").items() if name != "image"}
    answer = hunyuan.client.post("/generate", json=text)
    assert answer.status_code == 404
    assert set(answer.json()) == {"text", "error_code"} and answer.json()["error_code"] == 1
    assert "choose an image" in answer.json()["text"]
    out_of_range = hunyuan.client.post("/generate", json=add_on(octree_resolution=9999))
    assert out_of_range.status_code == 404 and "octree_resolution" in out_of_range.json()["text"]
    failed = hunyuan.client.post("/generate", json=add_on(seed=13))
    assert failed.status_code == 404 and "another seed" in failed.json()["text"]
    too_large = hunyuan.client.post("/generate", json=add_on(seed=14))
    assert "ran out of memory" in too_large.json()["text"]
    assert "preset draft" in too_large.json()["text"]


def test_an_unknown_type_is_told_before_any_work(hunyuan: Server) -> None:
    before = hunyuan.history()
    refused = hunyuan.client.post("/generate", json=add_on(type="xyz"))
    assert refused.status_code == 404 and "Use one of: glb" in refused.json()["text"]
    assert hunyuan.history() == before
    untold = hunyuan.client.post("/generate", json=add_on(type=None))
    assert untold.status_code == 200 and untold.content[:4] == b"glTF"


def test_our_own_generate_stays_ours(hunyuan: Server) -> None:
    ours = {"image": picture(), "with_texture": False, "octree_resolution": 64}
    assert hunyuan.client.post("/generate", json=ours).status_code == 202
    keyed = hunyuan.client.post("/generate", json=add_on(), headers={"Idempotency-Key": "a"})
    assert keyed.status_code == 422 and "texture" in keyed.json()["error"]
    waits = hunyuan.client.post("/generate", json=ours, headers={"Accept": "model/gltf-binary"})
    assert waits.status_code == 200 and waits.content[:4] == b"glTF"


def test_send_and_status(tmp_path: Path) -> None:
    """The shape can be had while the job is still painting."""
    gate = tmp_path / "gate"
    with hunyuan_server(tmp_path, STANDIN_GATE=str(gate)) as server:
        sent = server.client.post("/send", json=add_on(texture=True))
        assert sent.status_code == 200 and set(sent.json()) == {"uid"}
        uid = sent.json()["uid"]
        assert str(uuid.UUID(uid)) == uid

        def told() -> dict[str, Any]:
            answer = server.client.get(f"/status/{uid}")
            assert answer.status_code == 200
            return answer.json()

        assert told()["status"] in ("processing", "texturing")
        until(lambda: told() == {"status": "texturing"})
        job = uuid.UUID(uid).hex
        shape = server.client.get(f"/job/{job}/result/shape.glb")
        assert shape.status_code == 200 and shape.content[:4] == b"glTF"
        assert server.job(job)["status"] == "processing"
        gate.touch()
        until(lambda: told()["status"] == "completed")
        done = told()
        assert set(done) == {"status", "model_base64"}
        assert base64.b64decode(done["model_base64"])[:4] == b"glTF"


def test_status_of_what_failed_or_is_not_there(hunyuan: Server) -> None:
    uid = hunyuan.client.post("/send", json=add_on(seed=13)).json()["uid"]

    def failed() -> httpx.Response | None:
        answer = hunyuan.client.get(f"/status/{uid}")
        return answer if answer.status_code == 500 else None

    told = until(failed).json()
    assert set(told) == {"status", "message"} and told["status"] == "error"
    assert "another seed" in told["message"]
    for unknown in (str(uuid.uuid4()), "abc"):
        assert hunyuan.client.get(f"/status/{unknown}").status_code == 404


def test_health_is_ours_at_the_root(hunyuan: Server) -> None:
    assert "queue" in hunyuan.client.get("/health").json()
    theirs = hunyuan.client.get(f"{AT}/health").json()
    assert set(theirs) == {"status", "worker_id"} and len(theirs["worker_id"]) == 6


def test_another_model_answers(serve: Callable[..., Any], tmp_path: Path) -> None:
    """A model without these parameters gets those that it has."""
    with serve(tmp_path, compat={"hunyuan": "stub"}) as server:
        answer = server.client.post("/generate", json=add_on())
        assert answer.status_code == 200 and answer.content[:4] == b"glTF"
        mesh = server.client.post("/generate", json=add_on(mesh="AAAA", texture=True))
        assert mesh.status_code == 404 and "cannot texture" in mesh.json()["text"]
