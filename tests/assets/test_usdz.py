from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from polypod.assets.mesh import Material, Part
from polypod.assets.usdz import read_usdz, write_usdz


@pytest.fixture
def package(tmp_path: Path, ball, box, picture) -> Path:
    given = ball(16)
    material = Material(
        texture=picture(lambda p: p.fill(120), kind="WEBP"),
        roughness=0.7,
        metallic_roughness=picture(lambda p: p.fill(60)),
        normal=picture(lambda p: p.fill(128), kind="JPEG"),
    )
    round_ = Part(given.vertices, given.faces, uv=given.uv, material=material)
    write_usdz((round_, box({"+z": (1, 0, 0)})), tmp_path / "a.usdz")
    return tmp_path / "a.usdz"


def test_package_is_as_the_format_asks(package: Path) -> None:
    with zipfile.ZipFile(package) as archive:
        entries = archive.infolist()
    assert all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    assert entries[0].filename.endswith(".usdc")
    assert {Path(e.filename).suffix for e in entries} == {".usdc", ".png", ".jpg"}
    with package.open("rb") as file:
        for entry in entries:
            file.seek(entry.header_offset + 26)
            name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
            assert (entry.header_offset + 30 + name + extra) % 64 == 0, entry.filename


def test_stage_says_its_units_and_has_no_faults(package: Path) -> None:
    from pxr import Usd, UsdGeom, UsdShade

    stage = Usd.Stage.Open(str(package))
    assert UsdGeom.GetStageUpAxis(stage) == "Y" and UsdGeom.GetStageMetersPerUnit(stage) == 1
    assert stage.GetDefaultPrim().GetName() == "Model"
    ball = UsdGeom.Mesh.Get(stage, "/Model/Part0")
    assert ball.GetSubdivisionSchemeAttr().Get() == "none"
    assert np.allclose(ball.GetExtentAttr().Get(), [[-1] * 3, [1] * 3], atol=1e-6)
    assert UsdShade.MaterialBindingAPI(ball).ComputeBoundMaterial()[0]
    validation = pytest.importorskip("pxr.UsdValidation")
    validators = validation.ValidationRegistry().GetOrLoadAllValidators()
    assert validators
    errors = validation.ValidationContext(validators).Validate(stage)
    assert [error.GetErrorAsString() for error in errors] == []


def test_read_back(package: Path, ball) -> None:
    round_, square = read_usdz(package)
    assert np.allclose(round_.vertices, ball(16).vertices)
    assert np.array_equal(round_.faces, ball(16).faces)
    assert np.allclose(round_.uv, ball(16).uv)
    assert round_.material.texture.media_type == "image/png"
    assert round_.material.normal.media_type == "image/jpeg"
    assert round_.material.metallic_roughness is not None
    assert round_.material.roughness == pytest.approx(0.7)
    assert square.colors[0].tolist() == [1, 0, 0, 1] and square.material.texture is None


def test_polygons_units_and_axis_of_other_programs(tmp_path: Path) -> None:
    from pxr import Usd, UsdGeom, UsdUtils

    stage = Usd.Stage.CreateNew(str(tmp_path / "a.usdc"))
    UsdGeom.SetStageUpAxis(stage, "Z")
    UsdGeom.SetStageMetersPerUnit(stage, 0.01)
    mesh = UsdGeom.Mesh.Define(stage, "/Square")
    mesh.CreatePointsAttr([(0, 0, 0), (100, 0, 0), (100, 0, 200), (0, 0, 200)])
    mesh.CreateFaceVertexCountsAttr([4])
    mesh.CreateFaceVertexIndicesAttr([0, 1, 2, 3])
    stage.SetDefaultPrim(mesh.GetPrim())
    stage.GetRootLayer().Save()
    UsdUtils.CreateNewUsdzPackage(str(tmp_path / "a.usdc"), str(tmp_path / "a.usdz"))
    (part,) = read_usdz(tmp_path / "a.usdz")
    assert len(part.faces) == 2
    assert np.allclose(part.vertices, [[0, 0, 0], [1, 0, 0], [1, 2, 0], [0, 2, 0]], atol=1e-6)
