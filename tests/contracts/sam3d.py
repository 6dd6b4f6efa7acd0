"""What stands for upstream and weights of sam3d, and the environment that leads there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.contracts import standins

PACKAGES = ("torch", "omegaconf", "hydra", "rembg", "sam3d")
NAMES = ("ss_generator", "slat_generator", "ss_decoder", "slat_decoder_gs", "slat_decoder_gs_4")
PIPELINE = "sam3d_objects.pipeline.inference_pipeline_pointmap.InferencePipelinePointMap"


def checkpoints(folder: Path) -> Path:
    """A folder like that of the weights, as far as the worker looks into it."""
    folder.mkdir(parents=True)
    config: dict[str, Any] = {"_target_": PIPELINE, "compile_model": True, "dtype": "float16"}
    for name in (*NAMES, "slat_decoder_mesh"):
        config |= {f"{name}_config_path": f"{name}.yaml", f"{name}_ckpt_path": f"{name}.ckpt"}
    config |= {"slat_cfg_strength": 1, "slat_rescale_t": 1}
    config["depth_model"] = {
        "_target_": "sam3d_objects.pipeline.depth_models.base.DepthModel",
        "model": {"pretrained_model_name_or_path": "Ruicheng/moge-vitl"},
    }
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(config))
    return folder


def environment(folder: Path, altered: standins.Contract | None = None) -> dict[str, str]:
    upstream = standins.build("sam3d", folder / "upstream", altered, PACKAGES)
    (folder / "u2net.onnx").touch()
    return {
        "PYTHONPATH": str(upstream),
        "SAM3D_CHECKPOINTS": str(checkpoints(folder / "checkpoints")),
        "SAM3D_MOGE": "/weights/moge/model.pt",
        "SAM3D_DINO": "/src/dinov2",
        "U2NET_HOME": str(folder),
        "TMPDIR": str(folder),
    }
