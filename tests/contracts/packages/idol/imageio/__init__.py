"""imageio's writer of videos. In place of the video stands what would be in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


class Writer:
    def __init__(self, path: Path, fps: int) -> None:
        assert path.suffix == ".mp4", "the ending says which plugin writes"
        self.path, self.told = path, {"frames": 0, "fps": fps}

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self.path.write_bytes(b"\0\0\0\x08ftyp" + json.dumps(self.told).encode())

    def append_data(self, frame: np.ndarray) -> None:
        assert frame.dtype == np.uint8
        self.told |= {"frames": self.told["frames"] + 1, "shape": frame.shape}
        self.told |= {"corner": int(frame[0, 0, 0]), "middle": int(frame[99, 99, 0])}


def get_writer(path: Any, *, fps: int, output_params: list[str]) -> Writer:
    return Writer(Path(path), fps)
