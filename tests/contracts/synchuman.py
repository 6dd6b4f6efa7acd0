"""What stands for upstream and weights of SyncHuman, and the environment that leads there."""

from __future__ import annotations

import json
from pathlib import Path

from services.synchuman.model import MODELS
from tests.contracts import standins

PACKAGES = ("torch", "rembg", "synchuman")
PROMPTS = "SyncHuman/data/fixed_prompt_embeds_7view/normal_embeds.pt"


def checkpoints(folder: Path) -> Path:
    """A folder like that of the weights, as far as worker and stand-ins look into it."""
    for stage, name, told in (
        ("OneStage", "pipeline_config.json", {"num_views": 5, "metadata": {}}),
        ("SecondStage", "pipeline.json", {"args": {"models": MODELS}}),
    ):
        (folder / stage).mkdir(parents=True)
        (folder / stage / name).write_text(json.dumps(told))
    return folder


def checkout(folder: Path, altered: standins.Contract | None = None) -> Path:
    """Stand-ins, where upstream's checkout would be."""
    upstream = standins.build("synchuman", folder, altered, PACKAGES)
    (upstream / PROMPTS).parent.mkdir(parents=True)
    (upstream / PROMPTS).touch()
    return upstream


def install(home: Path) -> Path:
    """All in the places of `POLYPOD_HOME`; returns the checkout."""
    checkpoints(home / "synchuman" / "weights" / "SyncHuman" / "ckpts")
    return checkout(home / "synchuman" / "src" / "SyncHuman")


def environment(folder: Path, altered: standins.Contract | None = None) -> dict[str, str]:
    upstream = checkout(folder / "upstream", altered)
    remover = folder / "weights" / "u2net" / "u2net.onnx"
    remover.parent.mkdir(parents=True)
    remover.touch()
    return {
        "PYTHONPATH": str(upstream),
        "SYNCHUMAN_ROOT": str(upstream),
        "SYNCHUMAN_CKPTS": str(checkpoints(folder / "ckpts")),
        "SYNCHUMAN_DINO": "/src/dinov2",
    }
