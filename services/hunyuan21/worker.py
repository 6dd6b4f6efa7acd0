"""Hunyuan3D-2.1: shape, PBR paint, export.

Upstream's code is called where it lies; files and lines are of the commit that model.py pins.
"""

from __future__ import annotations

import os
import shutil
import sys
import types
from pathlib import Path

SUBFOLDER = "hunyuan3d-dit-v2-1"


class BadInput(Exception):
    """The mesh cannot be used."""

    hint = "Send a binary glTF file (GLB) with triangles, as Blender exports it."


class NoSurface(Exception):
    """The field that the model made has no surface (upstream gives None then)."""

    hint = "Try another seed, or a picture that shows one whole object from the front."


class NotInstalled(Exception):
    """Code or weights are not where they should be, or an extension is of another Python."""

    hint = "Run `polypod doctor`; building the image, or `polypod setup hunyuan21`, puts it there."


def load(worker: str, settings: dict):
    if worker == "cpu":
        return None
    root = Path(settings["hunyuan_path"])
    require(root / "hy3dshape" / "hy3dshape" / "pipelines.py")
    sys.path[:0] = [str(root / "hy3dshape"), str(root / "hy3dpaint"), str(root)]
    repo, subfolder = split_model_path(settings["model_path"])
    if worker == "geometry":
        return load_shape(repo, subfolder, settings["device"])
    checkpoints = Path(settings["ckpt_dir"] or root / "ckpt")
    return load_paint(root / "hy3dpaint", repo, checkpoints / "RealESRGAN_x4plus.pth")


def run(stage: str, state, job) -> None:
    {"shape": shape, "paint": paint, "export": export}[stage](state, job)


def load_shape(repo: str, subfolder: str, device: str):
    folder = Path(os.getenv("HY3DGEN_MODELS", "~/.cache/hy3dgen")).expanduser() / repo / subfolder
    require(folder / "config.yaml", folder / "model.fp16.ckpt")
    from hy3dshape.pipelines import Hunyuan3DDiTFlowMatchingPipeline as Pipeline

    return Pipeline.from_pretrained(repo, device=device, subfolder=subfolder)


def shape(pipeline, job) -> None:
    """input.png -> shape.glb: without colours; Y up, front +Z, within -1.01 to 1.01.

    A mesh of the user's takes its place.
    """
    if "mesh" in job.inputs:
        read_mesh(job.inputs["mesh"]).export(str(job.outputs / "shape.glb"))
        return
    import torch
    from hy3dshape.postprocessors import DegenerateFaceRemover, FloaterRemover
    from PIL import Image

    job.progress(0.02, "Shaping", until=0.9)  # upstream's two bars fill this
    mesh = pipeline(
        image=Image.open(job.inputs["input.png"]),
        num_inference_steps=job.params.num_inference_steps,
        guidance_scale=job.params.guidance_scale,
        generator=torch.Generator().manual_seed(job.params.seed),
        octree_resolution=job.params.octree_resolution,
        mc_level=job.params.mc_level,
        num_chunks=job.params.num_chunks,
        output_type="trimesh",
    )[0]
    if mesh is None or len(mesh.faces) == 0:
        raise NoSurface("The model found no surface in this picture.")
    if job.params.remove_floaters:
        job.progress(0.9, "Removing floaters")
        job.scratch()
        mesh = DegenerateFaceRemover()(FloaterRemover()(mesh))
    mesh.export(str(job.outputs / "shape.glb"), include_normals=True)


def read_mesh(path: Path):
    import trimesh

    try:
        mesh = trimesh.load(str(path), file_type="glb", force="mesh")
        return trimesh.Trimesh(mesh.vertices, mesh.faces)
    except Exception as error:
        raise BadInput(f"The mesh is not a GLB with triangles: {error}") from error


def load_paint(folder: Path, repo: str, enlarger: Path):
    require(enlarger)
    sys.modules.setdefault("bpy", types.ModuleType("bpy"))  # for upstream's GLB writer alone
    from torchvision_fix import apply_fix

    apply_fix()  # basicsr imports a module that torchvision no longer has
    import custom_rasterizer
    from DifferentiableRenderer import MeshRender
    from textureGenPipeline import Hunyuan3DPaintConfig, Hunyuan3DPaintPipeline

    for module, name in ((custom_rasterizer, "rasterize"), (MeshRender, "meshVerticeInpaint")):
        if not hasattr(module, name):  # upstream would go on, and fail in the middle of a job
            raise NotInstalled(f"{module.__name__} has no {name}: it is not compiled.")
    config = Hunyuan3DPaintConfig(max_num_view=8, resolution=768)
    config.multiview_cfg_path = str(folder / "cfgs" / "hunyuan-paint-pbr.yaml")
    config.custom_pipeline = str(folder / "hunyuanpaintpbr")
    config.realesrgan_ckpt_path = str(enlarger)
    if not Path(repo).is_absolute():  # upstream reads this one from Hugging Face's cache alone
        config.multiview_pretrained_path = repo
    try:
        pipeline = Hunyuan3DPaintPipeline(config)
    except OSError as error:  # what the cache says, offline, of a file that it has not
        raise NotInstalled(f"The paint model cannot be read: {error}") from error
    return pipeline, pipeline.models["super_model"]


def paint(state, job) -> None:
    """shape.glb, input.png -> textured.obj and its albedo, metallic and roughness, 2048 square."""
    import trimesh
    from PIL import Image

    (pipeline, enlarge), folder = state, job.scratch()
    pipeline.config.max_selected_view_num = job.params.max_num_view  # both are read at each call
    pipeline.config.resolution = job.params.view_resolution
    pipeline.models["super_model"] = job.count(
        enlarge, 2 * job.params.max_num_view, 0.5, 0.8, "Enlarging the views"
    )
    job.progress(0.01, "Reducing the mesh")
    mesh = trimesh.load(str(job.inputs["shape.glb"]), file_type="glb", force="mesh")
    reduced(mesh, job.params.face_count).export(str(folder / "white_mesh.obj"))
    job.progress(0.05, "Painting the views", until=0.5)  # its bar: 15 steps
    pipeline(
        mesh_path=str(folder / "white_mesh.obj"),
        image_path=Image.open(job.inputs["input.png"]),
        output_mesh_path=str(folder / "textured.obj"),
        use_remesh=False,  # it would reduce to 40 000 once more
        save_glb=False,
    )
    for made, kept in (("", "albedo"), ("_metallic", "metallic"), ("_roughness", "roughness")):
        shutil.move(str(folder / f"textured{made}.jpg"), str(job.outputs / f"{kept}.jpg"))
    shutil.move(str(folder / "textured.obj"), str(job.outputs / "textured.obj"))


def reduced(mesh, most: int):
    """At most so many triangles, also of a mesh that is made of many small parts.

    Upstream's reducer never breaks a part (preservetopology), and leaves such a mesh to the
    remeshing, which asks for Open3D (simplify_mesh_utils.py:36).
    """
    from hy3dshape.postprocessors import FaceReducer

    whole = FaceReducer()(mesh, max_facenum=most)
    if len(whole.faces) <= most:
        return whole
    import pymeshlab
    import trimesh

    meshes = pymeshlab.MeshSet()
    meshes.add_mesh(pymeshlab.Mesh(mesh.vertices, mesh.faces))
    meshes.meshing_decimation_quadric_edge_collapse(
        targetfacenum=most,
        preservetopology=False,  # it remembers what it was last told
    )
    left = meshes.current_mesh()
    return trimesh.Trimesh(left.vertex_matrix(), left.face_matrix())


def export(state, job) -> None:
    """-> model.glb: the painted mesh with smooth normals, or the shape as it is."""
    if "textured.obj" not in job.inputs:
        shutil.copyfile(job.inputs["shape.glb"], job.outputs / "model.glb")
        return
    import numpy as np
    import trimesh
    from PIL import Image

    painted = str(job.inputs["textured.obj"])
    mesh = trimesh.load(painted, file_type="obj", process=False, force="mesh")
    _, first, same = np.unique(mesh.vertices, axis=0, return_index=True, return_inverse=True)
    whole = trimesh.Trimesh(mesh.vertices[first], same[mesh.faces], process=False)
    mesh.vertex_normals = whole.vertex_normals[same]  # a seam of the texture is no edge
    metallic, roughness = (Image.open(job.inputs[f"{n}.jpg"]) for n in ("metallic", "roughness"))
    white = Image.new("L", metallic.size, 255)
    mesh.visual.material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=Image.open(job.inputs["albedo.jpg"]).convert("RGB"),
        metallicRoughnessTexture=Image.merge("RGB", (white, roughness, metallic)),
        metallicFactor=1.0,
        roughnessFactor=1.0,
    )
    mesh.export(str(job.outputs / "model.glb"), include_normals=True)


def split_model_path(path: str) -> tuple[str, str]:
    """Repository or folder, and the shape model's subfolder, which REPO/SUBFOLDER may name."""
    head, _, last = path.rstrip("/").rpartition("/")
    if Path(path).is_absolute():
        return (head, last) if Path(path, "config.yaml").is_file() else (path, SUBFOLDER)
    return (head, last) if "/" in head else (path, SUBFOLDER)


def require(*files: Path) -> None:
    for file in files:
        if not file.is_file():
            raise NotInstalled(f"{file.parent.name}/{file.name} is not there.")
