"""Pictures of what has no triangles: point clouds and Gaussian splats, blended by depth."""

# pyright: basic
from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from polypod.assets.mesh import Splats, f32
from polypod.assets.render import FIELD_DEG, Camera, cameras, develop, wall

MAX_DRAWN = 600_000
SLABS = 48
"""Inside one of these slices of depth the order is not looked at."""
REACHES_PX = np.array([1, 2, 3, 4, 6, 8, 12, 16, 20])
"""How far a splat is drawn from its middle; larger ones are cut off."""
REACH_PX = REACHES_PX[-1]
WINDOW = 0.005
"""Part of the points at each end of each axis that may lie outside the picture: floaters."""


def render_splats(splats: Splats, size: int) -> Iterator[np.ndarray]:
    """Yields (size, size, 3) sRGB bytes for each view, the same as `render.render`."""
    splats = _framed(_thinned(splats))
    inside = splats.points[(abs(splats.points) <= 1).all(axis=1)]
    for camera in cameras(inside):
        light, covered = _blend(splats, camera, size)
        yield develop(light, covered, wall(size))


def _thinned(splats: Splats) -> Splats:
    if len(splats.points) <= MAX_DRAWN:
        return splats
    some = np.random.default_rng(0).permutation(len(splats.points))[:MAX_DRAWN]
    grown = np.float32(np.sqrt(len(splats.points) / MAX_DRAWN))
    axes = None if splats.axes is None else splats.axes[some] * grown
    return Splats(splats.points[some], splats.colors[some], splats.opacity[some], axes)


def _framed(splats: Splats) -> Splats:
    """Moved and scaled so that nearly all points lie in the ball of radius 1."""
    low, high = np.quantile(splats.points, [WINDOW, 1 - WINDOW], axis=0)
    radius = max(float(np.linalg.norm(high - low)) / 2, 1e-20)
    points = ((splats.points - (low + high) / 2) / radius).astype(np.float32)
    if splats.axes is not None:
        axes = splats.axes / np.float32(radius)
    else:
        apart = np.float32(1.6 / np.sqrt(len(points)))  # as if spread over the ball's surface
        axes = np.broadcast_to(np.eye(3, dtype=np.float32) * apart, (len(points), 3, 3))
    return Splats(points, splats.colors, splats.opacity, axes)


def _blend(splats: Splats, camera: Camera, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Light (size, size, 3), premultiplied, and covered (size, size), from near to far."""
    seen = splats.points @ camera.axes.T
    depth = np.float32(camera.distance) - seen[:, 2]
    scale = size / 2 / (np.maximum(depth, 0.05) * np.tan(np.radians(FIELD_DEG / 2)))
    x, y = f32(size / 2 + seen[:, 0] * scale), f32(size / 2 - seen[:, 1] * scale)
    flat = (splats.axes @ camera.axes[:2].T) * (scale[:, None] * f32([1, -1]))[:, None]
    spread = np.einsum("nki,nkj->nij", flat, flat) + 0.3 * np.eye(2, dtype=np.float32)
    shape = np.linalg.inv(spread)
    reach = np.ceil(2.6 * np.sqrt(np.maximum(spread[:, 0, 0], spread[:, 1, 1])))
    inside = (depth > 0.05) & (x > -REACH_PX) & (x < size + REACH_PX)
    inside &= (y > -REACH_PX) & (y < size + REACH_PX) & (splats.opacity > 1 / 255)
    order = np.flatnonzero(inside)
    order = order[np.argsort(depth[order])]

    light = np.zeros((size * size, 3), np.float32)
    through = np.ones(size * size, np.float32)
    middle = np.clip(y, 0, size - 1).astype(np.int64) * size + np.clip(x, 0, size - 1).astype(int)
    for slab in np.array_split(order, SLABS):
        slab = slab[through[middle[slab]] > 0.01]  # the rest is hidden
        if not len(slab):
            continue
        reaches = REACHES_PX[np.searchsorted(REACHES_PX[:-1], reach[slab])]
        drawn = [
            _footprints(slab[reaches == r], x, y, shape, splats.opacity, int(r), size)
            for r in np.unique(reaches)
        ]
        pixel, optical, source = (np.concatenate(column) for column in zip(*drawn, strict=True))
        thick = np.bincount(pixel, optical)
        touched = np.flatnonzero(thick)
        thick = thick[touched]
        glow = np.stack(
            [np.bincount(pixel, optical * color)[touched] for color in splats.colors[source].T],
            axis=1,
        )
        opaque = 1 - np.exp(-thick)
        light[touched] += glow * (opaque * through[touched] / thick)[:, None]
        through[touched] *= 1 - opaque
    return light.reshape(size, size, 3), (1 - through).reshape(size, size)


def _footprints(
    some: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    shape: np.ndarray,
    opacity: np.ndarray,
    reach: int,
    size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every pixel that one of `some` touches: pixel, optical thickness there, and which."""
    step = np.arange(-reach, reach + 1, dtype=np.int32)
    column = x[some].astype(np.int32)[:, None, None] + step
    row = y[some].astype(np.int32)[:, None, None] + step[:, None]
    dx = column + np.float32(0.5) - x[some, None, None]
    dy = row + np.float32(0.5) - y[some, None, None]
    a, b, c = (shape[some, i, j, None, None] for i, j in ((0, 0), (0, 1), (1, 1)))
    power = dx * (-0.5 * a * dx - b * dy) - 0.5 * c * dy * dy
    keep = power > -np.log(255 * opacity[some, None, None])
    keep &= (column >= 0) & (column < size) & (row >= 0) & (row < size)
    which = np.nonzero(keep)[0]
    alpha = np.minimum(np.exp(power[keep]) * opacity[some[which]], 0.99)
    return (row * size + column)[keep], -np.log1p(-alpha), some[which]
