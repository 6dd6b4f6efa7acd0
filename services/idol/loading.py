"""Upstream's networks in memory: the whole model, or the part that poses what it has made."""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np

BODY = "decoder.deformer.body_model."


class NotInstalled(Exception):
    hint = "Run `polypod doctor`; building the image, or `polypod setup idol`, puts it there."


def enter(root: Path) -> None:
    """Makes upstream's checkout the working directory, below which it looks for its files."""
    require(
        root / "configs/idol_v0.yaml",
        root / "lib/models/deformers/smplx/SMPLX/SMPLX_NEUTRAL.pkl",
        root / "work_dirs/cache_sub2/init_spdir_smplx_thu_newNeutral.npy",
    )
    os.chdir(root)
    sys.path.insert(0, str(root))
    leave_out_unused()


def leave_out_unused() -> None:
    """Empty modules for what upstream imports and never calls on our way through it.

    The three CUDA extensions of deformer_smplx.py:8-10 are called by deformer_smpl.py alone, which
    nothing imports; rembg (infer_util.py:3, 13) by `load_image`, since the cut-out is the kit's.
    It can go when upstream imports them where it uses them.
    """
    for name in ("fuse_cuda", "filter_cuda", "precompute_cuda", "rembg"):
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            empty = types.ModuleType(name)
            empty.remove = None  # of rembg: imported by name
            sys.modules[name] = empty


def load_model(settings: dict) -> SimpleNamespace:
    """The whole model, in fp32: upstream's demo casts a copy that it then throws away to bf16."""
    import torch
    from lib.utils.train_util import instantiate_from_config

    checkpoint = Path(settings["weights"], "idol", "model.ckpt")
    config = read_config(settings)
    demo = Path("work_dirs/demo_data/Ways_to_Catch_360_clip1.json")  # opened by the constructor
    require(checkpoint, Path(config.params.encoder.params.model_path), demo)
    model = instantiate_from_config(config)
    # mmap: half of the file is the optimizer's; it holds more than tensors, and its digest is known
    kept = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=False)["state_dict"]
    check_body(model.state_dict(), kept)
    missing, unexpected = model.load_state_dict(kept, strict=False)
    strange = [name for name in (*missing, *unexpected) if not name.startswith("lpips.")]
    if strange:
        raise NotInstalled(f"Unexpected or missing weights: {', '.join(strange[:3])}")
    device = settings["device"]
    return SimpleNamespace(torch=torch, device=device, model=model.to(device).eval())


def check_body(ours: dict, trained: dict) -> None:
    """Whether the SMPL-X file is the one that the checkpoint was trained with."""
    for name in ("v_template", "shapedirs", "posedirs", "lbs_weights"):
        mine, theirs = (d[BODY + name].cpu().float().numpy() for d in (ours, trained))
        # bf16's rounding: two of the three ways in which train.py:377-395 trains cast tables to it
        if mine.shape != theirs.shape or not np.allclose(mine, theirs, rtol=2**-8, atol=1e-3):
            raise NotInstalled(f"SMPLX_NEUTRAL.pkl is not the trained one: {name} differs.")


def load_body(settings: dict) -> SimpleNamespace:
    """The decoder alone: posing takes its tables, which are in the cache and in SMPL-X, and none
    of the trained weights. It loads in seconds and fits a small GPU."""
    import torch
    from lib import SapiensGS_SA_v1
    from lib.models.renderers.gau_renderer import batch_rodrigues
    from lib.utils import infer_util
    from lib.utils.train_util import instantiate_from_config
    from simple_knn._C import distCUDA2

    decoder = instantiate_from_config(read_config(settings).params.decoder)
    return SimpleNamespace(
        torch=torch,
        device=settings["device"],
        decoder=decoder.to(settings["device"]).eval(),
        a_pose=np.array(SapiensGS_SA_v1.get_default_smplx_params(None)[0].numpy(), np.float32),
        rotations=batch_rodrigues,
        nearest=distCUDA2,
        util=infer_util,
    )


def read_config(settings: dict):
    from omegaconf import OmegaConf

    config = OmegaConf.load("configs/idol_v0.yaml").model
    encoder = Path(settings["weights"], "idol", "sapiens_1b_epoch_173_torchscript.pt2")
    config.params.encoder.params.model_path = str(encoder)  # it names a folder of its author's
    config.params.lambda_lpips = 0  # a loss of the training, whose VGG would be downloaded
    return config


def require(*files: Path) -> None:
    for file in files:
        if not file.is_file():
            raise NotInstalled(f"{file.parent.name}/{file.name} is not there.")
