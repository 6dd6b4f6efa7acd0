"""What every mesh format is read into and written from: parts with one material each.

Axes as in glTF: Y up, the object faces +Z, metres. Colours are linear, textures as encoded.
"""

# pyright: basic
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MAX_TRIANGLES = 5_000_000
"""More is refused; `derive.MEMORY` is enough for so many."""


@dataclass(frozen=True)
class Texture:
    """A picture as it lies in the file: PNG, JPEG or WebP."""

    data: bytes
    media_type: str


@dataclass(frozen=True)
class Material:
    color: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    """Linear; times the texture, times the vertex colours."""
    texture: Texture | None = None
    metallic: float = 0.0
    roughness: float = 1.0
    metallic_roughness: Texture | None = None
    """Roughness in green, metallic in blue, as glTF has it."""
    normal: Texture | None = None


@dataclass(frozen=True)
class Part:
    vertices: np.ndarray
    """(V, 3) float32."""
    faces: np.ndarray
    """(F, 3) int32."""
    normals: np.ndarray | None = None
    """(V, 3) float32, as the file has them."""
    uv: np.ndarray | None = None
    """(V, 2) float32, v pointing up (glTF's points down)."""
    colors: np.ndarray | None = None
    """(V, 4) float32, linear, 0 to 1."""
    material: Material = field(default_factory=Material)


@dataclass(frozen=True)
class Splats:
    """A point cloud, or Gaussians where they have sizes."""

    points: np.ndarray
    """(N, 3) float32."""
    colors: np.ndarray
    """(N, 3) float32, linear, 0 to 1."""
    opacity: np.ndarray
    """(N,) float32, 0 to 1."""
    axes: np.ndarray | None = None
    """(N, 3, 3) float32: rows are the half axes (one standard deviation)."""


Mesh = tuple[Part, ...]


def f32(values: Any) -> np.ndarray:
    return np.asarray(values, np.float32)


def facts(shape: Mesh | Splats) -> dict[str, Any]:
    """Triangles, vertices, bounds, watertight, volume (None unless watertight).

    Vertices at one place count once, so seams of the texture are no holes.
    """
    if isinstance(shape, Splats):
        return _facts(shape.points, np.zeros((0, 3), np.int32), len(shape.points))
    vertices, faces = weld(shape)
    return _facts(vertices, faces, len(np.unique(faces)))


def weld(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """All parts as one: (U, 3) float32 different places, and (F, 3) int64 faces, in order.

    Places are told apart to half a millionth of the largest side, so that rounding makes no holes.
    """
    vertices = np.concatenate([part.vertices for part in mesh])
    offsets = np.cumsum([0, *(len(part.vertices) for part in mesh)])
    faces = np.concatenate(
        [part.faces.astype(np.int64) + start for part, start in zip(mesh, offsets, strict=False)]
    )
    low, high = vertices.min(axis=0).astype(np.float64), vertices.max(axis=0)
    cell = max(float((high - low).max()), 1e-30) / (2**21 - 4)
    # counted from the middle: planes of symmetry, where most seams lie, are no cells' borders
    x, y, z = (np.rint((vertices - (low + high) / 2) / cell).astype(np.int64) + 2**20).T
    _, first, index = np.unique((x << 42) | (y << 21) | z, return_index=True, return_inverse=True)
    return vertices[first], index.reshape(-1)[faces]


def corner_normals(mesh: Mesh, crease_deg: float = 50.0) -> np.ndarray:
    """(F, 3, 3) float32 unit normals at the corners of all faces.

    Those of the file where it has them; else the mean over the faces round a place by their
    angles there, except where that is further than `crease_deg` from the face's own: an edge.
    """
    vertices, faces = weld(mesh)
    corners = vertices[faces]
    edges = unit(np.roll(corners, -1, axis=1) - corners)
    flat = unit(np.cross(edges[:, 0], -edges[:, 2]))
    angles = np.arccos(np.clip(-np.einsum("fci,fci->fc", edges, np.roll(edges, 1, axis=1)), -1, 1))
    smooth = np.zeros_like(vertices)
    for axis in range(3):
        share = (angles * flat[:, axis, None]).ravel()
        smooth[:, axis] = np.bincount(faces.ravel(), share, len(vertices))
    smooth = unit(smooth)
    normals = smooth[faces]
    crease = np.einsum("fci,fi->fc", normals, flat) < np.cos(np.radians(crease_deg))
    normals[crease] = np.broadcast_to(flat[:, None], normals.shape)[crease]
    start = 0
    for part in mesh:
        end = start + len(part.faces)
        if part.normals is not None:
            normals[start:end] = part.normals[part.faces]
        start = end
    return normals


def unit(vectors: np.ndarray) -> np.ndarray:
    length = np.sqrt(np.einsum("...i,...i->...", vectors, vectors))[..., None]
    return vectors / np.maximum(length, 1e-20)


def triangle_count(mesh: Sequence[Part]) -> int:
    return sum(len(part.faces) for part in mesh)


def _facts(vertices: np.ndarray, faces: np.ndarray, used: int) -> dict[str, Any]:
    seen = vertices[faces] if len(faces) else vertices
    flat = seen.reshape(-1, 3)
    closed = _is_closed(faces, len(vertices))
    volume = float(abs(_signed_volume(seen))) if closed else None
    return {
        "triangles": len(faces),
        "vertices": used,
        "bounds": [flat.min(axis=0).tolist(), flat.max(axis=0).tolist()],
        "watertight": closed,
        "volume": volume,
    }


def _is_closed(faces: np.ndarray, vertices: int) -> bool:
    """Whether every edge is passed once in each direction: closed, and turned one way."""
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    if not len(faces):
        return False
    start, end = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    there = np.sort(start.astype(np.int64) * vertices + end)
    back = np.sort(end.astype(np.int64) * vertices + start)
    return bool(np.all(there[1:] != there[:-1]) and np.array_equal(there, back))


def _signed_volume(corners: np.ndarray) -> float:
    a, b, c = (corners - corners.mean(axis=(0, 1))).astype(np.float64).transpose(1, 0, 2)
    return float(np.einsum("fi,fi->", a, np.cross(b, c)) / 6)
