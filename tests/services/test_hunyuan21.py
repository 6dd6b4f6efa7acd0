"""hunyuan21 through the real harness, against stand-ins that accept just what upstream accepts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

from polypod.build import bake
from polypod.build.container import check_supplied
from polypod.errors import BadInput
from polypod.jobs.faults import explained
from polypod.jobs.job import JobError
from services.hunyuan21.model import MODEL
from services.hunyuan21.worker import split_model_path
from tests.contracts import standins
from tests.contracts.harnessed import Harnessed, harnessed

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "hunyuan21", "rembg")
PIPELINE = "Hunyuan3DDiTFlowMatchingPipeline.__call__"
PAINT = "Hunyuan3DPaintPipeline.__call__"
WITHOUT_VIEWS = replace(MODEL, stages=tuple(s for s in MODEL.stages if s.name != "views"))
QUICK = {"num_inference_steps": 2, "octree_resolution": 64}
Called = Callable[[str], list[dict[str, Any]]]


def prepare(folder: Path, altered: standins.Contract | None = None) -> dict[str, str]:
    """A home as `polypod setup` leaves it, with stand-ins for the checkout; the environment."""
    source = standins.build("hunyuan21", folder / "src" / "Hunyuan3D-2.1", altered, PACKAGES)
    weights = folder / "weights"
    shape = weights / "hy3dgen" / "tencent" / "Hunyuan3D-2.1" / "hunyuan3d-dit-v2-1"
    for file in (
        shape / "config.yaml",
        shape / "model.fp16.ckpt",
        source / "ckpt" / "RealESRGAN_x4plus.pth",
        weights / "u2net" / "u2net.onnx",
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return {"PYTHONPATH": str(source), "TMPDIR": str(folder)}


@pytest.fixture(scope="module")
async def hunyuan(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Harnessed]:
    folder = tmp_path_factory.mktemp("hunyuan")
    async with harnessed(MODEL, folder, prepare(folder)) as running:
        yield running


@pytest.fixture
def calls(hunyuan: Harnessed) -> Called:
    """What the current test has called upstream with, by name."""
    return standins.calls_from_now(hunyuan.folder / "src" / "Hunyuan3D-2.1")


@pytest.fixture
def picture(tmp_path: Path) -> dict[str, Path]:
    """A dark rectangle before a light wall, 200 x 160 pixels."""
    image = Image.new("RGB", (200, 160), (220, 220, 210))
    image.paste((60, 40, 30), (50, 30, 130, 90))
    image.save(tmp_path / "photo.png")
    return {"image": tmp_path / "photo.png"}


async def test_every_preset_runs_its_stages(
    hunyuan: Harnessed, picture: Any, calls: Called
) -> None:
    for preset, values in MODEL.presets.items():
        ran = await hunyuan.run(picture, preset=preset)
        assert ran.error is None, (preset, ran.error, ran.log)
        assert ("albedo.jpg" in ran.files) == values["with_texture"]
    shapes, paints = calls(PIPELINE), calls(PAINT)
    assert [s["num_inference_steps"] for s in shapes] == [30, 50, 50, 50]
    assert [s["octree_resolution"] for s in shapes] == [256, 384, 384, 384]
    assert all(s["guidance_scale"] == 5.0 and s["num_chunks"] == 8000 for s in shapes)
    assert len(paints) == 2
    assert not list(hunyuan.folder.glob("*.ply")), "temporary files of upstream's are left"


async def test_the_default_is_upstreams_best_official_setting(
    hunyuan: Harnessed, picture: Any, calls: Called
) -> None:
    ran = await hunyuan.run(picture)
    (shape,), (config,) = calls(PIPELINE), [MODEL.resolve({})]
    assert (shape["num_inference_steps"], shape["octree_resolution"]) == (50, 384)
    assert (config["max_num_view"], config["view_resolution"]) == (8, 768)
    assert config["seed"] == 1234
    assert any("Enlarging" in message for _, message in ran.progress["paint"])


async def test_every_parameter_reaches_upstream(
    hunyuan: Harnessed, picture: Any, calls: Called
) -> None:
    given = {"guidance_scale": 7.5, "num_chunks": 20_000, "mc_level": 0.1, "seed": 7}
    ran = await hunyuan.run(
        picture,
        **QUICK,
        **given,
        remove_floaters=True,
        face_count=50_000,
        max_num_view=6,
        view_resolution=512,
    )
    assert ran.error is None, ran.log
    (shape,), (paint,) = calls(PIPELINE), calls(PAINT)
    assert {name: shape[name] for name in (*QUICK, "guidance_scale", "num_chunks", "mc_level")} == {
        **QUICK,
        **{name: given[name] for name in ("guidance_scale", "num_chunks", "mc_level")},
    }
    assert (
        len(calls("FloaterRemover.__call__")) == len(calls("DegenerateFaceRemover.__call__")) == 1
    )
    assert calls("FaceReducer.__call__")[0]["max_facenum"] == 50_000
    assert paint["use_remesh"] is False, "upstream's remeshing would cut it to 40 000"
    assert ran.progress["paint"][-1][0] == pytest.approx(0.8 - 0.3 / 12, abs=0.01)


async def test_a_mesh_that_upstreams_reducer_leaves_too_large_is_painted_all_the_same(
    hunyuan: Harnessed, picture: Any, tmp_path: Path
) -> None:
    """The stand-in's reducer leaves all; upstream's next step would need Open3D, which is no pin
    of ours."""
    trimesh.creation.icosphere(4).export(tmp_path / "own.glb")
    ran = await hunyuan.run({**picture, "mesh": tmp_path / "own.glb"}, face_count=2000)
    assert ran.error is None, ran.log
    assert len(trimesh.load(ran.files["model.glb"], force="mesh").faces) == 2000


async def test_memory_is_given_back_before_each_stage(
    hunyuan: Harnessed, picture: Any, calls: Called
) -> None:
    for _ in range(3):
        await hunyuan.run(picture, until="shape", **QUICK)
    assert len(calls("empty_cache")) >= 2
    assert MODEL.image.env["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"


async def test_textured_result(hunyuan: Harnessed, picture: Any) -> None:
    """PBR maps as glTF has them, normals smooth over the texture's seams, no second geometry."""
    ran = await hunyuan.run(picture, **QUICK)
    mesh = trimesh.load(ran.files["model.glb"], force="mesh", process=False)
    material = mesh.visual.material
    assert material.metallicFactor == material.roughnessFactor == 1.0
    assert material.baseColorTexture.getpixel((5, 5))[0] > 180
    _, roughness, metallic = material.metallicRoughnessTexture.convert("RGB").getpixel((5, 5))
    assert abs(roughness - 240) < 8 and abs(metallic - 10) < 8
    outwards = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)
    assert (mesh.vertex_normals * outwards).sum(1).min() > 0.98
    assert len(mesh.faces) == 1280


async def test_views_are_four_sides_of_the_shape(hunyuan: Harnessed, picture: Any) -> None:
    ran = await hunyuan.run(picture, until="views", **QUICK)
    assert "model.glb" not in ran.files
    for number in range(4):
        view = np.asarray(Image.open(ran.files[f"view_{number}.png"]).convert("L"))
        assert view.shape == (512, 512)
        assert view.std() > 8, "more than the backdrop"


async def test_shape_alone_is_the_result_without_texture(hunyuan: Harnessed, picture: Any) -> None:
    ran = await hunyuan.run(picture, with_texture=False, **QUICK)
    assert ran.files["model.glb"].read_bytes() == ran.files["shape.glb"].read_bytes()
    shape = next(stage for stage in MODEL.stages if stage.name == "shape")
    assert "shape.glb" in shape.assets, "to be had while the job is still painting"


async def test_another_texture_reuses_the_shape() -> None:
    """The keys of the stages before paint hold nothing of it."""
    first, second = MODEL.resolve({"preset": "high"}), MODEL.resolve({"preset": "ultra"})
    for stage in MODEL.stages:
        keys = {MODEL.stage_key(stage, {}, params, "") for params in (first, second)}
        assert len(keys) == (2 if stage.name == "paint" else 1)


async def test_cutout_is_square_without_haze(hunyuan: Harnessed, picture: Any) -> None:
    ran = await hunyuan.run(picture, until="cutout")
    cut = Image.open(ran.files["input.png"])
    assert cut.size == (94, 94) and cut.mode == "RGBA"
    assert cut.getchannel("A").getbbox() == (7, 17, 87, 77)


async def test_a_picture_that_is_cut_out_already_stays_so(
    hunyuan: Harnessed, tmp_path: Path
) -> None:
    image = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
    image.paste((200, 10, 10, 255), (10, 20, 60, 80))
    image.save(tmp_path / "cut.png")
    ran = await hunyuan.run({"image": tmp_path / "cut.png"}, until="cutout")
    assert Image.open(ran.files["input.png"]).getpixel((35, 35)) == (200, 10, 10, 255)


async def test_mask_and_whole_frame(hunyuan: Harnessed, picture: Any, tmp_path: Path) -> None:
    mask = Image.new("L", (200, 160), 0)
    mask.paste(255, (0, 0, 100, 100))
    mask.save(tmp_path / "mask.png")
    masked = await hunyuan.run({**picture, "mask": tmp_path / "mask.png"}, until="cutout")
    assert Image.open(masked.files["input.png"]).size == (118, 118)
    whole = await hunyuan.run(picture, until="cutout", remove_background=False)
    assert Image.open(whole.files["input.png"]).size == (235, 235)


async def test_a_picture_without_object_is_refused_before_the_gpu(
    hunyuan: Harnessed, tmp_path: Path, calls: Called
) -> None:
    Image.new("RGB", (64, 64), (9, 9, 9)).save(tmp_path / "wall.png")
    ran = await hunyuan.run({"image": tmp_path / "wall.png"})
    assert (ran.failed_in, ran.error and ran.error.code) == ("cutout", "bad_input")
    assert ran.error and "mask" in ran.error.hint
    assert not calls(PIPELINE)


async def test_no_surface_says_what_to_do(hunyuan: Harnessed, picture: Any) -> None:
    ran = await hunyuan.run(picture, seed=13, **QUICK)
    assert ran.error and ran.error.code == "upstream_failure"
    assert ran.error.message == "NoSurface: The model found no surface in this picture."
    assert "another seed" in ran.error.hint


async def test_out_of_memory(hunyuan: Harnessed, picture: Any) -> None:
    ran = await hunyuan.run(picture, seed=14, **QUICK)
    assert (ran.failed_in, ran.error and ran.error.code) == ("shape", "out_of_memory")
    for stage, words in (
        ("shape", ("draft", "octree_resolution", "num_chunks")),
        ("paint", ("high", "balanced", "max_num_view", "view_resolution")),
    ):
        assert all(word in MODEL.stage(stage).lighter for word in words)


@pytest.mark.parametrize(
    ("gone", "variable", "message"),
    [
        ("weights/hy3dgen", "", "hunyuan3d-dit-v2-1/config.yaml is not there."),
        ("src/Hunyuan3D-2.1/hy3dshape", "", "hy3dshape/pipelines.py is not there."),
        ("src/Hunyuan3D-2.1/ckpt", "", "ckpt/RealESRGAN_x4plus.pth is not there."),
        ("weights/u2net", "", "its weights (u2net.onnx) are not installed."),
        ("", "STANDIN_NOT_COMPILED", "custom_rasterizer has no rasterize: it is not compiled."),
        ("", "STANDIN_NOT_CACHED", "The paint model cannot be read"),
    ],
)
async def test_what_is_not_installed_is_told(
    tmp_path: Path, picture: Any, gone: str, variable: str, message: str
) -> None:
    home = tmp_path / "home"
    env = prepare(home) | ({variable: "1"} if variable else {})
    if gone:
        (home / gone).rename(tmp_path / "elsewhere")
    async with harnessed(WITHOUT_VIEWS, home, env) as running:
        ran = await running.run(picture, **QUICK)
    assert ran.error and message in ran.error.message, ran.log
    assert "polypod doctor" in ran.error.hint


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("NoSurface: The model found no surface in this picture.", "no_surface"),
        ("ValueError: input image is empty", "bad_input"),
        ("ValueError: zero-size array to reduction operation minimum", "bad_input"),
        ("ModuleNotFoundError: No module named 'bpy'", "not_installed"),
        ("No module named 'torchvision.transforms.functional_tensor'", "not_installed"),
        ("NameError: name 'meshVerticeInpaint' is not defined", "not_installed"),
        ("module 'custom_rasterizer' has no attribute 'rasterize'", "not_installed"),
        ("ImportError: libblas.so: undefined symbol: _ZN3", "not_installed"),
        ("No such file or directory: 'model.fp16.ckpt'", "weights_missing"),
        ("LocalEntryNotFoundError: Cannot find an appropriate cached snapshot", "weights_missing"),
        ("HFValidationError: Repo id must be in the form 'repo_name'", "weights_missing"),
        ("RuntimeError: CUDA error: no kernel image is available", "unsupported_gpu"),
        ("RuntimeError: No available kernel. Aborting execution.", "unsupported_gpu"),
        ("RuntimeError: No CUDA GPUs are available", "no_gpu"),
        ("RuntimeError: something new", "upstream_failure"),
    ],
)
def test_known_failures_are_told_in_words(said: str, code: str) -> None:
    error = explained(JobError("upstream_failure", said), MODEL)
    assert error.code == code
    assert bool(error.hint) == (code != "upstream_failure")


def test_the_build_asks_for_no_revision_and_takes_each_network_once() -> None:
    check_supplied(MODEL, None, {})
    (giant,) = (source for source in MODEL.weights.hub if source.repo == "facebook/dinov2-giant")
    lies_there = ("config.json", "preprocessor_config.json", "model.safetensors")
    assert all(bake.wanted(name, vars(giant)) for name in lies_there)
    assert not bake.wanted("pytorch_model.bin", vars(giant)), "the same 4.5 GB as a pickle"


def test_every_error_is_on_the_card() -> None:
    card = (MODEL.folder / "README.md").read_text()
    for fault in MODEL.faults:
        assert f"`{fault.code}`" in card
    for name in (*MODEL.params.model_fields, *MODEL.presets):
        assert f"`{name}`" in card or name == "output_format"
    for setting in MODEL.settings:
        assert all(f"`{variable}`" in card for variable in setting.env)


@pytest.mark.parametrize(
    "alter",
    [
        lambda told: standins.with_renamed(told, PIPELINE, "octree_resolution", "resolution"),
        lambda told: standins.without_default(told, PIPELINE, "box_v"),
        lambda told: standins.with_renamed(told, PAINT, "use_remesh", "remesh"),
    ],
)
async def test_a_changed_contract_fails(tmp_path: Path, picture: Any, alter: Any) -> None:
    altered = alter(standins.contract("hunyuan21"))
    home = tmp_path / "home"
    async with harnessed(WITHOUT_VIEWS, home, prepare(home, altered)) as running:
        ran = await running.run(picture, **QUICK)
    assert ran.error and "TypeError" in ran.error.message


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("tencent/Hunyuan3D-2.1", ("tencent/Hunyuan3D-2.1", "hunyuan3d-dit-v2-1")),
        ("tencent/Hunyuan3D-2.1/other-dit", ("tencent/Hunyuan3D-2.1", "other-dit")),
        ("/models/Hunyuan3D-2.1", ("/models/Hunyuan3D-2.1", "hunyuan3d-dit-v2-1")),
    ],
)
def test_model_path_is_split(path: str, split: tuple[str, str]) -> None:
    assert split_model_path(path) == split


def test_a_local_folder_with_subfolder_is_split(tmp_path: Path) -> None:
    (tmp_path / "dit").mkdir()
    (tmp_path / "dit" / "config.yaml").touch()
    assert split_model_path(str(tmp_path / "dit")) == (str(tmp_path), "dit")


def test_textures_switched_off() -> None:
    off = MODEL.configured({"ENABLE_TEXTURE": "false"})
    assert [stage.name for stage in off.stages] == ["cutout", "shape", "views", "export"]
    assert list(off.presets) == ["draft", "balanced"] and off.default_preset == "balanced"
    assert off.resolve({})["with_texture"] is False
    with pytest.raises(BadInput, match="ENABLE_TEXTURE"):
        off.resolve({"with_texture": True})
    assert MODEL.configured({"ENABLE_TEXTURE": "true"}).stages == MODEL.stages


def test_names_of_settings_that_others_use() -> None:
    environ = {"HUNYUAN_MODEL_PATH": "a/b", "REMBG_MODEL": "isnet-general-use"}
    model = MODEL.configured(environ)
    assert model.setting("model_path") == "a/b"
    assert MODEL.configured({**environ, "MODEL_PATH": "c/d"}).setting("model_path") == "c/d"
    assert MODEL.configured({"HUNYUAN_PATH": "/src"}).setting("hunyuan_path") == "/src"
    assert MODEL.configured({"HUNYUAN_CKPT_DIR": "/ckpt"}).setting("ckpt_dir") == "/ckpt"
    assert model.setting("hunyuan_path") == "{src}/Hunyuan3D-2.1"
    assert model.code_digest != MODEL.code_digest, "kept results of another model are not used"


def test_devices_by_their_old_names() -> None:
    both = MODEL.slot_devices({"HUNYUAN_DEVICE": "cuda", "TEXTURE_DEVICE": "cuda:1"})
    assert both == {"geometry": "cuda:0", "texture": "cuda:1"}
    assert MODEL.slot_devices({"GEOMETRY_DEVICE": "cuda:1"}) == {"geometry": "cuda:1"}
    assert MODEL.slot_devices({}) == {}


def test_its_service_in_an_environment() -> None:
    """The model's own variables reach stages, presets and slots; POLYPOD_SLOT_* goes before."""
    code = (
        "from services.hunyuan21.service import Hunyuan21 as s; import json; print(json.dumps("
        "[s.settings.slots, s.settings.model_idle_timeout_s, list(s.model.presets), s.model.chosen"
        "]))"
    )
    environ = {
        **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        "HUNYUAN_DEVICE": "cuda:2",
        "TEXTURE_DEVICE": "cuda:1",
        "POLYPOD_SLOT_GEOMETRY": "cuda:3",
        "ENABLE_TEXTURE": "false",
        "MODEL_IDLE_TIMEOUT": "60",
        "REMBG_MODEL": "isnet-general-use",
    }
    told = subprocess.run(
        [sys.executable, "-c", code], env=environ, cwd=ROOT, check=True, capture_output=True
    )
    slots, idle_s, presets, chosen = json.loads(told.stdout)
    assert slots == {"geometry": "cuda:3", "texture": "cuda:1"}
    assert idle_s == 60 and presets == ["draft", "balanced"]
    assert chosen == {"enable_texture": "false", "rembg_model": "isnet-general-use"}
