"""Upstream's own code of Hunyuan3D 2.1 on a CPU, with random weights, through our worker.

`make upstream MODEL=hunyuan21` runs it; POLYPOD_UPSTREAM names the checkout, at the commit of
`services/hunyuan21/model.py`. The trained networks and all of the paint need a GPU and are not
tried here.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

if not os.environ.get("POLYPOD_UPSTREAM"):
    pytest.skip(
        "POLYPOD_UPSTREAM names no checkout of Tencent-Hunyuan/Hunyuan3D-2.1",
        allow_module_level=True,
    )
if missing := [
    name
    for name in ("torch", "diffusers", "transformers", "pymeshlab", "trimesh")
    if importlib.util.find_spec(name) is None
]:
    pytest.skip(f"{sys.executable} has no {', '.join(missing)}", allow_module_level=True)

import diffusers  # noqa: F401  both look for torchvision when they are imported, so before it is
import torch
import transformers  # noqa: F401  stood in for
import trimesh

from polypod.kit.cutting import Remover, cut
from services.hunyuan21 import worker
from tests.upstream import absent

SOURCE = Path(os.environ["POLYPOD_UPSTREAM"])
sys.path[:0] = [str(SOURCE / "hy3dshape"), str(SOURCE)]

STEPS, GRID = 3, 24


class Compose:
    def __init__(self, steps: Any) -> None:
        self.steps = steps

    def __call__(self, images: Any) -> Any:
        for step in self.steps:
            images = step(images)
        return images


class Resize:
    """torchvision's, of a batch."""

    def __init__(self, size: int, interpolation: str, antialias: bool) -> None:
        self.how = {"size": (size, size), "mode": interpolation, "antialias": antialias}

    def __call__(self, images: Any) -> Any:
        return torch.nn.functional.interpolate(images, **self.how)


class CenterCrop:
    """Of pictures that have the size already."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, images: Any) -> Any:
        assert images.shape[-2:] == (self.size, self.size)
        return images


class Normalize:
    def __init__(self, mean: Any, std: Any) -> None:
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    def __call__(self, images: Any) -> Any:
        return (images - self.mean) / self.std


if absent.stand_in("torchvision"):
    absent.hide("timm")  # where it is, transformers imports it, and it all of torchvision
    vars(importlib.import_module("torchvision.transforms")).update(
        Compose=Compose, Resize=Resize, CenterCrop=CenterCrop,
        Normalize=Normalize, InterpolationMode=SimpleNamespace(BILINEAR="bilinear"),
    )  # fmt: skip


class Job:
    """As the harness gives it, as far as the stages ask."""

    def __init__(self, folder: Path, inputs: dict[str, Path], **params: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.inputs, self.outputs, self.params = inputs, folder, SimpleNamespace(**params)

    def progress(self, *told: Any, **more: Any) -> None:
        pass

    def scratch(self) -> Path:
        return self.outputs


def cut_out(folder: Path, picture: Image.Image) -> Image.Image:
    """As the kit does it for this model."""
    picture.save(folder / "photo.png")
    return cut(folder / "photo.png", None, Remover({}), square=0.85)


def photo(haze: int = 0) -> Image.Image:
    """A rectangle of 150 x 100 in a transparent picture, with as much alpha everywhere else."""
    picture = Image.new("RGBA", (300, 200), (255, 255, 255, haze))
    picture.paste((200, 60, 20, 255), (40, 30, 190, 130))
    return picture


def seen_by_the_model(picture: Image.Image) -> np.ndarray:
    """What upstream's preprocessing makes of it: 512 x 512, RGB."""
    from hy3dshape.preprocessors import ImageProcessorV2

    tensor = ImageProcessorV2(512)(picture)["image"]
    assert tensor.shape == (1, 3, 512, 512) and tensor.min() >= -1 and tensor.max() <= 1
    return ((tensor[0].permute(1, 2, 0).numpy() + 1) * 127.5).round()


def test_upstream_sees_our_cutout_as_it_sees_the_picture(tmp_path: Path) -> None:
    ours = seen_by_the_model(cut_out(tmp_path, photo()))
    theirs = seen_by_the_model(photo())
    assert np.abs(ours - theirs).mean() < 2
    rows = np.flatnonzero((ours[..., 2] < 128).any(1))
    columns = np.flatnonzero((ours[..., 2] < 128).any(0))
    assert abs(len(columns) - 512 * 0.85) <= 4 and abs(len(rows) - 512 * 0.85 * 2 / 3) <= 4


def test_haze_would_have_shrunk_the_object(tmp_path: Path) -> None:
    hazy = seen_by_the_model(photo(haze=5))
    ours = seen_by_the_model(cut_out(tmp_path, photo(haze=5)))
    width = [len(np.flatnonzero((seen[..., 2] < 128).any(0))) for seen in (hazy, ours)]
    assert width[0] < 280 and width[1] > 430


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """Upstream's pipeline of small networks with random weights."""
    from hy3dshape.models.autoencoders import ShapeVAE
    from hy3dshape.models.conditioner import SingleImageEncoder
    from hy3dshape.models.denoisers.hunyuandit import HunYuanDiTPlain
    from hy3dshape.pipelines import Hunyuan3DDiTFlowMatchingPipeline
    from hy3dshape.preprocessors import ImageProcessorV2
    from hy3dshape.schedulers import FlowMatchEulerDiscreteScheduler

    torch.manual_seed(0)
    vae = ShapeVAE(
        num_latents=64, embed_dim=8, width=64, heads=4, num_decoder_layers=1,
        num_encoder_layers=1, pc_size=128, pc_sharpedge_size=0, point_feats=4, num_freqs=8,
        include_pi=False, qkv_bias=False, qk_norm=True,
    )  # fmt: skip
    network = HunYuanDiTPlain(
        input_size=64, in_channels=8, hidden_size=64, context_dim=32, depth=3, num_heads=4,
        qk_norm=True, text_len=17, qk_norm_type="rms", qkv_bias=False, use_pos_emb=False,
        num_moe_layers=1, num_experts=2, moe_top_k=1, with_decoupled_ca=False,
        use_attention_pooling=False,
    )  # fmt: skip
    dino = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 56, "patch_size": 14}  # fmt: skip
    encoder = {"type": "DinoImageEncoder", "kwargs": {"config": dino, "image_size": 56}}
    made = Hunyuan3DDiTFlowMatchingPipeline(
        vae=vae.eval(),
        model=network.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        conditioner=SingleImageEncoder(main_image_encoder=encoder).eval(),
        image_processor=ImageProcessorV2(512),
        device="cpu",
        dtype=torch.float32,
    )
    decode = made.vae.geo_decoder.forward
    level = float(torch.cat([decode_all(made, decode)]).median())
    made.vae.geo_decoder.forward = lambda **given: decode(**given) - level
    return made


def decode_all(pipeline: Any, decode: Any) -> torch.Tensor:
    """The field of random latents at some points: where its middle is, a surface is sure."""
    points = torch.rand(1, 2000, 3) * 2 - 1
    with torch.no_grad():
        latents = pipeline.vae(torch.randn(1, 64, 8))
        return decode(queries=points, latents=latents).flatten()


def run_shape(pipeline: Any, folder: Path, **given: Any) -> trimesh.Trimesh:
    usual: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "seed": 7}
    more = {"octree_resolution": GRID, "num_chunks": 5000, "mc_level": 0.0}
    params = {**usual, **more, "remove_floaters": False, **given}
    folder.mkdir(exist_ok=True)
    cut_out(folder, photo()).save(folder / "input.png")
    job = Job(folder / "shape", {"input.png": folder / "input.png"}, **params)
    worker.shape(pipeline, job)
    return trimesh.load(job.outputs / "shape.glb", force="mesh")


def test_shape_through_upstreams_pipeline(pipeline: Any, tmp_path: Path) -> None:
    first = run_shape(pipeline, tmp_path / "a")
    assert len(first.faces) > 100 and np.abs(first.bounds).max() <= 1.01 + 1e-6
    again = run_shape(pipeline, tmp_path / "b")
    assert np.array_equal(first.vertices, again.vertices), "the same seed, the same shape"
    other = run_shape(pipeline, tmp_path / "c", seed=8)
    assert first.vertices.shape != other.vertices.shape or not np.allclose(
        first.vertices, other.vertices
    )
    unguided = run_shape(pipeline, tmp_path / "d", guidance_scale=-1.0)
    assert len(unguided.faces) > 0


def test_no_surface_is_our_error(pipeline: Any, tmp_path: Path) -> None:
    with pytest.raises(worker.NoSurface):
        run_shape(pipeline, tmp_path / "a", mc_level=1e6)


def test_floaters_go_and_the_rest_stays(pipeline: Any, tmp_path: Path) -> None:
    cleaned = run_shape(pipeline, tmp_path / "a", remove_floaters=True)
    assert len(cleaned.faces) > 100


def test_a_mesh_is_reduced_also_where_upstream_would_go_on_to_open3d() -> None:
    from hy3dshape.postprocessors import FaceReducer

    assert len(worker.reduced(trimesh.creation.icosphere(5), 2000).faces) <= 2000
    boxes = [trimesh.creation.box().apply_translation([3 * n, 0, 0]) for n in range(300)]
    parts = trimesh.util.concatenate(boxes)
    assert len(FaceReducer()(parts, max_facenum=1000).faces) > 1000
    assert len(worker.reduced(parts, 1000).faces) <= 1000


def test_weights_are_where_we_look_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upstream takes a folder that is there, for a repository with subfolder and for a path."""
    from hy3dshape.utils import smart_load_model

    monkeypatch.setenv("HY3DGEN_MODELS", str(tmp_path))
    for named in ("tencent/Hunyuan3D-2.1/hunyuan3d-dit-v2-1", str(tmp_path / "local")):
        repo, subfolder = worker.split_model_path(named)
        folder = tmp_path / repo / subfolder
        folder.mkdir(parents=True)
        found = smart_load_model(repo, subfolder, use_safetensors=False, variant="fp16")
        assert found == (str(folder / "config.yaml"), str(folder / "model.fp16.ckpt"))


def test_the_inpainting_extension_is_compiled_as_declared(tmp_path: Path) -> None:
    """The declaration's own command, for this Python."""
    from services.hunyuan21.model import MODEL

    if importlib.util.find_spec("pybind11") is None:
        pytest.skip("pybind11 is not here")
    folder = SOURCE / "hy3dpaint" / "DifferentiableRenderer"
    command = MODEL.image.steps[0].command.replace("-o mesh", f"-o {tmp_path}/mesh")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(command, shell=True, cwd=folder, env={**os.environ, "PATH": path}, check=True)
    built = tmp_path / f"mesh_inpaint_processor{sysconfig.get_config_var('EXT_SUFFIX')}"
    spec = importlib.util.spec_from_file_location("mesh_inpaint_processor", built)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.meshVerticeInpaint
