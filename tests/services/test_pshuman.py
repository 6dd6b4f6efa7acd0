"""pshuman through the real harness, against stand-ins that accept just what upstream accepts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

from polypod.assets import formats
from polypod.build.dockerfile import dockerfile
from polypod.errors import BadInput
from polypod.image import Image as Environment
from polypod.jobs.faults import explained
from polypod.jobs.job import JobError
from polypod.settings import Settings
from services.pshuman import mends
from services.pshuman.model import FACE, MAPS, MODEL, SIDES
from tests.api.serving import Server
from tests.contracts import standins
from tests.contracts.harnessed import Harnessed, harnessed
from tests.contracts.pshuman import prepare

pytestmark = pytest.mark.anyio

PIPELINE = "StableUnCLIPImg2ImgPipeline.__call__"
QUICK = {"num_inference_steps": 2, "iters": 2}
Called = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
async def pshuman(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Harnessed]:
    folder = tmp_path_factory.mktemp("pshuman")
    async with harnessed(MODEL, folder, prepare(folder)) as running:
        yield running


@pytest.fixture
def calls(pshuman: Harnessed) -> Called:
    """What the current test has called upstream with, by name."""
    source = pshuman.folder / "src" / "PSHuman"
    before = len(standins.calls(source))
    return lambda name: [
        row["values"] for row in standins.calls(source)[before:] if row["call"] == name
    ]


def person(folder: Path, corner: tuple[int, int, int] = (255, 255, 255)) -> dict[str, Path]:
    """A standing rectangle, cut out; what is transparent has a colour all the same."""
    image = Image.new("RGBA", (200, 400), (*corner, 0))
    image.paste((60, 40, 30, 255), (60, 30, 140, 370))
    image.save(folder / "person.png")
    return {"image": folder / "person.png"}


@pytest.fixture
def picture(tmp_path: Path) -> dict[str, Path]:
    return person(tmp_path)


async def test_every_preset_runs_its_stages(
    pshuman: Harnessed, picture: Any, calls: Called
) -> None:
    for preset in MODEL.presets:
        ran = await pshuman.run(picture, preset=preset)
        assert ran.error is None, (preset, ran.error, ran.log)
        assert set(ran.files) >= {*MAPS, *FACE, "maps.png", "model.glb", "turntable.mp4"}
    views, carved = calls(PIPELINE), calls("recon_opt")
    assert [v["num_inference_steps"] for v in views] == [20, 30, 40]
    assert [c["iters"] for c in carved] == [300, 500, 700]
    assert [c["resolution"] for c in carved] == [512, 1024, 1024]
    assert all(c["scale"] == 4 and c["replace_hand"] is False for c in carved)
    assert [c["crop_size"] for c in calls("SingleImageDataset.__init__")] == [740] * 3


async def test_the_default_is_upstreams_official_setting(
    pshuman: Harnessed, picture: Any, calls: Called
) -> None:
    ran = await pshuman.run(picture)
    (made,) = calls(PIPELINE)
    assert (made["guidance_scale"], made["eta"], made["num_inference_steps"]) == (3.0, 1.0, 40)
    assert calls("set_seed") == [{"seed": 600}]
    assert not ran.error and MODEL.default_preset == "high"


async def test_every_parameter_reaches_upstream(
    pshuman: Harnessed, picture: Any, calls: Called
) -> None:
    ran = await pshuman.run(
        picture,
        **QUICK,
        seed=7,
        crop_size=720,
        bg_color="gray",
        guidance_scale=1.0,
        eta=0.5,
        resolution=512,
        replace_hand=True,
    )
    assert ran.error is None, ran.log
    (pictures,), (made,), (carved,) = (
        calls(name) for name in ("SingleImageDataset.__init__", PIPELINE, "recon_opt")
    )
    assert (pictures["crop_size"], pictures["bg_color"]) == (720, "gray")
    assert (made["guidance_scale"], made["eta"]) == (1.0, 0.5)
    assert calls("set_seed") == [{"seed": 7}]
    assert (carved["resolution"], carved["replace_hand"], carved["iters"]) == (512, True, 2)
    assert calls("hands") == [{"seen": [[True, False]]}]


async def test_hands_are_looked_for_only_where_they_are_replaced(
    pshuman: Harnessed, picture: Any, calls: Called
) -> None:
    await pshuman.run(picture, **QUICK)
    assert not calls("econ_process_image")
    assert calls("hands") == [{"seen": [[False, False]]}]


async def test_the_pipeline_is_loaded_as_it_must_be(tmp_path: Path, picture: Any) -> None:
    """From the folder, in half precision, and its views see each other before the first job."""
    home = tmp_path / "home"
    async with harnessed(MODEL, home, prepare(home)) as running:
        ran = await running.run(picture, until="views", **QUICK)
    assert ran.error is None, ran.log
    told = standins.calls(home / "src" / "PSHuman")
    assert {"folder": str(home / "weights" / "pshuman"), "half": True} in [
        t["values"] for t in told
    ]
    order = [t["call"] for t in told]
    assert order.index("enable_xformers") < order.index(PIPELINE)
    assert "StableUnCLIPImg2ImgPipeline.enable_vae_slicing" in order


async def test_views_are_the_right_way_round(pshuman: Harnessed, picture: Any) -> None:
    """The network's pictures are darker on the left; back and left come out mirrored."""
    ran = await pshuman.run(picture, until="views", **QUICK)
    for number, side in enumerate((*SIDES, "face")):
        for kind, first in (("normal", 1), ("color", 8)):
            pixels = np.asarray(Image.open(ran.files[f"{kind}_{side}.png"]))
            assert pixels.shape == (768, 768, 3)
            if (kind, side) == ("color", "front"):
                assert np.all(pixels == 64), "the picture itself stands in front"
                continue
            light = int((first + number) / 20 * 255 + 0.5)
            right, left = pixels[700, 700, 0], pixels[700, 60, 0]
            if side in ("back", "left"):
                left, right = right, left
            assert (right, left) == (light, int((first + number) / 40 * 255 + 0.5)), (kind, side)


async def test_the_face_has_its_own_normals(pshuman: Harnessed, picture: Any) -> None:
    ran = await pshuman.run(picture, until="views", **QUICK)
    front = np.asarray(Image.open(ran.files["normal_front.png"]))
    face = np.asarray(Image.open(ran.files["normal_face.png"]))
    assert np.array_equal(front[:256, 256:512], face[1::3, 1::3])
    assert front[255, 255, 0] != face[0, 0, 0] and front[256, 256, 0] != face[0, 0, 0]


async def test_one_sheet_of_what_is_carved(pshuman: Harnessed, picture: Any) -> None:
    """Six colours above six normals, all RGBA, in upstream's order of views."""
    ran = await pshuman.run(picture, until="masks", **QUICK)
    sheet = Image.open(ran.files["maps.png"])
    assert sheet.size == (6 * 768, 2 * 768) and sheet.mode == "RGBA"
    for number, name in enumerate(MAPS):
        at = (number % 6 * 768 + 700, number // 6 * 768 + 700)
        assert sheet.getpixel(at)[:3] == Image.open(ran.files[name]).getpixel((700, 700))
    assert ran.progress["masks"][-1][1] == "Cutting out view 12 of 12"


async def test_result(pshuman: Harnessed, picture: Any, calls: Called) -> None:
    """Linear colours, no metal; the video is not mirrored, each half by itself."""
    ran = await pshuman.run(picture, **QUICK)
    (part,) = formats.read(ran.files["model.glb"], "glb")
    source = trimesh.load(ran.files["mesh.obj"], force="mesh", process=False)
    bounds = np.array([part.vertices.min(0), part.vertices.max(0)])
    assert np.allclose(bounds, source.bounds, atol=1e-5), "nothing is turned"
    assert part.colors[0].tolist() == pytest.approx([1, 0.216, 0, 1], abs=0.01)
    assert part.material.metallic == 0
    assert len(trimesh.load(ran.files["remeshed.obj"], force="mesh").faces) == 320
    assert calls("frame") == [{"row": [250, 50, 200, 0, 250, 50, 200, 0]}]
    assert ran.files["turntable.mp4"].read_bytes() == b"mp4"


async def test_no_video_where_none_is_wanted(
    pshuman: Harnessed, picture: Any, calls: Called
) -> None:
    ran = await pshuman.run(picture, with_video=False, **QUICK)
    assert ran.error is None and "turntable.mp4" not in ran.files
    assert not calls("ReMesh.evaluate")


async def test_progress_comes_from_upstreams_loops(pshuman: Harnessed, picture: Any) -> None:
    ran = await pshuman.run(picture, num_inference_steps=40, iters=700)
    told = ran.progress["mesh"]
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert told[-1] == (0.75, "Closing and colouring")
    assert ran.progress["views"][-1][0] == pytest.approx(0.02 + 0.8 * 0.93, abs=0.01)


async def test_the_mesh_worker_never_holds_the_pipeline() -> None:
    """Upstream runs out of memory where both are in one process (its issue 22)."""
    views, body, mesh = (MODEL.stage(name) for name in ("views", "body", "mesh"))
    assert len({stage.worker_name for stage in (views, body, mesh)}) == 3
    assert views.slot != mesh.slot == body.slot, "two GPUs can share the work"
    needed = MODEL.needs.vram_gb
    assert needed["views"] + needed["mesh"] > 48 * 1.07, "on a 48 GB card they take turns"


async def test_another_mesh_reuses_the_views(picture: Any) -> None:
    first, second = MODEL.resolve({}), MODEL.resolve({"iters": 900, "with_video": False})
    again = MODEL.resolve({"seed": 42})
    differ = {
        stage.name
        for stage in MODEL.stages
        if MODEL.stage_key(stage, {}, first, "") != MODEL.stage_key(stage, {}, second, "")
    }
    assert differ == {"mesh"}
    keys = {MODEL.stage_key(MODEL.stage("body"), {}, params, "") for params in (first, again)}
    assert len(keys) == 1


def test_views_are_looked_at_first_and_carved_after(tmp_path: Path) -> None:
    """Through the API: stop after the views, go on, then carve again with other settings."""
    home = tmp_path / "home" / "pshuman"
    env = {**MODEL.image.env, **prepare(home)}
    model = replace(MODEL, image=Environment(env=env))
    settings = Settings(data=tmp_path / "data", home=tmp_path / "home", doctor="off", needs="off")
    server = Server(settings, model)
    try:
        picture = person(tmp_path)["image"].read_bytes()
        first = server.done(picture, until="views", num_inference_steps=2)
        assert {asset["name"] for asset in first["assets"]} >= {*MAPS, *FACE, "input.png"}
        assert first["remaining_stages"] == ["masks", "body", "mesh", "export"]
        kept, job = [], first
        for change in ({"iters": 2}, {"iters": 3, "with_video": False}):
            answer = server.client.post(f"/job/{job['job_id']}/continue", json=change)
            job = server.ended(answer.json()["job_id"])
            assert job["status"] == "completed", job
            manifest = server.client.get(f"/job/{job['job_id']}/result/manifest.json").json()
            kept.append([run["stage"] for run in manifest["stages"] if run["kept"]])
        assert kept[0] == ["cutout", "views"]
        assert kept[1][:4] == ["cutout", "views", "masks", "body"]
        assert "mesh" not in kept[1]
        assert manifest["outputs"]["model.glb"]["note"] == MODEL.notes["model.glb"]
        assert manifest["model"]["licence"]["commercial"] is False
    finally:
        server.stop()
    calls = standins.calls(home / "src" / "PSHuman")
    assert sum(row["call"] == PIPELINE for row in calls) == 1


async def test_workers_serve_many_jobs(pshuman: Harnessed, tmp_path: Path, calls: Called) -> None:
    """Each job has its own picture, and the tables of the body model are read once."""
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        ran = await pshuman.run(
            person(tmp_path / str(number)), iters=2 + number, **{"seed": number}
        )
        assert ran.error is None, ran.log
    assert [c["iters"] for c in calls("recon_opt")] == [2, 3]
    assert sum(not values for values in calls("SMPLX.__init__")) <= 1
    left = [path for path in pshuman.folder.rglob("scratch") if path.is_dir()]
    assert not left, "scratch folders are left"


async def test_a_cropped_person_is_refused_before_the_gpu(
    pshuman: Harnessed, tmp_path: Path, calls: Called
) -> None:
    image = Image.new("RGBA", (200, 400), (0, 0, 0, 0))
    image.paste((60, 40, 30, 255), (40, 100, 160, 400))
    image.save(tmp_path / "half.png")
    ran = await pshuman.run({"image": tmp_path / "half.png"}, **QUICK)
    assert (ran.failed_in, ran.error and ran.error.code) == ("cutout", "bad_input")
    assert not calls(PIPELINE)


async def test_nobody_in_the_picture(tmp_path: Path) -> None:
    """Upstream's detector finds no person: told in words."""
    home = tmp_path / "home"
    env = prepare(home)
    standins.lay_fault(
        home / "src" / "PSHuman",
        "SMPLDataset.__getitem__",
        "IndexError",
        "index 2 is out of bounds for axis 0 with size 0",
    )
    async with harnessed(MODEL, home, env) as running:
        ran = await running.run(person(tmp_path), **QUICK)
    assert ran.failed_in == "body" and ran.error
    told = explained(ran.error, MODEL)
    assert told.code == "bad_input" and "No person" in told.message


async def test_out_of_memory(pshuman: Harnessed, picture: Any) -> None:
    ran = await pshuman.run(picture, seed=13, **QUICK)
    assert (ran.failed_in, ran.error and ran.error.code) == ("views", "out_of_memory")
    assert "guidance_scale" in MODEL.stage("views").lighter
    assert all(word in MODEL.stage("mesh").lighter for word in ("resolution", "draft"))
    assert MODEL.presets["draft"]["resolution"] == 512


@pytest.mark.parametrize(
    ("gone", "stage", "told"),
    [
        ("weights/pshuman", "views", "pshuman/model_index.json is not there."),
        ("weights/u2net", "masks", "u2net/u2net.onnx is not there."),
        ("weights/smpl_related/HPS", "body", "pixie_data/pixie_model.tar is not there."),
        ("weights/smpl_related/smpl_data", "body", "smpl_related/smpl_data/smplx_to_smpl.pkl"),
    ],
)
async def test_what_is_not_installed_is_told(
    tmp_path: Path, picture: Any, gone: str, stage: str, told: str
) -> None:
    home = tmp_path / "home"
    env = prepare(home)
    (home / gone).rename(tmp_path / "elsewhere")
    async with harnessed(MODEL, home, env) as running:
        ran = await running.run(picture, **QUICK)
    assert ran.failed_in == stage and ran.error and told in ran.error.message, ran.log
    error = explained(ran.error, MODEL)
    assert error.code == "weights_missing" and "polypod" in error.hint


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("IndexError: index 2 is out of bounds for axis 0 with size 0", "bad_input"),
        (
            "RuntimeError: max(): Expected reduction dim to be specified for input.numel() == 0.",
            "bad_input",
        ),
        (
            "AssertionError: The view direction is not correct. cos_angles.mean()=0.1",
            "no_surface",
        ),
        ("AssertionError", "no_surface"),
        ("the model's code called exit(None)", "weights_missing"),
        ("No such file or directory: 'smpl_related/smpl_data/smpl_verts.npy'", "weights_missing"),
        (
            "ValueError: unet/mvdiffusion.models_unclip.unet_mv2d_condition.py as defined in "
            "`model_index.json` does not exist",
            "weights_missing",
        ),
        ("URLError: <urlopen error [Errno -3] Temporary failure>", "weights_missing"),
        ("ModuleNotFoundError: No module named '_tkinter'", "not_installed"),
        ("ModuleNotFoundError: No module named '_nvdiffrast_c'", "not_installed"),
        (
            "NotImplementedError: No operator found for `memory_efficient_attention_forward`",
            "unsupported_gpu",
        ),
        ("RuntimeError: CUDA error: no kernel image is available", "unsupported_gpu"),
        ("RuntimeError: No CUDA GPUs are available", "no_gpu"),
        ("RuntimeError: something new", "upstream_failure"),
    ],
)
def test_known_failures_are_told_in_words(said: str, code: str) -> None:
    error = explained(JobError("upstream_failure", said), MODEL)
    assert error.code == code
    assert bool(error.hint) == (code != "upstream_failure")


@pytest.mark.parametrize(
    "alter",
    [
        lambda told: standins.with_renamed(told, PIPELINE, "prompt_embeds", "embeddings"),
        lambda told: standins.without_default(told, PIPELINE, "noise_level"),
        lambda told: standins.with_renamed(told, "ReMesh.__init__", "econ_dataset", "dataset"),
        lambda told: standins.without_default(told, "ReMesh.optimize_case", "opti_texture"),
        lambda told: standins.with_renamed(
            told, "SingleImageDataset.__init__", "crop_size", "crop"
        ),
    ],
)
async def test_a_changed_contract_fails(tmp_path: Path, picture: Any, alter: Any) -> None:
    home = tmp_path / "home"
    env = prepare(home, alter(standins.contract("pshuman")))
    async with harnessed(MODEL, home, env) as running:
        ran = await running.run(picture, **QUICK)
    assert ran.error and "TypeError" in ran.error.message, ran.log


def test_poisson_asks_for_no_more_threads_than_there_are() -> None:
    asked: list[int] = []
    triangles = SimpleNamespace(
        create_from_point_cloud_poisson=lambda points, depth, n_threads: asked.append(n_threads)
    )
    mends.poisson_within(triangles, 2)
    triangles.create_from_point_cloud_poisson([], depth=10, n_threads=6)
    triangles.create_from_point_cloud_poisson([], depth=10, n_threads=1)
    assert asked == [2, 1]


@pytest.mark.parametrize(
    "given", [{"crop_size": 800}, {"resolution": 1001}, {"guidance_scale": 0.5}, {"num_views": 6}]
)
def test_what_upstream_cannot_do_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        MODEL.resolve(given)


def test_the_image() -> None:
    """Nothing is downloaded or compiled when it runs; licensed files come from a mount."""
    text = dockerfile(MODEL, "uv==0.9.0 --hash=sha256:0\n")
    assert text.count("--mount=type=bind,from=licensed,target=/licensed") == 17
    assert "torch-scatter==2.1.2+pt21cu121" in text and "FORCE_CUDA=1" in text
    compiled = {part.name: part.commit for part in MODEL.image.compiled}
    assert compiled["nvdiffrast"] == "253ac4fcea7de5f396371124af597e6cc957bfae"  # 0.4.0
    assert all(url.sha256 or url.md5 for url in MODEL.weights.urls)
    assert f"TORCH_CUDA_ARCH_LIST='{';'.join(MODEL.needs.architectures)}' FORCE_CUDA=1" in text
    assert all("https://smpl-x.is.tue.mpg.de" in file.where for file in MODEL.weights.licensed)
    assert MODEL.licence.commercial is False


def test_everything_is_on_the_card() -> None:
    card = (MODEL.folder / "README.md").read_text()
    for fault in MODEL.faults:
        assert f"`{fault.code}`" in card and fault.message in card
    for name in (*MODEL.params.model_fields, *MODEL.presets):
        assert f"`{name}`" in card, name
    for stage in MODEL.stages:
        assert f"**{stage.name}**" in card
    for name in MODEL.image.checkouts:
        assert name.commit in card
