"""SyncHuman: five views and a coarse shape (stage 1), then latent, mesh and texture (stage 2).

Upstream's code is called where it lies, with what mends.py changes in it; files and lines are of
the commit that model.py pins: P1 is pipelines/SyncHumanOneStagePipeline.py, P2 SyncHumanTwoStage.py
beside it, PP utils/postprocessing_utils.py.
"""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageOps

from .mends import first_of, keep_off_the_network, leave_out, mend_fill_holes

VIEWS = [f"{kind}_{n}.png" for kind in ("color", "normal") for n in range(5)]
MIRRORED = ("2", "3")  # back and right side: the baker turns them itself (PP:657)
SOLID = 204  # P1:350 and P2:173 look for the person where alpha is above this
Y_UP = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]  # as PP:681 turns the textured mesh


class BadInput(Exception):
    """The cut-out would end in the middle of upstream's code."""

    hint = "Send a picture of one whole person, one with a transparent background, or a `mask`."


class NoShape(Exception):
    """The coarse shape or the mesh is empty."""

    hint = "Try another seed, or a picture that shows one whole person from the front."


class NotInstalled(Exception):
    """Code or weights are not where they should be."""

    hint = "Run `polypod doctor`; building the image, or `polypod setup synchuman`, puts it there."


def load(worker: str, settings: dict):
    os.chdir(os.environ["SYNCHUMAN_ROOT"])  # P1:83 opens its prompts from there
    keep_off_the_network()
    leave_out()
    return load_stage1() if worker == "stage1" else load_stage2()


def run(stage: str, state, job) -> None:
    {"multiview": multiview, "latent": latent, "texture": texture}[stage](state, job)


# --- stage 1: input.png -> views, latent.npz, voxel.ply -------------------------------------------


def load_stage1():
    folder = checkpoints("OneStage", "pipeline_config.json")
    from SyncHuman.pipelines.SyncHumanOneStagePipeline import SyncHumanOneStagePipeline

    pipe = SyncHumanOneStagePipeline.from_pretrained(str(folder))
    pipe.SyncHuman_2D3DCrossSpaceDiffusion.enable_xformers_memory_efficient_attention()
    pipe.vae.enable_slicing()  # decodes ten pictures one by one: the same pictures, less memory
    return pipe


def multiview(pipe, job) -> None:
    """Upstream's `run`, with the steps that it does not let through (P1:613)."""
    check(job.inputs["input.png"])
    folder, params = job.scratch(), job.params
    job.progress(0.0, "Preparing the picture", until=1.0)  # its bar of `stage1_steps` fills this
    pipe.run_model = functools.partial(
        pipe.run_model, num_inference_steps=params.stage1_steps, rescale_t=params.rescale_t
    )
    try:
        pipe.run(
            str(job.inputs["input.png"]),
            str(folder),
            seed=params.seed,
            guidance_scale=params.guidance_scale,
        )
    finally:
        del pipe.run_model
    with np.load(folder / "latent.npz") as found:
        if not len(found["coords"]):
            raise NoShape("The coarse shape is empty.")
    for name in VIEWS:
        turn(folder / name, job.outputs / name)
    for name in ("latent.npz", "voxel.ply"):
        shutil.move(str(folder / name), str(job.outputs / name))


def check(picture: Path) -> None:
    """What would end as ZeroDivisionError, ValueError or NameError of upstream's, in words."""
    alpha = np.asarray(Image.open(picture).getchannel("A"))
    if alpha.max() <= SOLID:
        raise BadInput("The person is half transparent everywhere.")
    if alpha.min() == 255:
        raise BadInput("The picture has no background around the person.")


def turn(source: Path, to: Path) -> None:
    """Copies a view, mirrored where upstream keeps it so; twice is as before."""
    if to.stem[-1] in MIRRORED:
        ImageOps.mirror(Image.open(source)).save(to)
    else:
        shutil.copyfile(source, to)


# --- stage 2: views, latent.npz -> slat.npz -> mesh.glb -------------------------------------------


def load_stage2() -> SimpleNamespace:
    folder = checkpoints("SecondStage", "pipeline.json")
    import torch
    from SyncHuman.modules.sparse.basic import SparseTensor
    from SyncHuman.pipelines.SyncHumanTwoStage import SyncHumanTwoStagePipeline
    from SyncHuman.utils import postprocessing_utils

    mend_fill_holes(postprocessing_utils)
    try:
        pipe = SyncHumanTwoStagePipeline.from_pretrained(str(folder))
    except Exception as error:
        raise first_of(error) from None  # P2:53 takes any for a repository's name, and tries again
    pipe.cuda()
    return SimpleNamespace(
        torch=torch, pipe=pipe, post=postprocessing_utils, SparseTensor=SparseTensor
    )


def latent(stage2, job) -> None:
    """The first half of upstream's `run` (P2:286-293), with a seed, which that has not."""
    pipe, folder, params = stage2.pipe, kept_stage1(job), job.params
    job.progress(0.0, "Reading the views", until=1.0)  # its bar of `stage2_steps` fills this
    stage2.torch.manual_seed(params.seed)
    with stage2.torch.no_grad():
        cond = pipe.get_cond([pipe.preprocess_image(str(folder / "input.png"))])
        slat = pipe.sample_slat(
            cond,
            pipe._get_coords_gen(str(folder)).cuda(),
            sampler_params={"steps": params.stage2_steps, "cfg_strength": params.cfg_strength},
        )
    arrays = {"coords": slat.coords.cpu().numpy(), "feats": slat.feats.cpu().numpy()}
    np.savez(job.outputs / "slat.npz", **arrays)


def texture(stage2, job) -> None:
    """The second half (P2:297-316): decodes; then simplifies, unwraps and bakes, if wanted."""
    params, views = job.params, stage2.pipe._get_mv_generate(str(kept_stage1(job)))
    mesh, splat = decode(stage2, job, views)
    if not len(mesh.faces):
        raise NoShape("The mesh is empty.")
    if params.with_texture:
        job.progress(0.1, "Preparing the mesh", until=0.97)  # its bars fill this
        np.random.seed(params.seed)  # PP:573 draws the order of the views from it
        made = stage2.post.to_glb(
            splat,
            mesh,
            views["mv_img"],
            views["mv_normal"],
            views["faces_img"],
            views["faces_normal"],
            simplify=params.simplify,
            fill_holes=params.fill_holes,
            fill_holes_max_size=params.fill_holes_max_size,
            texture_size=params.texture_size,
        )
    else:
        made = coloured(mesh)
    job.progress(0.98, "Writing the mesh")
    made.export(str(job.outputs / "mesh.glb"))


def decode(stage2, job, views: dict) -> tuple:
    """The mesh, and the Gaussians where a texture is baked from them."""
    pipe = stage2.pipe
    with stage2.torch.no_grad():
        with np.load(job.inputs["slat.npz"]) as kept:
            tensors = {name: stage2.torch.from_numpy(kept[name]).cuda() for name in kept.files}
        slat = stage2.SparseTensor(**tensors)
        given = [pipe.get_cond_mv(views[n].unsqueeze(0).cuda()) for n in ("mv_img", "mv_normal")]
        splat = None
        if job.params.with_texture:
            job.progress(0.02, "Decoding Gaussians")
            splat = pipe.models["slat_decoder_gs"](slat, *given)[0]
        job.progress(0.05, "Decoding the mesh")
        return pipe.models["slat_decoder_mesh"](slat, *given)[0], splat


def coloured(mesh):
    """Y up, with the decoder's colours at vertices, linear as glTF has them."""
    import trimesh

    srgb = mesh.vertex_attrs[:, :3].cpu().numpy()
    vertices, faces = mesh.vertices.cpu().numpy() @ Y_UP, mesh.faces.cpu().numpy()
    made = trimesh.Trimesh(vertices, faces, process=False)
    made.visual.vertex_colors = np.where(
        srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4
    )
    return made


# --- files ----------------------------------------------------------------------------------------


def kept_stage1(job) -> Path:
    """Stage 1's files as upstream leaves them, in a folder."""
    folder = job.scratch()
    for name in VIEWS:
        turn(job.inputs[name], folder / name)
    for name in {"input.png", "latent.npz"} & set(job.inputs):
        shutil.copyfile(job.inputs[name], folder / name)
    return folder


def checkpoints(stage: str, config: str) -> Path:
    folder = Path(os.environ["SYNCHUMAN_CKPTS"], stage)
    if not (folder / config).is_file():
        raise NotInstalled(f"{stage}/{config} is not there.")
    return folder
