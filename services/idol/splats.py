"""Files of posed Gaussians: a splat that any 3DGS viewer reads, and a mesh of their middles."""

from __future__ import annotations

from pathlib import Path

import numpy as np

HARMONIC_0 = 0.28209479177387814  # colour = 0.5 + this * f_dc
OPACITY = float(np.log(0.9999 / 0.0001))  # upstream's are all 1 (fix_sigma), whose logit is none
COLUMNS = (
    *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)


def write_splats(path: Path, xyz: np.ndarray, colours: np.ndarray, shapes: np.ndarray) -> None:
    """3DGS's PLY. xyz (N, 3) metres; colours (N, 3) sRGB, 0 to 1; shapes (N, 3, 3): columns are
    the axes times their scales, so that the covariance is shapes @ shapes.T.

    Skinning bends the axes, so they are no rotation: their singular vectors are one.
    """
    turns, scales, _ = np.linalg.svd(shapes)
    turns[np.linalg.det(turns) < 0, :, 2] *= -1
    rows = np.zeros((len(xyz), len(COLUMNS)), "<f4")
    rows[:, :3] = xyz
    rows[:, 6:9] = (np.clip(colours, 0, 1) - 0.5) / HARMONIC_0
    rows[:, 9] = OPACITY
    rows[:, 10:13] = np.log(np.maximum(scales, 1e-8))
    rows[:, 13:] = quaternions(turns)
    head = [f"element vertex {len(rows)}", *(f"property float {name}" for name in COLUMNS)]
    path.write_bytes(header(head) + rows.tobytes())


def write_mesh(path: Path, xyz: np.ndarray, colours: np.ndarray, faces: np.ndarray) -> None:
    """Gaussian i stands at the middle of triangle i (smplx_deformer_gender.py:263-264), so a vertex
    goes to the mean of the Gaussians around it. faces (N, 3)."""
    count = np.maximum(np.bincount(faces.ravel()), 1)[:, None]

    def at_vertices(values: np.ndarray) -> np.ndarray:
        around = np.repeat(values, 3, axis=0)
        sums = [np.bincount(faces.ravel(), around[:, axis]) for axis in range(3)]
        return np.stack(sums, axis=1) / count

    vertices = np.empty(len(count), [("place", "<f4", 3), ("colour", "u1", 3)])
    vertices["place"] = at_vertices(xyz)
    vertices["colour"] = np.round(at_vertices(np.clip(colours, 0, 1)) * 255)
    corners = np.empty(len(faces), [("count", "u1"), ("corners", "<i4", 3)])
    corners["count"], corners["corners"] = 3, faces
    head = [f"element vertex {len(vertices)}", *(f"property float {axis}" for axis in "xyz")]
    head += [f"property uchar {channel}" for channel in ("red", "green", "blue")]
    head += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
    path.write_bytes(header(head) + vertices.tobytes() + corners.tobytes())


def header(lines: list) -> bytes:
    return "\n".join(["ply", "format binary_little_endian 1.0", *lines, "end_header", ""]).encode()


def quaternions(turns: np.ndarray) -> np.ndarray:
    """(N, 4) as w, x, y, z, of rotations (N, 3, 3)."""
    from scipy.spatial.transform import Rotation

    return np.roll(Rotation.from_matrix(turns).as_quat(), 1, axis=1)
