"""sam3d through the real harness, against stand-ins that accept what upstream accepts, no more."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from polypod.errors import BadInput
from polypod.image import Image as Environment
from polypod.jobs.faults import explained
from polypod.jobs.job import JobError
from polypod.settings import Settings
from services.sam3d.model import MODEL
from tests.api.serving import Server, until
from tests.contracts import standins
from tests.contracts.harnessed import Harnessed, Ran, harnessed
from tests.contracts.sam3d import environment

pytestmark = pytest.mark.anyio

CONTRACT = standins.contract("sam3d")
README = MODEL.folder / "README.md"


@pytest.fixture(scope="module")
async def sam3d(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Harnessed]:
    folder = tmp_path_factory.mktemp("sam3d")
    async with harnessed(MODEL, folder, environment(folder)) as running:
        yield running


@pytest.fixture
def calls(sam3d: Harnessed) -> Any:
    """What the current test has called upstream with, by name."""
    return standins.calls_from_now(sam3d.folder / "upstream")


@pytest.fixture
def scene(tmp_path: Path) -> dict[str, Path]:
    """A dark square before a light wall, 100 x 80 pixels."""
    picture = Image.new("RGB", (100, 80), (220, 220, 210))
    picture.paste((60, 40, 30), (30, 20, 70, 60))
    picture.save(tmp_path / "scene.png")
    return {"image": tmp_path / "scene.png"}


def alpha_of(ran: Ran) -> np.ndarray:
    return np.asarray(Image.open(ran.files["input.png"]))[..., 3]


def gltf(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])


@pytest.mark.parametrize("preset", list(MODEL.presets))
async def test_every_preset_runs_all_stages(
    sam3d: Harnessed, scene: Any, calls: Any, preset: str
) -> None:
    ran = await sam3d.run(scene, preset=preset)
    assert ran.error is None, (ran.error, ran.log)
    wanted = MODEL.resolve({"preset": preset})
    (first,), (second,) = calls("sample_sparse_structure"), calls("sample_slat")
    assert first["inference_steps"] == wanted["stage1_inference_steps"]
    assert first["use_distillation"] == wanted["use_stage1_distillation"]
    assert second["inference_steps"] == wanted["stage2_inference_steps"]
    assert len(ran.progress["structure"]) >= 1
    told = ran.progress["latent"][-1]
    steps = wanted["stage2_inference_steps"]
    assert told == (1.0, f"Latent, step {steps} of {steps}")
    made = set(gltf(ran.files["model.glb"])["meshes"][0]["primitives"][0]["attributes"])
    assert ("TEXCOORD_0" in made, "COLOR_0" in made) == (
        wanted["with_texture"],
        not wanted["with_texture"],
    )
    pose = json.loads(ran.files["pose.json"].read_text())
    assert pose["rotation_wxyz"] == [1, 0, 0, 0] and pose["scale"] == [1, 1, 1]  # 0.5, halved grid


async def test_upstream_is_set_up_for_a_machine_without_network(
    sam3d: Harnessed, scene: Any
) -> None:
    await sam3d.run(scene)
    made = standins.calls(sam3d.folder / "upstream")
    (pipe,) = [row["values"] for row in made if row["call"] == "InferencePipeline.__init__"]
    assert pipe["compile_model"] is False
    assert pipe["slat_decoder_gs_4_config_path"] is pipe["slat_decoder_gs_4_ckpt_path"] is None
    (depth,) = [row["values"] for row in made if row["call"] == "DepthModel.__init__"]
    assert depth["model"]["pretrained_model_name_or_path"] == "/weights/moge/model.pt"
    assert pipe["workspace_dir"] == str(sam3d.folder / "checkpoints")


async def test_a_ply_never_decodes_the_mesh(sam3d: Harnessed, scene: Any, calls: Any) -> None:
    ran = await sam3d.run(scene, output_format="ply")
    assert ran.error is None
    assert [call["formats"] for call in calls("decode_slat")] == [["gaussian"]]
    assert not calls("to_glb") and "mesh.npz" not in ran.files
    assert ran.files["model.ply"].read_bytes().startswith(b"ply")


async def test_both_results_come_of_one_run(sam3d: Harnessed, scene: Any, calls: Any) -> None:
    ran = await sam3d.run(scene, with_splat=True)
    assert {"model.glb", "model.ply"} <= set(ran.files)
    assert len(calls("sample_slat")) == 1


async def test_no_surface_is_metal(sam3d: Harnessed, scene: Any) -> None:
    for with_texture in (True, False):
        ran = await sam3d.run(scene, with_texture=with_texture)
        tree = gltf(ran.files["model.glb"])
        assert [m["pbrMetallicRoughness"]["metallicFactor"] for m in tree["materials"]] == [0.0]
        assert tree["meshes"][0]["primitives"][0]["material"] == 0


async def test_colours_of_vertices_are_linear_as_gltf_has_them(
    sam3d: Harnessed, scene: Any
) -> None:
    """The stand-in's mesh is middle grey, 0.5 of what a screen shows: 0.214 of the light."""
    ran = await sam3d.run(scene, with_texture=False)
    tree, data = gltf(ran.files["model.glb"]), ran.files["model.glb"].read_bytes()
    colours = tree["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]
    view = tree["bufferViews"][tree["accessors"][colours]["bufferView"]]
    start = 28 + int.from_bytes(data[12:16], "little") + view.get("byteOffset", 0)
    assert list(data[start : start + 3]) == pytest.approx([54] * 3, abs=1)


OPTIONS = {
    "with_mesh_postprocess": (False, "to_glb", "with_mesh_postprocess"),
    "simplify": (0.5, "to_glb", "simplify"),
    "fill_holes": (False, "to_glb", "fill_holes"),
    "fill_holes_max_size": (0.1, "to_glb", "fill_holes_max_size"),
    "texture_size": (512, "to_glb", "texture_size"),
    "rendering_engine": ("pytorch3d", "to_glb", "rendering_engine"),
    "nviews": (20, "render_multiview", "nviews"),
    "view_resolution": (512, "render_multiview", "resolution"),
    "use_stage1_distillation": (True, "sample_sparse_structure", "use_distillation"),
    "use_stage2_distillation": (True, "sample_slat", "use_distillation"),
    "stage1_inference_steps": (3, "sample_sparse_structure", "inference_steps"),
    "stage2_inference_steps": (3, "sample_slat", "inference_steps"),
}


@pytest.mark.parametrize("name", OPTIONS)
async def test_each_option_reaches_upstream(
    sam3d: Harnessed, scene: Any, calls: Any, name: str
) -> None:
    value, call, parameter = OPTIONS[name]
    ran = await sam3d.run(scene, **{name: value})
    assert ran.error is None, ran.log
    assert [made[parameter] for made in calls(call)] == [value]


def test_a_texture_that_nvdiffrast_cannot_halve_down_to_one_pixel_is_refused_at_once() -> None:
    """Its mip maps (`calculateMipInfo` in texture.cpp) would fail in the middle of the bake."""
    for size in (1000, 1536, 3000):
        with pytest.raises(BadInput, match="texture_size"):
            MODEL.resolve({"texture_size": size})


async def test_guidance_is_that_of_the_weights_unless_given(sam3d: Harnessed, scene: Any) -> None:
    """The stand-in prints what it samples with, as upstream does."""
    given = {"ss_cfg_strength": 3.0, "ss_rescale_t": 2.0, "slat_cfg_strength": 4.0}
    changed = await sam3d.run(scene, until="latent", slat_rescale_t=1.5, **given)
    assert {"ss: strength 3.0, rescale_t 2.0", "slat: strength 4.0, rescale_t 1.5"} <= {
        *changed.log
    }
    usual = await sam3d.run(scene, until="latent", seed=7)
    assert {"ss: strength 7, rescale_t 3", "slat: strength 1, rescale_t 1"} <= {*usual.log}


async def test_the_random_state_travels_with_the_files(sam3d: Harnessed, scene: Any) -> None:
    """As in one uncut run: the second sampling goes on where the first left the generator."""
    feats = []
    for seed in (5, 5, 6):
        ran = await sam3d.run(scene, until="latent", seed=seed)
        with np.load(ran.files["latent.npz"]) as kept:
            feats.append(kept["feats"])
    assert (feats[0] == feats[1]).all() and (feats[0] != feats[2]).any()
    state = int.from_bytes((5).to_bytes(16, "little")[:15] + b"\x01", "little")
    assert feats[0] == pytest.approx(np.random.default_rng(state).random((64, 8)), abs=1e-6)


async def test_the_background_stays_and_the_mask_is_binary(
    sam3d: Harnessed, scene: Any, tmp_path: Path
) -> None:
    ran = await sam3d.run(scene, until="cutout")
    cut = np.asarray(Image.open(ran.files["input.png"]))
    assert (cut[..., :3] == np.asarray(Image.open(scene["image"]))).all()
    assert (alpha_of(ran)[20:60, 30:70] == 255).all() and (alpha_of(ran) > 0).sum() == 1600
    soft = Image.open(scene["image"]).convert("RGBA")
    soft.putalpha(Image.linear_gradient("L").resize(soft.size))
    soft.save(tmp_path / "soft.png")
    assert set(np.unique(alpha_of(await sam3d.run({"image": tmp_path / "soft.png"})))) == {0, 255}


async def test_a_huge_picture_is_made_smaller(sam3d: Harnessed, tmp_path: Path) -> None:
    Image.new("RGB", (5000, 1000), (9, 9, 9)).save(tmp_path / "huge.png")
    ran = await sam3d.run({"image": tmp_path / "huge.png"}, until="cutout", mask_mode="full")
    assert Image.open(ran.files["input.png"]).size == (4096, 819)


async def test_mask_modes(sam3d: Harnessed, scene: Any, tmp_path: Path) -> None:
    center = alpha_of(await sam3d.run(scene, until="cutout", mask_mode="center"))
    assert (center[8:72, 10:90] == 255).all() and (center > 0).sum() == 64 * 80
    assert (alpha_of(await sam3d.run(scene, until="cutout", mask_mode="full")) == 255).all()
    opaque = await sam3d.run(scene, until="cutout", mask_mode="alpha")
    assert opaque.error and opaque.error.code == "bad_input"
    assert "no transparent part" in opaque.error.message and "`mask`" in opaque.error.hint
    mask = Image.new("L", (200, 160))
    mask.paste(255, (0, 0, 100, 80))
    mask.save(tmp_path / "mask.png")
    given = await sam3d.run({**scene, "mask": tmp_path / "mask.png"}, until="cutout")
    assert (alpha_of(given)[:40, :50] == 255).all() and (alpha_of(given) > 0).sum() == 2000


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.new("L", (100, 80)), "0 x 0 pixels: too small, or none was found"),
        (Image.new("L", (100, 80)).crop((0, 0, 50, 80)), "differ in shape"),
    ],
)
async def test_pictures_that_cannot_be_used_never_reach_the_gpu(
    sam3d: Harnessed, scene: Any, tmp_path: Path, mask: Image.Image, message: str
) -> None:
    mask.save(tmp_path / "mask.png")
    ran = await sam3d.run({**scene, "mask": tmp_path / "mask.png"})
    assert ran.failed_in == "cutout" and ran.error and ran.error.code == "bad_input"
    assert message in ran.error.message and ran.error.hint


@pytest.mark.parametrize(
    "altered",
    [
        standins.with_renamed(CONTRACT, "to_glb", "simplify", "simplify_ratio"),
        standins.without_default(CONTRACT, "to_glb", "debug"),
    ],
    ids=["renamed parameter", "dropped default"],
)
async def test_a_changed_upstream_fails(tmp_path: Path, scene: Any, altered: Any) -> None:
    env = environment(tmp_path / "changed", altered)
    async with harnessed(MODEL, tmp_path / "changed", env) as running:
        ran = await running.run(scene, preset="draft")
    assert ran.failed_in == "bake" and ran.error and ran.error.message.startswith("TypeError")


TOLD = [
    # call, error, what upstream says, code, a word of what to do
    ("compute_pointmap", "RuntimeError", "CUDA error: no kernel image is available for execution "
     "on the device", "unsupported_gpu", "8.0, 8.6"),
    ("compute_pointmap", "RuntimeError", "max(): Expected reduction dim to be specified for "
     "input.numel() == 0. Specify the reduction dim with the 'dim' argument.", "bad_input", "mask"),
    ("decode_slat", "RuntimeError", "CUDA out of memory. Tried to allocate 3.15 GiB",
     "out_of_memory", "output_format ply"),
    ("to_glb", "ModuleNotFoundError", "No module named 'nvdiffrast'", "not_installed", "doctor"),
    ("to_glb", "NameError", "name 'GaussianRasterizationSettings' is not defined",
     "not_installed", "doctor"),
    ("to_glb", "RuntimeError", "CUDA out of memory. Tried to allocate 31.00 GiB",
     "out_of_memory", "nviews"),
    ("render_multiview", "RuntimeError", "something new", "upstream_failure", ""),
]  # fmt: skip
TOLD_AT_LOAD = [
    ("InferencePipeline.__init__", "ModuleNotFoundError", "No module named 'sam3d_objects.init'",
     "not_installed", "doctor"),
    ("InferencePipeline.__init__", "UnboundLocalError", "cannot access local variable 'gpu_name' "
     "where it is not associated with a value", "no_gpu", "--gpus all"),
    ("InferencePipeline.__init__", "RuntimeError", "No CUDA GPUs are available", "no_gpu", "gpus"),
    ("InferencePipeline.__init__", "ModuleNotFoundError", "No module named 'flash_attn'",
     "not_installed", "ATTN_BACKEND=xformers"),
    ("InferencePipeline.__init__", "RuntimeError", "Error in call to target "
     "'moge.model.v1.MoGeModel.from_pretrained': LocalEntryNotFoundError", "weights_missing",
     "doctor"),
    ("InferencePipeline.__init__", "OSError", "HTTP Error 403: rate limit exceeded",
     "weights_missing", "doctor"),
    ("InferencePipeline.__init__", "FileNotFoundError", "[Errno 2] No such file or directory: "
     "'ss_generator.ckpt'", "weights_missing", "HF_TOKEN"),
]  # fmt: skip


def in_words(ran: Ran) -> JobError:
    """As the job would show it."""
    assert ran.error
    error = explained(ran.error, MODEL)
    lighter = next((s.lighter for s in MODEL.stages if s.name == ran.failed_in), "")
    return replace(error, hint=lighter) if error.code == "out_of_memory" else error


@pytest.mark.parametrize(("call", "error", "text", "code", "todo"), TOLD)
async def test_failures_are_told_in_words(
    sam3d: Harnessed, scene: Any, call: str, error: str, text: str, code: str, todo: str
) -> None:
    upstream = sam3d.folder / "upstream"
    qualname = next(r["qualname"] for r in CONTRACT["symbols"] if r["qualname"].endswith(call))
    standins.lay_fault(upstream, qualname, error, text)
    ran = await sam3d.run(scene, seed=11)
    standins.lay_fault(upstream, "", "", "")
    told = in_words(ran)
    assert (told.code, todo in told.hint) == (code, True), told
    assert (await sam3d.run(scene, seed=11)).error is None  # the worker, or the next, goes on


@pytest.mark.parametrize(("call", "error", "text", "code", "todo"), TOLD_AT_LOAD)
def test_failures_of_the_load_are_known(
    call: str, error: str, text: str, code: str, todo: str
) -> None:
    told = explained(JobError("load_failed", f"{error}: {text}"), MODEL)
    assert (told.code, todo in told.hint) == (code, True), told


async def test_a_failure_of_the_load_is_told_in_words(tmp_path: Path, scene: Any) -> None:
    env = environment(tmp_path / "load")
    call, error, text, code, _ = TOLD_AT_LOAD[1]
    standins.lay_fault(tmp_path / "load" / "upstream", call, error, text)
    async with harnessed(MODEL, tmp_path / "load", env) as running:
        ran = await running.run(scene)
    assert (in_words(ran).code, ran.failed_in) == (code, "depth")


def test_health_says_in_words_why_it_cannot_load(tmp_path: Path) -> None:
    env = {**MODEL.image.env, **environment(tmp_path)}
    call, error, text, _, todo = TOLD_AT_LOAD[0]
    standins.lay_fault(tmp_path / "upstream", call, error, text)
    model = replace(MODEL, image=Environment(env=env))
    server = Server(Settings(data=tmp_path / "data", doctor="off", needs="off"), model)
    try:
        (reason,) = until(lambda: server.client.get("/health").json()["reasons"])
    finally:
        server.stop()
    assert reason.startswith("A package or a compiled extension of the model is missing.")
    assert todo in reason


def test_a_processor_that_is_too_old_is_told() -> None:
    error = explained(JobError("worker_died", "killed by SIGILL"), MODEL)
    assert error.code == "host_fault" and "another machine" in error.hint


def test_declaration_holds_together() -> None:
    declared = {name for stage in MODEL.stages for name in stage.params}
    assert declared == set(MODEL.params.model_fields)
    assert MODEL.result_name(MODEL.resolve({})) == "model.glb"
    splat = MODEL.plan(MODEL.resolve({"output_format": "ply"}))
    assert "bake" not in [stage.name for stage in splat]
    card = README.read_text()
    for name in MODEL.params.model_fields:
        assert f"`{name}`" in card, name
    for fault in MODEL.faults:
        assert fault.message in card, fault.message
