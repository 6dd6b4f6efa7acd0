from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh

from polypod.assets import formats
from polypod.assets.colors import vertex_colors
from polypod.assets.derive import FORMATS
from polypod.assets.glb import write_glb
from polypod.assets.mesh import Material, Mesh, Part, Splats, facts, weld
from polypod.errors import BadInput

BLUE = (0.05, 0.1, 0.7)


@pytest.fixture
def model(tmp_path: Path, ball, box, picture) -> Path:
    """A textured ball and, beside it, a box with colours at its vertices."""

    def paint(pixels: np.ndarray) -> None:
        pixels[:], pixels[:, :32] = (30, 200, 60), (210, 60, 30)

    colors = np.tile(np.float32([*BLUE, 1]), (24, 1))
    side = Part(box().vertices + np.float32([4, 0, 0]), box().faces, colors=colors)
    write_glb((ball(32, picture(paint)), side), tmp_path / "model.glb")
    return tmp_path / "model.glb"


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_every_format_becomes_every_other(
    tmp_path: Path, model: Path, first: str, second: str
) -> None:
    wanted = mesh_of(model, "glb")
    formats.write(wanted, tmp_path / f"first.{first}", first)
    formats.write(mesh_of(tmp_path / f"first.{first}", first), tmp_path / f"b.{second}", second)
    mesh = mesh_of(tmp_path / f"b.{second}", second)
    found, given = facts(mesh), facts(wanted)
    assert found["triangles"] == given["triangles"]
    assert found["watertight"] is True
    assert np.allclose(found["bounds"], given["bounds"], atol=1e-5)
    assert found["volume"] == pytest.approx(given["volume"], rel=1e-4)
    if "stl" not in (first, second):
        check_colors(mesh)
    if {first, second} <= {"glb", "usdz"}:
        assert [part.material.texture is not None for part in mesh] == [True, False]


def mesh_of(path: Path, format: str) -> Mesh:
    mesh = formats.read(path, format)
    assert isinstance(mesh, tuple)
    return mesh


def check_colors(mesh: Mesh) -> None:
    """Whether from the texture or at the vertices: the sides have the colours they had."""
    colors = np.concatenate([vertex_colors(part)[:, :3] for part in mesh])
    x = np.concatenate([part.vertices for part in mesh])[:, 0]
    right, left = colors[(x > 0.1) & (x < 1.1)].mean(axis=0), colors[x < -0.1].mean(axis=0)
    assert right[0] > 4 * right[1], "the first half of the texture, red, is on the +X side"
    assert left[1] > 4 * left[0]
    assert np.allclose(colors[x > 2], BLUE, atol=0.02)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("content", [b"", b"not a mesh\n" * 100])
def test_what_is_no_mesh_is_refused(tmp_path: Path, format: str, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(BadInput):
        formats.read(tmp_path / "a", format)


def write_ply(path: Path, columns: dict[str, np.ndarray]) -> None:
    rows = np.stack(list(columns.values()), axis=1).astype("<f4")
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
    head += [f"property float {name}" for name in columns] + ["end_header"]
    path.write_bytes("\n".join(head).encode() + b"\n" + rows.tobytes())


@pytest.mark.parametrize("format", ["ply", "obj", "stl"])
def test_another_program_reads_what_we_write(tmp_path: Path, ball, box, format: str) -> None:
    red = Part(
        box().vertices + np.float32([3, 0, 0]), box().faces, material=Material((0.5, 0, 0, 1))
    )
    path = tmp_path / f"a.{format}"
    formats.write((ball(16), red), path, format)
    read = trimesh.load(path, process=format == "stl")
    assert len(read.faces) == len(ball(16).faces) + 12
    assert read.volume == pytest.approx(8 + 4.1, rel=0.02)
    if format != "stl":
        assert read.visual.vertex_colors[0].tolist() == [255, 255, 255, 255]
        assert read.visual.vertex_colors[-1].tolist() == [188, 0, 0, 255]


def test_obj_is_one_plain_file_with_texture_coordinates(tmp_path: Path, ball, picture) -> None:
    formats.write((ball(8, picture(lambda p: p.fill(200))),), tmp_path / "a.obj", "obj")
    assert [path.name for path in tmp_path.iterdir()] == ["a.obj"]
    lines = (tmp_path / "a.obj").read_text().splitlines()
    assert {line.split(" ")[0] for line in lines} == {"v", "vt", "f"}
    assert len(lines[0].split()) == 7


def test_no_other_file_is_read(tmp_path: Path) -> None:
    """An OBJ file names a material library, and that names a picture: both stay closed."""
    (tmp_path / "a.mtl").write_text("newmtl m\nKd 1 0 0\nmap_Kd secret.png\n")
    (tmp_path / "a.obj").write_text("mtllib a.mtl\nusemtl m\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    (part,) = formats.read(tmp_path / "a.obj", "obj")  # type: ignore[misc]
    assert part.material == Material()


def test_glb_gets_normals_where_it_is_smooth_and_none_where_it_is_not(
    tmp_path: Path, ball, box
) -> None:
    sharp = Part(*weld((box(),)))
    formats.write((ball(32), sharp), tmp_path / "a.glb", "glb")
    round_, square = formats.read(tmp_path / "a.glb", "glb")  # type: ignore[misc]
    corners = round_.normals[round_.faces], round_.vertices[round_.faces]
    assert np.einsum("fci,fci->fc", *corners).min() > 0.99
    assert len(square.vertices) == 8 and square.normals is None


def test_gaussian_splats_are_read_as_such(tmp_path: Path) -> None:
    ones = np.ones(5)
    columns = {name: ones * i for i, name in enumerate("xyz")}
    columns |= {"f_dc_0": ones * 1.7724539, "f_dc_1": -ones * 1.7724539, "f_dc_2": ones * 0}
    columns |= {"opacity": ones * 0, "scale_0": ones * np.log(0.5)}
    columns |= {"scale_1": ones * np.log(0.1), "scale_2": ones * np.log(0.2)}
    half = np.sqrt(0.5)
    columns |= {"rot_0": ones * half, "rot_1": 0 * ones, "rot_2": 0 * ones, "rot_3": ones * half}
    write_ply(tmp_path / "a.ply", columns)
    splats = formats.read(tmp_path / "a.ply", "ply")
    assert isinstance(splats, Splats)
    assert np.allclose(splats.points, [0, 1, 2]) and np.allclose(splats.opacity, 0.5)
    assert np.allclose(splats.colors, [1, 0, 0.21], atol=0.01)
    # turned by a quarter about z: the long axis points along y
    assert np.allclose(splats.axes, [[0, 0.5, 0], [-0.1, 0, 0], [0, 0, 0.2]], atol=1e-6)
