"""What stands for upstream, weights and licensed files of pshuman, and the environment for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.contracts import standins

PACKAGES = ("torch", "omegaconf", "rembg", "pshuman")
CONFIG: dict[str, Any] = {  # as much of configs/inference-768-6view.yaml as there is use for
    "validation_dataset": {
        "prompt_embeds_path": "mvdiffusion/data/fixed_prompt_embeds_7view",
        "root_dir": "examples/shhq",
        "num_views": 7,
        "bg_color": "white",
        "img_wh": [768, 768],
        "num_validation_samples": 1000,
        "crop_size": 740,
        "margin_size": 50,
        "smpl_folder": "smpl_image_pymaf",
    },
    "recon_opt": {
        "res_path": "out",
        "num_view": 6,
        "scale": 4,
        "mode": "ortho",
        "resolution": 1024,
        "cam_path": "mvdiffusion/data/six_human_pose",
        "iters": 700,
        "debug": False,
        "snapshot_step": 50,
        "gpu_id": 0,
        "replace_hand": False,
    },
}


def prepare(home: Path, altered: standins.Contract | None = None) -> dict[str, str]:
    """A home as `polypod setup` leaves it, with stand-ins for the checkout; the environment."""
    source = standins.build("pshuman", home / "src" / "PSHuman", altered, PACKAGES)
    (source / "configs").mkdir()
    (source / "configs" / "inference-768-6view.yaml").write_text(yaml.safe_dump(CONFIG))
    bundle = home / "weights" / "smpl_related"
    for file in (
        home / "weights" / "pshuman" / "model_index.json",
        home / "weights" / "u2net" / "u2net.onnx",
        bundle / "smpl_data" / "smplx_to_smpl.pkl",
        bundle / "HPS" / "pixie_data" / "pixie_model.tar",
        bundle / "models" / "smplx" / "SMPLX_NEUTRAL.npz",
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    np.savez(bundle / "models" / "smplx" / "SMPLX_NEUTRAL.npz", f=np.zeros((4, 3), np.uint32))
    (source / "smpl_related").symlink_to(bundle)
    return {"TMPDIR": str(home)}
