"""synchuman through the real harness, against stand-ins of upstream with its signatures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from polypod.build.declared import serving_lock
from polypod.build.dockerfile import dockerfile
from polypod.errors import BadInput
from polypod.image import Home
from polypod.jobs.faults import explained
from polypod.jobs.job import JobError
from polypod.workers import process
from polypod.workers.spec import spec_of
from services.synchuman.model import MODEL, VIEWS
from tests.contracts import standins
from tests.contracts.harnessed import Harnessed, Ran, harnessed
from tests.contracts.synchuman import environment, install

pytestmark = pytest.mark.anyio

CONTRACT = standins.contract("synchuman")
README = MODEL.folder / "README.md"
NO_SHAPE, NAN, NO_MESH = 13, 14, 15  # seeds with which answers/synchuman.py fails as upstream does
ALL_VISIBLE, NOTHING_CUT = 0.01, 0.02  # holes of these sizes find such a mesh there


@pytest.fixture(scope="module")
async def synchuman(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Harnessed]:
    folder = tmp_path_factory.mktemp("synchuman")
    async with harnessed(MODEL, folder, environment(folder)) as running:
        yield running


@pytest.fixture
def calls(synchuman: Harnessed) -> Any:
    """What the current test has called upstream with, by name."""
    return standins.calls_from_now(synchuman.folder / "upstream")


@pytest.fixture
def person(tmp_path: Path) -> dict[str, Path]:
    """A dark figure before a light wall, 100 x 200 pixels."""
    picture = Image.new("RGB", (100, 200), (220, 220, 210))
    picture.paste((60, 40, 30), (30, 20, 70, 180))
    picture.save(tmp_path / "person.png")
    return {"image": tmp_path / "person.png"}


def gltf(path: Path) -> tuple[dict[str, Any], bytes]:
    """Its JSON, and its binary part."""
    data = path.read_bytes()
    length = int.from_bytes(data[12:16], "little")
    return json.loads(data[20 : 20 + length]), data[28 + length :]


@pytest.mark.parametrize("preset", list(MODEL.presets))
async def test_every_preset_runs_all_stages(
    synchuman: Harnessed, person: Any, calls: Any, preset: str
) -> None:
    ran = await synchuman.run(person, preset=preset)
    assert ran.error is None, (ran.error, ran.log)
    wanted = MODEL.resolve({"preset": preset})
    (first,), (second,) = calls("run_model"), calls("sample_slat")
    assert first["num_inference_steps"] == wanted["stage1_steps"]
    assert second["sampler_params"]["steps"] == wanted["stage2_steps"]
    steps = wanted["stage1_steps"]
    assert ran.progress["multiview"][-1] == (0.8, f"Sampling {steps}/{steps}")
    tree, _ = gltf(ran.files["model.glb"])
    made = set(tree["meshes"][0]["primitives"][0]["attributes"])
    textured = wanted["with_texture"]
    assert ("TEXCOORD_0" in made, "COLOR_0" in made) == (textured, not textured)
    assert [m["pbrMetallicRoughness"]["metallicFactor"] for m in tree["materials"]] == [0]
    assert [call["texture_size"] for call in calls("to_glb")] == [wanted["texture_size"]] * textured


async def test_the_default_is_what_upstream_calls_with(
    synchuman: Harnessed, person: Any, calls: Any
) -> None:
    await synchuman.run(person)
    (run,), (model,), (glb,) = calls("Pipeline.run"), calls("run_model"), calls("to_glb")
    assert (run["seed"], run["guidance_scale"]) == (43, 3.0)
    assert (model["num_inference_steps"], model["rescale_t"]) == (50, 3.0)
    assert calls("sample_slat")[0]["sampler_params"] == {"steps": 25, "cfg_strength": 5.0}
    assert (glb["simplify"], glb["texture_size"]) == (0.7, 1024)
    assert (glb["fill_holes"], glb["fill_holes_max_size"]) == (True, 0.04)


OPTIONS = {
    "stage1_steps": (4, "run_model", "num_inference_steps"),
    "rescale_t": (2.0, "run_model", "rescale_t"),
    "guidance_scale": (4.0, "run_model", "guidance_scale"),
    "seed": (7, "Pipeline.run", "seed"),
    "simplify": (0.5, "to_glb", "simplify"),
    "fill_holes": (False, "to_glb", "fill_holes"),
    "fill_holes_max_size": (0.1, "to_glb", "fill_holes_max_size"),
    "texture_size": (512, "to_glb", "texture_size"),
}


@pytest.mark.parametrize("name", OPTIONS)
async def test_each_option_reaches_upstream(
    synchuman: Harnessed, person: Any, calls: Any, name: str
) -> None:
    value, call, parameter = OPTIONS[name]
    ran = await synchuman.run(person, **{name: value})
    assert ran.error is None, ran.log
    assert [made[parameter] for made in calls(call)] == [value]


async def test_stage_2_takes_its_own_steps_and_guidance(
    synchuman: Harnessed, person: Any, calls: Any
) -> None:
    given = {"stage2_steps": 3, "cfg_strength": 2.0}
    ran = await synchuman.run(person, until="latent", **given)
    assert [m["sampler_params"] for m in calls("sample_slat")] == [{"steps": 3, "cfg_strength": 2}]
    assert ran.progress["latent"][-1][1] == "Sampling 3/3"


async def test_views_are_shown_as_a_viewer_sees_them(synchuman: Harnessed, person: Any) -> None:
    """The stand-in keeps 2 and 3 mirrored, as upstream does, and its stage 2 asserts to get them
    so; its bright half is on the left of all."""
    ran = await synchuman.run(person, until="texture")
    assert ran.error is None, ran.log
    for name in VIEWS:
        pixels = np.asarray(Image.open(ran.files[name]))
        assert pixels[:, :8].min() >= 100 > pixels[:, 8:].max(), name
    assert {*VIEWS, "latent.npz", "voxel.ply"} <= {*ran.files} and "concat.png" not in ran.files
    assert {*VIEWS, "model.glb"} <= {*MODEL.notes}


async def test_both_stages_are_seeded(synchuman: Harnessed, person: Any) -> None:
    """Upstream never seeds its second one."""
    made = []
    for seed in (5, 5, 6):
        ran = await synchuman.run(person, seed=seed)
        with np.load(ran.files["slat.npz"]) as kept:
            made.append((kept["feats"], ran.files["model.glb"].read_bytes()))
    (first, glb), (again, same), (other, another) = made
    assert (first == again).all() and (first != other).any()
    assert glb == same != another
    assert first == pytest.approx(np.random.default_rng(5).random((36, 8)), abs=1e-6)


async def test_colours_of_vertices_are_linear_and_the_mesh_stands(
    synchuman: Harnessed, person: Any, calls: Any
) -> None:
    """The stand-in's mesh is middle grey, 0.5 of what a screen shows: 0.214 of the light."""
    ran = await synchuman.run(person, with_texture=False)
    tree, data = gltf(ran.files["model.glb"])
    accessor = tree["accessors"][tree["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]]
    start = tree["bufferViews"][accessor["bufferView"]].get("byteOffset", 0)
    kind = {5121: np.uint8, 5123: np.uint16, 5126: np.float32}[accessor["componentType"]]
    most = 1.0 if kind is np.float32 else np.iinfo(kind).max
    assert np.frombuffer(data, kind, 3, start) / most == pytest.approx([0.214] * 3, abs=0.005)
    assert not calls("to_glb") and not calls("SLatGaussianDecoder.forward")


async def test_the_cut_out_is_what_upstream_reads(
    synchuman: Harnessed, person: Any, calls: Any
) -> None:
    ran = await synchuman.run(person, until="multiview")
    cut = np.asarray(Image.open(ran.files["input.png"]))
    assert (cut[20:180, 30:70, 3] == 255).all() and (cut[..., 3] > 0).sum() == 160 * 40
    (called,) = calls("Pipeline.run")
    assert Path(called["image_path"]).name and called["save_path"].endswith("scratch")


@pytest.mark.parametrize("size", [ALL_VISIBLE, NOTHING_CUT, 0.04])
async def test_closing_holes_gives_three_values_always(
    synchuman: Harnessed, person: Any, size: float
) -> None:
    ran = await synchuman.run(person, fill_holes_max_size=size)
    assert ran.error is None, ran.log
    removed = next(line for line in ran.log if line.startswith("num_removed"))
    assert removed == f"num_removed: {3.0 if size == 0.04 else 0}"


async def test_upstream_is_set_up_for_a_machine_without_network(
    synchuman: Harnessed, person: Any
) -> None:
    """That DINOv2 comes from a folder, with xformers on and the prompts found, is asserted in
    answers/synchuman.py; a second job does not load again."""
    await synchuman.run(person)
    await synchuman.run(person)
    made = [row["call"] for row in standins.calls(synchuman.folder / "upstream")]
    assert made.count("SyncHumanOneStagePipeline.from_pretrained") == len(
        {worker.pid for name, worker in synchuman.workers.items() if name == "stage1"}
    )
    assert "on_gpu" in made


def test_guidance_of_one_is_refused() -> None:
    for value in (1, 0.5):
        with pytest.raises(BadInput, match="guidance_scale"):
            MODEL.resolve({"guidance_scale": value})


PICTURES = {
    "two people": ([(10, 20, 40, 180), (60, 20, 90, 180)], "More than one person"),
    "lying": ([(5, 80, 95, 120)], "tall"),
    "feet cut off": ([(30, 20, 70, 200)], "cuts off the feet"),
    "nothing": ([], "none was found"),
}


@pytest.mark.parametrize("what", PICTURES)
async def test_pictures_that_cannot_be_used_never_reach_the_gpu(
    synchuman: Harnessed, tmp_path: Path, what: str
) -> None:
    boxes, message = PICTURES[what]
    picture = Image.new("RGBA", (100, 200))
    for box in boxes:
        picture.paste((60, 40, 30, 255), box)
    picture.save(tmp_path / "image.png")
    ran = await synchuman.run({"image": tmp_path / "image.png"})
    assert ran.failed_in == "cutout" and ran.error and ran.error.code == "bad_input"
    assert message in ran.error.message and ran.error.hint


@pytest.mark.parametrize(
    ("alpha", "around", "message"),
    [(150, 0, "half transparent everywhere"), (255, 255, "no background around")],
)
async def test_cut_outs_that_upstream_cannot_read_are_told_before_it_begins(
    synchuman: Harnessed, tmp_path: Path, calls: Any, alpha: int, around: int, message: str
) -> None:
    picture = Image.new("RGBA", (100, 200), (200, 200, 200, around))
    picture.paste((60, 40, 30, alpha), (30, 20, 70, 180))
    picture.save(tmp_path / "image.png")
    asked = {"mask_mode": "full" if around else "alpha", "full_body": False}
    ran = await synchuman.run({"image": tmp_path / "image.png"}, **asked)
    assert ran.failed_in == "multiview" and ran.error and ran.error.code == "bad_input"
    assert message in ran.error.message and ran.error.hint and not calls("Pipeline.run")


@pytest.mark.parametrize(
    ("altered", "failed_in"),
    [
        (standins.with_renamed(CONTRACT, "to_glb", "simplify", "simplify_ratio"), "texture"),
        (standins.without_default(CONTRACT, "to_glb", "debug"), "texture"),
        (
            standins.with_renamed(
                CONTRACT, "SyncHumanOneStagePipeline.run_model", "num_inference_steps", "steps"
            ),
            "multiview",
        ),
        (
            standins.with_renamed(
                CONTRACT, "SyncHumanTwoStagePipeline.sample_slat", "sampler_params", "params"
            ),
            "latent",
        ),
    ],
    ids=["renamed parameter", "dropped default", "renamed steps", "renamed sampler parameters"],
)
async def test_a_changed_upstream_fails(
    tmp_path: Path, person: Any, altered: Any, failed_in: str
) -> None:
    env = environment(tmp_path / "changed", altered)
    async with harnessed(MODEL, tmp_path / "changed", env) as running:
        ran = await running.run(person, preset="balanced")
    assert ran.failed_in == failed_in and ran.error and ran.error.message.startswith("TypeError")


TOLD = [
    # call, error, what upstream says, code, a word of what to do
    ("Pipeline.run", "RuntimeError", "CUDA out of memory. Tried to allocate 3.15 GiB",
     "out_of_memory", "40 GB"),
    ("Pipeline.run", "ValueError", "zero-size array to reduction operation minimum which has no "
     "identity", "bad_input", "mask"),
    ("Pipeline.run", "IndexError", "index 3 is out of bounds for axis 2 with size 3", "bad_input",
     "mask"),
    ("Pipeline.run", "TypeError", "XFormersCrossAttnProcessor.__init__() got an unexpected keyword "
     "argument 'encoder_hidden_states'", "not_installed", "doctor"),
    ("preprocess_image", "NameError", "name 'rembg' is not defined", "bad_input", "mask"),
    ("sample_slat", "RuntimeError", "CUDA error: no kernel image is available for execution on the "
     "device", "unsupported_gpu", "8.0, 8.6"),
    ("to_glb", "RuntimeError", "CUDA out of memory. Tried to allocate 31.00 GiB", "out_of_memory",
     "texture_size"),
    ("to_glb", "TypeError", "__new__() got an unexpected keyword argument 'kernel_size'",
     "not_installed", "doctor"),
    ("to_glb", "RuntimeError", "Ninja is required to load C++ extensions", "not_installed",
     "doctor"),
    ("to_glb", "RuntimeError", "something new", "upstream_failure", ""),
]  # fmt: skip
TOLD_AT_LOAD = [
    ("ImportError", "This is a placeholder wheel: install Kaolin from its index", "not_installed"),
    ("ModuleNotFoundError", "No module named 'flash_attn'", "not_installed"),
    ("FileNotFoundError", "[Errno 2] No such file or directory: 'SyncHuman/data/"
     "fixed_prompt_embeds_7view/normal_embeds.pt'", "not_installed"),
    ("NotInstalled", "OneStage/pipeline_config.json is not there.", "weights_missing"),
    ("HFValidationError", "Repo id must be in the form 'repo_name' or 'namespace/repo_name'",
     "weights_missing"),
    ("LocalEntryNotFoundError", "Cannot find the requested files in the disk cache and outgoing "
     "traffic has been disabled.", "weights_missing"),
    ("OSError", "Error no file named diffusion_pytorch_model.bin found in directory vae.",
     "weights_missing"),
    ("HTTPError", "HTTP Error 403: rate limit exceeded", "weights_missing"),
    ("RuntimeError", "Found no NVIDIA driver on your system.", "no_gpu"),
]  # fmt: skip


def in_words(ran: Ran) -> JobError:
    """As the job would show it."""
    assert ran.error
    error = explained(ran.error, MODEL)
    lighter = next((s.lighter for s in MODEL.stages if s.name == ran.failed_in), "")
    return replace(error, hint=lighter) if error.code == "out_of_memory" else error


@pytest.mark.parametrize(("call", "error", "text", "code", "todo"), TOLD)
async def test_failures_are_told_in_words(
    synchuman: Harnessed, person: Any, call: str, error: str, text: str, code: str, todo: str
) -> None:
    upstream = synchuman.folder / "upstream"
    qualnames = [row["qualname"] for row in CONTRACT["symbols"]]
    stage2 = [q for q in qualnames if q.endswith(call) and "OneStage" not in q]
    qualname = "SyncHumanOneStagePipeline.run" if call == "Pipeline.run" else stage2[0]
    standins.lay_fault(upstream, qualname, error, text)
    ran = await synchuman.run(person, preset="balanced", seed=11)
    standins.lay_fault(upstream, "", "", "")
    told = in_words(ran)
    assert (told.code, todo in told.hint) == (code, True), told
    assert (await synchuman.run(person, preset="balanced", seed=11)).error is None  # it goes on


@pytest.mark.parametrize(
    ("seed", "failed_in", "code"),
    [
        (NAN, "multiview", "diverged"),
        (NO_SHAPE, "multiview", "no_surface"),
        (NO_MESH, "texture", "no_surface"),
    ],
)
async def test_seeds_that_lead_nowhere_are_told_in_words(
    synchuman: Harnessed, person: Any, seed: int, failed_in: str, code: str
) -> None:
    """Not-a-numbers end upstream's process by `exit()`; the worker outlives that."""
    before = await synchuman.run(person)
    worker = synchuman.workers["stage1"]
    ran = await synchuman.run(person, seed=seed)
    told = in_words(ran)
    assert (ran.failed_in, told.code) == (failed_in, code) and "another seed" in told.hint
    after = await synchuman.run(person)
    assert synchuman.workers["stage1"] is worker and worker.alive
    assert after.files["model.glb"].read_bytes() == before.files["model.glb"].read_bytes()


@pytest.mark.parametrize(("error", "text", "code"), TOLD_AT_LOAD)
def test_failures_of_the_load_are_known(error: str, text: str, code: str) -> None:
    told = explained(JobError("load_failed", f"{error}: {text}"), MODEL)
    assert told.code == code and "doctor" in told.hint


async def test_the_first_error_of_a_load_is_told_not_the_second_try(
    tmp_path: Path, person: Any
) -> None:
    """Upstream takes what could not be loaded for a repository's name, and tells of that alone."""
    env = environment(tmp_path / "load") | {"STANDIN_NO_PACKAGE": "1"}
    async with harnessed(MODEL, tmp_path / "load", env) as running:
        ran = await running.run(person)
    assert ran.failed_in == "latent" and ran.error and "'spconv'" in ran.error.message
    assert in_words(ran).code == "not_installed"


async def test_weights_that_are_not_there_are_told(tmp_path: Path, person: Any) -> None:
    env = environment(tmp_path / "load") | {"SYNCHUMAN_CKPTS": str(tmp_path)}
    async with harnessed(MODEL, tmp_path / "load", env) as running:
        ran = await running.run(person)
    assert (ran.failed_in, in_words(ran).code) == ("multiview", "weights_missing")


def test_run_on_the_command_line_skips_a_kept_first_stage(
    tmp_path: Path, started_once: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with the public wrapper's `--workdir Y --skip_stage1`: stage 2 failed, and is tried again;
    then with other settings."""
    upstream = install(tmp_path / "home")
    picture = Image.new("RGBA", (100, 200))
    picture.paste((60, 40, 30, 255), (30, 20, 70, 180))
    picture.save(tmp_path / "person.png")
    home = {"POLYPOD_HOME": str(tmp_path / "home"), "POLYPOD_MODEL": ""}
    off = {"POLYPOD_DOCTOR": "off", "POLYPOD_NEEDS": "off"}
    for name, value in {**home, **off, "PYTHONPATH": str(Path(__file__).parents[2])}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def called(name: str) -> list[dict[str, Any]]:
        made = standins.calls(upstream)
        return [row["values"] for row in made if row["call"].endswith(name)]

    standins.lay_fault(upstream, "to_glb", "RuntimeError", "CUDA out of memory")
    with started_once("synchuman", Path("work")) as run:
        failed = run("person.png", "-p", "stage1_steps=30")
        assert failed.exit_code == 1 and "texture_size" in failed.stderr, failed.stderr
    standins.lay_fault(upstream, "", "", "")
    with started_once("synchuman", Path("work")) as run:
        again = run("person.png", "--skip_stage1")
        assert again.exit_code == 0, again.stderr
        assert (tmp_path / "out" / "person.glb").read_bytes()[:4] == b"glTF"
        finer = run("person.png", "--skip-stage1", "--preset", "ultra")
        assert finer.exit_code == 0 and "Going on from multiview" in finer.stderr, finer.stderr
    assert [call["num_inference_steps"] for call in called("run_model")] == [30]
    assert [call["texture_size"] for call in called("to_glb")] == [1024, 1024, 2048]
    assert [call["sampler_params"]["steps"] for call in called("sample_slat")] == [25, 40]


def test_the_image_holds_what_the_worker_asks_for() -> None:
    text = dockerfile(MODEL, serving_lock())
    for wanted in (
        "1b540b7b513d49375f11db2f720164d684dd3f49",  # upstream
        "submodules/diff-gaussian-rasterization",
        "dinov2_vitl14_reg4_pretrain.pth",
        "'slat_decoder_gs': 'ckpts/decoder_GS'",
        "ATTN_BACKEND",
        "SYNCHUMAN_CKPTS",
    ):
        assert wanted in text, wanted
    locked = (MODEL.folder / "requirements.lock").read_text()
    for pin in ("torch==2.1.1", "xformers==0.0.23 ", "numpy==1.26.4", "setuptools==69.5.1"):
        assert f"\n{pin}" in f"\n{locked}", pin
    for absent in ("rembg==", "open3d==", "kaolin==", "flash-attn=="):
        assert absent not in locked
    assert all(url.sha256 or url.md5 for url in MODEL.weights.urls)


def test_attention_is_xformers_whatever_is_set_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrappers' documents ask for flash_attn there, which the image does not hold."""
    names = ("ATTN_BACKEND", "SPARSE_ATTN_BACKEND")
    for name in names:
        monkeypatch.setenv(name, "flash_attn")
    spec = spec_of(MODEL, "stage1", Home(Path("/opt")), python="", device="cuda:0", env={})
    seen = process.environment(spec.python, spec.env)
    assert [seen[name] for name in names] == ["xformers"] * 2


def test_the_pipeline_file_is_made_to_name_folders(tmp_path: Path) -> None:
    """What the build runs over it, on one that names repositories."""
    (step,) = MODEL.weights.steps
    told = {"args": {"models": {"slat_flow_model": "somebody/slat"}, "slat_sampler": {"x": 1}}}
    (tmp_path / "pipeline.json").write_text(json.dumps(told))
    command = step.command.replace("python ", f"{sys.executable} ", 1)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    args = json.loads((tmp_path / "pipeline.json").read_text())["args"]
    assert (
        args["slat_sampler"] == {"x": 1} and args["models"]["slat_flow_model"] == "ckpts/slat_flow"
    )


def test_declaration_holds_together() -> None:
    declared = {name for stage in MODEL.stages for name in stage.params}
    assert declared == set(MODEL.params.model_fields) - {"output_format"}
    assert MODEL.result_name(MODEL.resolve({})) == "model.glb"
    assert {s.slot for s in MODEL.stages} == {"cpu", "stage1", "stage2"}
    assert MODEL.slot_devices({"STAGE2_DEVICE": "cuda:1"}) == {"stage2": "cuda:1"}
    card = README.read_text()
    for name in declared:
        assert f"`{name}`" in card, name
    for fault in MODEL.faults:
        assert fault.message in card, fault.message
