from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from polypod.assets.glb import read_glb, write_glb
from polypod.assets.mesh import Material, Part
from polypod.errors import BadInput


def pack(doc: dict[str, Any], binary: bytes) -> bytes:
    text = json.dumps(doc).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(binary))
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    return head + chunks + struct.pack("<I4s", len(binary), b"BIN\0") + binary


def triangle(**changes: Any) -> dict[str, Any]:
    """A document with one triangle, whose 36 bytes of positions are the whole binary part."""
    return {
        "asset": {"version": "2.0"},
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "buffers": [{"byteLength": 36}],
        "bufferViews": [{"buffer": 0, "byteLength": 36}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}],
    } | changes


CORNERS = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)


def test_what_is_written_is_read_back(tmp_path: Path, ball, box, picture) -> None:
    texture = picture(lambda pixels: pixels.fill(90), kind="JPEG")
    round_ = ball(16, texture)
    round_ = Part(round_.vertices, round_.faces, round_.vertices, round_.uv, None, round_.material)
    square = box({"+z": (0.25, 0.5, 1.0)})
    write_glb((round_, square), tmp_path / "a.glb")
    first, second = read_glb(tmp_path / "a.glb")
    assert first.material == round_.material and second.material == Material()
    for got, given in ((first, round_), (second, square)):
        for name in ("vertices", "faces", "normals", "uv", "colors"):
            a, b = getattr(got, name), getattr(given, name)
            assert (a is None and b is None) or np.allclose(a, b, atol=1e-6), name


def test_trimesh_reads_what_we_write_and_we_what_it_writes(tmp_path: Path, ball, picture) -> None:
    given = ball(16, picture(lambda pixels: pixels.fill(90)))
    write_glb((given,), tmp_path / "ours.glb")
    theirs = trimesh.load(tmp_path / "ours.glb", force="mesh", process=False)
    assert np.allclose(theirs.vertices, given.vertices)
    assert np.allclose(theirs.visual.uv, given.uv)
    assert theirs.visual.material.baseColorTexture.size == (64, 64)
    theirs.export(tmp_path / "theirs.glb")
    (ours,) = read_glb(tmp_path / "theirs.glb")
    assert np.allclose(ours.vertices, given.vertices) and np.array_equal(ours.faces, given.faces)
    assert np.allclose(ours.uv, given.uv, atol=1e-6)
    assert ours.material.texture is not None


def test_transforms_of_nodes_are_applied(tmp_path: Path) -> None:
    half = np.sqrt(0.5)
    nodes = [
        {"children": [1], "translation": [10, 0, 0]},
        {"mesh": 0, "rotation": [0, 0, half, half], "scale": [2, 2, 2]},
    ]
    doc = triangle(nodes=nodes, scenes=[{"nodes": [0]}], scene=0)
    (tmp_path / "a.glb").write_bytes(pack(doc, CORNERS.tobytes()))
    (part,) = read_glb(tmp_path / "a.glb")
    assert np.allclose(part.vertices, [[10, 0, 0], [10, 2, 0], [8, 0, 0]], atol=1e-5)


def test_a_mirrored_node_stays_turned_outward(tmp_path: Path) -> None:
    doc = triangle(nodes=[{"mesh": 0, "scale": [-1, 1, 1]}])
    (tmp_path / "a.glb").write_bytes(pack(doc, CORNERS.tobytes()))
    (part,) = read_glb(tmp_path / "a.glb")
    a, b, c = part.vertices[part.faces[0]]
    assert np.cross(b - a, c - a)[2] > 0


def test_nodes_in_a_circle_end(tmp_path: Path) -> None:
    nodes = [{"children": [1]}, {"children": [0, 1], "mesh": 0}]
    (tmp_path / "a.glb").write_bytes(pack(triangle(nodes=nodes), CORNERS.tobytes()))
    assert len(read_glb(tmp_path / "a.glb")) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"extensionsRequired": ["KHR_draco_mesh_compression"]}, "KHR_draco_mesh_compression"),
        ({"buffers": [{"byteLength": 36, "uri": "/etc/passwd"}]}, "other files"),
        ({"bufferViews": [{"buffer": 0, "byteLength": 1 << 40}]}, "bytes that are not there"),
        ({"bufferViews": [{"buffer": 0, "byteLength": 36, "byteOffset": -8}]}, "not there"),
        ({"accessors": [{"componentType": 5126, "count": 1 << 40, "type": "VEC3"}]}, "sparse"),
    ],
)
def test_what_is_refused_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    (tmp_path / "a.glb").write_bytes(pack(triangle(**changes), CORNERS.tobytes()))
    with pytest.raises(BadInput, match=words):
        read_glb(tmp_path / "a.glb")


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.glb").write_bytes(pack(triangle(), np.full_like(CORNERS, np.nan).tobytes()))
    with pytest.raises(BadInput, match="not finite"):
        read_glb(tmp_path / "a.glb")
