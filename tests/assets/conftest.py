"""Meshes that the tests of this folder share."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from polypod.assets.mesh import Material, Part, Texture

CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)
SIDES = {"+z": (1, 3, 7, 5), "+x": (5, 7, 6, 4), "-z": (4, 6, 2, 0), "-x": (0, 2, 3, 1)}
LIDS = {"+y": (3, 2, 6, 7), "-y": (0, 1, 5, 4)}


def box(colors: dict[str, tuple[float, float, float]] | None = None) -> Part:
    """2 x 2 x 2 about the origin, closed, turned outward; one colour (linear) for each side."""
    vertices, faces, paint = [], [], []
    for name, corners in {**SIDES, **LIDS}.items():
        start = len(vertices)
        vertices += [CORNERS[corner] for corner in reversed(corners)]
        faces += [(start, start + 1, start + 2), (start, start + 2, start + 3)]
        paint += [(*(colors or {}).get(name, (0.5, 0.5, 0.5)), 1.0)] * 4
    return Part(
        np.array(vertices, np.float32),
        np.array(faces, np.int32),
        colors=np.array(paint, np.float32) if colors else None,
    )


def ball(side: int = 64, texture: Texture | None = None) -> Part:
    """Radius 1, with a seam: `2 * side * side` triangles less those that are none."""
    u, v = np.meshgrid(np.linspace(0, 1, 2 * side + 1), np.linspace(0, 1, side + 1))
    angle, fall = u * 2 * np.pi, v * np.pi
    vertices = np.stack(
        [np.sin(fall) * np.sin(angle), np.cos(fall), np.sin(fall) * np.cos(angle)], axis=-1
    )
    first = (np.arange(side)[:, None] * (2 * side + 1) + np.arange(2 * side)).ravel()
    below = first + 2 * side + 1
    faces = np.concatenate(
        [
            np.stack([first, below, below + 1], axis=1)[: -2 * side],
            np.stack([first, below + 1, first + 1], axis=1)[2 * side :],
        ]
    )
    return Part(
        vertices.reshape(-1, 3).astype(np.float32),
        faces.astype(np.int32),
        uv=np.stack([u, 1 - v], axis=-1).reshape(-1, 2).astype(np.float32),
        material=Material(texture=texture),
    )


def picture(paint: Callable[[np.ndarray], None], side: int = 64, kind: str = "PNG") -> Texture:
    pixels = np.zeros((side, side, 3), np.uint8)
    paint(pixels)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return Texture(out.getvalue(), f"image/{kind.lower()}")


@pytest.fixture(name="box")
def _box():
    return box


@pytest.fixture(name="ball")
def _ball():
    return ball


@pytest.fixture(name="picture")
def _picture():
    return picture
