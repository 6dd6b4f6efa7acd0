"""The files of a job as upstream wants them, and what is wrong with those that it cannot use."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

PLACES = {
    "input.png": "images/mesh.png",
    "keypoints.json": "images/mesh_keypoints.json",
    "smplx.obj": "smplx/mesh_smplx.obj",
}


class BadInput(Exception):
    """Picture or keypoints cannot be used; `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class NotInstalled(Exception):
    """A file is not where the image has it."""


def subject(job) -> Path:
    """The folder that upstream reads: its files by sorted position, so with one person only."""
    folder = job.scratch()
    places = {**PLACES}
    if "back_view" in job.params:
        places[f"back_{job.params.back_view}.png"] = "back_images/mesh_000.png"
    for name, place in places.items():
        if name in job.inputs:
            (folder / place).parent.mkdir(exist_ok=True)
            shutil.copyfile(job.inputs[name], folder / place)
    return folder


def save(picture: np.ndarray, path: Path) -> None:
    """(height, width, 3), 0 to 1."""
    Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8)).save(path)


def require(file: Path) -> Path:
    if not file.is_file():
        raise NotInstalled(f"{file.parent.name}/{file.name} is not there.")
    return file
