"""What stands for upstream and weights of sith, and the environment that leads there."""

from __future__ import annotations

import pickle
from pathlib import Path

from tests.contracts import standins

PACKAGES = ("torch", "sith", "rembg")
PARTS = ("vae", "image_encoder", "unet", "controlnet", "projection", "scheduler")
DIFFUSION = ("SiTH_diffusion", "SiTH-diffusion-2000", "SiTH-diffusion-1K")
FILES = (
    "dwpose/dw-ll_ucoco_384.onnx",
    "checkpoints/save_smplerx.pth",
    "checkpoints/recon_model.pth",
    "body_models/smplx/SMPLX_MALE.npz",
    *(f"{name}/{part}/config.json" for name in DIFFUSION for part in PARTS),
)
TEMPLATES = ("smplx_openpose25.json", "smplx_uv.obj", "smplx_canonical.obj")


def weights(folder: Path) -> Path:
    """A folder like that of the weights, as far as the worker looks into it."""
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def environment(folder: Path, altered: standins.Contract | None = None) -> dict[str, str]:
    upstream = standins.build("sith", folder / "upstream", altered, PACKAGES)
    (upstream / "data").mkdir()
    for name in TEMPLATES:
        (upstream / "data" / name).touch()
    (upstream / "data" / "smplx_watertight.pkl").write_bytes(pickle.dumps({"smpl_F": [0, 1, 2]}))
    (upstream / "recon" / "config.yaml").touch()
    return {
        "PYTHONPATH": str(upstream),
        "SITH_PATH": str(upstream),
        "SITH_WEIGHTS": str(weights(folder / "weights")),
        "TMPDIR": str(folder),
    }
