"""The kit's stages in a model, through the real harness in a process of their own."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

from polypod import kit
from polypod.assets.glb import read_glb
from polypod.model import Input, Licence, Model, Stage
from tests.contracts.harnessed import Ran, harnessed
from tests.kit.test_cutting import photo
from tests.kit.test_person import WHOLE

REMBG = Path(__file__).parents[1] / "contracts" / "packages" / "rembg"
WORKER = """
def load(worker, settings):
    return None

def run(stage, state, job):
    import shutil
    shutil.copy(job.inputs["mesh"], job.outputs / "mesh.obj")
"""


def model(folder: Path, **options: Any) -> Model:
    (folder / "worker.py").write_text(WORKER)
    return Model(
        name="kitted",
        title="Kitted",
        summary="A model whose own stage copies a mesh.",
        folder=folder,
        params=kit.PersonParams,
        inputs={"image": Input(required=True), "mask": Input(), "mesh": Input("file")},
        stages=(
            kit.cutout(**options),
            Stage("shape", inputs=("mesh",), outputs=("mesh.obj",)),
            kit.views("mesh.obj"),
            kit.export("mesh.obj"),
        ),
        formats=("glb",),
        licence=Licence("MIT"),
    )


def run(folder: Path, made: Model, inputs: dict[str, Path], until: str = "", **given: Any) -> Ran:
    async def go() -> Ran:
        env = {"PYTHONPATH": str(REMBG), "U2NET_HOME": str(folder)}
        async with harnessed(made, folder / "run", env) as running:
            return await running.run(inputs, until, **given)

    return asyncio.run(go())


def box_mesh(folder: Path) -> Path:
    mesh = trimesh.creation.box((1, 2, 1))
    colours = np.tile([188, 0, 0, 255], (len(mesh.vertices), 1)).astype(np.uint8)
    mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=colours)
    mesh.export(str(folder / "box.obj"))
    return folder / "box.obj"


def glb_json(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    return json.loads(data[20 : 20 + length])


def test_all_of_them(tmp_path: Path) -> None:
    inputs = {"image": photo(tmp_path, alpha=True), "mesh": box_mesh(tmp_path)}
    ran = run(tmp_path, model(tmp_path), inputs)
    assert ran.error is None
    assert Image.open(ran.files["input.png"]).getbbox() == (60, 20, 100, 100)
    views = [np.asarray(Image.open(ran.files[f"view_{n}.png"])) for n in range(4)]
    assert all(view.shape[:2] == (512, 512) and view.std() > 5 for view in views)
    told = glb_json(ran.files["model.glb"])
    assert [m["pbrMetallicRoughness"]["metallicFactor"] for m in told["materials"]] == [0.0]
    (part,) = read_glb(ran.files["model.glb"])
    assert np.ptp(part.vertices, axis=0).tolist() == [1, 2, 1]
    assert part.colors is not None  # linear: sRGB 188 is half of the light
    assert part.colors[0].tolist() == pytest.approx([0.503, 0, 0, 1], abs=0.01)


def test_a_background_is_removed_where_the_weights_are(tmp_path: Path) -> None:
    (tmp_path / "u2net.onnx").touch()
    ran = run(tmp_path, model(tmp_path), {"image": photo(tmp_path)}, "cutout")
    assert ran.error is None and ran.progress["cutout"][-1][1] == "Removing the background"
    assert Image.open(ran.files["input.png"]).getbbox() == (60, 20, 100, 100)


def test_where_they_are_not_the_job_fails_in_words(tmp_path: Path) -> None:
    ran = run(tmp_path, model(tmp_path), {"image": photo(tmp_path)}, "cutout")
    assert ran.error is not None and ran.error.code == "not_installed"
    assert "transparent background" in ran.error.hint


def test_people_are_checked_before_anything_else_runs(tmp_path: Path) -> None:
    Image.merge("LA", [Image.fromarray(WHOLE)] * 2).convert("RGBA").crop((0, 0, 300, 200)).save(
        tmp_path / "half.png"
    )
    inputs = {"image": tmp_path / "half.png", "mesh": box_mesh(tmp_path)}
    made = model(tmp_path, person=True)
    ran = run(tmp_path, made, inputs)
    assert ran.error is not None and (ran.error.code, ran.failed_in) == ("bad_input", "cutout")
    assert run(tmp_path, made, inputs, full_body=False).error is None


def test_what_the_kit_made_stays_kept_when_the_models_code_changes(tmp_path: Path) -> None:
    made = model(tmp_path)
    cutout, shape = made.stage("cutout"), made.stage("shape")
    params = made.resolve({})

    def keys(of: Model) -> list[str]:
        return [of.stage_key(stage, {"image": "d"}, params, "") for stage in (cutout, shape)]

    before = keys(made)
    (tmp_path / "worker.py").write_text(WORKER + "# changed\n")
    after = keys(dataclasses.replace(made))
    assert before[0] == after[0] and before[1] != after[1]
    other = kit.cutout(square=0.85)
    assert made.stage_key(other, {"image": "d"}, params, "") != before[0]


def test_a_texture_beside_an_obj_is_put_on(tmp_path: Path) -> None:
    (tmp_path / "mesh.obj").write_text(
        "v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nf 1/1 2/2 3/3\n"
    )
    export = kit.export("mesh.obj", texture="texture.png")
    made = dataclasses.replace(model(tmp_path), stages=(export,))
    inputs = {"mesh.obj": tmp_path / "mesh.obj", "texture.png": photo(tmp_path)}
    ran = run(tmp_path, made, inputs)
    assert ran.error is None, ran.log
    (part,) = read_glb(ran.files["model.glb"])
    assert part.material.texture is not None and part.uv is not None
    assert part.material.texture.data == inputs["texture.png"].read_bytes()
    assert part.material.metallic == 0 and part.uv.tolist() == [[0, 0], [1, 0], [0, 1]]
