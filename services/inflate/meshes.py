"""Writes a textured mesh: glTF axes (Y up, facing +Z), texture coordinates with y down."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import cv2
import numpy as np


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
