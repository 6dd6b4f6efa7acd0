"""USDZ, Apple's packed form of Universal Scene Description, by Pixar's library (usd-core).

Y up, 1 unit is 1 metre, UsdPreviewSurface materials: what AR Quick Look shows.
"""

# pyright: basic, reportAttributeAccessIssue=false
from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from polypod.assets.mesh import (
    MAX_TRIANGLES,
    Material,
    Mesh,
    Part,
    Texture,
    corner_normals,
    f32,
    triangle_count,
)
from polypod.errors import BadInput, TooLarge

MAX_UNPACKED = 1 << 30
ENDINGS = {"image/png": "png", "image/jpeg": "jpg"}
MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


def write_usdz(mesh: Mesh, path: Path) -> None:
    from pxr import UsdUtils

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        model = Path(folder) / "model.usdc"
        _write_stage(mesh, model)
        if not UsdUtils.CreateNewARKitUsdzPackage(str(model), str(path)):
            raise OSError("the USDZ package could not be written")


def _write_stage(mesh: Mesh, path: Path) -> None:
    from pxr import Usd, UsdGeom

    stage = Usd.Stage.CreateNew(str(path))
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    root = UsdGeom.Xform.Define(stage, "/Model")
    stage.SetDefaultPrim(root.GetPrim())
    normals = corner_normals(mesh)
    start = 0
    for index, part in enumerate(mesh):
        end = start + len(part.faces)
        geometry = _write_part(stage, f"/Model/Part{index}", part, normals[start:end])
        _write_material(stage, geometry, part, path.parent, index)
        start = end
    stage.GetRootLayer().Save()


def _write_part(stage, name: str, part: Part, normals: np.ndarray):
    from pxr import Gf, Sdf, UsdGeom, Vt

    geometry = UsdGeom.Mesh.Define(stage, name)
    geometry.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    geometry.CreateDoubleSidedAttr(True)
    geometry.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(part.vertices))
    geometry.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(part.faces), 3, "i4")))
    geometry.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(part.faces.reshape(-1)))
    bounds = part.vertices.min(axis=0), part.vertices.max(axis=0)
    geometry.CreateExtentAttr([Gf.Vec3f(*map(float, corner)) for corner in bounds])
    flat = np.ascontiguousarray(normals.reshape(-1, 3), np.float32)
    geometry.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(flat))
    geometry.SetNormalsInterpolation(UsdGeom.Tokens.faceVarying)
    primvars = UsdGeom.PrimvarsAPI(geometry)
    if part.uv is not None:
        kind, values = Sdf.ValueTypeNames.TexCoord2fArray, Vt.Vec2fArray.FromNumpy(part.uv)
        primvars.CreatePrimvar("st", kind, UsdGeom.Tokens.vertex).Set(values)
    if part.colors is not None:
        colors = np.ascontiguousarray(part.colors[:, :3] * f32(part.material.color[:3]))
        kind, values = Sdf.ValueTypeNames.Color3fArray, Vt.Vec3fArray.FromNumpy(colors)
        primvars.CreatePrimvar("displayColor", kind, UsdGeom.Tokens.vertex).Set(values)
    return geometry


def _write_material(stage, geometry, part: Part, folder: Path, index: int) -> None:
    """One surface shader, fed by the textures where there are any, else by vertex colours."""
    from pxr import Gf, Sdf, UsdShade

    types, given = Sdf.ValueTypeNames, part.material
    name = f"/Model/Material{index}"
    material = UsdShade.Material.Define(stage, name)
    surface = UsdShade.Shader.Define(stage, f"{name}/Surface")
    surface.CreateIdAttr("UsdPreviewSurface")
    material.CreateSurfaceOutput().ConnectToSource(surface.ConnectableAPI(), "surface")
    color = surface.CreateInput("diffuseColor", types.Color3f)
    color.Set(Gf.Vec3f(*given.color[:3]))
    metallic = surface.CreateInput("metallic", types.Float)
    metallic.Set(float(given.metallic))
    roughness = surface.CreateInput("roughness", types.Float)
    roughness.Set(float(given.roughness))

    def reader(kind: str, variable: str):
        shader = UsdShade.Shader.Define(stage, f"{name}/Read_{variable}")
        shader.CreateIdAttr(f"UsdPrimvarReader_{kind}")
        shader.CreateInput("varname", types.String).Set(variable)
        return shader.ConnectableAPI()

    def texture(use: str, picture: Texture, space: str, scale: tuple, bias: tuple = (0, 0, 0, 0)):
        picture = _png_or_jpeg(picture)
        file = f"{use}{index}.{ENDINGS[picture.media_type]}"
        (folder / file).write_bytes(picture.data)
        shader = UsdShade.Shader.Define(stage, f"{name}/Texture_{use}")
        shader.CreateIdAttr("UsdUVTexture")
        shader.CreateInput("file", types.Asset).Set(Sdf.AssetPath(f"./{file}"))
        shader.CreateInput("sourceColorSpace", types.Token).Set(space)
        shader.CreateInput("scale", types.Float4).Set(Gf.Vec4f(*map(float, scale)))
        shader.CreateInput("bias", types.Float4).Set(Gf.Vec4f(*map(float, bias)))
        for wrap in ("wrapS", "wrapT"):
            shader.CreateInput(wrap, types.Token).Set("repeat")
        shader.CreateInput("st", types.Float2).ConnectToSource(reader("float2", "st"), "result")
        return shader.ConnectableAPI()

    if given.texture and part.uv is not None:
        color.ConnectToSource(texture("color", given.texture, "sRGB", given.color), "rgb")
    elif part.colors is not None:
        color.ConnectToSource(reader("float3", "displayColor"), "result")
    if given.metallic_roughness and part.uv is not None:
        scale = (1, given.roughness, given.metallic, 1)
        packed = texture("metallic_roughness", given.metallic_roughness, "raw", scale)
        roughness.ConnectToSource(packed, "g")
        metallic.ConnectToSource(packed, "b")
    if given.normal and part.uv is not None:
        bent = texture("normal", given.normal, "raw", (2, 2, 2, 1), (-1, -1, -1, 0))
        surface.CreateInput("normal", types.Normal3f).ConnectToSource(bent, "rgb")
    UsdShade.MaterialBindingAPI.Apply(geometry.GetPrim()).Bind(material)


def _png_or_jpeg(texture: Texture) -> Texture:
    if texture.media_type in ENDINGS:
        return texture
    import cv2

    pixels: Any = cv2.imdecode(np.frombuffer(texture.data, np.uint8), cv2.IMREAD_UNCHANGED)
    return Texture(cv2.imencode(".png", pixels)[1].tobytes(), "image/png")


def read_usdz(path: Path) -> Mesh:
    """All meshes with their transforms; one material each. Nothing outside the file is read."""
    from pxr import Usd, UsdGeom

    files = _files(path)
    stage = Usd.Stage.Open(str(path), Usd.Stage.LoadNone)
    for layer in stage.GetUsedLayers():
        if not (layer.anonymous or layer.identifier.startswith(str(path))):
            raise BadInput("The USDZ file refers to other files.", "Export it as one file.")
    cache = UsdGeom.XformCache()
    scale = UsdGeom.GetStageMetersPerUnit(stage)
    turn = np.eye(3)
    if UsdGeom.GetStageUpAxis(stage) == UsdGeom.Tokens.z:
        turn = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], float)
    parts: list[Part] = []
    for prim in stage.Traverse():
        if prim.IsA(UsdGeom.Mesh):
            matrix = np.array(cache.GetLocalToWorldTransform(prim))
            part = _read_part(UsdGeom.Mesh(prim), files)
            placed = (part.vertices @ matrix[:3, :3] + matrix[3, :3]) * scale @ turn.T
            parts.append(_with_vertices(part, placed.astype(np.float32)))
            if triangle_count(parts) > MAX_TRIANGLES:
                raise TooLarge(f"The mesh has more than {MAX_TRIANGLES:,} triangles.")
    return tuple(part for part in parts if len(part.faces))


def _files(path: Path) -> dict[str, Texture]:
    """The pictures in the package. What is packed smaller than it is breaks the format's rule."""
    with zipfile.ZipFile(path) as package:
        entries = package.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise BadInput("This is no valid USDZ file: its contents are compressed.")
        if sum(entry.file_size for entry in entries) > min(MAX_UNPACKED, path.stat().st_size):
            raise TooLarge("The contents of the USDZ file are too large.")
        return {
            entry.filename: Texture(package.read(entry), MEDIA_TYPES[suffix])
            for entry in entries
            if (suffix := PurePosixPath(entry.filename).suffix.lower()) in MEDIA_TYPES
        }


def _read_part(geometry, files: dict[str, Texture]) -> Part:
    from pxr import UsdGeom

    vertices = np.array(geometry.GetPointsAttr().Get(), np.float32).reshape(-1, 3)
    counts = np.array(geometry.GetFaceVertexCountsAttr().Get(), np.int64)
    indices = np.array(geometry.GetFaceVertexIndicesAttr().Get(), np.int64)
    there = (indices >= 0) & (indices < len(vertices))
    if counts.sum() != len(indices) or not there.all():
        raise BadInput("The USDZ file is damaged: a triangle names a corner that is not there.")
    corners = _fans(counts)
    primvars = UsdGeom.PrimvarsAPI(geometry)
    values = {}
    for name, width in (("st", 2), ("displayColor", 3)):
        primvar = primvars.GetPrimvar(name)
        if primvar and primvar.HasValue():
            given = np.array(primvar.ComputeFlattened(), np.float32).reshape(-1, width)
            values[name] = given, primvar.GetInterpolation()
    if any(kind == UsdGeom.Tokens.faceVarying for _, kind in values.values()):
        vertices, faces = vertices[indices], corners  # one vertex for each corner
    else:
        faces = indices[corners]
    spread = {
        name: _per_vertex(given, kind, indices, len(vertices))
        for name, (given, kind) in values.items()
    }
    colors = spread.get("displayColor")
    if colors is not None:
        colors = np.concatenate([colors, np.ones((len(colors), 1), np.float32)], axis=1)
    material = _read_material(geometry, files)
    return Part(
        vertices=vertices,
        faces=faces.astype(np.int32),
        uv=spread.get("st"),
        colors=None if material.texture else colors,
        material=material,
    )


def _fans(counts: np.ndarray) -> np.ndarray:
    """(F, 3) places in the list of corners: every polygon as triangles about its first corner."""
    if (counts == 3).all():
        return np.arange(len(counts) * 3).reshape(-1, 3)
    starts = np.cumsum(counts) - counts
    return np.array(
        [
            (start, start + i, start + i + 1)
            for start, count in zip(starts.tolist(), counts.tolist(), strict=True)
            for i in range(1, count - 1)
        ]
    ).reshape(-1, 3)


def _per_vertex(given: np.ndarray, kind: str, indices: np.ndarray, count: int) -> np.ndarray | None:
    if len(given) == 1:
        return np.repeat(given, count, axis=0)
    if kind != "faceVarying" and count == len(indices) != len(given):
        given = given[indices]
    return given if len(given) == count else None


def _with_vertices(part: Part, vertices: np.ndarray) -> Part:
    return Part(vertices, part.faces, None, part.uv, part.colors, part.material)


def _read_material(geometry, files: dict[str, Texture]) -> Material:
    from pxr import UsdShade

    bound = UsdShade.MaterialBindingAPI(geometry).ComputeBoundMaterial()[0]
    surface = bound.ComputeSurfaceSource()[0] if bound else None
    if not surface:
        return Material()

    def value(name: str, default):
        shader_input = surface.GetInput(name)
        found = shader_input.Get() if shader_input else None
        return default if found is None else found

    def source(name: str):
        shader_input = surface.GetInput(name)
        if not shader_input or not shader_input.HasConnectedSource():
            return None
        return UsdShade.Shader(shader_input.GetConnectedSource()[0].GetPrim())

    def texture(name: str) -> Texture | None:
        file = shader.GetInput("file") if (shader := source(name)) else None
        asset = file.Get() if file else None
        return files.get(str(PurePosixPath(asset.path))) if asset else None

    color: Any = (*map(float, value("diffuseColor", (1, 1, 1))), 1.0)
    if shader := source("diffuseColor"):
        scale = shader.GetInput("scale")
        color = tuple(map(float, scale.Get())) if scale else (1.0, 1.0, 1.0, 1.0)
    return Material(
        color=color,
        texture=texture("diffuseColor"),
        metallic=float(value("metallic", 0.0)),
        roughness=float(value("roughness", 0.5)),
        metallic_roughness=texture("roughness"),
        normal=texture("normal"),
    )
