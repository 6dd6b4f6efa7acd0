"""The closed surface over a silhouette, on a grid of cells with y down."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
import scipy.sparse as sparse
import scipy.sparse.linalg as linalg
from scipy.special import ndtri

from .pictures import BadInput, blur

RINGS = 4  # rows of triangles between the rim and the first nodes inside, where it is steep


def lay_grid(picture: np.ndarray, resolution: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Level (positive inside, 0 on the rim), shading (-1 to 1), and the size of a cell in pixels.

    The longer side of the picture has `resolution` cells; around them one more is laid.
    """
    shape = np.array(picture.shape[:2])
    cell = shape.max() / resolution
    cells = np.ceil(shape / cell - 1e-6).astype(int)
    more = np.round(cells * cell).astype(int) - shape
    picture = cv2.copyMakeBorder(picture, 0, more[0], 0, more[1], cv2.BORDER_CONSTANT)
    alpha = picture[..., 3].astype(np.float32) / 255
    light = cv2.cvtColor(picture, cv2.COLOR_BGRA2GRAY).astype(np.float32) / 255 * alpha
    how = cv2.INTER_AREA if cell > 1 else cv2.INTER_LINEAR
    alpha, light = (np.pad(cv2.resize(x, cells[::-1], None, 0, 0, how), 1) for x in (alpha, light))

    # as far from the rim as a straight edge with this blur is: linear, so crossings are exact
    level = ndtri(np.clip(blur(alpha, max(0.7, 0.7 / cell)), 0.01, 0.99))
    _, parts, stats, _ = cv2.connectedComponentsWithStats((level > 0).astype(np.uint8), None, 4)
    area = stats[:, cv2.CC_STAT_AREA] * (np.arange(len(stats)) > 0)
    level[(level > 0) & (area < max(4, 0.002 * area.max()))[parts]] = -1
    level[[0, -1]] = level[:, [0, -1]] = -1
    if not (level > 0).any():
        raise BadInput(
            "The silhouette is too thin to inflate at this resolution.",
            "Raise `resolution`, or send a picture of something less thin.",
        )
    fine, coarse = (
        blur(light, sigma) / (blur(alpha, sigma) + 1e-3)
        for sigma in (resolution / 160, resolution / 24)
    )
    away_from_rim = np.clip(2 * blur(alpha, resolution / 40) - 1, 0, 1)
    return level.astype(float), (np.tanh(4 * (fine - coarse)) * away_from_rim).astype(float), cell


class Rim(NamedTuple):
    """Where the rim crosses the edges of the grid. Numbers are -1 where there is none."""

    node: np.ndarray  # number of each node inside
    right: np.ndarray  # number of the crossing between a node and the next on the right
    down: np.ndarray  # the same for the next below
    inner: np.ndarray  # (crossings, 2): y, x of the node inside
    outer: np.ndarray  # and of the one outside
    at: np.ndarray  # how far from the inner to the outer one, 0 to 1


def find_rim(level: np.ndarray) -> Rim:
    inside = level > 0
    node, right, down = (np.full(level.shape, -1) for _ in range(3))
    node[inside] = np.arange(inside.sum())
    ends: list[np.ndarray] = []
    for number, step in ((right, (0, 1)), (down, (1, 0))):
        crossed = inside != np.roll(inside, (-step[0], -step[1]), (0, 1))
        here = np.argwhere(crossed)
        number[crossed] = sum(map(len, ends)) + np.arange(len(here))
        pair = np.stack([here, here + step], axis=1)
        ends.append(np.where(inside[crossed][:, None, None], pair, pair[:, ::-1]))
    inner, outer = np.concatenate(ends).swapaxes(0, 1)
    high, low = level[tuple(inner.T)], level[tuple(outer.T)]
    at = np.maximum(high / (high - low), 0.01)  # not nearer: no needles, no huge weights
    return Rim(node, right, down, inner, outer, at)


def solve_poisson(level: np.ndarray, rim: Rim) -> np.ndarray:
    """f on the grid, with laplacian(f) = -4 inside and f = 0 on the rim, in cells squared.

    A disc of radius r gives r^2 - x^2 - y^2, so sqrt(f) is a half sphere. The rim counts where it
    crosses the grid's edges (Gibou et al. 2002: symmetric, second order). Conjugate gradients
    start from the solution on a grid of half the resolution.
    """
    node, count = rim.node, len(np.argwhere(rim.node >= 0))
    pairs = [
        (a[both], b[both])
        for a, b in ((node[:, :-1], node[:, 1:]), (node[:-1], node[1:]))
        for both in [(a >= 0) & (b >= 0)]
    ]
    ends = [np.concatenate(end) for end in zip(*pairs, strict=True)]
    half = sparse.coo_array((np.full(len(ends[0]), -1.0), ends), (count, count))
    diagonal = 4 + np.bincount(node[tuple(rim.inner.T)], 1 / rim.at - 1, count)
    matrix, source = (half + half.T + sparse.diags_array(diagonal)).tocsc(), np.full(count, 4.0)
    solution, inside = np.zeros(level.shape), node >= 0
    if max(level.shape) <= 64:
        solution[inside] = linalg.spsolve(matrix, source)
        return solution
    coarse = cv2.resize(
        level, [(n + 1) // 2 for n in level.shape[::-1]], None, 0, 0, cv2.INTER_AREA
    )
    coarse[[0, -1]] = coarse[:, [0, -1]] = -1
    start = solve_poisson(coarse, find_rim(coarse)) if (coarse > 0).any() else coarse
    start = np.maximum(4 * cv2.resize(start, level.shape[::-1]), 0)[inside]
    jacobi = sparse.diags_array(1 / diagonal)
    found, failed = linalg.cg(matrix.tocsr(), source, start, rtol=1e-3, maxiter=5000, M=jacobi)
    if failed:
        raise RuntimeError(f"Conjugate gradients did not converge in {failed} iterations.")
    solution[inside] = np.maximum(found, 1e-6)
    return solution


def build_surface(rim: Rim, front: np.ndarray, back: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (x, y, z in cells, y down) and triangles (outward) between two heights over the grid.

    The sides share the points on the rim and nothing else, so the surface is closed. Each has a
    point at every node inside and RINGS - 1 on each crossed edge, closer together towards the rim,
    since there the height goes with the square root of the distance.
    """
    nodes = np.argwhere(rim.node >= 0)
    crossings = len(rim.at)
    edge = rim.inner + (rim.outer - rim.inner) * rim.at[:, None]
    steps = np.arange(1, RINGS) / RINGS
    rings = edge + (rim.inner - edge) * steps[:, None, None] ** 2
    flat = np.concatenate([edge, nodes, rings.reshape(-1, 2)])[:, ::-1]
    sides: list[np.ndarray] = []
    for height in (front, back):
        ends = height[tuple(rim.inner.T)]
        z = np.concatenate([0 * ends, height[tuple(nodes.T)], np.outer(steps, ends).ravel()])
        sides.append(np.column_stack([flat, z]))
    faces = triangulate(rim, crossings, len(nodes))
    behind = np.where(faces < crossings, faces, faces + len(flat) - crossings)
    points = np.concatenate([sides[0], sides[1][crossings:]])
    return points, np.concatenate([faces[:, ::-1], behind])


def triangulate(rim: Rim, crossings: int, nodes: int) -> np.ndarray:
    """The triangles of one side, clockwise as the picture is seen.

    Points are numbered: crossings, nodes, then ring by ring. Each run of a cell's corners that are
    inside is joined to the two crossings at its ends by RINGS rows; opposite corners stay apart.
    """
    node, right, down = rim.node, rim.right, rim.down
    corners = np.stack([node[:-1, :-1], node[:-1, 1:], node[1:, 1:], node[1:, :-1]])
    edges = np.stack([right[:-1, :-1], down[:-1, 1:], right[1:, :-1], down[:-1, :-1]])
    inside, corners = corners >= 0, corners + crossings
    a, b, c, d = corners[:, inside.all(0)]
    triangles = [(a, b, c), (a, c, d)]
    for first in range(4):
        for length in (1, 2, 3):
            run = [(first + i) % 4 for i in range(length)]
            before, last, beyond = (first + 3) % 4, run[-1], (run[-1] + 1) % 4
            cells = inside[run].all(0) & ~inside[before] & ~inside[beyond]
            enter, leave = edges[before][cells], edges[last][cells]
            rows = [(enter, leave)]
            for ring in range(RINGS - 1):
                start = crossings + nodes + ring * crossings
                rows.append((enter + start, leave + start))
            rows.append((corners[first][cells], corners[last][cells]))
            for (enter, leave), (next_enter, next_leave) in pairwise(rows):
                triangles.append((enter, next_enter, leave))
                triangles.append((next_enter, next_leave, leave))
            if length == 1:
                triangles.pop()  # the last row ends in one corner
            if length == 3:
                triangles.append(tuple(corners[run][:, cells]))
    return np.concatenate([np.column_stack(triangle) for triangle in triangles])


def vertex_normals(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals: the mean of the triangles around a point, weighted by their area."""
    a, b, c = points[faces.T]
    of_face = np.cross(b - a, c - a)
    normals = [np.bincount(faces.ravel(), np.repeat(x, 3), len(points)) for x in of_face.T]
    normals = np.column_stack(normals)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
