"""What it takes to start a worker: which Python runs which file, with what settings."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polypod.image import Home
from polypod.model import KIT, KIT_FOLDER, Model


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


def spec_of(
    model: Model, worker: str, home: Home, *, python: str, device: str, env: Mapping[str, str]
) -> WorkerSpec:
    """A worker of the model; the kit's runs with our own Python and without upstream's paths.

    `python` empty: that of the model environment, or ours where the model has none.
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
    )
