"""What the stand-ins of SAM 3D Objects answer: results of the right form, and small."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import trimesh
from PIL import Image
from tqdm import tqdm
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

VOXELS = np.argwhere(np.ones((4, 4, 4))).astype(np.int32)


class Generator:
    """A sampler's `generate`, which runs over `generate_iter`, as upstream's base class has it."""

    inference_steps = 25

    def generate(self) -> None:
        for _ in self.generate_iter((1, 8), "cuda"):
            pass

    def generate_iter(self, x_shape: Any, x_device: Any) -> Any:
        for step in range(self.inference_steps):
            yield step / self.inference_steps, None, ()


def make_pipeline(given: SimpleNamespace) -> None:
    """What it passes on is checked against its base's parameters."""
    pipe, options = given.self, given.kwargs
    assert not options["compile_model"], "upstream's warm-up calls what is not there"
    super(type(pipe), pipe).__init__(*given.args, **options)
    assert os.environ["ATTN_BACKEND"] == os.environ["SPARSE_ATTN_BACKEND"]
    pipe.depth_model = given.depth_model


def make_base_pipeline(given: SimpleNamespace) -> None:
    pipe = given.self
    for name in ("ss_cfg_strength", "ss_rescale_t", "slat_cfg_strength", "slat_rescale_t"):
        setattr(pipe, name, getattr(given, name))
    dino = {"repo_or_dir": "facebookresearch/dinov2", "model": "dinov2_vitl14_reg"}
    loaded = torch.hub.load(**dino, source="github", verbose=False)
    assert loaded == ("/src/dinov2", "dinov2_vitl14_reg", {"verbose": False})
    pipe.device = torch.device("cuda")
    pipe.ss_preprocessor, pipe.slat_preprocessor = "ss", "slat"
    pipe.models = {"ss_generator": Generator(), "slat_generator": Generator()}
    pipe.pose_decoder = pose


def pose(found: Any, scene_scale: Any = None, scene_shift: Any = None) -> dict[str, Any]:
    assert scene_scale is not None and scene_shift is not None
    return {
        "rotation": torch.tensor([[1.0, 0, 0, 0]], device="cuda"),
        "translation": torch.tensor([[0.0, 0, 1]], device="cuda"),
        "scale": torch.tensor([[0.5, 0.5, 0.5]], device="cuda"),
    }


def pointmap(given: SimpleNamespace) -> dict[str, Any]:
    height, width, channels = given.image.shape
    assert channels == 4 and given.image.dtype == np.uint8
    points = torch.tensor(np.ones((3, height, width), np.float32), device="cuda")
    return {"pointmap": points, "pts_color": points}


def prepare(given: SimpleNamespace) -> dict[str, Any]:
    assert set(np.unique(given.image[..., 3])) <= {0, 255}, "the mask is not binary"
    assert given.image.flags.writeable, "torch.from_numpy warns otherwise"
    prepared = {"image": torch.tensor(np.zeros((1, 3, 8, 8), np.float32), device="cuda")}
    if given.pointmap is not None:
        assert given.preprocessor == "ss" and str(given.pointmap.device) == "cuda"
        assert given.pointmap.shape == (3, *given.image.shape[:2])
        number = torch.tensor([1.0], device="cuda")
        prepared |= {"pointmap_scale": number, "pointmap_shift": number}
    return prepared


def sample(generator: Generator, steps: int) -> None:
    kept, generator.inference_steps = generator.inference_steps, steps
    generator.generate()
    generator.inference_steps = kept


def structure(given: SimpleNamespace) -> dict[str, Any]:
    pipe, generator = given.self, given.self.models["ss_generator"]
    print(f"ss: strength {pipe.ss_cfg_strength}, rescale_t {generator.rescale_t}")
    sample(generator, given.inference_steps)
    torch.draw(1)
    coords = np.concatenate([np.zeros((len(VOXELS), 1), np.int32), VOXELS], axis=1)
    return {"coords": torch.tensor(coords, device="cuda"), "downsample_factor": 2}


def latent(given: SimpleNamespace) -> Any:
    sparse = import_module("sam3d_objects.model.backbone.tdfy_dit.modules.sparse.basic")
    pipe, generator = given.self, given.self.models["slat_generator"]
    print(f"slat: strength {pipe.slat_cfg_strength}, rescale_t {generator.rescale_t}")
    sample(generator, given.inference_steps)
    assert str(given.coords.device) == "cuda"
    feats = torch.draw(len(given.coords), 8)
    return sparse.SparseTensor(coords=given.coords, feats=feats)


def sparse_tensor(self: Any, feats: Any, coords: Any) -> None:
    """Upstream's takes anything and sorts it out; these two are what it needs."""
    assert {str(feats.device), str(coords.device)} == {"cuda"}
    assert feats.shape[0] == coords.shape[0] and coords.shape[1] == 4
    self.feats, self.coords = feats, coords


def decode(given: SimpleNamespace) -> dict[str, Any]:
    names = "sam3d_objects.model.backbone.tdfy_dit.representations"
    made: dict[str, Any] = {}
    if "gaussian" in given.formats:
        made["gaussian"] = [
            import_module(f"{names}.gaussian.gaussian_model").Gaussian(aabb=[-0.5] * 6)
        ]
        made["gaussian"][0].feats = given.slat.feats
    if "mesh" in given.formats:
        box = trimesh.creation.icosphere(2)
        faces = torch.tensor(box.faces.astype(np.int64), device="cuda")
        vertices = torch.tensor(box.vertices.astype(np.float32) / 2, device="cuda")
        colours = torch.tensor(np.full((len(box.vertices), 6), 0.5, np.float32), device="cuda")
        mesh = import_module(f"{names}.mesh.cube2mesh").MeshExtractResult(vertices, faces, colours)
        made["mesh"] = [mesh]
    return made


def save_ply(given: SimpleNamespace) -> None:
    names = "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2"
    names += " rot_0 rot_1 rot_2 rot_3"
    rows = np.zeros((64, len(names.split())), "<f4")
    rows[:, :3] = VOXELS / 4 - 0.5
    rows[:, 6] = given.self.feats.cpu().numpy()[:, 0]
    rows[:, 13] = 1
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
    head += [f"property float {name}" for name in names.split()] + ["end_header", ""]
    Path(given.path).write_bytes("\n".join(head).encode() + rows.tobytes())


def to_glb(given: SimpleNamespace) -> trimesh.Trimesh:
    """As upstream's: bars, bake and colours by the same three switches; y up."""
    post = import_module("sam3d_objects.model.backbone.tdfy_dit.utils.postprocessing_utils")
    vertices = given.mesh.vertices.cpu().numpy() @ [[1, 0, 0], [0, 0, -1], [0, 1, 0]]
    faces = given.mesh.faces.cpu().numpy()
    plain = not given.with_mesh_postprocess and not given.with_texture_baking
    if plain and given.use_vertex_color:
        made = trimesh.Trimesh(vertices, faces, process=False)
        made.visual.vertex_colors = given.mesh.vertex_attrs[:, :3].cpu().numpy()
        return made
    if not given.with_texture_baking:
        return trimesh.Trimesh(vertices, faces)
    assert given.app_rep is not None
    post.render_multiview(given.app_rep, resolution=1024, nviews=100)
    for _ in tqdm(range(100), desc="Texture baking (opt)", disable=not given.verbose):
        pass
    texture = Image.new("RGB", (given.texture_size // 64,) * 2, (200, 100, 50))
    uv = (vertices[:, :2] + 0.5).clip(0, 1)
    return trimesh.Trimesh(
        vertices,
        faces,
        visual=TextureVisuals(
            uv=uv, material=PBRMaterial(roughnessFactor=1.0, baseColorTexture=texture)
        ),
    )


def render_multiview(given: SimpleNamespace) -> Any:
    rendering = import_module("sam3d_objects.model.backbone.tdfy_dit.utils.render_utils")
    options = {"resolution": given.resolution, "bg_color": (0, 0, 0)}
    return rendering.render_frames(given.sample, [], [], options)


def render_frames(given: SimpleNamespace) -> Any:
    assert given.options["backend"] == "gsplat", "upstream does not install Inria's rasterizer"
    return {"color": []}


ANSWERS = {
    "InferencePipelinePointMap.__init__": make_pipeline,
    "InferencePipeline.__init__": make_base_pipeline,
    "InferencePipelinePointMap.compute_pointmap": pointmap,
    "InferencePipelinePointMap.preprocess_image": prepare,
    "InferencePipeline.sample_sparse_structure": structure,
    "InferencePipeline.sample_slat": latent,
    "InferencePipeline.decode_slat": decode,
    "SparseTensor.__init__": sparse_tensor,
    "Gaussian.save_ply": save_ply,
    "to_glb": to_glb,
    "render_multiview": render_multiview,
    "render_frames": render_frames,
}
