"""Upstream's own code of SyncHuman on a CPU, with random weights, through our worker.

`make upstream MODEL=synchuman` runs it; POLYPOD_UPSTREAM names the checkout, at the commit of
`services/synchuman/model.py`, and PYTHONPATH one of utils3d at the commit there. Compiled packages
that have no build for a CPU are stood in for (`absent.py`): the two networks of SyncHuman, the
Gaussian renderer and the rasteriser are therefore not tried here, nor what is baked with them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

if not os.environ.get("POLYPOD_UPSTREAM"):
    pytest.skip(
        "POLYPOD_UPSTREAM names no checkout of IGL-HKUST/SyncHuman", allow_module_level=True
    )
if lacking := [
    name
    for name in ("torch", "diffusers", "transformers", "trimesh", "utils3d")
    if importlib.util.find_spec(name) is None
]:
    pytest.skip(f"{sys.executable} has no {', '.join(lacking)}", allow_module_level=True)

import torch
import trimesh

from services.synchuman import worker
from services.synchuman.model import FAULTS
from tests.upstream import absent

SEED, STEPS = 43, 50  # upstream's own
CELLS = 400
LOAD_HUB = torch.hub.load


# --- what stands for compiled packages and trained networks ---------------------------------------


class SparseConvTensor:
    """spconv's, as far as upstream's SparseTensor keeps its data in it."""

    grid = voxel_num = indice_dict = benchmark = benchmark_record = None
    thrust_allocator = _timer = force_algo = int8_scale = None

    def __init__(self, features: Any, indices: Any, spatial_shape: Any, batch_size: int, *_: Any):
        self._features, self.indices = features, indices
        self.spatial_shape, self.batch_size = spatial_shape, batch_size

    @property
    def features(self) -> Any:
        return self._features


class Views(torch.nn.Module):
    """In place of the 2D-3D network: same arguments, same shapes, depends on all it is given."""

    config = SimpleNamespace(sample_size=96, out_channels=4)
    calls = 0

    @classmethod
    def from_pretrained(cls, folder: Path) -> Views:
        made = cls()
        made.scale = torch.nn.Parameter(torch.tensor(0.5))
        return made

    def enable_xformers_memory_efficient_attention(self) -> None:
        self.attention = "xformers"

    def forward(
        self,
        sample: Any,
        timestep: Any,
        encoder_hidden_states: Any,
        trellis_x: Any,
        trellis_t: Any,
        trellis_cond: Any,
        class_labels: Any,
        cross_attention_kwargs: Any,
        return_dict: bool,
    ) -> tuple[Any, Any]:
        assert sample.shape == (20, 8, 96, 96) and encoder_hidden_states.shape == (20, 77, 1024)
        assert trellis_x.shape == (2, 8, 16, 16, 16) and len(trellis_cond) == 2
        Views.calls += 1
        told = encoder_hidden_states.mean((1, 2)) + class_labels.mean(1)
        views = torch.tanh(sample[:, :4] - sample[:, 4:]) * self.scale + told[:, None, None, None]
        shown = trellis_cond.mean((1, 2)).reshape(2, 1, 1, 1, 1) + trellis_t.mean() / 1000
        return views, torch.tanh(trellis_x) * self.scale + shown


class Dino(torch.nn.Module):
    """In place of DINOv2: what it is asked for, of these shapes."""

    def forward(self, image: Any, is_training: bool) -> dict[str, Any]:
        assert is_training and image.shape[1:] == (3, 518, 518)
        patches = torch.nn.functional.avg_pool2d(image, 14).flatten(2).transpose(1, 2)
        return {"x_prenorm": torch.cat([patches, patches], 2)}

    def get_intermediate_layers(self, image: Any, layers: list[int]) -> list[Any]:
        assert image.shape[1:] == (3, 896, 896) and layers == [4, 11, 17, 23]
        return [torch.nn.functional.avg_pool2d(image, 14).flatten(2).transpose(1, 2)] * 4


def to_pil_image(image: Any) -> Image.Image:
    return Image.fromarray(image.mul(255).byte().permute(1, 2, 0).numpy())


def save_image(image: Any, path: str) -> None:
    pixels = image.mul(255).add(0.5).clamp(0, 255).permute(1, 2, 0).to(torch.uint8).numpy()
    Image.fromarray(pixels).save(path)


# --- upstream's modules, imported for real --------------------------------------------------------


@pytest.fixture(scope="module")
def upstream() -> SimpleNamespace:
    os.environ |= {"ATTN_BACKEND": "xformers", "SPARSE_ATTN_BACKEND": "xformers"}
    os.environ |= {"SYNCHUMAN_ROOT": os.environ["POLYPOD_UPSTREAM"], "HF_HUB_OFFLINE": "1"}
    sys.path.insert(0, os.environ["POLYPOD_UPSTREAM"])
    import diffusers.image_processor  # noqa: F401  asks whether torchvision is there
    import transformers.models.clip.image_processing_clip  # noqa: F401

    if importlib.util.find_spec("torchvision") is None:
        absent.stand_in_torchvision()
        functional = sys.modules["torchvision.transforms.functional"]
        to_tensor = sys.modules["torchvision.transforms"].ToTensor()
        vars(functional).update(to_tensor=to_tensor, to_pil_image=to_pil_image)
        sys.modules["torchvision.utils"] = utils = types.ModuleType("torchvision.utils")
        utils.save_image = save_image  # type: ignore[attr-defined]
    missing = absent.stand_in(
        *("spconv", "xformers", "nvdiffrast", "diff_gaussian_rasterization"),
    )
    if "spconv" in missing:
        import spconv.pytorch

        spconv.pytorch.SparseConvTensor = SparseConvTensor
    sys.modules["small_networks"] = networks = types.ModuleType("small_networks")
    networks.Views, networks.Dino = Views, Dino  # type: ignore[attr-defined]
    worker.leave_out()
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # type: ignore[method-assign]
    from SyncHuman.models.OneStage.sparse_structure_vae import SparseStructureDecoder
    from SyncHuman.modules.sparse.basic import SparseTensor
    from SyncHuman.pipelines import SyncHumanOneStagePipeline as one
    from SyncHuman.pipelines import SyncHumanTwoStage as two
    from SyncHuman.pipelines.samplers import FlowEulerGuidanceIntervalSampler
    from SyncHuman.representations.mesh import utils_cube
    from SyncHuman.representations.mesh.flexicubes.flexicubes import FlexiCubes
    from SyncHuman.utils import postprocessing_utils

    return SimpleNamespace(
        OneStage=one.SyncHumanOneStagePipeline,
        TwoStage=two.SyncHumanTwoStagePipeline,
        SparseStructureDecoder=SparseStructureDecoder,
        SparseTensor=SparseTensor,
        Sampler=FlowEulerGuidanceIntervalSampler,
        FlexiCubes=FlexiCubes,
        utils_cube=utils_cube,
        post=postprocessing_utils,
    )


@pytest.fixture(scope="module")
def weights(upstream: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small networks of random weights, in the folders and formats of the published ones."""
    from diffusers import AutoencoderKL
    from safetensors.torch import save_file
    from transformers import (
        CLIPImageProcessor,
        CLIPTextConfig,
        CLIPTextModel,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    one = folder / "OneStage"
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision = CLIPVisionConfig(**small, num_attention_heads=2, projection_dim=16, patch_size=32)
    CLIPVisionModelWithProjection(vision).save_pretrained(one / "image_encoder")
    text = CLIPTextConfig(**small, num_attention_heads=2, vocab_size=16)
    CLIPTextModel(text).save_pretrained(one / "text_encoder")
    CLIPImageProcessor().save_pretrained(one / "feature_extractor")
    AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(4, 4, 4, 4),
        norm_num_groups=2,
        layers_per_block=1,
    ).save_pretrained(one / "vae")
    args = {"out_channels": 1, "latent_channels": 8, "num_res_blocks": 1, "channels": [8, 8, 8]}
    decoder = upstream.SparseStructureDecoder(**args)
    with torch.no_grad():
        decoder.out_layer[2].bias.fill_(-1.0)  # most of the cells are empty
    (one / "sparse_structure_decoder").mkdir()
    save_file(decoder.state_dict(), one / "sparse_structure_decoder" / "model.safetensors")
    (one / "sparse_structure_decoder" / "config.json").write_text(
        json.dumps({"name": "SparseStructureDecoder", "args": args})
    )
    clip = "transformers.models.clip"
    classes = {
        "feature_extractor": f"{clip}.image_processing_clip.CLIPImageProcessor",
        "image_encoder": f"{clip}.modeling_clip.CLIPVisionModelWithProjection",
        "text_encoder": f"{clip}.modeling_clip.CLIPTextModel",
        "SyncHuman_2D3DCrossSpaceDiffusion": "small_networks.Views",
        "vae": "diffusers.models.autoencoders.autoencoder_kl.AutoencoderKL",
        "sparse_structure_decoder": "SyncHuman.models.OneStage.sparse_structure_vae"
        ".SparseStructureDecoder",
    }
    metadata = {name: {"class": path, "subdir": name} for name, path in classes.items()}
    told = {"num_views": 5, "device": "cpu", "metadata": metadata}
    (one / "pipeline_config.json").write_text(json.dumps(told))
    (folder / "SecondStage").mkdir()
    models = {"slat_decoder_gs": "ckpts/decoder_GS", "slat_flow_model": "ckpts/slat_flow"}
    (folder / "SecondStage" / "pipeline.json").write_text(json.dumps({"args": {"models": models}}))
    dino = folder / "dinov2"
    dino.mkdir()
    (dino / "hubconf.py").write_text(
        "def dinov2_vitl14_reg(pretrained):\n"
        "    assert pretrained\n"
        "    import small_networks\n"
        "    return small_networks.Dino()\n"
    )
    os.environ |= {"SYNCHUMAN_CKPTS": str(folder), "SYNCHUMAN_DINO": str(dino)}
    return folder


@pytest.fixture(scope="module")
def stage1(upstream: SimpleNamespace, weights: Path) -> Any:
    """Upstream's first pipeline, by our `load`, in 32 bits: a CPU has no autocast for 16."""
    pipe = worker.load("stage1", {})
    assert pipe.SyncHuman_2D3DCrossSpaceDiffusion.attention == "xformers" and pipe.vae.use_slicing
    pipe.to("cpu", torch.float32)
    return pipe


class Params(dict):
    __getattr__ = dict.__getitem__


class Job:
    """What the harness hands to a stage."""

    def __init__(self, folder: Path, **params: Any) -> None:
        self.outputs, self.params, self.told = folder, Params(params), list[tuple[float, str]]()

    @property
    def inputs(self) -> dict[str, Path]:
        return {path.name: path for path in self.outputs.iterdir() if path.is_file()}

    def progress(self, fraction: float, message: str = "", until: float = 0) -> None:
        self.told.append((fraction, message))

    def scratch(self) -> Path:
        folder = self.outputs / "scratch"
        folder.mkdir(exist_ok=True)
        return folder


PARAMS: dict[str, Any] = {
    "seed": SEED,
    "stage1_steps": STEPS,
    "guidance_scale": 3.0,
    "rescale_t": 3.0,
    "stage2_steps": 25,
    "cfg_strength": 5.0,
    "with_texture": True,
    "simplify": 0.7,
    "fill_holes": False,
    "fill_holes_max_size": 0.04,
    "texture_size": 1024,
}


def new_job(folder: Path, **params: Any) -> Job:
    """With a cut-out figure; its file has no ending, as blobs have none."""
    folder.mkdir(exist_ok=True)
    noise = np.random.default_rng(1).integers(0, 255, (600, 300, 3), np.uint8)
    picture = Image.fromarray(noise).convert("RGBA")
    alpha = Image.new("L", picture.size)
    alpha.paste(255, (90, 40, 210, 560))
    picture.putalpha(alpha)
    picture.save(folder / "input.png", format="PNG")
    return Job(folder, **{**PARAMS, **params})


@pytest.fixture(scope="module")
def made(stage1: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Path]:
    """Our first stage, and upstream's own `run` on the same picture: its folder."""
    job, theirs = new_job(tmp_path_factory.mktemp("job")), tmp_path_factory.mktemp("theirs")
    Views.calls = 0
    worker.run("multiview", stage1, job)
    assert Views.calls == STEPS and "run_model" not in vars(stage1)
    stage1.run(str(job.inputs["input.png"]), str(theirs))
    assert Views.calls == 2 * STEPS
    return job, theirs


# --- stage 1 --------------------------------------------------------------------------------------


def test_the_views_are_upstreams_bit_for_bit_and_turned_for_display(made: Any) -> None:
    job, theirs = made
    for name in worker.VIEWS:
        ours, kept = Image.open(job.outputs / name), Image.open(theirs / name)
        assert kept.size == (768, 768)
        shown = ImageOps.mirror(kept) if name[-5] in "23" else kept
        assert ours.tobytes() == shown.tobytes(), name
    assert (job.outputs / "voxel.ply").read_bytes() == (theirs / "voxel.ply").read_bytes()
    cells = np.load(job.outputs / "latent.npz")["coords"]
    assert (cells == np.load(theirs / "latent.npz")["coords"]).all()
    assert cells.shape[1] == 4 and 0 < len(cells) < 64**3 and cells.max() < 64


def test_what_stage_2_is_given_is_what_upstream_left(made: Any, tmp_path: Path) -> None:
    job, theirs = made
    folder = worker.kept_stage1(Job(job.outputs, **PARAMS))
    for name in worker.VIEWS:
        assert Image.open(folder / name).tobytes() == Image.open(theirs / name).tobytes(), name
    for name in ("input.png", "latent.npz"):
        assert (folder / name).exists()


def test_each_parameter_changes_the_views(stage1: Any, tmp_path: Path) -> None:
    changes = (
        {},
        {},
        {"stage1_steps": 3},
        {"seed": 7},
        {"guidance_scale": 5.0},
        {"rescale_t": 1.0},
    )
    made = []
    for number, change in enumerate(changes):
        job = new_job(tmp_path / str(number), **{"stage1_steps": 2, **change})
        Views.calls = 0
        worker.run("multiview", stage1, job)
        assert Views.calls == job.params.stage1_steps
        made.append((job.outputs / "color_1.png").read_bytes())
    assert made[0] == made[1] and len(set(made)) == len(made) - 1


def test_decoding_one_by_one_makes_the_same_pictures(stage1: Any) -> None:
    latents = torch.randn(10, 4, 24, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        one_by_one = stage1.vae.decode(latents, return_dict=False)[0]
        stage1.vae.disable_slicing()
        at_once = stage1.vae.decode(latents, return_dict=False)[0]
        stage1.vae.enable_slicing()
    assert torch.allclose(one_by_one, at_once, atol=1e-3)  # a step of 8 bits is 8e-3


def test_an_empty_shape_is_told(stage1: Any, tmp_path: Path) -> None:
    bias = stage1.sparse_structure_decoder.out_layer[2].bias
    before = bias.detach().clone()
    with torch.no_grad():
        bias.fill_(-1e6)
    with pytest.raises(worker.NoShape):
        worker.run("multiview", stage1, new_job(tmp_path, stage1_steps=1))
    with torch.no_grad():
        bias.copy_(before)


def test_a_cancel_in_the_sampling_leaves_nothing_behind(
    stage1: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cancelled(BaseException):
        pass

    def cancel(*_: Any, **__: Any) -> None:
        raise Cancelled

    with monkeypatch.context() as patch:
        patch.setattr(Views, "forward", cancel)
        with pytest.raises(Cancelled):
            worker.run("multiview", stage1, new_job(tmp_path))
    assert "run_model" not in vars(stage1)


@pytest.mark.parametrize(
    ("mode", "alpha", "error"), [("RGB", None, "IndexError"), ("RGBA", 100, "ValueError")]
)
def test_upstream_fails_on_what_we_refuse_before(
    stage1: Any, tmp_path: Path, mode: str, alpha: int | None, error: str
) -> None:
    picture = Image.new(mode, (100, 200), (200, 100, 50))
    if alpha is not None:
        picture.putalpha(Image.new("L", picture.size, alpha))
    picture.save(tmp_path / "input.png")
    with pytest.raises((IndexError, ValueError)) as told:
        stage1.run(str(tmp_path / "input.png"), str(tmp_path))
    assert type(told.value).__name__ == error
    if mode == "RGBA":
        with pytest.raises(worker.BadInput):
            worker.check(tmp_path / "input.png")


# --- stage 2 --------------------------------------------------------------------------------------


class Flow(torch.nn.Module):
    """In place of the latent's network: depends on the picture."""

    in_channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Any, t: Any, cond: Any) -> Any:
        self.calls += 1
        return x * 0.5 + float(cond.mean() + t.mean() / 1000)


@pytest.fixture
def stage2(upstream: SimpleNamespace, weights: Path) -> SimpleNamespace:
    """Upstream's second pipeline with small networks; what `load_stage2` gives."""
    torch.hub.load = LOAD_HUB
    worker.keep_off_the_network()
    pipe = object.__new__(upstream.TwoStage)
    pipe.models = {
        "slat_flow_model": Flow(),
        "slat_decoder_gs": lambda slat, colours, normals: ["Gaussians"],
        "slat_decoder_mesh": decode,
    }
    pipe._init_image_cond_model()
    pipe.slat_sampler = upstream.Sampler(sigma_min=1e-5)
    pipe.slat_sampler_params = {
        "steps": 25,
        "cfg_strength": 5.0,
        "cfg_interval": [0.5, 1.0],
        "rescale_t": 3.0,
    }
    pipe.slat_normalization = {"mean": [0.5] * 8, "std": [2.0] * 8}
    pipe.img_wh_mv, pipe.face_wh = (768, 768), (512, 512)
    upstream.TwoStage.device = property(lambda self: torch.device("cpu"))
    return SimpleNamespace(
        torch=torch, pipe=pipe, post=upstream.post, SparseTensor=upstream.SparseTensor
    )


def decode(slat: Any, colours: Any, normals: Any) -> list[Any]:
    """A ball with a red nose that points to -y, where the front is."""
    assert slat.feats.shape[1] == 8 and colours.shape == normals.shape == (1, 4, 64, 64, 12)
    ball = trimesh.creation.icosphere(3, radius=0.4)
    vertices = torch.tensor(ball.vertices, dtype=torch.float32)
    tip = int(vertices[:, 1].argmin())
    vertices[tip, 1] = -0.5
    colours = torch.zeros(len(vertices), 6)
    colours[tip, 0] = 1
    faces = torch.tensor(ball.faces)
    return [SimpleNamespace(vertices=vertices, faces=faces, vertex_attrs=colours)]


@pytest.fixture
def second(made: Any, tmp_path: Path) -> Job:
    """A job whose first stage is done, with some of its cells."""
    job = Job(tmp_path, **PARAMS)
    for name in (*worker.VIEWS, "input.png"):
        (tmp_path / name).write_bytes((made[0].outputs / name).read_bytes())
    cells = np.load(made[0].outputs / "latent.npz")["coords"][:CELLS]
    np.savez(tmp_path / "latent.npz", coords=cells)
    return job


def test_the_latent_is_that_of_upstreams_run(
    stage2: SimpleNamespace, second: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its `run`, seeded as ours, up to where it would decode."""
    worker.run("latent", stage2, second)
    kept = np.load(tmp_path / "slat.npz")
    flow = stage2.pipe.models["slat_flow_model"]
    assert flow.calls == 44  # 25 steps, those of 0.5 to 1 guided
    seen: list[Any] = []

    class Far(Exception):
        pass

    def far(slat: Any, *_: Any) -> None:
        seen.append(slat)
        raise Far

    stage2.pipe.models["slat_decoder_gs"] = far
    torch.manual_seed(SEED)
    with pytest.raises(Far):
        stage2.pipe.run(str(worker.kept_stage1(second)), str(tmp_path))
    assert (kept["feats"] == seen[0].feats.numpy()).all()
    assert (kept["coords"] == seen[0].coords.numpy()).all() and kept["coords"].dtype == np.int32


@pytest.mark.parametrize("change", [{"stage2_steps": 4}, {"cfg_strength": 1.0}, {"seed": 8}])
def test_each_parameter_changes_the_latent(
    stage2: SimpleNamespace, second: Job, tmp_path: Path, change: dict[str, Any]
) -> None:
    found = []
    for params in ({}, {}, change):
        second.params.update(PARAMS | params)
        worker.run("latent", stage2, second)
        found.append(np.load(tmp_path / "slat.npz")["feats"])
    assert (found[0] == found[1]).all() and not np.array_equal(found[0], found[2])
    assert stage2.pipe.slat_sampler_params["steps"] == 25  # the next job's default


def baked(
    stage2: SimpleNamespace, job: Job, monkeypatch: pytest.MonkeyPatch
) -> tuple[trimesh.Trimesh, dict[str, Any]]:
    """Upstream's `to_glb` without a rasteriser: what it gives to the bake, and the mesh."""
    given: dict[str, Any] = {}

    def render(sample: Any, resolution: int, nviews: int) -> Any:
        assert (sample, resolution, nviews) == ("Gaussians", 1024, 100)
        camera = [torch.eye(4)] * nviews
        return [np.zeros((8, 8, 3), np.uint8)] * nviews, camera, camera

    def bake(
        vertices: Any, faces: Any, uvs: Any, observations: Any, masks: Any, *_: Any, **how: Any
    ):
        given.update(observations=observations, masks=masks, how=how, seed=np.random.random())
        return np.full((how["texture_size"],) * 2 + (3,), 128, np.uint8)

    monkeypatch.setattr(stage2.post, "render_multiview", render)
    monkeypatch.setattr(stage2.post, "bake_texture", bake)
    worker.run("latent", stage2, job)
    worker.run("texture", stage2, job)
    return trimesh.load(job.outputs / "mesh.glb", force="mesh", process=False), given


def test_the_textured_mesh_stands_and_faces_z(
    stage2: SimpleNamespace, second: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    second.params.update(simplify=0.0, texture_size=512)
    mesh, given = baked(stage2, second, monkeypatch)
    assert mesh.vertices[:, 2].max() == pytest.approx(0.5, abs=1e-5)  # the nose
    assert mesh.vertices[:, 1].max() == pytest.approx(0.4, abs=1e-5)
    assert mesh.visual.material.baseColorTexture.size == (512, 512)
    assert given["how"]["texture_size"] == 512 and given["how"]["mode"] == "opt"


def test_the_bake_sees_the_views_and_the_face_where_they_belong(
    stage2: SimpleNamespace, second: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It turns back and right side itself, so it ends with what we show."""
    _, given = baked(stage2, second, monkeypatch)
    for number in range(4):
        shown = np.asarray(Image.open(second.outputs / f"color_{number}.png"), np.int16)
        seen = np.asarray(given["observations"][number], np.int16)
        assert abs(seen - shown).max() <= 1, number  # times 255, cut off
    assert given["observations"][4].shape == (1536, 1536, 3) and len(given["observations"]) == 100
    first = given["seed"]
    assert baked(stage2, second, monkeypatch)[1]["seed"] == first


def test_simplify_is_the_share_that_is_removed(
    stage2: SimpleNamespace, second: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    for share in (0.0, 0.7):
        second.params.update(simplify=share)
        counts.append(len(baked(stage2, second, monkeypatch)[0].faces))
    assert counts[1] == pytest.approx(0.3 * counts[0], rel=0.05)


def test_without_a_texture_the_mesh_stands_alike(stage2: SimpleNamespace, second: Job) -> None:
    second.params.update(with_texture=False)
    worker.run("latent", stage2, second)
    worker.run("texture", stage2, second)
    mesh = trimesh.load(second.outputs / "mesh.glb", force="mesh", process=False)
    nose = int(mesh.vertices[:, 2].argmax())
    assert mesh.vertices[nose] == pytest.approx([0, 0, 0.5], abs=0.05)
    assert tuple(mesh.visual.vertex_colors[nose][:3]) == (255, 0, 0)
    assert tuple(mesh.visual.vertex_colors[nose - 1][:3]) == (0, 0, 0)


# --- what is mended -------------------------------------------------------------------------------


@pytest.fixture
def on_a_cpu(upstream: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`_fill_holes` as it is, with a rasteriser that sees all but the faces in `hidden`."""
    import utils3d

    hidden, real = set[int](), torch.tensor

    def rasterize(context: Any, vertices: Any, faces: Any, *_: Any, **__: Any) -> dict[str, Any]:
        seen = torch.tensor([n + 1 for n in range(len(faces)) if n not in hidden])
        return {"face_id": seen[None], "mask": torch.ones(1, len(seen))}

    def tensor(*args: Any, device: Any = None, **options: Any) -> Any:
        return real(*args, **options)

    monkeypatch.setattr(utils3d.torch, "rasterize_triangle_faces", rasterize)
    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(upstream.post, "_fill_holes", upstream.post._fill_holes)
    yield hidden


def ball() -> tuple[Any, Any]:
    made = trimesh.creation.icosphere(2)
    return torch.tensor(made.vertices).float(), torch.tensor(made.faces.astype(np.int32))


def test_closing_holes_ends_with_two_values_or_an_error_unless_mended(
    upstream: SimpleNamespace, on_a_cpu: set[int]
) -> None:
    fill, views = upstream.post._fill_holes, {"num_views": 8, "resolution": 8}
    vertices, faces = ball()
    assert len(fill(vertices, faces, **views)) == 2
    on_a_cpu.update({5})
    assert len(fill(vertices, faces, **views)) == 3  # one is cut off, and closed again
    with pytest.raises(UnboundLocalError):
        fill(vertices, faces, max_hole_size=0.0, **views)
    worker.mend_fill_holes(upstream.post)
    mended = upstream.post._fill_holes
    kept, triangles, removed = mended(vertices, faces, max_hole_size=0.0, **views)
    assert removed == 0 and len(triangles) == len(faces) and len(kept) == len(vertices)
    *_, removed = mended(vertices, faces, **views)
    assert removed == 1
    on_a_cpu.clear()
    whole = mended(vertices, faces, **views)
    assert len(whole) == 3 and whole[2] == 0 and len(whole[1]) == len(faces)


def test_its_callers_take_what_is_mended(
    upstream: SimpleNamespace, on_a_cpu: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    vertices, faces = (part.numpy() for part in ball())
    how = {"fill_holes_num_views": 4, "fill_holes_resolution": 8, "simplify": False}
    with pytest.raises(ValueError, match="not enough values to unpack"):
        upstream.post.postprocess_mesh(vertices, faces, **how)
    worker.mend_fill_holes(upstream.post)
    kept, triangles = upstream.post.postprocess_mesh(vertices, faces, **how)
    assert len(kept) == len(vertices) and len(triangles) == len(faces)


def test_flexicubes_runs_on_our_comparison_of_shapes(upstream: SimpleNamespace) -> None:
    size = 12
    corners, cubes = upstream.utils_cube.construct_dense_grid(size, "cpu")
    points = corners / size - 0.5
    field = points.norm(dim=1) - 0.3
    extract = upstream.FlexiCubes(device="cpu")
    vertices, faces, _, colours = extract(
        voxelgrid_vertices=points,
        scalar_field=field,
        cube_idx=cubes,
        resolution=size,
        voxelgrid_colors=torch.zeros(len(points), 6),
    )
    assert len(faces) > 100 and vertices.norm(dim=1).numpy() == pytest.approx(0.3, abs=0.03)
    assert colours.shape == (len(vertices), 6) and float(colours.min()) == pytest.approx(0.5)
    with pytest.raises(AssertionError, match="scalar_field"):
        extract(points, field[1:], cubes, size)


def test_a_missing_model_is_told_not_the_repository_that_upstream_tries(
    upstream: SimpleNamespace, weights: Path
) -> None:
    torch.hub.load = LOAD_HUB
    with pytest.raises(Exception) as told:
        worker.load("stage2", {})
    said = f"{type(told.value).__name__}: {told.value}"
    known = next(fault for fault in FAULTS if re.search(fault.pattern, said))
    assert known.code == "weights_missing", said


def test_the_tree_has_what_the_declaration_says() -> None:
    root = Path(os.environ["POLYPOD_UPSTREAM"], "SyncHuman")
    for name in ("normal", "clr"):
        assert (root / "data" / "fixed_prompt_embeds_7view" / f"{name}_embeds.pt").is_file()
    assert '"ouput.glb"' in (root / "pipelines" / "SyncHumanTwoStage.py").read_text()
