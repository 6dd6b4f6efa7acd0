"""Stage reconstruct: input.png, smplx.obj, back_N.png -> mesh.obj (mesh.png), the normals."""

from __future__ import annotations

import gc
import math
import pickle
import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from .files import require, save, subject


def load(weights: Path):
    import nvdiffrast.torch  # noqa: F401  kaolin hides it if this fails
    from recon.models.ops.mesh.load_obj import load_obj
    from recon.utils.config import parse_options, parse_yaml_config

    checkpoint = require(weights / "checkpoints" / "recon_model.pth")
    parser = parse_options()
    parse_yaml_config("recon/config.yaml", parser)
    with require(Path("data/smplx_watertight.pkl")).open("rb") as file:
        watertight = pickle.load(file)  # noqa: S301  of the pinned commit
    state = SimpleNamespace(
        config=parser.parse_args(["--resume", str(checkpoint)]),
        watertight=watertight,
        canonical=load_obj("data/smplx_canonical.obj")[0],
        evaluator=None,
    )
    take_grid(state, state.config.grid_size)
    return state


def take_grid(state, grid_size: int) -> None:
    """The evaluator has its grid from the start on (evaluator.py:38-44)."""
    if state.evaluator is not None and state.config.grid_size == grid_size:
        return
    import torch
    from recon.models.evaluator import Evaluator

    state.evaluator, state.config.grid_size = None, grid_size
    gc.collect()
    torch.cuda.empty_cache()
    state.evaluator = Evaluator(state.config, state.watertight, state.canonical)


def reconstruct(state, job) -> None:
    import torch
    from recon.datasets.test_dataset import TestFolderDataset
    from torch.utils.data import default_collate

    folder, params = subject(job), job.params
    take_grid(state, params.grid_size)
    state.config.erode_iter = params.erode_iter
    job.progress(0.02, "Finding what each view sees")  # test_dataset.py:90, face by face
    scene = TestFolderDataset(str(folder), state.config, state.watertight)
    data = default_collate([scene[0]])
    (folder / "meshes").mkdir()
    with torch.no_grad(), watched(state.evaluator, params, job) as normals:
        state.evaluator.test_reconstruction(
            data,
            str(folder / "meshes"),
            subdivide=params.subdivide,
            chunk_size=params.chunk_size,
            save_uv=params.with_texture,
        )
    inside = data["mask"][0, 0].numpy() > 0.5
    for side, normal in zip(("front", "back"), normals, strict=True):
        shown = np.where(inside[..., None], normal / 2 + 0.5, 1.0)
        # the back's is computed mirrored, as seen through the person
        save(shown[:, ::-1] if side == "back" else shown, job.outputs / f"normal_{side}.png")
    shutil.move(str(folder / "meshes" / "mesh_reco.obj"), job.outputs / "mesh.obj")
    if params.with_texture:
        shutil.move(str(folder / "meshes" / "mesh.png"), job.outputs / "mesh.png")


@contextmanager
def watched(evaluator, params, job):
    """Progress of the two queries, which upstream does not tell, and the normals it predicts."""
    normals: list = []
    handle = evaluator.nrm_predictor.register_forward_hook(
        lambda network, given, made: normals.append(made[0].permute(1, 2, 0).cpu().numpy())
    )
    surface, colours = evaluator.geo_model, evaluator.tex_model
    chunks = math.ceil(params.grid_size**3 / params.chunk_size)
    surface.compute_sdf = job.count(surface.compute_sdf, chunks, 0.1, 0.8, "Finding the surface")
    colours.compute_rgb = job.count(colours.compute_rgb, 40, 0.85, 0.95, "Colouring it")
    try:
        yield normals
    finally:
        handle.remove()
        del surface.compute_sdf, colours.compute_rgb
