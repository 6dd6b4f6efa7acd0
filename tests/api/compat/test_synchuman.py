"""The protocol of SyncHuman's two public wrappers, field by field, and what differs on purpose."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image as Pictures

from polypod.api.compat.synchuman import STEPS, WrongType, read
from polypod.errors import BadRequest
from polypod.image import Home, Image
from polypod.parts import first_part
from polypod.router.endpoint import Known
from polypod.settings import Settings
from services.hunyuan21.model import MODEL as HUNYUAN
from services.inflate.model import MODEL as INFLATE
from services.synchuman.model import MODEL
from tests.api.serving import Server, make_picture, until
from tests.contracts import standins
from tests.contracts.synchuman import environment
from tests.router.test_dispatch import Router

AT = "/compat/synchuman"
GREYS = itertools.count(20)

Serve = Callable[..., contextlib.AbstractContextManager[Server]]


def person(*, empty: bool = False) -> bytes:
    """A figure on a transparent background, of a grey that no other has."""
    picture, out = Pictures.new("RGBA", (100, 200)), io.BytesIO()
    if not empty:
        picture.paste((next(GREYS),) * 3 + (255,), (30, 20, 70, 180))
    picture.save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def own(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch_module: pytest.MonkeyPatch
) -> Iterator[Server]:
    """A server of synchuman itself, on stand-ins of upstream."""
    folder = tmp_path_factory.mktemp("own")
    env = environment(folder / "synchuman")
    monkeypatch_module.setenv("POLYPOD_HOME", str(folder))
    model = replace(MODEL, image=Image(env={**Home(folder).environment(MODEL.image), **env}))
    server = Server(Settings(data=folder / "data", doctor="off", needs="off"), model)
    server.folder = folder / "synchuman"  # type: ignore[attr-defined]
    try:
        until(lambda: server.engine.ready)
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def post(server: Server, picture: bytes | None = None, at: str = AT, **fields: Any) -> Any:
    """As `requests.post(url, files=..., data=...)` and `curl -F` send it."""
    files = {"image": ("photo.png", picture or person(), "image/png")}
    data = {name: str(value) for name, value in fields.items()}
    return server.client.post(f"{at}/generate", files=files, data=data)


def calls(server: Server, name: str) -> list[dict[str, Any]]:
    made = standins.calls(server.folder / "upstream")  # type: ignore[attr-defined]
    return [row["values"] for row in made if row["call"].endswith(name)]


def fetched(server: Server, address: str) -> httpx.Response:
    return server.client.get(address)


def test_both_stages_with_the_answers_of_both_wrappers(own: Server) -> None:
    answer = post(own)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert set(told) == {
        *("run_id", "stage", "input_raw", "stage1_dir", "stage1_steps", "stage2_steps", "glb"),
        *("alpha_coverage", "job_id", "mode", "status", "stage1", "stage2"),
    }
    assert (told["stage"], told["stage1_steps"], told["stage2_steps"]) == ("both", 50, 25)
    assert (told["status"], told["mode"]) == ("completed", "Official")
    assert told["job_id"] == told["run_id"]
    assert told["alpha_coverage"] == pytest.approx(160 * 40 / (100 * 200))
    assert told["stage1"]["status"] == told["stage2"]["status"] == "completed"
    names = {f"{kind}_{n}" for kind in ("color", "normal") for n in range(5)} | {"input"}
    assert set(told["stage1"]["files"]) == names
    assert told["stage1"]["files"]["color_3"] == "color_3.png"
    for part, name in (("stage1", "color_3"), ("stage1", "input"), ("stage2", "output.glb")):
        path = f"{told[part]['output_dir']}/{told[part]['files'][name]}"
        assert fetched(own, path).status_code == 200, path
    assert fetched(own, told["glb"]).content[:4] == b"glTF"
    assert fetched(own, f"{told['stage1_dir']}/normal_4.png").content[:4] == b"\x89PNG"
    assert fetched(own, told["input_raw"]).content[:4] == b"\x89PNG"
    outputs = fetched(own, f"{told['stage1_dir']}/manifest.json").json()["outputs"]
    assert outputs["model.glb"]["note"].startswith("glTF axes: +Y up, the person faces +Z")
    assert outputs["color_2.png"]["note"].startswith("back; 768 square")


@pytest.mark.parametrize(
    ("sent", "taken"), [((75, 35), (75, 35)), ((1, 1), (30, 15)), ((500, 50), (100, 40))]
)
def test_steps_take_effect_within_the_wrappers_limits(
    own: Server, sent: tuple[int, int], taken: tuple[int, int]
) -> None:
    told = post(own, stage1_steps=sent[0], stage2_steps=sent[1]).json()
    assert (told["stage1_steps"], told["stage2_steps"]) == taken
    assert calls(own, "run_model")[-1]["num_inference_steps"] == taken[0]
    assert calls(own, "sample_slat")[-1]["sampler_params"]["steps"] == taken[1]


def test_stage_1_alone_and_then_stage_2_from_it(own: Server) -> None:
    picture = person()
    first = post(own, picture, stage="stage1", download="true")
    told = first.json()  # there is no GLB to stream
    assert told["stage2"] == {"status": "skipped", "reason": "stage=stage1"} and "glb" not in told
    assert told["mode"] == "Fast (Stage 1 only)" and len(told["stage1"]["files"]) == 11
    before = len(calls(own, "run_model"))
    asked = {"stage": "stage2", "stage2_steps": 33, "stage1_steps": 99}
    for reused in (told["stage1_dir"], told["run_id"], f"/outputs/api_{told['run_id']}/OneStage"):
        second = post(
            own, person(empty=True), reuse_stage1=reused, **asked
        )  # as its example: a dummy
        assert second.status_code == 200, second.text
        again = second.json()
        assert again["stage1_dir"] == f"/job/{told['run_id']}/result"
        assert (again["stage1_steps"], again["stage2_steps"]) == (50, 33)
        assert again["input_raw"] is None and fetched(own, again["glb"]).status_code == 200
    assert len(calls(own, "run_model")) == before  # stage 1 did not run again
    assert calls(own, "sample_slat")[-1]["sampler_params"]["steps"] == 33


def test_the_other_wrappers_switch_for_stage_1(own: Server) -> None:
    told = post(own, stage1_only="true").json()
    assert told["stage2"] == {"status": "skipped", "reason": "stage1_only=true"}
    assert "glb" not in told


def test_download_streams_the_glb(own: Server) -> None:
    answer = post(own, download="true")
    assert answer.status_code == 200 and answer.content[:4] == b"glTF"
    assert answer.headers["content-type"] == "model/gltf-binary"
    assert answer.headers["content-disposition"] == 'attachment; filename="synchuman.glb"'


@pytest.mark.parametrize(("switch", "glb"), [("stage1_only", False), ("graceful_fallback", True)])
def test_the_other_wrappers_download_is_an_archive(own: Server, switch: str, glb: bool) -> None:
    answer = post(own, download="1", **{switch: "true"})
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"].startswith('attachment; filename="synchuman_')
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        names = set(archive.namelist())
        assert ("stage2/output.glb" in names) == glb
        assert {"stage1/color_0.png", "stage1/normal_4.png", "stage1/input.png"} <= names
        assert archive.read("stage1/color_2.png")[:4] == b"\x89PNG"


def test_json_too(own: Server) -> None:
    picture = base64.b64encode(person()).decode()
    answer = own.client.post(f"{AT}/generate", json={"image": picture, "stage1_steps": 30})
    assert answer.status_code == 200 and answer.json()["stage1_steps"] == 30
    with_url = f"data:image/png;base64,{picture}"
    streamed = own.client.post(f"{AT}/generate", json={"image": with_url, "download": True})
    assert streamed.content[:4] == b"glTF"


def test_at_the_root_its_clients_are_known_by_their_fields(own: Server) -> None:
    theirs = post(own, at="", stage="stage1")
    assert theirs.status_code == 200 and theirs.json()["stage"] == "stage1"
    picture = base64.b64encode(person()).decode()
    as_json = own.client.post("/generate", json={"image": picture, "download": True})
    assert as_json.status_code == 200 and as_json.content[:4] == b"glTF"
    ours = post(own, at="", stage1_steps=30)
    assert ours.status_code == 202 and set(ours.json()) >= {"job_id", "status_url"}
    files = {"image": ("a.png", person(), "image/png")}
    keyed = own.client.post(
        "/generate", files=files, data={"stage": "both"}, headers={"Idempotency-Key": "ours"}
    )
    assert keyed.status_code == 422 and "'stage'" in keyed.json()["error"]


def test_requests_that_the_wrappers_refuse(own: Server) -> None:
    def refused(**fields: Any) -> tuple[int, Any]:
        answer = own.client.post(f"{AT}/generate", data=fields)
        return answer.status_code, answer.json()["detail"]

    assert refused(stage="stage3") == (400, "stage must be one of: both, stage1, stage2.")
    assert refused() == refused(stage="stage1")
    assert refused() == (400, "Image or image_url is required for Stage1.")
    lacking = "stage2 requires reuse_stage1 or an image/image_url."
    assert refused(stage="stage2") == (400, lacking)
    gone = "/workspace/SyncHuman/outputs/api_0a1b2c3d/OneStage"
    assert refused(stage="stage2", reuse_stage1=gone) == (400, f"reuse_stage1 not found: {gone}")
    status, (detail,) = refused(stage1_steps="many")
    assert status == 422 and detail["loc"] == ["body", "stage1_steps"]
    assert (detail["type"], detail["input"]) == ("int_parsing", "many")
    assert refused(download="perhaps")[0] == 422
    both = post(own, image_url="http://example.org/a.png")
    assert (both.status_code, both.json()) == (
        400,
        {"detail": "Send either image or image_url, not both"},
    )
    text = post(own, b"no picture")
    assert text.status_code in (400, 415) and "picture" in text.json()["detail"]


def test_what_fails_is_told_by_stage(own: Server) -> None:
    upstream = own.folder / "upstream"  # type: ignore[attr-defined]
    nobody = post(own, person(empty=True))
    assert nobody.status_code == 400
    assert nobody.json()["detail"].startswith("Failed to prepare input: ")
    standins.lay_fault(upstream, "SyncHumanOneStagePipeline.run", "RuntimeError", "first")
    first = post(own)
    standins.lay_fault(upstream, "to_glb", "RuntimeError", "second")
    second = post(own, picture := person())
    fallen = post(own, picture, graceful_fallback="true")
    packed = post(own, picture, graceful_fallback="true", download="true")
    standins.lay_fault(upstream, "", "", "")
    assert (first.status_code, second.status_code) == (500, 500)
    assert first.json()["detail"].startswith("Stage1 failed: RuntimeError: first")
    assert second.json()["detail"].startswith("Stage2 failed: RuntimeError: second")
    told = fallen.json()
    assert fallen.status_code == 200 and told["stage2"]["status"] == "skipped"
    assert told["stage2"]["reason"].startswith("graceful_fallback: RuntimeError: second")
    assert fetched(own, f"{told['stage1_dir']}/color_1.png").status_code == 200
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        assert "stage1/color_1.png" in archive.namelist()
        assert "stage2/output.glb" not in archive.namelist()
    reused = post(
        own, stage="stage2", reuse_stage1=told["stage1_dir"]
    )  # of a job that failed later
    assert reused.status_code == 200 and "glb" in reused.json()


def test_a_job_without_a_first_stage_cannot_be_reused(own: Server) -> None:
    files = {"image": ("a.png", person(), "image/png")}
    job = own.client.post("/generate", files=files, data={"until": "cutout"}).json()["job_id"]
    own.ended(job)
    answer = post(own, stage="stage2", reuse_stage1=job)
    assert answer.status_code == 400 and "no finished stage 1" in answer.json()["detail"]


def test_health_and_info(own: Server) -> None:
    told = own.client.get(f"{AT}/health").json()
    assert told == {
        "status": "ok",
        "stage1_available": True,
        "stage2_available": True,
        "message": "Both stages available",
    }
    told = own.client.get(f"{AT}/info").json()
    assert set(told) == {"service", "version", "stages", "request_parameters", "gpu_info"}
    assert told["request_parameters"]["stage1_steps"] == "30-100 (default 50)"
    assert told["request_parameters"]["stage2_steps"] == "15-40 (default 25)"
    assert set(told["stages"]) == {"stage1", "stage2"} and told["stages"]["stage2"]["available"]
    assert set(told["gpu_info"]) == {"available", "device", "memory_gb"}
    assert "queue" in own.client.get("/health").json()  # ours


def test_a_router_answers_as_its_pod_does(own: Server, tmp_path: Path) -> None:
    """It knows the model by its card alone, and what failed jobs did by what they left."""
    upstream = own.folder / "upstream"  # type: ignore[attr-defined]
    router = Router(Settings(data=tmp_path / "router"), [Known("pod", own.url)])
    try:
        until(lambda: all(e["state"] == "ready" for e in router.endpoints().values()))
        told = post(router, picture := person()).json()
        assert told["mode"] == "Official" and len(told["stage1"]["files"]) == 11
        assert fetched(router, told["glb"]).content[:4] == b"glTF"
        before = len(calls(own, "run_model"))
        again = post(router, stage="stage2", reuse_stage1=told["stage1_dir"], stage2_steps=20)
        assert again.status_code == 200 and again.json()["stage2_steps"] == 20
        assert len(calls(own, "run_model")) == before
        standins.lay_fault(upstream, "to_glb", "RuntimeError", "second")
        asked = {"graceful_fallback": "true", "stage2_steps": 21}
        fallen = post(router, picture := person(), **asked)
        refused = post(router, picture, stage2_steps=21)
        standins.lay_fault(upstream, "", "", "")
        assert fallen.status_code == 200 and fallen.json()["stage2"]["status"] == "skipped"
        assert refused.json()["detail"].startswith("Stage2 failed: RuntimeError: second")
        reused = post(router, stage="stage2", reuse_stage1=fallen.json()["run_id"])
        assert reused.status_code == 200 and "glb" in reused.json()
        empty = post(router, person(empty=True))
        assert empty.status_code == 400 and "prepare input" in empty.json()["detail"]
    finally:
        standins.lay_fault(upstream, "", "", "")
        router.stop()


def test_any_model_can_answer(tmp_path: Path) -> None:
    """POLYPOD_COMPAT=synchuman=inflate: a front end can be developed on a laptop."""
    settings = Settings(data=tmp_path, compat={"synchuman": "inflate"})
    server = Server(settings, INFLATE)
    try:
        until(lambda: server.engine.ready)
        told = post(server, picture := person(), stage1_steps=75).json()
        assert (told["stage1_steps"], told["mode"]) == (75, "Official")  # it has no such parameter
        assert {"view_0", "view_3", "input"} <= set(told["stage1"]["files"])
        assert fetched(server, told["glb"]).content[:4] == b"glTF"
        view = f"{told['stage1_dir']}/{told['stage1']['files']['view_0']}"
        assert fetched(server, view).content[:4] == b"\x89PNG"
        first = post(server, picture, stage="stage1").json()
        assert first["stage2"]["status"] == "skipped" and "glb" not in first
        second = post(server, stage="stage2", reuse_stage1=first["stage1_dir"], download="true")
        assert second.content[:4] == b"glTF"
    finally:
        server.stop()


def test_without_its_model_the_protocol_says_what_to_set(server: Server) -> None:
    answer = post(server, make_picture())
    assert answer.status_code == 404
    assert "POLYPOD_COMPAT=synchuman=MODEL" in answer.json()["detail"]
    unclaimed = post(server, make_picture(), at="", stage="both")
    assert unclaimed.status_code == 422


def test_a_router_that_knows_no_model_yet_asks_to_come_again(tmp_path: Path) -> None:
    router = Router(Settings(data=tmp_path), [])
    try:
        answer = post(router, make_picture())
        assert answer.status_code == 503 and "retry-after" in answer.headers
        assert "No model is known here yet" in answer.json()["detail"]
    finally:
        router.stop()


def test_waiting_too_long_is_told(serve: Serve, tmp_path: Path) -> None:
    with serve(tmp_path, compat={"synchuman": "stub"}, sync_timeout_s=0.05) as server:
        held = server.submit(make_picture(), seconds=600, steps=1000)
        answer = post(server, make_picture())
        assert answer.status_code == 504 and "the job goes on" in answer.json()["detail"]
        for job in (held["job_id"], *server.history()):
            server.client.post(f"/job/{job}/cancel")


def test_fields_as_fastapi_reads_them() -> None:
    asked = read({"stage1_steps": "", "download": "YES", "stage2_steps": "20"})
    assert (asked.stage1_steps, asked.stage2_steps, asked.download) == (50, 20, True)
    assert all(read({"stage1_steps": n}).stage1_steps == 40 for n in (40.0, "40.0", " 40 "))
    for wrong in (
        {"stage1_steps": "1.5"},
        {"stage1_steps": "nan"},
        {"stage1_steps": [40]},
        {"stage2_steps": True},
        {"download": "2"},
    ):
        with pytest.raises(WrongType):
            read(wrong)
    with pytest.raises(BadRequest, match="must be one of"):
        read({"stage": "STAGE1"})
    assert all(least <= usual <= most for usual, least, most in STEPS.values())


def test_what_counts_as_the_first_part_of_a_model() -> None:
    assert [stage.name for stage in first_part(MODEL)] == ["cutout", "multiview"]
    assert first_part(HUNYUAN)[-1].name == "shape"
    assert first_part(INFLATE)[-1].name == "inflate"
