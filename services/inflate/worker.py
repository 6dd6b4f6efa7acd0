"""Inflates the silhouette of one object in a photograph into a closed, textured surface.

Its height is the square root of the solution of a Poisson equation in the silhouette; README.md
names the sources. This is the way of a job, stage by stage; beside it `silhouette` finds the
object, `surface` solves and joins, `pictures` and `meshes` read and write files.
"""

from __future__ import annotations

import os

# OpenBLAS's threads wait by spinning: on a busy machine the solve took ten times as long with two
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import cv2
import numpy as np

from .meshes import write_glb, write_ply
from .pictures import BadInput, blur, read_mask, read_picture, shrink, write_picture
from .silhouette import drop_specks, find_object, load_rembg
from .surface import build_surface, find_rim, lay_grid, solve_poisson, vertex_normals


def load(worker: str, settings: dict) -> dict:
    cv2.setNumThreads(1)  # the pictures are small: threads cost more than they bring
    find_object(cv2.circle(np.full((64, 64, 3), 30, np.uint8), (32, 32), 20, (200, 90, 20), -1))
    return {"cut": load_rembg() or find_object}  # the line above filled OpenCV's tables


def run(stage: str, state: dict, job) -> None:
    {"cutout": cutout, "inflate": inflate, "texture": texture, "export": export}[stage](state, job)


def cutout(state: dict, job) -> None:
    """Writes `input.png`: the object alone, cropped to it with a transparent margin."""
    job.progress(0.0, "Reading the picture")
    picture = read_picture(job.inputs["image"], least=16)
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
    if not len(rows) and "mask" in job.inputs:
        raise BadInput("The mask is empty.", "Send one that is white where the object is.")
    if not len(rows):
        raise BadInput(
            "The silhouette is empty: nothing in the picture is opaque.",
            "Send a picture of one object, before a plain background or a transparent one.",
        )
    picture = cv2.merge([colour, alpha])[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    picture = cv2.bitwise_and(picture, picture, mask=picture[..., 3].copy())
    margin = 4 + max(picture.shape) // 64
    picture = cv2.copyMakeBorder(picture, *[margin] * 4, cv2.BORDER_CONSTANT)
    write_picture(job.outputs / "input.png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])


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


def export(state: dict, job) -> None:
    """Writes `model.<output_format>`; without `texture.jpg` it is plain grey."""
    kind = job.params.output_format
    job.progress(0.0, f"Writing model.{kind}")
    with np.load(job.inputs["mesh.npz"]) as arrays:
        mesh = dict(arrays)
    jpeg = job.inputs["texture.jpg"].read_bytes() if "texture.jpg" in job.inputs else b""
    {"glb": write_glb, "ply": write_ply}[kind](job.outputs / f"model.{kind}", mesh, jpeg)
