"""The declarations in `services/`, by name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from polypod.model import Model, nearest

ROOT = Path(__file__).resolve().parents[2]
"""Where `services/` and `requirements/` are."""
CUTOUT_LOCK = "cutout.lock"
"""What `kit.cutout` needs beside `requirements/serving.lock`: rembg."""


def declaration(name: str) -> Model:
    """Raises ValueError where there is no such model."""
    known = sorted(path.parent.name for path in (ROOT / "services").glob("*/model.py"))
    if name not in known:
        raise ValueError(
            f"There is no model {name!r} in services/.{nearest(name, known)} "
            f"There are: {', '.join(known)}."
        )
    return cast(Model, importlib.import_module(f"services.{name}.model").MODEL)


def serving_lock() -> str:
    """The text of `requirements/serving.lock`."""
    return (ROOT / "requirements" / "serving.lock").read_text()
