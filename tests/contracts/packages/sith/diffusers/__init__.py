"""As much of diffusers as the worker touches: parts that are read from a folder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any


class Part:
    """A network or a scheduler of a folder, which says what it was read from."""

    def __init__(self, **config: Any) -> None:
        self.config, self.frozen = SimpleNamespace(**config), False

    @classmethod
    def from_pretrained(cls, folder: str, *, subfolder: str, **more: Any) -> Part:
        if not Path(folder, subfolder).is_dir():
            raise OSError(f"no file named config.json found in directory {folder}/{subfolder}")
        made = cls(**more)
        made.folder = folder
        return made

    def requires_grad_(self, wanted: bool) -> Part:
        self.frozen = not wanted
        return self


class AutoencoderKL(Part):
    pass


class ControlNetModel(Part):
    pass


class UNet2DConditionModel(Part):
    pass


class DDPMScheduler(Part):
    pass


class UniPCMultistepScheduler:
    @classmethod
    def from_config(cls, config: Any) -> UniPCMultistepScheduler:
        assert isinstance(config, SimpleNamespace)
        return cls()
