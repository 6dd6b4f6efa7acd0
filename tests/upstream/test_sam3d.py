"""Upstream's own code of SAM 3D Objects on a CPU, with random weights, through our worker.

`make upstream MODEL=sam3d` runs it; POLYPOD_UPSTREAM names the checkout, at the commit of
`services/sam3d/model.py`. Compiled packages that have no build for a CPU are stood in for
(`absent.py`): depth, the trained networks and the bake are therefore not tried here.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

if not os.environ.get("POLYPOD_UPSTREAM"):
    pytest.skip(
        "POLYPOD_UPSTREAM names no checkout of facebookresearch/sam-3d-objects",
        allow_module_level=True,
    )
if importlib.util.find_spec("torch") is None:
    pytest.skip(f"{sys.executable} has no torch", allow_module_level=True)

import torch

from polypod.kit.cutting import Remover, cut
from services.sam3d import worker
from tests.upstream import absent

SEED, STEPS = 7, 5


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

    def replace_feature(self, features: Any) -> SparseConvTensor:
        return type(self)(features, self.indices, self.spatial_shape, self.batch_size)


class Transform3d:
    """pytorch3d's, as far as point maps are normalised with it: row vectors times a matrix."""

    def __init__(self, matrix: Any = None) -> None:
        self.matrix = torch.eye(4) if matrix is None else matrix

    def scale(self, factors: Any) -> Transform3d:
        return self.then(torch.diag(torch.cat([factors.reshape(3), torch.ones(1)])))

    def translate(self, by: Any) -> Transform3d:
        moved = torch.eye(4)
        moved[3, :3] = by.reshape(3)
        return self.then(moved)

    def then(self, matrix: Any) -> Transform3d:
        return Transform3d(self.matrix @ matrix)

    def inverse(self) -> Transform3d:
        return Transform3d(torch.linalg.inv(self.matrix))

    def to(self, *where: Any) -> Transform3d:
        return self

    def transform_points(self, points: Any) -> Any:
        return points @ self.matrix[:3, :3] + self.matrix[3, :3]


@pytest.fixture(scope="module")
def upstream() -> SimpleNamespace:
    """Upstream's modules, imported for real."""
    os.environ |= {"LIDRA_SKIP_INIT": "true", "ATTN_BACKEND": "sdpa"}
    sys.path.insert(0, os.environ["POLYPOD_UPSTREAM"])
    if importlib.util.find_spec("torchvision") is None:
        absent.stand_in_torchvision()
        absent.hide("timm")
    missing = absent.stand_in(
        *("pytorch3d", "spconv", "kaolin", "gsplat", "open3d", "moge", "utils3d", "lightning"),
        *("xformers", "igraph", "pymeshfix", "pyvista", "xatlas", "cv2", "plyfile"),
    )
    if "spconv" in missing:
        import spconv.pytorch

        spconv.pytorch.SparseConvTensor = SparseConvTensor
    if "pytorch3d" in missing:
        import pytorch3d.transforms

        pytorch3d.transforms.Transform3d = Transform3d
    cuda = torch.cuda.is_available, torch.cuda.get_device_name
    torch.cuda.is_available, torch.cuda.get_device_name = lambda: True, lambda *_: "none"
    try:
        from sam3d_objects.pipeline import inference_pipeline_pointmap as pointmap
    finally:
        torch.cuda.is_available, torch.cuda.get_device_name = cuda
    from sam3d_objects.data.dataset.tdfy import img_and_mask_transforms, preprocessor
    from sam3d_objects.model.backbone.generator import classifier_free_guidance
    from sam3d_objects.model.backbone.generator.flow_matching.model import FlowMatching
    from sam3d_objects.model.backbone.generator.shortcut.model import ShortCut
    from sam3d_objects.model.backbone.tdfy_dit.modules import sparse
    from sam3d_objects.model.backbone.tdfy_dit.representations.mesh import cube2mesh
    from sam3d_objects.model.backbone.tdfy_dit.utils import postprocessing_utils, render_utils

    return SimpleNamespace(
        Pipeline=pointmap.InferencePipelinePointMap,
        PreProcessor=preprocessor.PreProcessor,
        transforms=img_and_mask_transforms,
        Guidance=classifier_free_guidance.ClassifierFreeGuidance,
        FlowMatching=FlowMatching,
        ShortCut=ShortCut,
        sparse=sparse,
        cube2mesh=cube2mesh,
        postprocessing=postprocessing_utils,
        rendering=render_utils,
    )


class Network(torch.nn.Module):
    """Any network that depends on all it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)

    def forward(self, x: Any, t: Any, *args: Any, d: Any = 0, cfg: bool = False, **kwargs: Any):
        shown = sum(float(v.nansum()) for v in kwargs.values() if isinstance(v, torch.Tensor))
        return torch.tanh(self.layer(x)) * (1 + t / 1000 + np.tanh(shown) + (0.3 if cfg else 0))


class Voxels(torch.nn.Module):
    """A latent of 16 x 16 x 16 cells as an occupancy of 64 x 64 x 64: too many voxels, as some
    objects have."""

    def forward(self, latent: Any) -> Any:
        size = (64, 64, 64)
        return torch.nn.functional.interpolate(latent[:, :1], size, mode="trilinear")


def preprocessor(upstream: SimpleNamespace, *, with_points: bool) -> Any:
    """As the weights' configuration has it, for a smaller picture."""
    resize = functools.partial(torch.nn.functional.interpolate, size=(64, 64), mode="nearest")

    def fit(picture: Any) -> Any:
        return resize(picture[None])[0]

    crop = functools.partial(
        upstream.transforms.crop_around_mask_with_padding, box_size_factor=1.2, padding_factor=0.0
    )
    made = upstream.PreProcessor(
        img_transform=fit,
        mask_transform=fit,
        img_mask_joint_transform=[crop],
        normalize_pointmap=True,
        pointmap_normalizer=upstream.transforms.ObjectCentricSSI(use_scene_scale=True),
    )
    if with_points:
        made.img_mask_pointmap_joint_transform = [upstream.transforms.resize_all_to_same_size, crop]
        made.pointmap_transform = fit
    return made


@pytest.fixture(scope="module")
def sam(upstream: SimpleNamespace) -> SimpleNamespace:
    """Upstream's pipeline with small networks of random weights; what `load_pipeline` gives."""
    torch.manual_seed(0)
    pipe = object.__new__(upstream.Pipeline)
    guidance = {"strength": 7.0, "unconditional_handling": "add_flag", "interval": [0, 500]}
    generators = {
        "ss_generator": upstream.ShortCut(reverse_fn=upstream.Guidance(Network(), **guidance)),
        "slat_generator": upstream.FlowMatching(
            reverse_fn=upstream.Guidance(Network(), **guidance)
        ),
    }
    for generator in generators.values():
        generator.eval()
        generator.rescale_t = 3
    vars(pipe).update(
        device=torch.device("cpu"),
        dtype=torch.float16,
        shape_model_dtype=torch.float16,
        models={
            **generators,
            "ss_decoder": Voxels(),
            "slat_decoder_gs": lambda slat: [slat],
            "slat_decoder_mesh": lambda slat: [mesh_of(upstream)],
        },
        condition_embedders={"ss_condition_embedder": None, "slat_condition_embedder": None},
        ss_condition_input_mapping=[],
        slat_condition_input_mapping=[],
        ss_preprocessor=preprocessor(upstream, with_points=True),
        slat_preprocessor=preprocessor(upstream, with_points=False),
        pose_decoder=pose,
        downsample_ss_dist=1,
        ss_cfg_strength=7,
        ss_cfg_strength_pm=0.0,
        ss_rescale_t=3,
        slat_cfg_strength=1,
        slat_rescale_t=1,
        slat_mean=torch.linspace(-1, 1, 8),
        slat_std=torch.linspace(1, 2, 8),
        decode_formats=["gaussian", "mesh"],
        rendering_engine="nvdiffrast",
        layout_post_optimization_method=None,
        compute_pointmap=depth,
    )
    generators["slat_generator"].rescale_t = 1
    torch.cuda.get_rng_state, torch.cuda.set_rng_state = torch.get_rng_state, torch.set_rng_state
    return SimpleNamespace(
        torch=torch,
        pipe=pipe,
        guidance={name: getattr(pipe, name) for name in worker.GUIDANCE},
        SparseTensor=upstream.sparse.SparseTensor,
        MeshExtractResult=upstream.cube2mesh.MeshExtractResult,
        postprocessing=upstream.postprocessing,
        rendering=upstream.rendering,
    )


def depth(rgba: np.ndarray, pointmap: Any = None) -> dict[str, Any]:
    """A tilted plane, with holes, in place of the depth model's answer."""
    height, width, _ = rgba.shape
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    points = torch.stack([x, y, 2 + x / 2])
    points[:, :5] = float("inf")
    return {"pointmap": points, "pts_color": torch.from_numpy(rgba[..., :3] / 255).permute(2, 0, 1)}


def pose(found: Any, scene_scale: Any = None, scene_shift: Any = None) -> dict[str, Any]:
    return {
        "rotation": torch.tensor([[1.0, 0, 0, 0]]),
        "translation": scene_shift.reshape(1, 3),
        "scale": scene_scale.reshape(1, 3),
    }


def mesh_of(upstream: SimpleNamespace) -> Any:
    """A tetrahedron whose tip is red and points along +z."""
    vertices = torch.tensor([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0, 0.5, 0], [0, 0, 0.5]])
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]])
    colours = torch.zeros(4, 6)
    colours[3, 0] = 1
    return upstream.cube2mesh.MeshExtractResult(vertices, faces, colours)


class Params(dict):
    __getattr__ = dict.__getitem__


class Job:
    """What the harness hands to a stage."""

    def __init__(self, folder: Path, **params: Any) -> None:
        self.outputs, self.params, self.told = folder, Params(params), list[tuple[float, str]]()

    @property
    def inputs(self) -> dict[str, Path]:
        return {path.name: path for path in self.outputs.iterdir()}

    def progress(self, fraction: float, message: str = "", until: float = 0) -> None:
        self.told.append((fraction, message))


PARAMS: dict[str, Any] = {
    "seed": SEED,
    "stage1_inference_steps": STEPS,
    "stage2_inference_steps": STEPS - 1,
    **dict.fromkeys(("use_stage1_distillation", "use_stage2_distillation"), False),
    **dict.fromkeys(worker.GUIDANCE),
    "output_format": "glb",
    **dict.fromkeys(("with_splat", "with_texture", "with_mesh_postprocess"), False),
    **{"simplify": 0.95, "fill_holes": True, "fill_holes_max_size": 0.04, "texture_size": 1024},
    **{"nviews": 8, "view_resolution": 256, "rendering_engine": "nvdiffrast"},
}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job whose cut-out the kit has done."""
    picture = Image.effect_noise((96, 80), 60).convert("RGBA")
    alpha = Image.new("L", picture.size)
    alpha.paste(200, (30, 20, 70, 62))
    picture.putalpha(alpha)
    picture.save(tmp_path / "image", format="PNG")
    made = Job(tmp_path, **PARAMS)
    cut(tmp_path / "image", None, Remover({}), keep_background=True).save(tmp_path / "input.png")
    return made


def test_our_cut_out_is_what_upstream_crops(upstream: SimpleNamespace, sam: Any, job: Job) -> None:
    """Its own `run` keeps the crop at 1.2 times the object, and the background around it."""
    rgba = worker.read_rgba(job)
    prepared = sam.pipe.preprocess_image(rgba, sam.pipe.slat_preprocessor)
    assert prepared["image"].shape == (1, 3, 64, 64) and prepared["mask"].shape == (1, 1, 64, 64)
    assert set(prepared["mask"].unique().tolist()) == {0.0, 1.0}
    left, top, right, bottom = upstream.transforms.compute_mask_bbox(
        torch.from_numpy(rgba[..., 3] / 255), 1.2
    )
    assert right - left == bottom - top == 2 * (int(41 * 1.2) // 2)
    outside = prepared["image"][0][:, prepared["mask"][0, 0] == 0]
    assert (outside > 0).float().mean() > 0.5
    assert prepared["mask"].mean() == pytest.approx(40 * 42 / (right - left) ** 2, rel=0.1)


def test_a_soft_alpha_would_have_widened_the_crop(upstream: SimpleNamespace) -> None:
    soft = torch.zeros(60, 60)
    soft[20:40, 20:40], soft[10, 10] = 1, 1 / 255
    widened = upstream.transforms.compute_mask_bbox(soft, 1.0)
    assert widened != upstream.transforms.compute_mask_bbox((soft > 0.5).float(), 1.0)


def test_simplify_is_the_share_that_is_removed(upstream: SimpleNamespace) -> None:
    trimesh = pytest.importorskip("trimesh")
    ball = trimesh.creation.icosphere(4)
    for share in (0.5, 0.95):
        _, faces = upstream.postprocessing.postprocess_mesh(
            ball.vertices, ball.faces, simplify_ratio=share, fill_holes=False, verbose=False
        )
        assert len(faces) / len(ball.faces) == pytest.approx(1 - share, abs=0.02)


def test_dinov2_comes_from_a_folder(
    upstream: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upstream's own embedder, a small one without weights, asked to take it from GitHub."""
    if not os.environ.get("SAM3D_DINO"):
        pytest.skip("SAM3D_DINO names no checkout of facebookresearch/dinov2")
    from sam3d_objects.model.backbone.dit.embedder.dino import Dino

    monkeypatch.setattr(torch.hub, "load", torch.hub.load)
    worker.keep_off_the_network(torch)
    made = Dino(dino_model="dinov2_vits14_reg", backbone_kwargs={"pretrained": False})
    assert made.embed_dim == 384


def test_the_stages_are_one_uncut_run(sam: SimpleNamespace, job: Job) -> None:
    """The same voxels and latents, bit for bit, as `pipe.run` with the same seed and steps."""
    for stage in ("depth", "structure", "latent"):
        torch.manual_seed(12345)  # what other jobs do to the generators between our stages
        worker.run(stage, sam, job)
    whole = sam.pipe.run(
        worker.read_rgba(job),
        None,
        SEED,
        with_mesh_postprocess=False,
        with_texture_baking=False,
        stage1_inference_steps=STEPS,
        stage2_inference_steps=STEPS - 1,
        decode_formats=["gaussian"],
    )
    ours, theirs = np.load(job.outputs / "latent.npz"), whole["gaussian"][0]
    assert whole["downsample_factor"] == 2 and len(whole["coords_original"]) > 42_000
    assert 1000 < len(ours["coords"]) <= 42_000
    assert (ours["coords"] == theirs.coords.numpy()).all()
    assert (ours["feats"] == theirs.feats.numpy()).all()
    told = json.loads((job.outputs / "pose.json").read_text())
    assert told["scale"] == whole["scale"].reshape(-1).tolist()
    assert told["translation"] == whole["translation"].reshape(-1).tolist()


def test_progress_counts_exactly_the_steps(sam: SimpleNamespace, job: Job) -> None:
    for stage in ("depth", "structure", "latent"):
        worker.run(stage, sam, job)
    steps = [message for _, message in job.told if "step" in message]
    first = [f"Structure, step {n} of {STEPS}" for n in range(1, STEPS + 1)]
    assert steps == first + [f"Latent, step {n} of {STEPS - 1}" for n in range(1, STEPS)]
    for generator in ("ss_generator", "slat_generator"):
        assert "generate_iter" not in vars(sam.pipe.models[generator])


def test_guidance_and_distillation_change_the_result(sam: SimpleNamespace, job: Job) -> None:
    def coords(**changes: Any) -> np.ndarray:
        job.params.update({**PARAMS, **changes})
        worker.run("structure", sam, job)
        with np.load(job.outputs / "structure.npz") as kept:
            return kept["coords"]

    worker.run("depth", sam, job)
    usual = coords()
    for change in (
        {"ss_cfg_strength": 1.0},
        {"ss_rescale_t": 1.0},
        {"use_stage1_distillation": True},
        {"seed": 8},
    ):
        other = coords(**change)
        assert other.shape != usual.shape or (other != usual).any(), change
    assert (coords() == usual).all()  # none of them is left behind


def test_a_failing_step_leaves_no_step_count_behind(sam: SimpleNamespace, job: Job) -> None:
    worker.run("depth", sam, job)
    worker.run("structure", sam, job)
    before = np.load(job.outputs / "structure.npz")["coords"]

    class Cancelled(BaseException):
        pass

    def cancel(fraction: float, message: str = "") -> None:
        if "step 2" in message:
            raise Cancelled

    cancelled = Job(job.outputs, **{**PARAMS, "stage1_inference_steps": 50})
    cancelled.progress = cancel
    with pytest.raises(Cancelled):
        worker.run("structure", sam, cancelled)
    worker.run("structure", sam, job)
    assert (np.load(job.outputs / "structure.npz")["coords"] == before).all()


def test_the_mesh_is_exported_with_its_colours_and_y_up(sam: SimpleNamespace, job: Job) -> None:
    """Upstream's own `to_glb`, without a texture."""
    for stage in ("depth", "structure", "latent", "decode", "bake"):
        worker.run(stage, sam, job)
    data = (job.outputs / "model.glb").read_bytes()
    length = int.from_bytes(data[12:16], "little")
    tree = json.loads(data[20 : 20 + length])
    (primitive,) = tree["meshes"][0]["primitives"]
    position = tree["accessors"][primitive["attributes"]["POSITION"]]
    assert position["min"] == [-0.5, 0, -0.5] and position["max"] == [0.5, 0.5, 0.5]
    colours = tree["accessors"][primitive["attributes"]["COLOR_0"]]
    start = 28 + length + tree["bufferViews"][colours["bufferView"]].get("byteOffset", 0)
    assert struct.unpack_from("<3B", data, start + 12) == (255, 0, 0)
    assert tree["materials"][0]["pbrMetallicRoughness"]["metallicFactor"] == 0
