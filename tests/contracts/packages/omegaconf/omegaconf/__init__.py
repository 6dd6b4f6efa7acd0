"""As much of OmegaConf as workers touch: configurations with attributes, from and to YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


class DictConfig(dict):
    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


class OmegaConf:
    @staticmethod
    def create(value: Any) -> Any:
        if isinstance(value, dict):
            return DictConfig({key: OmegaConf.create(part) for key, part in value.items()})
        return [OmegaConf.create(part) for part in value] if isinstance(value, list) else value

    @staticmethod
    def load(path: Any) -> Any:
        return OmegaConf.create(yaml.safe_load(Path(path).read_text()))

    @staticmethod
    def to_container(config: Any, resolve: bool = False) -> Any:
        if isinstance(config, dict):
            return {key: OmegaConf.to_container(part) for key, part in config.items()}
        return [OmegaConf.to_container(p) for p in config] if isinstance(config, list) else config

    @staticmethod
    def save(config: Any, path: Any) -> None:
        Path(path).write_text(yaml.safe_dump(OmegaConf.to_container(config)))
