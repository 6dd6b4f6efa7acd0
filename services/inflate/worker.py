"""Inflates the silhouette of one object in a photograph into a closed, textured surface.

Its height is the square root of the solution of a Poisson equation in the silhouette; README.md
names the sources. Pictures are BGRA with y down, meshes are glTF (Y up, facing +Z).
"""

from __future__ import annotations

import importlib.util
import json
import os
import struct
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

# OpenBLAS's threads wait by spinning: on a busy machine the solve took ten times as long with two
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import cv2
import numpy as np
import scipy.sparse as sparse
import scipy.sparse.linalg as linalg
from scipy.special import ndtri

PICTURE_SIZE = 2048  # most pixels on the longer side: of `input.png`,
COLOUR_SIZE = 224  # of the picture in which colours are told apart,
EDGE_SIZE = 512  # and of the one in which the edge is refined
RINGS = 4  # rows of triangles between the rim and the first nodes inside, where it is steep


class BadInput(Exception):
    """The picture cannot be used; `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def load(worker: str, settings: dict) -> dict:
    cv2.setNumThreads(1)  # the pictures are small: threads cost more than they bring
    find_object(cv2.circle(np.full((64, 64, 3), 30, np.uint8), (32, 32), 20, (200, 90, 20), -1))
    return {"cut": load_rembg() or find_object}  # the line above filled OpenCV's tables


def run(stage: str, state: dict, job) -> None:
    {"cutout": cutout, "inflate": inflate, "texture": texture, "export": export}[stage](state, job)


# --- cutout: image -> input.png -------------------------------------------------------------------


def cutout(state: dict, job) -> None:
    """Writes `input.png`: the object alone, cropped to it with a transparent margin."""
    job.progress(0.0, "Reading the picture")
    picture = read_picture(job.inputs["image"])
    colour, alpha = picture[..., :3], picture[..., 3]
    smallest = 0.01  # parts below this share of the largest one's area are dropped
    if "mask" in job.inputs:
        alpha = read_mask(job.inputs["mask"], alpha.shape)
    elif alpha.min() >= 250:
        job.progress(0.1, "Cutting out the object")
        alpha, smallest = state["cut"](colour), 0.2
    alpha = drop_specks(alpha, smallest)
    job.progress(0.7, "Cropping")
    rows, columns = (np.flatnonzero((alpha > 127).any(axis)) for axis in (1, 0))
    if min(len(rows), len(columns)) < 2:
        raise BadInput(
            "The silhouette is empty: nothing in the picture is opaque.",
            "Send a picture of one object, before a plain background or a transparent one.",
        )
    picture = cv2.merge([colour, alpha])[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    picture = cv2.bitwise_and(picture, picture, mask=picture[..., 3].copy())
    margin = 4 + max(picture.shape) // 64
    picture = cv2.copyMakeBorder(picture, *[margin] * 4, cv2.BORDER_CONSTANT)
    write_picture(job.outputs / "input.png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def load_rembg():
    """rembg's u2net where the package and its weights are present; this never downloads."""
    files = os.getenv("U2NET_HOME", "~/.u2net"), os.getenv("REMBG_HOME", "~/.rembg/models/u2net")
    files = [path for home in files if (path := Path(home, "u2net.onnx").expanduser()).is_file()]
    if not files or importlib.util.find_spec("rembg") is None:
        return None
    import rembg
    from PIL import Image

    session = rembg.new_session("u2net_custom", model_path=str(files[0]))
    return lambda colour: np.array(session.predict(Image.fromarray(colour[..., ::-1]))[0])


def find_object(colour: np.ndarray) -> np.ndarray:
    """Alpha (uint8) of what differs from the picture's border, by GrabCut (Rother et al. 2004)."""
    small = shrink(colour, COLOUR_SIZE)
    unlike, threshold, labels = compare_with_border(small)
    mask = labels == cv2.GC_PR_FGD
    if mask.mean() > 0.002:
        cv2.setRNGSeed(0)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(small, labels, None, *models, 2, cv2.GC_INIT_WITH_MASK)
        mask = fill_holes(labels & 1, unlike, threshold)
    if not 0.002 < mask.mean() < 0.98:
        raise BadInput(
            "No object was found: nothing stands out from the colours at the picture's border.",
            "Use a picture of one object before a plain background of another colour, "
            "or a PNG with a transparent background, or send a `mask`.",
        )
    return refine_edge(colour, mask)


def compare_with_border(small: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """How unlike the background each pixel is, the threshold of that, and GrabCut's first labels.

    The border's colours are clustered, and compared in standard deviations of the nearest cluster.
    A cluster commoner in the middle than at the border belongs to an object that the picture cuts
    off: it is no background.
    """
    clusters, (height, width) = 6, small.shape[:2]
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_BGR2LAB)
    rim = max(2, min(height, width) // 40)
    border, middle = np.ones((height, width), bool), np.zeros((height, width), bool)
    border[rim:-rim, rim:-rim] = False
    middle[height // 4 : -height // 4, width // 4 : -width // 4] = True

    cv2.setRNGSeed(0)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    _, of, centres = cv2.kmeans(lab[border], clusters, None, stop, 2, cv2.KMEANS_PP_CENTERS)
    distances = np.empty((clusters, height, width), np.float32)
    for i, centre in enumerate(centres):
        members = lab[border][of[:, 0] == i] - centre
        spread = members.T @ members / max(len(members), 1) + 9 * np.eye(3)
        whiten = np.linalg.inv(np.linalg.cholesky(spread)).T.astype(np.float32)
        distances[i] = np.linalg.norm((lab - centre) @ whiten, axis=2)

    nearest, close = distances.argmin(0), distances.min(0) < 3
    in_border, in_middle = (
        np.bincount(nearest[region & close], minlength=clusters) / region.sum()
        for region in (border, middle)
    )
    background = in_middle < 1.3 * in_border
    unlike = distances[background].min(0) if background.any() else distances.min(0)
    levels = np.clip(unlike * 20, 0, 255).astype(np.uint8)
    threshold = np.clip(cv2.threshold(levels, 0, 255, cv2.THRESH_OTSU)[0] / 20, 2, 5)
    labels = np.where(unlike > threshold, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[border & (unlike <= threshold)] = cv2.GC_BGD
    return unlike, float(threshold), labels


def fill_holes(mask: np.ndarray, unlike: np.ndarray, threshold: float) -> np.ndarray:
    """`mask` without its small holes and those in which no background is seen."""
    _, holes = cv2.connectedComponents((mask == 0).astype(np.uint8), connectivity=4)
    area = np.bincount(holes.ravel())
    looks = np.bincount(holes.ravel(), np.minimum(unlike, 2 * threshold).ravel())
    fill = (area < 0.01 * mask.sum()) | (looks > 0.7 * threshold * area)
    fill[np.concatenate([holes[0], holes[-1], holes[:, 0], holes[:, -1]])] = False
    return np.where(fill[holes], 1, mask).astype(np.uint8)


def refine_edge(colour: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Alpha whose edge follows the picture's, from a coarse mask, by a guided filter (He 2010).

    The guide is the one mixture of the channels in which inside and outside differ most.
    """
    small = shrink(colour, EDGE_SIZE).astype(np.float32) / 255
    mask = cv2.resize(mask.astype(np.float32), small.shape[1::-1])
    inside, outside = (cv2.mean(small, side.astype(np.uint8)) for side in (mask > 0.5, mask <= 0.5))
    mixture = np.subtract(inside, outside)[None, :3]
    mixture /= np.abs(mixture).sum() + 1e-6
    guide = cv2.transform(small, mixture)
    box = [2 * round(1.5 * EDGE_SIZE / COLOUR_SIZE) + 1] * 2
    mean, mask_mean = cv2.blur(guide, box), cv2.blur(mask, box)
    slope = cv2.blur(guide * mask, box) - mean * mask_mean
    slope /= cv2.blur(guide * guide, box) - mean * mean + 1e-4
    offset = mask_mean - slope * mean
    slope, offset = (cv2.resize(cv2.blur(x, box), colour.shape[1::-1]) for x in (slope, offset))
    alpha = slope * cv2.transform(colour.astype(np.float32), mixture / 255) + offset
    return np.clip(510 * alpha - 127.5, 0, 255).astype(np.uint8)


def drop_specks(alpha: np.ndarray, smallest: float) -> np.ndarray:
    """`alpha` with only those parts that have at least this share of the largest one's area."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats((alpha > 127).astype(np.uint8))
    area = stats[:, cv2.CC_STAT_AREA] * (np.arange(len(stats)) > 0)
    kept = (area >= max(smallest * area.max(), 1))[parts].astype(np.uint8)
    return cv2.bitwise_and(alpha, alpha, mask=cv2.dilate(kept, np.ones((3, 3), np.uint8)))


# --- inflate: input.png -> mesh.npz ---------------------------------------------------------------


def inflate(state: dict, job) -> None:
    """Writes `mesh.npz`: vertices, normals, uv and faces of one closed surface per part.

    Centred, 1 unit tall. Both sides see the picture from the front, so the texture has no seam.
    """
    job.progress(0.0, "Laying a grid over the silhouette")
    picture = read_picture(job.inputs["input.png"])
    level, shade, cell = lay_grid(picture, job.params.resolution)
    rim = find_rim(level)
    job.progress(0.2, "Solving the Poisson equation")
    height = np.sqrt(solve_poisson(level, rim)) * job.params.depth
    job.progress(0.6, "Joining front and back")
    points, faces = build_surface(rim, height * (1 + 0.5 * job.params.relief * shade), -height)
    uv = (points[:, :2] - 0.5) * cell / picture.shape[1::-1]
    points *= 1, -1, 1
    low, high = points.min(0), points.max(0)
    points = (points - (low + high) / 2) / (high[1] - low[1])
    job.progress(0.8, "Writing the mesh")
    normals = vertex_normals(points, faces)
    arrays = {"vertices": points, "normals": normals, "uv": uv}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    np.savez(job.outputs / "mesh.npz", faces=faces.astype(np.uint32), **arrays)


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


# --- texture: input.png -> texture.jpg ------------------------------------------------------------


def texture(state: dict, job) -> None:
    """Writes `texture.jpg`: the photograph, its colours carried on beyond the silhouette's edge.

    Towards the edge it fades into its own blur, since the steep sides stretch what is there.
    """
    job.progress(0.0, "Painting beyond the edge")
    picture = shrink(read_picture(job.inputs["input.png"]), job.params.texture_size)
    size, longest = picture.shape[1::-1], max(picture.shape)
    unsure = np.ones([2 * (longest // 256) + 3] * 2, np.uint8)  # has the background's colours too
    inner = cv2.erode((picture[..., 3] > 250).astype(np.uint8), unsure)
    if not inner.any():
        inner = (picture[..., 3] > 127).astype(np.uint8)
    colours = cv2.bitwise_and(picture[..., :3], picture[..., :3], mask=inner)

    quarter = [max(n // 4, 1) for n in size]
    share = cv2.resize(inner.astype(np.float32), quarter, interpolation=cv2.INTER_AREA)
    soft = cv2.resize(colours, quarter, interpolation=cv2.INTER_AREA).astype(np.float32)
    known = share > 0.05
    _, nearest = cv2.distanceTransformWithLabels(
        1 - known.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_label = np.zeros((nearest.max() + 1, 3), np.float32)
    of_label[nearest[known]] = soft[known] / share[known][:, None]
    soft = np.clip(cv2.resize(blur(of_label[nearest], longest / 400), size), 0, 255)

    fade = np.clip(1 - cv2.distanceTransform(inner, cv2.DIST_L2, 3) * (50 / longest), 0, 1) ** 2
    colours = cv2.blendLinear(soft.astype(np.uint8), colours, fade, 1 - fade)
    write_picture(job.outputs / "texture.jpg", colours, [cv2.IMWRITE_JPEG_QUALITY, 92])


# --- export: mesh.npz, texture.jpg -> model.glb or model.ply --------------------------------------


def export(state: dict, job) -> None:
    """Writes `model.<output_format>`; without `texture.jpg` it is plain grey."""
    kind = job.params.output_format
    job.progress(0.0, f"Writing model.{kind}")
    with np.load(job.inputs["mesh.npz"]) as arrays:
        mesh = dict(arrays)
    jpeg = job.inputs["texture.jpg"].read_bytes() if "texture.jpg" in job.inputs else b""
    {"glb": write_glb, "ply": write_ply}[kind](job.outputs / f"model.{kind}", mesh, jpeg)


def write_glb(path: Path, mesh: dict[str, np.ndarray], jpeg: bytes) -> None:
    """glTF 2.0 binary. By hand: a tenth of trimesh's time, and the JPEG goes in as it is."""
    vertices, faces = mesh["vertices"], mesh["faces"]
    parts = {"POSITION": vertices, "NORMAL": mesh["normals"]}
    parts |= {"TEXCOORD_0": mesh["uv"]} if jpeg else {}
    blobs = [part.tobytes() for part in (*parts.values(), faces)] + ([jpeg] if jpeg else [])
    padded = [blob + b"\0" * (-len(blob) % 4) for blob in blobs]
    starts = np.cumsum([0, *map(len, padded)]).tolist()
    accessors = [
        {"bufferView": i, "componentType": 5126, "count": len(part), "type": f"VEC{part.shape[1]}"}
        for i, part in enumerate(parts.values())
    ]
    accessors[0] |= {"min": vertices.min(0).tolist(), "max": vertices.max(0).tolist()}
    index = {"bufferView": len(parts), "componentType": 5125, "count": faces.size, "type": "SCALAR"}
    colour = {"baseColorTexture": {"index": 0}} if jpeg else {"baseColorFactor": [0.8] * 3 + [1]}
    surface = {"metallicFactor": 0, "roughnessFactor": 0.9}
    targets = [{"target": 34962}] * len(parts) + [{"target": 34963}, {}]
    attributes = {name: i for i, name in enumerate(parts)}
    primitive = {"attributes": attributes, "indices": len(parts), "material": 0}
    scene = {
        "asset": {"version": "2.0", "generator": "polypod inflate"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "inflate"}],
        "meshes": [{"primitives": [primitive]}],
        "materials": [{"pbrMetallicRoughness": colour | surface}],
        "accessors": [*accessors, index],
        "bufferViews": [
            {"buffer": 0, "byteOffset": start, "byteLength": len(blob)} | target
            for start, blob, target in zip(starts, blobs, targets, strict=False)
        ],
        "buffers": [{"byteLength": starts[-1]}],
    }
    if jpeg:
        scene["images"] = [{"bufferView": len(blobs) - 1, "mimeType": "image/jpeg"}]
        scene["samplers"] = [{"wrapS": 33071, "wrapT": 33071}]
        scene["textures"] = [{"source": 0, "sampler": 0}]
    head = json.dumps(scene, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 4)
    chunks = struct.pack("<I4s", len(head), b"JSON"), head
    chunks += struct.pack("<I4s", starts[-1], b"BIN\0"), *padded
    path.write_bytes(
        struct.pack("<4sII", b"glTF", 2, 12 + sum(map(len, chunks))) + b"".join(chunks)
    )


def write_ply(path: Path, mesh: dict[str, np.ndarray], jpeg: bytes) -> None:
    """Binary PLY; the texture becomes one colour per vertex."""
    columns = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    values = [*mesh["vertices"].T, *mesh["normals"].T]
    if jpeg:
        picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        x, y = (mesh["uv"] * picture.shape[1::-1]).astype(int).T
        columns += [(name, "u1") for name in ("blue", "green", "red")]
        values += [*picture[y, x].T]
    vertices = np.zeros(len(mesh["vertices"]), columns)
    for (name, _), value in zip(columns, values, strict=True):
        vertices[name] = value
    faces = np.zeros(len(mesh["faces"]), [("count", "u1"), ("corners", "<u4", 3)])
    faces["count"], faces["corners"] = 3, mesh["faces"]
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    head += [f"property {'uchar' if kind == 'u1' else 'float'} {name}" for name, kind in columns]
    head += [f"element face {len(faces)}", "property list uchar uint vertex_indices", "end_header"]
    path.write_bytes("\n".join([*head, ""]).encode() + vertices.tobytes() + faces.tobytes())


# --- pictures -------------------------------------------------------------------------------------


def read_picture(path: Path) -> np.ndarray:
    """BGRA, uint8, at most `PICTURE_SIZE` pixels on the longer side."""
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if picture is None or picture.dtype != np.uint8:
        raise BadInput("The picture cannot be read.", "Send a PNG, JPEG or WebP picture.")
    if min(picture.shape[:2]) < 16:
        raise BadInput(
            f"The picture has only {picture.shape[1]} x {picture.shape[0]} pixels.",
            "Send one of at least 16 x 16 pixels; 512 or more on the longer side look good.",
        )
    channels = 1 if picture.ndim == 2 else picture.shape[2]
    convert = {1: cv2.COLOR_GRAY2BGRA, 3: cv2.COLOR_BGR2BGRA}.get(channels)
    return shrink(picture if convert is None else cv2.cvtColor(picture, convert), PICTURE_SIZE)


def read_mask(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """The user's mask as the alpha of a picture of this shape; white or opaque is the object."""
    mask = read_picture(path)
    alpha = mask[..., 3] if mask[..., 3].min() < 250 else cv2.cvtColor(mask, cv2.COLOR_BGRA2GRAY)
    if abs(alpha.shape[0] * shape[1] / (alpha.shape[1] * shape[0]) - 1) > 0.02:
        raise BadInput(
            "The mask and the picture differ in shape.",
            f"Send a mask of {shape[1]} x {shape[0]} pixels, white where the object is.",
        )
    return cv2.resize(alpha, shape[::-1])


def write_picture(path: Path, picture: np.ndarray, options: list[int]) -> None:
    if not cv2.imwrite(str(path), picture, options):
        raise OSError(f"Cannot write {path}.")


def shrink(picture: np.ndarray, longest: int) -> np.ndarray:
    """`picture` with at most `longest` pixels on its longer side."""
    scale = longest / max(picture.shape[:2])
    size = [max(round(n * scale), 1) for n in picture.shape[1::-1]]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA) if scale < 1 else picture


def blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(picture, (0, 0), sigma)
