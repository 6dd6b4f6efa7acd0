"""SAM 3D Objects, stage by stage, through upstream's own pipeline (commit in `model.py`).

`pipe.run` is cut where files can lie between its steps; the state of the random generators travels
with them, so the result is that of one uncut run. README.md says where each fact comes from.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

GUIDANCE = ("ss_cfg_strength", "ss_rescale_t", "slat_cfg_strength", "slat_rescale_t")
FRAME = "camera: x left, y up, z forward (PyTorch3D); the object before it: z up; relative units"


class BadInput(Exception):
    """The picture cannot be used; `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def load(worker: str, settings: dict) -> SimpleNamespace:
    """Upstream's pipeline with all of its weights, read from disk only."""
    import torch

    choose_attention(torch.cuda.get_device_name(0))
    keep_off_the_network(torch)
    from hydra.utils import instantiate
    from omegaconf import OmegaConf
    from sam3d_objects.model.backbone.tdfy_dit.modules import sparse
    from sam3d_objects.model.backbone.tdfy_dit.representations.mesh import cube2mesh
    from sam3d_objects.model.backbone.tdfy_dit.utils import postprocessing_utils, render_utils

    checkpoints = Path(os.environ["SAM3D_CHECKPOINTS"])
    config = OmegaConf.load(checkpoints / "pipeline.yaml")
    config.workspace_dir = str(checkpoints)
    config.compile_model = False  # its warm-up calls a method that upstream does not have
    config.slat_decoder_gs_4_config_path = config.slat_decoder_gs_4_ckpt_path = None
    config.depth_model.model.pretrained_model_name_or_path = os.environ["SAM3D_MOGE"]
    pipe = instantiate(config)
    frames = render_utils.render_frames
    # the bake asks for Inria's rasterizer where nothing is said; upstream does not install it
    render_utils.render_frames = lambda sample, extrinsics, intrinsics, options, **more: frames(
        sample, extrinsics, intrinsics, {"backend": "gsplat", **options}, **more
    )
    return SimpleNamespace(
        torch=torch,
        pipe=pipe,
        guidance={name: getattr(pipe, name) for name in GUIDANCE},
        SparseTensor=sparse.SparseTensor,
        MeshExtractResult=cube2mesh.MeshExtractResult,
        postprocessing=postprocessing_utils,
        rendering=render_utils,
    )


def run(stage: str, sam, job) -> None:
    stages = {"depth": depth, "structure": structure, "latent": latent}
    with sam.pipe.device:  # as in `pipe.run`
        (stages | {"decode": decode, "bake": bake})[stage](sam, job)


def choose_attention(gpu: str) -> None:
    """flash_attn where upstream wants it, else xformers: sdpa builds masks of several GiB.

    The first import of the two packages fixes it; the pipeline's overwrites the variables later,
    and would ask for flash_attn also where it is not installed.
    """
    wanted = any(name in gpu for name in ("A100", "H100", "H200")) and find_spec("flash_attn")
    os.environ.setdefault("ATTN_BACKEND", "flash_attn" if wanted else "xformers")
    os.environ.setdefault("SPARSE_ATTN_BACKEND", os.environ["ATTN_BACKEND"])
    import sam3d_objects.model.backbone.tdfy_dit.modules.attention
    import sam3d_objects.model.backbone.tdfy_dit.modules.sparse  # noqa: F401


def keep_off_the_network(torch) -> None:
    """DINOv2's code from SAM3D_DINO: upstream would ask GitHub for it, even where it has a copy."""
    load_hub = torch.hub.load
    torch.hub.load = lambda repo_or_dir, model, source="", **more: load_hub(
        os.environ["SAM3D_DINO"], model, source="local", **more
    )


# --- depth, structure, latent: input.png -> pointmap.npz -> structure.npz, pose.json -> latent.npz


def depth(sam, job) -> None:
    job.progress(0.0, "Estimating depth")
    points = sam.pipe.compute_pointmap(read_rgba(job))["pointmap"]
    np.savez(job.outputs / "pointmap.npz", points=points.cpu().numpy())  # (3, height, width)


def structure(sam, job) -> None:
    pipe, torch, params = sam.pipe, sam.torch, job.params
    job.progress(0.0, "Preparing the picture")
    points = on_gpu(sam, job, "pointmap.npz")["points"]
    prepared = pipe.preprocess_image(read_rgba(job), pipe.ss_preprocessor, pointmap=points)
    torch.manual_seed(params.seed)
    steps = params.stage1_inference_steps
    with sampling(sam, "ss", job, steps, "Structure"):
        found = pipe.sample_sparse_structure(
            prepared, inference_steps=steps, use_distillation=params.use_stage1_distillation
        )
    scene = {f"scene_{name}": prepared.get(f"pointmap_{name}") for name in ("scale", "shift")}
    pose = pipe.pose_decoder(found, **scene)
    pose["scale"] = pose["scale"] * found["downsample_factor"]
    names = {"rotation": "rotation_wxyz", "translation": "translation", "scale": "scale"}
    told = {names[name]: pose[name].cpu().numpy().reshape(-1).tolist() for name in names}
    (job.outputs / "pose.json").write_text(json.dumps({**told, "frame": FRAME}))
    np.savez(
        job.outputs / "structure.npz",
        coords=found["coords"].cpu().numpy(),
        random=torch.get_rng_state().numpy(),
        random_cuda=torch.cuda.get_rng_state().numpy(),
    )


def latent(sam, job) -> None:
    pipe, params = sam.pipe, job.params
    job.progress(0.0, "Preparing the picture")
    prepared = pipe.preprocess_image(read_rgba(job), pipe.slat_preprocessor)
    kept = on_gpu(sam, job, "structure.npz")
    sam.torch.set_rng_state(kept["random"].cpu())
    sam.torch.cuda.set_rng_state(kept["random_cuda"].cpu())
    steps, distil = params.stage2_inference_steps, params.use_stage2_distillation
    with sampling(sam, "slat", job, steps, "Latent"):
        slat = pipe.sample_slat(
            prepared, kept["coords"], inference_steps=steps, use_distillation=distil
        )
    arrays = {"coords": slat.coords.cpu().numpy(), "feats": slat.feats.cpu().numpy()}
    np.savez(job.outputs / "latent.npz", **arrays)


@contextmanager
def sampling(sam, which: str, job, steps: int, what: str):
    """Guidance as asked for (None: as the weights have it), and progress after each step."""
    for name in (f"{which}_cfg_strength", f"{which}_rescale_t"):
        given = job.params[name]
        setattr(sam.pipe, name, sam.guidance[name] if given is None else given)
    generator = sam.pipe.models[f"{which}_generator"]
    generator.rescale_t = getattr(sam.pipe, f"{which}_rescale_t")
    iterate = generator.generate_iter

    def generate_iter(*args, **kwargs):
        for done, step in enumerate(iterate(*args, **kwargs), 1):
            job.progress(done / steps, f"{what}, step {done} of {steps}")
            yield step

    generator.generate_iter = generate_iter
    try:
        yield
    finally:
        del generator.generate_iter


# --- decode: latent.npz -> model.ply, mesh.npz ----------------------------------------------------


def decode(sam, job) -> None:
    """One decoder after the other, and only those whose result is wanted."""
    kind = job.params.output_format
    if kind == "ply" or job.params.with_splat:
        job.progress(0.1, "Decoding Gaussians")
        decoded(sam, job, "gaussian").save_ply(str(job.outputs / "model.ply"))
        sam.torch.cuda.empty_cache()
    if kind == "glb":
        job.progress(0.5, "Decoding the mesh")
        mesh = decoded(sam, job, "mesh")
        if not len(mesh.faces):
            raise BadInput("The mesh came out empty.", "Try another seed, or a better mask.")
        names = ("vertices", "faces", "vertex_attrs")
        arrays = {name: getattr(mesh, name).cpu().numpy() for name in names}
        np.savez(job.outputs / "mesh.npz", **arrays)


def decoded(sam, job, kind: str):
    slat = sam.SparseTensor(**on_gpu(sam, job, "latent.npz"))
    return sam.pipe.decode_slat(slat, [kind])[kind][0]


# --- bake: mesh.npz, latent.npz -> model.glb ------------------------------------------------------


def bake(sam, job) -> None:
    """Simplifies, unwraps and textures from rendered Gaussians, or keeps the mesh's own colours."""
    params, textured = job.params, job.params.with_texture
    job.progress(0.0, "Preparing the mesh", until=0.95)
    splat = decoded(sam, job, "gaussian") if textured else None
    sam.postprocessing.render_multiview = lambda sample, **_: sam.rendering.render_multiview(
        sample, resolution=params.view_resolution, nviews=params.nviews
    )
    np.random.seed(params.seed)  # upstream draws the order of the views from it
    sam.torch.manual_seed(params.seed)
    made = sam.postprocessing.to_glb(
        splat,
        sam.MeshExtractResult(**on_gpu(sam, job, "mesh.npz")),
        simplify=params.simplify,
        fill_holes=params.fill_holes,
        fill_holes_max_size=params.fill_holes_max_size,
        texture_size=params.texture_size,
        verbose=True,  # its bars are the progress
        with_mesh_postprocess=textured and params.with_mesh_postprocess,
        with_texture_baking=textured,
        use_vertex_color=not textured,
        rendering_engine=params.rendering_engine,
    )
    job.progress(0.95, "Writing model.glb")
    if not textured:
        made.visual.vertex_colors = linear(made.visual.vertex_colors[:, :3] / 255)
    made.export(job.outputs / "model.glb", tree_postprocessor=make_matt)


def linear(srgb: np.ndarray) -> np.ndarray:
    """What glTF has at vertices; trimesh writes what a screen shows as it is."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def make_matt(tree: dict) -> None:
    """No metal: glTF takes a metallic factor that is not given for 1, also without a material."""
    for material in tree.setdefault("materials", [{}]):
        material.setdefault("pbrMetallicRoughness", {})["metallicFactor"] = 0.0
    for primitive in (one for mesh in tree["meshes"] for one in mesh["primitives"]):
        primitive.setdefault("material", 0)


# --- files of stages ------------------------------------------------------------------------------


def read_rgba(job) -> np.ndarray:
    return np.array(Image.open(job.inputs["input.png"]))


def on_gpu(sam, job, name: str) -> dict:
    """The arrays of a file as tensors, by name."""
    with np.load(job.inputs[name]) as kept:
        return {key: sam.torch.from_numpy(kept[key]).to(sam.pipe.device) for key in kept}
