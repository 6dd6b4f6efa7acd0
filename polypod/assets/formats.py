"""Reads and writes the formats of `derive.FORMATS`.

What is kept: GLB and USDZ hold texture, vertex colours and materials; PLY and OBJ hold vertex
colours (a texture is looked up at each vertex); STL holds the shape alone. Triangles, their order
and the axes stay as they are.

OBJ is one plain file, not an archive with a material library and a picture: whoever asks for
`model.obj` hands it to a program that opens OBJ files, and those read `v x y z r g b`. Texture
coordinates are in it, so that a texture can be put on; who needs it complete takes GLB or USDZ.
"""

# pyright: basic
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from polypod.assets.colors import decode, encode, has_colors, vertex_colors
from polypod.assets.glb import read_glb, write_glb
from polypod.assets.mesh import (
    MAX_TRIANGLES,
    Mesh,
    Part,
    Splats,
    corner_normals,
    f32,
    triangle_count,
    weld,
)
from polypod.assets.usdz import read_usdz, write_usdz
from polypod.errors import BadInput, Problem, TooLarge

MAX_BYTES = 1 << 30
SPHERICAL_HARMONIC_0 = 0.28209479177387814
"""Colour of a splat is 0.5 + this * f_dc (Kerbl et al., 3D Gaussian Splatting, 2023)."""


def read(path: Path, format: str) -> Mesh | Splats:
    """What the file holds; BadInput or TooLarge with words when it cannot be used."""
    if path.stat().st_size > MAX_BYTES:
        raise TooLarge(f"The file has more than {MAX_BYTES >> 20} MiB.")
    try:
        shape = _read(path, format)
    except (Problem, MemoryError):
        raise
    except Exception as error:  # readers of other people's files fail in every way there is
        raise BadInput(
            f"The {format.upper()} file cannot be read: it is damaged, or of another format."
        ) from error
    if isinstance(shape, Splats):
        return shape
    if not triangle_count(shape):
        raise BadInput(f"The {format.upper()} file holds no triangles.")
    if triangle_count(shape) > MAX_TRIANGLES:
        raise TooLarge(f"The mesh has more than {MAX_TRIANGLES:,} triangles.")
    if not all(np.isfinite(part.vertices).all() for part in shape):
        raise BadInput(f"The {format.upper()} file is damaged: a vertex is at no finite place.")
    return shape


def _read(path: Path, format: str) -> Mesh | Splats:
    if format == "glb":
        return read_glb(path)
    if format == "usdz":
        return read_usdz(path)
    import trimesh

    with path.open("rb") as file:  # a stream has no neighbours: no other file is read
        loaded: Any = trimesh.load(file, file_type=format, process=False)
    if isinstance(loaded, trimesh.PointCloud):
        return _splats(loaded.metadata["_ply_raw"]["vertex"]["data"])
    meshes = loaded.dump() if isinstance(loaded, trimesh.Scene) else [loaded]
    return tuple(_part(mesh, format) for mesh in meshes if isinstance(mesh, trimesh.Trimesh))


def _part(mesh: Any, format: str) -> Part:
    vertices, faces = f32(mesh.vertices), np.asarray(mesh.faces, np.int32)
    if format == "stl":  # every triangle has corners of its own there
        vertices, faces = weld((Part(vertices, faces),))
        return Part(vertices, faces.astype(np.int32))
    colors = uv = None
    if mesh.visual.kind in ("vertex", "face"):
        srgb = np.asarray(mesh.visual.vertex_colors)
        colors = np.concatenate([decode(srgb[:, :3]), f32(srgb[:, 3:]) / 255], axis=1)
    elif mesh.visual.kind == "texture" and mesh.visual.uv is not None:
        uv = f32(mesh.visual.uv)
        given = mesh.visual.vertex_attributes.get("color")
        if given is not None:
            colors = np.ones((len(vertices), 4), np.float32)
            colors[:, :3] = decode(np.asarray(given)[:, :3].astype(np.uint8))
    return Part(vertices, faces, uv=uv, colors=colors)


def _splats(data: Any) -> Splats:
    names = data.dtype.names

    def columns(*wanted: str) -> np.ndarray:
        return np.stack([data[name] for name in wanted], axis=1).astype(np.float32)

    points = columns("x", "y", "z")
    if not len(points) or not np.isfinite(points).all():
        raise BadInput("The PLY file holds no points, or some at no finite place.")
    opacity, axes = np.ones(len(points), np.float32), None
    if "f_dc_0" in names:
        srgb = 0.5 + SPHERICAL_HARMONIC_0 * columns("f_dc_0", "f_dc_1", "f_dc_2")
    elif "red" in names:
        srgb = columns("red", "green", "blue") / 255
    else:
        srgb = np.full_like(points, 0.7)
    if "opacity" in names:
        opacity = 1 / (1 + np.exp(-data["opacity"].astype(np.float32)))
    if "scale_0" in names:
        scales = np.exp(np.minimum(columns("scale_0", "scale_1", "scale_2"), 20))
        turns = _rotations(columns("rot_0", "rot_1", "rot_2", "rot_3"))
        axes = turns.transpose(0, 2, 1) * scales[..., None]
    colors = decode((np.clip(np.nan_to_num(srgb), 0, 1) * 255).astype(np.uint8))
    return Splats(points, colors, np.nan_to_num(opacity), axes)


def _rotations(quaternions: np.ndarray) -> np.ndarray:
    """(N, 3, 3) of (N, 4) as w, x, y, z, of any length."""
    length = np.maximum(np.linalg.norm(quaternions, axis=1, keepdims=True), 1e-12)
    w, x, y, z = np.nan_to_num(quaternions / length).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def write(mesh: Mesh, path: Path, format: str) -> None:
    writers = {
        "glb": _write_glb,
        "ply": _write_ply,
        "obj": _write_obj,
        "stl": _write_stl,
        "usdz": write_usdz,
    }
    writers[format](mesh, path)


def _write_glb(mesh: Mesh, path: Path) -> None:
    """With normals where the surface is smooth: viewers draw facets without."""
    normals, parts, start = corner_normals(mesh), [], 0
    for part in mesh:
        mine = normals[start : start + len(part.faces)]
        start += len(part.faces)
        if part.normals is None:
            one = np.tile(f32([0, 1, 0]), (len(part.vertices), 1))
            one[part.faces] = mine
            sharp = np.einsum("fci,fci->fc", one[part.faces], mine) < 0.99
            if sharp.mean() < 0.01:
                part = Part(part.vertices, part.faces, one, part.uv, part.colors, part.material)
        parts.append(part)
    write_glb(tuple(parts), path)


def _joined(mesh: Mesh) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Vertices (V, 3), faces (F, 3), and colours (V, 3) as sRGB bytes where any part has some."""
    offsets = np.cumsum([0, *(len(part.vertices) for part in mesh)])
    faces = [part.faces + start for part, start in zip(mesh, offsets, strict=False)]
    vertices, colors = np.concatenate([part.vertices for part in mesh]), None
    if any(has_colors(part) for part in mesh):
        colors = encode(np.concatenate([vertex_colors(part)[:, :3] for part in mesh]))
    return vertices, np.concatenate(faces), colors


def _write_ply(mesh: Mesh, path: Path) -> None:
    vertices, faces, colors = _joined(mesh)
    fields: list[Any] = [("place", "<f4", 3)]
    if colors is not None:
        fields.append(("color", "u1", 3))
    corners = np.empty(len(vertices), fields)
    corners["place"] = vertices
    if colors is not None:
        corners["color"] = colors
    triangles = np.empty(len(faces), [("count", "u1"), ("corners", "<i4", 3)])
    triangles["count"], triangles["corners"] = 3, faces
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    head += [f"property float {axis}" for axis in "xyz"]
    if colors is not None:
        head += [f"property uchar {channel}" for channel in ("red", "green", "blue")]
    head += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    with path.open("wb") as file:
        file.write("\n".join(head).encode() + b"\n")
        file.write(corners.tobytes())
        file.write(triangles.tobytes())


def _write_obj(mesh: Mesh, path: Path) -> None:
    vertices, faces, colors = _joined(mesh)
    rows = vertices if colors is None else np.concatenate([vertices, colors / 255], axis=1)
    uv = [part.uv for part in mesh if part.uv is not None]
    textured = len(uv) == len(mesh)
    corner = "%d/%d" if textured else "%d"
    with path.open("w") as file:
        file.write(_lines("v" + " %.7g" * rows.shape[1], rows))
        if textured:
            file.write(_lines("vt %.7g %.7g", np.concatenate(uv)))
        numbers = np.repeat(faces + 1, 2, axis=1) if textured else faces + 1
        file.write(_lines(f"f {corner} {corner} {corner}", numbers))


def _lines(pattern: str, rows: np.ndarray) -> str:
    return (pattern + "\n") * len(rows) % tuple(rows.ravel().tolist())


def _write_stl(mesh: Mesh, path: Path) -> None:
    vertices, faces, _ = _joined(mesh)
    corners = vertices[faces]
    fields = [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("unused", "<u2")]
    triangles = np.zeros(len(faces), fields)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
    triangles["normal"], triangles["corners"] = normals / length, corners
    with path.open("wb") as file:
        file.write(b"binary STL".ljust(80) + len(faces).to_bytes(4, "little"))
        file.write(triangles.tobytes())
