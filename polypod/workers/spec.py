"""What it takes to start a worker: which Python runs which file, with what settings."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polypod.image import Home
from polypod.model import KIT, KIT_FOLDER, Model

ROOT = Path(__file__).resolve().parents[2]
"""Where `polypod/` and `services/` are."""


@dataclass(frozen=True)
class WorkerSpec:
    """What to start. `name` and `settings` are handed to `load()`; `code` is its worker.py."""

    model: str
    name: str
    python: str
    code: Path
    settings: Mapping[str, Any]
    env: Mapping[str, str]
    load_limit_s: float = 900
    places: Mapping[str, str] = field(default_factory=dict[str, str])
    """What its log says instead of paths of this machine."""


def spec_of(
    model: Model,
    worker: str,
    home: Home,
    *,
    python: str,
    device: str,
    env: Mapping[str, str],
    data: Path | None = None,
) -> WorkerSpec:
    """A worker of the model; the kit's runs with our own Python and without upstream's paths.

    `python` empty: that of the model environment, or ours where the model has none. `data`: where
    this server keeps jobs.
    """
    kit = worker == KIT
    own = str(home.python) if home.python.exists() else sys.executable
    return WorkerSpec(
        model=model.name,
        name=worker,
        python=sys.executable if kit else python or own,
        code=(KIT_FOLDER if kit else model.folder) / "worker.py",
        settings={
            "device": device,
            "src": str(home.src),
            "weights": str(home.weights),
            **{s.name: home.fill(model.setting(s.name)) for s in model.settings},
        },
        env={**({} if kit else home.environment(model.image)), **env},
        places=_places(home, python, data),
    )


def _places(home: Home, python: str, data: Path | None) -> dict[str, str]:
    """Those of the model by the names that declarations have for them."""
    environments = {Path(sys.prefix), Path("/", *Path(python).parts[:-2])}
    found = {
        Path(os.path.expanduser("~")): "~",  # noqa: PTH111  there may be none
        ROOT: "{polypod}",
        **{path: "{python}" for path in environments if (path / "pyvenv.cfg").exists()},
        **({data: "{data}", data / "work": "{work}"} if data else {}),
        home.path: "{home}",
        home.src: "{src}",
        home.weights: "{weights}",
        home.venv: "{venv}",
    }
    return {str(path): name for path, name in found.items()}
