"""hydra's `instantiate`: calls what `_target_` names, with the rest as keywords."""

from __future__ import annotations

import importlib
from typing import Any


def instantiate(config: Any) -> Any:
    if not isinstance(config, dict) or "_target_" not in config:
        return config
    module, _, name = config["_target_"].rpartition(".")
    try:
        target = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError:  # `package.module.Class.method`
        module, _, owner = module.rpartition(".")
        target = getattr(getattr(importlib.import_module(module), owner), name)
    return target(**{k: instantiate(part) for k, part in config.items() if k != "_target_"})
