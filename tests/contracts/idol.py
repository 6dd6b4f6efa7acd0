"""What stands for upstream and weights of IDOL, and the environment that leads there."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.contracts import standins

PACKAGES = ("torch", "omegaconf", "idol")
BODY = "decoder.deformer.body_model."
SMPLX = "lib/models/deformers/smplx/SMPLX/SMPLX_NEUTRAL.pkl"
CONFIG: dict[str, Any] = {
    "target": "lib.SapiensGS_SA_v1",
    "params": {
        "lambda_lpips": 10,
        "encoder": {
            "target": "lib.models.sapiens.SapiensWrapper_ts",
            "params": {"model_path": "/somebody/else/sapiens.pt2", "layer_num": 40},
        },
        "neck": {
            "target": "lib.models.transformer_sa.neck_SA_v3_skip",
            "params": {"decoder_depth": 16},
        },
        "decoder": {
            "target": "lib.models.decoders.UVNDecoder_gender",
            "params": {"image_size": [640, 896], "is_sub2": True, "fix_sigma": True},
        },
    },
}


def environment(
    folder: Path, altered: standins.Contract | None = None, smplx: str = "v1.1 neutral"
) -> dict[str, str]:
    """`folder` is the model's home: sources and weights lie below it as in an image."""
    upstream = standins.build("idol", folder / "src" / "IDOL", altered, PACKAGES)
    (upstream / SMPLX).parent.mkdir(parents=True, exist_ok=True)
    (upstream / SMPLX).write_text(smplx)
    (upstream / "configs").mkdir()
    (upstream / "configs" / "idol_v0.yaml").write_text(yaml.safe_dump({"model": CONFIG}))
    (upstream / "work_dirs" / "cache_sub2").mkdir(parents=True)
    (upstream / "work_dirs/cache_sub2/init_spdir_smplx_thu_newNeutral.npy").touch()
    (upstream / "work_dirs" / "demo_data").mkdir()
    demo = upstream / "work_dirs/demo_data/Ways_to_Catch_360_clip1.json"
    demo.write_text(json.dumps({"annotations": []}))
    weights = folder / "weights" / "idol"
    weights.mkdir(parents=True)
    (weights / "sapiens_1b_epoch_173_torchscript.pt2").touch()
    names = ("v_template", "shapedirs", "posedirs", "lbs_weights")
    kept = {BODY + name: np.zeros((4, 3), np.float32) for name in names}
    kept |= dict.fromkeys(("encoder.x", "neck.x", "decoder.x", "lpips.x"), np.zeros(1, np.float32))
    (weights / "model.ckpt").write_bytes(pickle.dumps({"state_dict": kept, "epoch": 1}))
    return {"TMPDIR": str(folder)}
