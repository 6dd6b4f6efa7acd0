"""sam3d through the real harness, against stand-ins that accept what upstream accepts, no more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from services.sam3d.model import MODEL
from tests.contracts import standins
from tests.contracts.harnessed import Harnessed, harnessed

pytestmark = pytest.mark.anyio

PACKAGES = ("torch", "omegaconf", "hydra", "rembg", "sam3d")
NAMES = ("ss_generator", "slat_generator", "ss_decoder", "slat_decoder_gs", "slat_decoder_gs_4")
PIPELINE = "sam3d_objects.pipeline.inference_pipeline_pointmap.InferencePipelinePointMap"


def checkpoints(folder: Path) -> Path:
    """A folder like that of the weights, as far as the worker looks into it."""
    folder.mkdir()
    config: dict[str, Any] = {"_target_": PIPELINE, "compile_model": True, "dtype": "float16"}
    for name in (*NAMES, "slat_decoder_mesh"):
        config |= {f"{name}_config_path": f"{name}.yaml", f"{name}_ckpt_path": f"{name}.ckpt"}
        (folder / f"{name}.ckpt").touch()
        dino = {"_target_": "sam3d_objects.model.backbone.dit.embedder.dino.Dino"}
        nested = {"module": {"embedder_list": [[dino, {"a": 1}], [dino, {}]]}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(nested))
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


@pytest.fixture(scope="module")
async def sam3d(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Harnessed]:
    folder = tmp_path_factory.mktemp("sam3d")
    async with harnessed(MODEL, folder, environment(folder)) as running:
        yield running


@pytest.fixture
def calls(sam3d: Harnessed) -> Any:
    """What the current test has called upstream with, by name."""
    before = len(standins.calls(sam3d.folder / "upstream"))

    def called(name: str) -> list[dict[str, Any]]:
        made = standins.calls(sam3d.folder / "upstream")[before:]
        return [row["values"] for row in made if row["call"].endswith(name)]

    return called


@pytest.fixture
def scene(tmp_path: Path) -> dict[str, Path]:
    """A dark square before a light wall, 100 x 80 pixels."""
    picture = Image.new("RGB", (100, 80), (220, 220, 210))
    picture.paste((60, 40, 30), (30, 20, 70, 60))
    picture.save(tmp_path / "scene.png")
    return {"image": tmp_path / "scene.png"}


async def test_every_preset_runs_all_stages(sam3d: Harnessed, scene: Any) -> None:
    for preset in MODEL.presets:
        ran = await sam3d.run(scene, preset=preset)
        assert ran.error is None, (preset, ran.error, ran.log)
        assert "model.glb" in ran.files
