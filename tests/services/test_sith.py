"""sith through the real harness, against stand-ins that accept what upstream accepts, no more."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from polypod.build.dockerfile import dockerfile
from polypod.errors import BadInput
from polypod.jobs.faults import explained
from polypod.jobs.job import JobError
from services.sith import pose
from services.sith.model import MODEL
from tests.contracts import standins
from tests.contracts.harnessed import Harnessed, Ran, harnessed
from tests.contracts.sith import environment

sys.path.append(str(standins.HERE / "packages" / "sith"))
import rtmlib  # the stand-in, for its skeleton

pytestmark = pytest.mark.anyio

CONTRACT = standins.contract("sith")
README = MODEL.folder / "README.md"
FAST: dict[str, Any] = {"preset": "draft", "fit_iterations": 10, "grid_size": 64}


@pytest.fixture(scope="module")
async def sith(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Harnessed]:
    folder = tmp_path_factory.mktemp("sith")
    async with harnessed(MODEL, folder, environment(folder)) as running:
        yield running


@pytest.fixture
def calls(sith: Harnessed) -> Any:
    """What the current test has called upstream with, by name."""
    return standins.calls_from_now(sith.folder / "upstream")


def figure(size: tuple[int, int], box: tuple[int, int, int, int], colour: str = "#806040") -> Any:
    """A transparent picture with a standing figure that fills the box."""
    picture = Image.new("RGBA", size, (0, 0, 0, 0))
    pen = ImageDraw.Draw(picture)

    def part(shape: Any, *hundredths: int) -> None:
        left, top, right, bottom = box
        sides = [right - left - 1, bottom - top - 1] * 2
        corner = [left, top] * 2
        shape([n / 100 * side + c for n, side, c in zip(hundredths, sides, corner, strict=True)])

    part(lambda xy: pen.ellipse(xy, colour), 38, 0, 62, 16)
    part(lambda xy: pen.rectangle(xy, colour), 20, 14, 80, 58)
    part(lambda xy: pen.rectangle(xy, colour), 0, 18, 100, 52)
    part(lambda xy: pen.rectangle(xy, colour), 28, 50, 72, 100)
    return picture


@pytest.fixture
def person(tmp_path: Path) -> dict[str, Path]:
    """600 x 800 pixels; the figure has 240 x 600 of them, its corner at 100, 120."""
    figure((600, 800), (100, 120, 340, 720)).save(tmp_path / "person.png")
    return {"image": tmp_path / "person.png"}


def openpose(person: dict[str, Any] | None = None, **changed: Any) -> dict[str, Any]:
    """As OpenPose writes it, of the figure in the picture that `person` sends."""
    points = rtmlib.skeleton() / 100 * [240, 600] + [100, 120]
    found = pose.body_25(points, np.full(133, 0.8), 0.3)
    told = pose.as_openpose(found)
    told["people"][0] |= changed
    return told


def sent(person: dict[str, Path], told: Any) -> dict[str, Path]:
    path = person["image"].with_name("keypoints.json")
    path.write_text(told if isinstance(told, str) else json.dumps(told))
    return {**person, "keypoints": path}


def body_of(ran: Ran) -> np.ndarray:
    told = json.loads(ran.files["keypoints.json"].read_text())["people"][0]
    return np.reshape(told["pose_keypoints_2d"], (25, 3))


def pixels(ran: Ran, name: str) -> np.ndarray:
    return np.asarray(Image.open(ran.files[name]))


def gltf(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])


@pytest.mark.parametrize("preset", list(MODEL.presets))
async def test_every_preset_runs_all_stages(
    sith: Harnessed, person: Any, calls: Any, preset: str
) -> None:
    ran = await sith.run(person, preset=preset)
    assert ran.error is None, (ran.error, ran.log)
    wanted = MODEL.resolve({"preset": preset})
    made = [name for name in ran.files if name.startswith("back_")]
    assert len(made) == wanted["back_views"]
    shown = Image.open(ran.files["back_0.png"]).size
    assert shown == ((1024, 1024) if preset == "ultra" else (512, 512))
    steps = [call["num_inference_steps"] for call in calls("Pipeline.forward")]
    assert steps == [wanted["num_inference_steps"]] * -(
        -wanted["back_views"] // wanted["back_views_at_once"]
    )
    assert f"evaluator of {wanted['grid_size']}" in ran.log or preset in ("high", "ultra")
    chunks = -(-(wanted["grid_size"] ** 3) // wanted["chunk_size"])
    assert len(calls("compute_sdf")) == chunks
    told = [fraction for fraction, _ in ran.progress["reconstruct"]]
    assert told == sorted(told) and told[-1] >= 0.85
    assert any(message.endswith("200/200") for _, message in ran.progress["fit"])
    primitive = gltf(ran.files["model.glb"])["meshes"][0]["primitives"][0]["attributes"]
    assert "COLOR_0" in primitive and "TEXCOORD_0" not in primitive


OPTIONS = {
    "back_model": ("SiTH-diffusion-2000", "BackHallucinationPipeline.__init__", None),
    "num_inference_steps": (7, "Pipeline.forward", "num_inference_steps"),
    "guidance_scale": (2.5, "Pipeline.forward", "guidance_scale"),
    "conditioning_scale": (0.5, "Pipeline.forward", "controlnet_conditioning_scale"),
    "subdivide": (True, "test_reconstruction", "subdivide"),
    "chunk_size": (20_000, "test_reconstruction", "chunk_size"),
    "with_texture": (True, "test_reconstruction", "save_uv"),
}


@pytest.mark.parametrize("name", OPTIONS)
async def test_each_option_reaches_upstream(
    sith: Harnessed, person: Any, calls: Any, name: str
) -> None:
    value, call, parameter = OPTIONS[name]
    ran = await sith.run(person, **{**FAST, name: value})
    assert ran.error is None, ran.log
    (made,) = calls(call)
    assert parameter is None or made[parameter] == value


async def test_the_fit_is_told_what_to_optimise(sith: Harnessed, person: Any) -> None:
    for name, usual in (("opt_orient", True), ("opt_betas", True), ("opt_pose", False)):
        ran = await sith.run(person, until="fit", **{**FAST, name: not usual})
        told = json.loads(ran.files["smplx.json"].read_text())
        assert told[name] is not usual and 0.3 < told["overlap"] <= 1
    assert Image.open(ran.files["fit.png"]).size == (1024, 1024)
    assert ran.files["smplx.obj"].read_text().count("\nv ") == 42


async def test_network_and_body_are_read_once(sith: Harnessed, person: Any) -> None:
    said = [
        line
        for iterations in (11, 12)
        for line in (await sith.run(person, until="fit", fit_iterations=iterations)).log
        if line.startswith("network")
    ]
    assert len(said) == 2 and said[0] == said[1] and said[0].endswith("of 1")


async def test_the_person_is_framed_as_upstream_frames(sith: Harnessed, person: Any) -> None:
    """870 of 1024 pixels tall, centred; the picture's pixels are mapped with it."""
    ran = await sith.run(person, until="frame")
    rows, columns = (np.flatnonzero(pixels(ran, "input.png")[..., 3].any(n)) for n in (1, 0))
    assert (rows[0], rows[-1] + 1) == (77, 947)
    assert columns[0] == pytest.approx((1024 - 348) // 2, abs=1)
    where = json.loads(ran.files["frame.json"].read_text())
    assert np.multiply([100, 120], where["scale"]) + where["offset"] == pytest.approx(
        [338, 77], abs=2
    )
    smaller = await sith.run(person, until="frame", ratio=0.7)
    assert pixels(smaller, "input.png")[..., 3].any(1).sum() == int(1024 * 0.7)


async def test_a_canvas_of_upstream_is_taken_as_it_is(
    sith: Harnessed, person: Any, tmp_path: Path
) -> None:
    canvas = figure((1024, 1024), (312, 62, 712, 962))
    canvas.save(tmp_path / "canvas.png")
    ran = await sith.run({"image": tmp_path / "canvas.png"}, until="frame", framed=True)
    assert (pixels(ran, "input.png")[..., 3] == np.asarray(canvas)[..., 3]).all()
    refused = await sith.run(person, framed=True)
    assert refused.failed_in == "frame" and refused.error and refused.error.code == "bad_input"
    assert "600 x 800" in refused.error.message


async def test_detected_keypoints_become_openpose_s(sith: Harnessed, person: Any) -> None:
    ran = await sith.run(person, until="keypoints")
    body = body_of(ran)
    top, bottom = 77, 947
    left, width = 338, 348
    assert body[0, :2] == pytest.approx([left + 0.5 * width, top + 0.08 * 870], abs=2)  # nose
    assert body[1, :2] == pytest.approx([left + 0.5 * width, top + 0.20 * 870], abs=2)  # neck
    assert body[8, :2] == pytest.approx([left + 0.5 * width, top + 0.50 * 870], abs=2)  # mid hip
    assert body[4, :2] == pytest.approx([left + 0.25 * width, top + 0.48 * 870], abs=2)  # r. wrist
    assert body[24, :2] == pytest.approx([left + 0.43 * width, top + 0.96 * 870], abs=2)  # r. heel
    assert (body[0, 2], body[1, 2]) == (1.0, 0.9)  # a confidence above 1 is cut
    assert (body[22] == 0).all()  # the unsure toe is missing
    assert body[body[:, 2] > 0, 1].max() < bottom
    assert Image.open(ran.files["keypoints.png"]).size == (1024, 1024)
    drawn = pixels(ran, "keypoints.png")[int(body[3, 1]), int(body[3, 0])]
    assert drawn.max() < 60  # a point lies on the elbow
    all_kept = await sith.run(person, until="keypoints", keypoint_confidence=0)
    assert (body_of(all_kept)[:, 2] > 0).all()


async def test_keypoints_of_the_user_are_mapped_and_the_detector_is_not_asked(
    sith: Harnessed, person: Any
) -> None:
    own = await sith.run(sent(person, openpose()), until="keypoints")
    assert own.error is None, own.error
    detected = await sith.run(person, until="keypoints", keypoint_confidence=0)
    assert body_of(own)[:, :2] == pytest.approx(body_of(detected)[:, :2], abs=2)
    assert (body_of(own)[:, 2] == 0.8).all()


async def test_hands_and_face_may_be_missing(sith: Harnessed, person: Any) -> None:
    bare = openpose(hand_left_keypoints_2d=[], face_keypoints_2d=[1.0] * 204)
    del bare["people"][0]["hand_right_keypoints_2d"]
    bare["people"].insert(0, {"pose_keypoints_2d": [0.0] * 75})  # a false find of OpenPose
    ran = await sith.run(sent(person, bare), until="fit", fit_iterations=10)
    assert ran.error is None, ran.error  # the stand-in of the fit counts them


def moved(by: float) -> list[float]:
    rows = np.reshape(openpose()["people"][0]["pose_keypoints_2d"], (25, 3)).copy()
    rows[:, 0] += by
    return rows.ravel().tolist()


def scaled(by: float) -> list[float]:
    rows = np.reshape(openpose()["people"][0]["pose_keypoints_2d"], (25, 3)).copy()
    rows[:, :2] *= by
    return rows.ravel().tolist()


REFUSED = [
    ("no JSON", "is not OpenPose's JSON"),
    ({"people": []}, "holds no person"),
    ({"persons": []}, "is not OpenPose's JSON"),
    (openpose(pose_keypoints_2d=[0.0] * 54), "54 numbers, not 75"),
    (openpose(pose_keypoints_2d=[0.0] * 75), "right shoulder, left shoulder, right hip"),
    (openpose(pose_keypoints_2d=scaled(1 / 1024)), "not pixels"),
    (openpose(pose_keypoints_2d=scaled(2)), "outside the picture"),
    (openpose(pose_keypoints_2d=moved(250)), "lie beside the outline"),
    (openpose(hand_left_keypoints_2d=[1.0] * 60), "hand_left_keypoints_2d has 60 numbers"),
    (openpose(face_keypoints_2d=[float("nan")] * 210), "no number"),
]


@pytest.mark.parametrize(("told", "message"), REFUSED)
async def test_keypoints_that_cannot_be_used_never_reach_the_gpu(
    sith: Harnessed, person: Any, told: Any, message: str
) -> None:
    ran = await sith.run(sent(person, told))
    assert ran.failed_in == "keypoints" and ran.error and ran.error.code == "bad_input"
    assert message in ran.error.message and ran.error.hint


async def test_pictures_without_a_person_never_reach_the_gpu(
    sith: Harnessed, tmp_path: Path
) -> None:
    figure((600, 800), (100, 120, 340, 720), "#2020ff").save(tmp_path / "blue.png")
    ran = await sith.run({"image": tmp_path / "blue.png"})
    assert ran.failed_in == "keypoints" and ran.error and ran.error.code == "bad_input"
    assert "No whole person was found" in ran.error.message
    figure((800, 400), (20, 150, 780, 380)).save(tmp_path / "wide.png")
    wide = await sith.run({"image": tmp_path / "wide.png"}, full_body=False)
    assert wide.failed_in == "frame" and wide.error and "leaves the canvas" in wide.error.message


async def test_a_fit_beside_the_person_is_told(sith: Harnessed, person: Any) -> None:
    rows = np.reshape(openpose()["people"][0]["pose_keypoints_2d"], (25, 3)).copy()
    rows[:, :2] = rows[:, :2] * 0.2 + [180, 200]
    ran = await sith.run(sent(person, openpose(pose_keypoints_2d=rows.ravel().tolist())))
    assert ran.failed_in == "fit" and ran.error and ran.error.code == "bad_input"
    assert "does not fit" in ran.error.message and "keypoints.png" in ran.error.hint


async def test_a_candidate_has_its_own_seed(sith: Harnessed, person: Any) -> None:
    """So it is the same however many are made, and together with how many."""
    shown: dict[tuple[int, int], list[int]] = {}
    for views, at_once in ((3, 8), (5, 2)):
        given = {**FAST, "back_views": views, "back_views_at_once": at_once, "seed": 40}
        ran = await sith.run(person, until="back", **given)
        names = [f"back_{n}.png" for n in range(views)]
        shown[views, at_once] = [int(pixels(ran, name)[0, 0, 0]) for name in names]
    assert shown[3, 8] == [40, 41, 42] and shown[5, 2] == [40, 41, 42, 43, 44]


async def test_the_chosen_candidate_is_used(sith: Harnessed, person: Any) -> None:
    given = {**FAST, "back_views": 3, "seed": 100, "back_view": 2, "erode_iter": 3}
    ran = await sith.run(person, **given)
    assert "back view 102, erode_iter 3" in ran.log
    with pytest.raises(BadInput, match="back_views is 3"):
        MODEL.resolve({"back_views": 3, "back_view": 3})
    with pytest.raises(BadInput, match="back_view"):
        MODEL.resolve({"preset": "draft", "back_view": 1})


async def test_another_diffusion_model_takes_the_place_of_the_loaded_one(
    sith: Harnessed, person: Any, calls: Any
) -> None:
    for name in ("SiTH-diffusion-1K", "SiTH-diffusion-1K", "SiTH_diffusion"):
        ran = await sith.run(person, until="back", **{**FAST, "back_model": name})
        assert f"back: {name}, seeds [2434]" in ran.log
    assert len(calls("BackHallucinationPipeline.__init__")) <= 3


async def test_normals_are_shown_as_seen_from_their_side(sith: Harnessed, person: Any) -> None:
    """The stand-in's point to +x on the left half, in the front's and in the mirrored back's."""
    ran = await sith.run(person, **FAST)
    front, back = pixels(ran, "normal_front.png"), pixels(ran, "normal_back.png")
    assert front[400, 450].tolist() == back[400, 570].tolist() == [255, 127, 127]
    assert front[400, 570].tolist() == back[400, 450].tolist() == [0, 127, 127]
    assert front[10, 10].tolist() == [255, 255, 255]


async def test_a_texture_takes_the_place_of_colours(sith: Harnessed, person: Any) -> None:
    ran = await sith.run(person, **FAST, with_texture=True)
    assert ran.error is None, ran.error
    tree = gltf(ran.files["model.glb"])
    assert "TEXCOORD_0" in tree["meshes"][0]["primitives"][0]["attributes"]
    assert len(tree["images"]) == 1
    assert [m["pbrMetallicRoughness"]["metallicFactor"] for m in tree["materials"]] == [0.0]


@pytest.mark.parametrize(
    ("altered", "stage"),
    [
        (standins.with_renamed(CONTRACT, "Evaluator.test_reconstruction", "save_uv", "uv"),
         "reconstruct"),
        (standins.without_default(
            CONTRACT, "BackHallucinationPipeline.forward", "control_guidance_end"), "back"),
    ],
    ids=["renamed parameter", "dropped default"],
)  # fmt: skip
async def test_a_changed_upstream_fails(
    tmp_path: Path, person: Any, altered: Any, stage: str
) -> None:
    env = environment(tmp_path / "changed", altered)
    async with harnessed(MODEL, tmp_path / "changed", env) as running:
        ran = await running.run(person, **FAST)
    assert ran.failed_in == stage and ran.error and ran.error.message.startswith("TypeError")


TOLD = [
    # call, error, what upstream says, stage, code, a word of what to do
    ("Evaluator.test_reconstruction", "AttributeError",
     "'NoneType' object has no attribute 'is_watertight'", "reconstruct", "no_surface", "fit.png"),
    ("Evaluator.test_reconstruction", "RuntimeError",
     "CUDA out of memory. Tried to allocate 2.00 GiB", "reconstruct", "out_of_memory", "grid_size"),
    ("BackHallucinationPipeline.forward", "RuntimeError",
     "CUDA out of memory. Tried to allocate 2.00 GiB", "back", "out_of_memory",
     "back_views_at_once"),
    ("TestDiffDataset.__init__", "AttributeError", "module 'nvdiffrast' has no attribute 'torch'",
     "back", "not_installed", "doctor"),
    ("TestFolderDataset.__init__", "RuntimeError", "CUDA error: no kernel image is available for "
     "execution on the device", "reconstruct", "unsupported_gpu", "8.0, 8.6"),
    ("BackHallucinationPipeline.forward", "RuntimeError", "something new", "back",
     "upstream_failure", ""),
]  # fmt: skip
TOLD_AT_LOAD = [
    ("NotInstalled: smplx/SMPLX_MALE.npz is not there.", "weights_missing", "--licensed"),
    ("AssertionError: Path SMPLX_MALE.npz does not exist!", "weights_missing", "smpl-x.is.tue"),
    ("NotInstalled: checkpoints/recon_model.pth is not there.", "weights_missing", "doctor"),
    ("OSError: Error no file named config.json found in directory SiTH_diffusion.",
     "weights_missing", "doctor"),
    ("FileNotFoundError: [Errno 2] No such file or directory: 'smplx_openpose25.json'",
     "not_installed", "doctor"),
    ("ModuleNotFoundError: No module named 'kaolin._C'", "not_installed", "doctor"),
    ("RuntimeError: No CUDA GPUs are available", "no_gpu", "--gpus all"),
    ("RuntimeError: Found no NVIDIA driver on your system.", "no_gpu", "--gpus all"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "text", "stage", "code", "todo"), TOLD)
async def test_failures_are_told_in_words(
    sith: Harnessed, person: Any, call: str, error: str, text: str, stage: str, code: str, todo: str
) -> None:
    upstream = sith.folder / "upstream"
    standins.lay_fault(upstream, call, error, text)
    ran = await sith.run(person, **FAST)
    standins.lay_fault(upstream, "", "", "")
    assert ran.error and ran.failed_in == stage
    told = explained(ran.error, MODEL)
    if told.code == "out_of_memory":
        told = replace(told, hint=MODEL.stage(stage).lighter)
    assert (told.code, todo in told.hint) == (code, True), told
    assert (await sith.run(person, **FAST)).error is None  # the worker, or the next, goes on


@pytest.mark.parametrize(("text", "code", "todo"), TOLD_AT_LOAD)
def test_failures_of_the_load_are_known(text: str, code: str, todo: str) -> None:
    told = explained(JobError("load_failed", text), MODEL)
    assert (told.code, todo in told.hint) == (code, True), told


async def test_a_missing_body_model_is_told_at_load(tmp_path: Path, person: Any) -> None:
    env = environment(tmp_path / "bare")
    (tmp_path / "bare" / "weights" / "body_models" / "smplx" / "SMPLX_MALE.npz").unlink()
    async with harnessed(MODEL, tmp_path / "bare", env) as running:
        ran = await running.run(person, **FAST)
    assert ran.failed_in == "fit" and ran.error
    assert explained(ran.error, MODEL).code == "weights_missing"


def test_a_job_needs_memory_for_the_views_that_it_makes_at_once() -> None:
    def needs(**given: Any) -> float:
        return MODEL.vram_gb(MODEL.resolve({"back_model": "SiTH-diffusion-1K", **given}))["gpu"]

    assert needs() == needs(back_views=3) == 40
    assert needs(back_views=1) == needs(back_views_at_once=2) == needs(preset="ultra") == 20


def test_declaration_holds_together() -> None:
    declared = {name for stage in MODEL.stages for name in stage.params}
    general = {"output_format"}
    assert declared | general == set(MODEL.params.model_fields)
    lock = (Path(__file__).parents[2] / "requirements" / "serving.lock").read_text()
    text = dockerfile(MODEL, lock)
    for needed in ("nvdiffrast", "tinyobjloader", "kaolin==0.15.0", "SMPLX_MALE.npz"):
        assert needed in text, needed
    card = README.read_text()
    for name in (*MODEL.params.model_fields, *MODEL.presets):
        assert f"`{name}`" in card, name
    for fault in MODEL.faults:
        assert fault.message in card, fault.message
