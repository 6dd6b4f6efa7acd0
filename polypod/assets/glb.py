"""Binary glTF 2.0, read and written without a library: a file of 100 000 triangles in 20 ms.

(trimesh reads it too, but its import alone takes a second of CPU time, for every result.)
"""

# pyright: basic
from __future__ import annotations

import json
import struct
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from polypod.assets.mesh import MAX_TRIANGLES, Material, Mesh, Part, Texture, f32, triangle_count
from polypod.errors import BadInput, TooLarge

MAGIC, JSON, BIN = b"glTF", b"JSON", b"BIN\0"
COMPONENTS = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
TRIANGLES = 4
UNDERSTOOD = ("KHR_materials_", "KHR_mesh_quantization", "EXT_texture_webp")


def read_glb(path: Path) -> Mesh:
    """All triangles of the file's scene, each node's transform applied.

    Raises BadInput with words; other exceptions mean that the file is damaged.
    """
    glb = _Glb(path.read_bytes())
    parts: list[Part] = []
    for mesh, transform in glb.placed_meshes():
        for primitive in glb.doc["meshes"][mesh]["primitives"]:
            if primitive.get("mode", TRIANGLES) == TRIANGLES:
                parts.append(glb.part(primitive, transform))
                if triangle_count(parts) > MAX_TRIANGLES:
                    raise TooLarge(f"The mesh has more than {MAX_TRIANGLES:,} triangles.")
    return tuple(part for part in parts if len(part.faces))


class _Glb:
    def __init__(self, data: bytes) -> None:
        magic, version, length = struct.unpack_from("<4sII", data)
        if magic != MAGIC or version != 2:
            raise BadInput("This is not a GLB file of glTF 2.0.")
        if length > len(data):
            raise BadInput("The GLB file is cut off.", f"{len(data)} of {length} bytes are there.")
        chunks = dict(_chunks(memoryview(data)[:length]))
        self.doc: dict[str, Any] = json.loads(bytes(chunks[JSON]))
        self.bin = chunks.get(BIN, memoryview(b""))
        for name in self.doc.get("extensionsRequired", []):
            if not name.startswith(UNDERSTOOD):
                raise BadInput(
                    f"The GLB file needs the glTF extension {name}, which is not understood here.",
                    "Export it without compression.",
                )

    def placed_meshes(self) -> Iterator[tuple[int, np.ndarray]]:
        nodes = self.doc.get("nodes", [])
        if "scenes" in self.doc:
            roots = self.doc["scenes"][self.doc.get("scene", 0)].get("nodes", [])
        else:
            roots = range(len(nodes))
        waiting = deque((root, np.eye(4)) for root in roots)
        seen: set[int] = set()  # nodes are a tree; a file that says otherwise cannot make us loop
        while waiting:
            index, above = waiting.popleft()
            if index in seen:
                continue
            seen.add(index)
            transform = above @ _transform(nodes[index])
            if "mesh" in nodes[index]:
                yield nodes[index]["mesh"], transform
            waiting += [(child, transform) for child in nodes[index].get("children", [])]

    def part(self, primitive: dict[str, Any], transform: np.ndarray) -> Part:
        attributes = primitive["attributes"]
        vertices = self.floats(attributes["POSITION"])
        if "indices" in primitive:
            faces = self.accessor(primitive["indices"]).reshape(-1)
        else:
            faces = np.arange(len(vertices))
        faces = faces[: len(faces) // 3 * 3].reshape(-1, 3).astype(np.int32)
        if len(faces) and int(faces.max()) >= len(vertices):
            raise BadInput("The GLB file is damaged: a triangle names a corner that is not there.")
        linear = transform[:3, :3]
        if np.linalg.det(linear) < 0:
            faces = faces[:, ::-1]
        normals = uv = colors = None
        if "NORMAL" in attributes:
            turned = self.floats(attributes["NORMAL"]) @ np.linalg.pinv(linear)
            normals = turned.astype(np.float32)
        if "TEXCOORD_0" in attributes:
            uv = self.floats(attributes["TEXCOORD_0"]) * f32([1, -1]) + f32([0, 1])
        if "COLOR_0" in attributes:
            colors = np.ones((len(vertices), 4), np.float32)
            given = self.floats(attributes["COLOR_0"])
            colors[:, : given.shape[1]] = given
        return Part(
            vertices=(vertices @ linear.T + transform[:3, 3]).astype(np.float32),
            faces=np.ascontiguousarray(faces),
            normals=normals,
            uv=uv,
            colors=colors,
            material=self.material(primitive.get("material")),
        )

    def material(self, index: int | None) -> Material:
        if index is None:
            return Material()
        given = self.doc["materials"][index]
        pbr = given.get("pbrMetallicRoughness", {})
        return Material(
            color=tuple(pbr.get("baseColorFactor", (1.0, 1.0, 1.0, 1.0))),
            texture=self.texture(pbr.get("baseColorTexture")),
            metallic=pbr.get("metallicFactor", 1.0),
            roughness=pbr.get("roughnessFactor", 1.0),
            metallic_roughness=self.texture(pbr.get("metallicRoughnessTexture")),
            normal=self.texture(given.get("normalTexture")),
        )

    def texture(self, used: dict[str, Any] | None) -> Texture | None:
        if used is None:
            return None
        texture = self.doc["textures"][used["index"]]
        webp = texture.get("extensions", {}).get("EXT_texture_webp", {})
        image = self.doc["images"][webp.get("source", texture.get("source"))]
        if "bufferView" not in image:  # a name of another file: nothing is read but this one
            return None
        return Texture(bytes(self.view(image["bufferView"])[0]), image.get("mimeType", "image/png"))

    def view(self, index: int) -> tuple[memoryview, int]:
        view = self.doc["bufferViews"][index]
        if view["buffer"] != 0 or "uri" in self.doc["buffers"][0]:
            raise BadInput("The GLB file refers to other files.", "Export it as one file.")
        start = view.get("byteOffset", 0)
        if start < 0 or start + view["byteLength"] > len(self.bin):
            raise BadInput("The GLB file is damaged: it names bytes that are not there.")
        return self.bin[start : start + view["byteLength"]], view.get("byteStride", 0)

    def accessor(self, index: int) -> np.ndarray:
        """(count, width) as stored. A count beyond the bytes that are there is a ValueError."""
        accessor = self.doc["accessors"][index]
        if "sparse" in accessor or "bufferView" not in accessor:
            raise BadInput("The GLB file has sparse data, which is not understood here.")
        data, stride = self.view(accessor["bufferView"])
        kind = np.dtype(COMPONENTS[accessor["componentType"]])
        shape = (accessor["count"], WIDTHS[accessor["type"]])
        strides = (stride or kind.itemsize * shape[1], kind.itemsize)
        return np.ndarray(shape, kind, data, accessor.get("byteOffset", 0), strides)

    def floats(self, index: int) -> np.ndarray:
        values = self.accessor(index)
        accessor = self.doc["accessors"][index]
        if accessor.get("normalized"):
            return np.maximum(values / np.float32(np.iinfo(values.dtype).max), -1).astype(
                np.float32
            )
        floats = values.astype(np.float32)
        if not np.isfinite(floats).all():
            raise BadInput("The GLB file is damaged: it holds numbers that are not finite.")
        return floats


def _chunks(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    place = 12
    while place + 8 <= len(data):
        length, kind = struct.unpack_from("<I4s", data, place)
        yield kind, data[place + 8 : place + 8 + length]
        place += 8 + length


def _transform(node: dict[str, Any]) -> np.ndarray:
    if "matrix" in node:
        return np.array(node["matrix"], float).reshape(4, 4).T
    x, y, z, w = node.get("rotation", (0, 0, 0, 1))
    turn = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    transform = np.eye(4)
    transform[:3, :3] = turn * np.array(node.get("scale", (1, 1, 1)), float)
    transform[:3, 3] = node.get("translation", (0, 0, 0))
    return transform


def write_glb(mesh: Mesh, path: Path) -> None:
    """One node and one primitive for each part; textures go in as they are."""
    out = _Writer()
    primitives = [out.primitive(part) for part in mesh]
    out.doc |= {
        "asset": {"version": "2.0", "generator": "polypod"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": primitives}],
        "buffers": [{"byteLength": len(out.bin)}],
    }
    text = json.dumps({k: v for k, v in out.doc.items() if v}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    length = 12 + 8 + len(text) + 8 + len(out.bin)
    with path.open("wb") as file:
        file.write(struct.pack("<4sII", MAGIC, 2, length))
        file.write(struct.pack("<I4s", len(text), JSON) + text)
        file.write(struct.pack("<I4s", len(out.bin), BIN))
        file.write(out.bin)


class _Writer:
    def __init__(self) -> None:
        self.bin = bytearray()
        self.doc: dict[str, Any] = {
            name: []
            for name in ("bufferViews", "accessors", "materials", "textures", "images", "samplers")
        }

    def primitive(self, part: Part) -> dict[str, Any]:
        attributes = {"POSITION": self.accessor(part.vertices, "VEC3", bounds=True)}
        if part.normals is not None:
            attributes["NORMAL"] = self.accessor(part.normals, "VEC3")
        if part.uv is not None:
            down = part.uv * f32([1, -1]) + f32([0, 1])
            attributes["TEXCOORD_0"] = self.accessor(down, "VEC2")
        if part.colors is not None:
            attributes["COLOR_0"] = self.accessor(part.colors, "VEC4")
        return {
            "attributes": attributes,
            "indices": self.accessor(part.faces.reshape(-1).astype("<u4"), "SCALAR"),
            "material": self.material(part.material),
        }

    def material(self, material: Material) -> int:
        pbr: dict[str, Any] = {
            "baseColorFactor": list(material.color),
            "metallicFactor": material.metallic,
            "roughnessFactor": material.roughness,
        }
        given: dict[str, Any] = {"pbrMetallicRoughness": pbr, "doubleSided": True}
        for place, name, texture in (
            (pbr, "baseColorTexture", material.texture),
            (pbr, "metallicRoughnessTexture", material.metallic_roughness),
            (given, "normalTexture", material.normal),
        ):
            if texture is not None:
                place[name] = {"index": self.texture(texture)}
        return self.add("materials", given)

    def texture(self, texture: Texture) -> int:
        if not self.doc["samplers"]:
            self.add("samplers", {"magFilter": 9729, "minFilter": 9987})  # linear, with mipmaps
        image = {"bufferView": self.view(texture.data), "mimeType": texture.media_type}
        return self.add("textures", {"source": self.add("images", image), "sampler": 0})

    def accessor(self, values: np.ndarray, kind: str, bounds: bool = False) -> int:
        indices = kind == "SCALAR"
        stored = np.ascontiguousarray(values, "<u4" if indices else "<f4")
        accessor: dict[str, Any] = {
            "bufferView": self.view(stored.tobytes(), 34963 if indices else 34962),
            "componentType": 5125 if indices else 5126,
            "count": len(stored),
            "type": kind,
        }
        if bounds:
            accessor |= {"min": stored.min(axis=0).tolist(), "max": stored.max(axis=0).tolist()}
        return self.add("accessors", accessor)

    def view(self, data: bytes, target: int = 0) -> int:
        view = {"buffer": 0, "byteOffset": len(self.bin), "byteLength": len(data)}
        self.bin += data + bytes(-len(data) % 4)
        return self.add("bufferViews", view | ({"target": target} if target else {}))

    def add(self, table: str, entry: dict[str, Any]) -> int:
        self.doc[table].append(entry)
        return len(self.doc[table]) - 1
