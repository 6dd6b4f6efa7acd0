"""inflate, stage by stage as declared: each gets its declared inputs and parameters, no others."""

from __future__ import annotations

import errno
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import trimesh

from services.inflate import worker
from services.inflate.model import MODEL
from services.inflate.pictures import write_picture

PHOTO = Path(__file__).parents[2] / "examples" / "duck.jpg"
STATE = worker.load("cpu", {})


def run(folder: Path, inputs: dict[str, Path], **given) -> SimpleNamespace:
    """Runs the planned stages and returns the final mesh with all files and messages."""
    params = MODEL.resolve(given)
    files, messages = dict(inputs), []
    for stage in MODEL.plan(params):
        outputs = folder / stage.name
        outputs.mkdir(parents=True)
        job = SimpleNamespace(
            inputs={name: files[name] for name in stage.inputs if name in files},
            outputs=outputs,
            params=SimpleNamespace(**{name: params[name] for name in stage.params}),
            progress=lambda fraction, message="": messages.append((fraction, message)),
        )
        worker.run(stage.name, STATE, job)
        made = {path.name: path for path in outputs.iterdir()}
        assert set(stage.outputs) - set(stage.optional) <= set(made) <= set(stage.outputs)
        files |= made
    model = files[MODEL.result_name(params)]
    return SimpleNamespace(mesh=load(model), files=files, model=model, messages=messages)


def load(path: Path) -> trimesh.Trimesh:
    mesh = trimesh.load(path, force="mesh", process=False)
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    return mesh


def save(path: Path, *, alpha: np.ndarray, colour: np.ndarray | None = None) -> dict[str, Path]:
    """A PNG with this alpha (0 to 1); its colours run from left to right, or are given."""
    height, width = alpha.shape
    if colour is None:
        ramp = np.broadcast_to(np.linspace(0, 255, width)[None, :, None], (height, width, 1))
        colour = np.concatenate([ramp, 255 - ramp, np.full_like(ramp, 90)], axis=2)
    picture = np.dstack([colour, 255 * alpha]).astype(np.uint8)
    assert cv2.imwrite(str(path), picture)
    return {"image": path}


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the pixels' centres, from -1 to 1."""
    at = (np.arange(size) + 0.5) / size * 2 - 1
    return np.meshgrid(at, at)


def smooth(inside: np.ndarray, size: int) -> np.ndarray:
    """Share of every pixel that is inside, from a picture that is finer."""
    return cv2.resize(inside.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)


def disc(size: int, radius: float = 0.8) -> np.ndarray:
    x, y = grid(4 * size)
    return smooth(np.hypot(x, y) < radius, size)


def shapes() -> dict[str, np.ndarray]:
    x, y = grid(400)
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    noise = cv2.GaussianBlur(np.random.default_rng(1).normal(size=x.shape), (0, 0), 8)
    return {
        "disc": radius < 0.8,
        "ring": (radius < 0.9) & (radius > 0.5),
        "star": radius < 0.55 + 0.35 * np.cos(5 * angle),
        "two blobs": (np.hypot(x + 0.45, y) < 0.35) | (np.hypot(x - 0.5, y - 0.2) < 0.3),
        "thin line": (np.abs(x - 0.6 * y) < 0.02) & (np.abs(y) < 0.9),
        "flat line": (np.abs(y) < 0.02) & (np.abs(x) < 0.9),
        "whole picture": radius < 9,
        "touches the border": (x < -0.2) & (y > -0.4),
        "checkers": ((x * 6 // 1 + y * 6 // 1) % 2 == 0) & (radius < 0.9),
        "stains": noise > 0.02,
    }


@pytest.mark.parametrize("preset", list(MODEL.presets))
@pytest.mark.parametrize("size", [200, 1024])
def test_disc_becomes_half_sphere_on_each_side(tmp_path: Path, preset: str, size: int) -> None:
    image = save(tmp_path / "disc.png", alpha=disc(size))
    mesh = run(tmp_path, image, preset=preset, with_texture=False).mesh
    points, _ = trimesh.sample.sample_surface(mesh, 20_000, seed=1)
    for side in (points[points[:, 2] >= 0], points[points[:, 2] <= 0]):
        assert len(side) > 9_000
        assert np.abs(np.linalg.norm(side, axis=1) / 0.5 - 1).max() < 0.02
    at_vertices = np.linalg.norm(mesh.vertices, axis=1) / 0.5
    assert np.abs(at_vertices - 1).max() < 0.006
    assert mesh.bounds[:, 2] == pytest.approx([-0.5, 0.5], abs=0.01)


@pytest.mark.parametrize("name", list(shapes()))
def test_surface_is_closed_whatever_the_silhouette(tmp_path: Path, name: str) -> None:
    image = save(tmp_path / "shape.png", alpha=shapes()[name])
    result = run(tmp_path, image, preset="draft", relief=1)
    mesh = result.mesh
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume > 0
    assert mesh.area_faces.min() > 0
    assert mesh.extents[1] == pytest.approx(1, abs=1e-6)
    assert mesh.bounds.sum(axis=0) == pytest.approx([0, 0, 0], abs=1e-5)
    assert mesh.visual.uv.min() >= 0
    assert mesh.visual.uv.max() <= 1
    parts = mesh.split(only_watertight=False)
    assert all(part.is_watertight and part.volume > 0 for part in parts)


def test_hole_stays_open(tmp_path: Path) -> None:
    image = save(tmp_path / "ring.png", alpha=shapes()["ring"])
    mesh = run(tmp_path, image, preset="draft").mesh
    assert mesh.euler_number == 0
    assert np.hypot(mesh.vertices[:, 0], mesh.vertices[:, 1]).min() > 0.5 * 0.5 / 0.9 - 0.01


def test_parts_are_kept_and_litter_is_not(tmp_path: Path) -> None:
    alpha = shapes()["two blobs"].astype(float)
    alpha[5:9, 5:9] = 1
    mesh = run(tmp_path, save(tmp_path / "parts.png", alpha=alpha), preset="draft").mesh
    assert mesh.body_count == 2


def test_axes_and_texture_are_those_of_the_photograph(tmp_path: Path) -> None:
    """A picture whose upper left is red: so is the mesh's upper left, seen from +Z."""
    x, y = grid(256)
    colour = np.full((256, 256, 3), 200)
    colour[(x < 0) & (y < 0)] = (0, 0, 255)
    image = save(tmp_path / "axes.png", alpha=(np.abs(x) < 0.5) & (np.abs(y) < 0.9), colour=colour)
    mesh = run(tmp_path, image).mesh
    assert mesh.extents[1] == pytest.approx(1)
    assert mesh.extents[0] == pytest.approx(5 / 9, rel=0.02)
    seen = mesh.visual.to_color().vertex_colors[:, :3].astype(int)
    front = mesh.vertices[:, 2] > 0
    inner = (np.abs(mesh.vertices[:, :2]) > 0.04).all(axis=1)
    red = (mesh.vertices[:, 0] < 0) & (mesh.vertices[:, 1] > 0)
    assert (seen[front & inner & red, 1] < 60).all()
    assert (seen[front & inner & ~red, 1] > 150).all()
    assert (mesh.vertex_normals[mesh.vertices[:, 2] > 0.1, 2] > 0).all()


def test_material_is_matt_with_a_jpeg(tmp_path: Path) -> None:
    result = run(tmp_path, save(tmp_path / "disc.png", alpha=disc(200)), texture_size=128)
    material = trimesh.load(result.model, force="mesh").visual.material
    assert material.metallicFactor == 0
    assert result.files["texture.jpg"].read_bytes() in result.model.read_bytes()
    assert max(material.baseColorTexture.size) == 128


def test_no_background_shows_at_the_rim(tmp_path: Path) -> None:
    """A green disc on magenta, with a soft edge in which both are mixed."""
    alpha = disc(512)
    colour = np.array([40, 220, 40]) * alpha[..., None] + [255, 0, 255] * (1 - alpha[..., None])
    result = run(tmp_path, save(tmp_path / "green.png", alpha=alpha, colour=colour))
    texture = cv2.imread(str(result.files["texture.jpg"])).astype(int)
    assert np.abs(texture - [40, 220, 40]).max() < 12


def test_same_input_gives_same_bytes_whatever_the_seed(tmp_path: Path) -> None:
    first = run(tmp_path / "1", {"image": PHOTO}, seed=1)
    second = run(tmp_path / "2", {"image": PHOTO}, seed=2)
    for name in ("input.png", "mesh.npz", "texture.jpg", "model.glb"):
        assert first.files[name].read_bytes() == second.files[name].read_bytes()


def test_photograph_is_cut_out_by_colour(tmp_path: Path) -> None:
    result = run(tmp_path, {"image": PHOTO})
    cut = cv2.imread(str(result.files["input.png"]), cv2.IMREAD_UNCHANGED)
    assert 0.4 < (cut[..., 3] > 127).mean() < 0.6  # the duck fills half of its bounding box
    assert (cut[cut[..., 3] > 127][:, :3].max(axis=1) < 40).mean() < 0.05  # no dark water
    assert (cut[[0, -1]] == 0).all()
    assert (cut[:, [0, -1]] == 0).all()
    assert result.mesh.is_watertight
    assert result.mesh.body_count == 1
    fractions = [fraction for fraction, _ in result.messages]
    assert all(0 <= fraction <= 1 for fraction in fractions)
    assert all(message for _, message in result.messages)


def test_flat_object_on_flat_background_is_found_to_the_pixel(tmp_path: Path) -> None:
    picture = np.full((300, 500, 3), (30, 60, 200), np.uint8)
    cv2.rectangle(picture, (150, 100), (349, 249), (40, 200, 60), -1)
    cv2.imwrite(str(tmp_path / "flat.png"), picture)
    result = run(tmp_path, {"image": tmp_path / "flat.png"}, preset="draft")
    cut = cv2.imread(str(result.files["input.png"]), cv2.IMREAD_UNCHANGED)[..., 3] > 127
    assert np.ptp(np.flatnonzero(cut.any(axis=0))) == pytest.approx(199, abs=2)
    assert np.ptp(np.flatnonzero(cut.any(axis=1))) == pytest.approx(149, abs=2)


def test_object_that_the_picture_cuts_off_is_found(tmp_path: Path) -> None:
    picture = np.full((300, 300, 3), (220, 220, 210), np.uint8)
    cv2.ellipse(picture, (150, 300), (90, 200), 0, 0, 360, (30, 40, 160), -1)
    cv2.imwrite(str(tmp_path / "cut.png"), picture)
    mesh = run(tmp_path, {"image": tmp_path / "cut.png"}, preset="draft").mesh
    assert mesh.is_watertight
    assert mesh.extents[0] == pytest.approx(180 / 200, rel=0.05)


def test_mask_takes_the_place_of_the_cut_out(tmp_path: Path) -> None:
    mask = tmp_path / "mask.png"
    cv2.imwrite(str(mask), (255 * disc(483)).astype(np.uint8))  # half of the photograph's height
    cv2.imwrite(str(mask), cv2.resize(cv2.imread(str(mask), 0), (512, 483)))
    mesh = run(tmp_path, {"image": PHOTO, "mask": mask}, preset="draft").mesh
    assert mesh.extents[0] == pytest.approx(512 / 483, rel=0.02)
    cv2.imwrite(str(mask), np.full((100, 400), 255, np.uint8))
    with pytest.raises(worker.BadInput, match="differ in shape") as caught:
        run(tmp_path / "bad", {"image": PHOTO, "mask": mask})
    assert "1024 x 966" in caught.value.hint
    cv2.imwrite(str(mask), np.zeros((966, 1024), np.uint8))
    with pytest.raises(worker.BadInput, match="mask is empty"):
        run(tmp_path / "black", {"image": PHOTO, "mask": mask})


@pytest.mark.parametrize(
    ("picture", "message", "hint"),
    [
        (np.zeros((1, 1, 3)), "1 x 1 pixels", "at least 16 x 16"),
        (np.zeros((64, 64, 4)), "silhouette is empty", "one object"),
        (np.full((200, 300, 3), 77), "No object was found", "transparent background"),
        (np.random.default_rng(0).integers(0, 255, (80, 80, 3)), "No object was found", "`mask`"),
    ],
)
def test_bad_pictures_are_told_apart(
    tmp_path: Path, picture: np.ndarray, message: str, hint: str
) -> None:
    cv2.imwrite(str(tmp_path / "bad.png"), picture.astype(np.uint8))
    with pytest.raises(worker.BadInput, match=message) as caught:
        run(tmp_path, {"image": tmp_path / "bad.png"})
    assert hint in caught.value.hint


def test_hair_is_too_thin(tmp_path: Path) -> None:
    alpha = np.zeros((600, 600))
    alpha[20:580, 300:302] = 1
    image = save(tmp_path / "hair.png", alpha=alpha)
    with pytest.raises(worker.BadInput, match="too thin") as caught:
        run(tmp_path / "low", image, resolution=64)
    assert "resolution" in caught.value.hint
    assert run(tmp_path / "high", image, resolution=600).mesh.is_watertight


@pytest.mark.parametrize(("width", "height"), [(2, 2), (5, 60), (7, 7)])
def test_an_object_may_be_smaller_than_a_picture_must_be(
    tmp_path: Path, width: int, height: int
) -> None:
    alpha = np.zeros((400, 400))
    alpha[200 : 200 + height, 200 : 200 + width] = 1
    mesh = run(tmp_path, save(tmp_path / "small.png", alpha=alpha)).mesh
    assert mesh.is_watertight
    assert mesh.extents[0] == pytest.approx(width / height, abs=0.01)


def test_one_row_of_pixels_is_thin_and_not_empty(tmp_path: Path) -> None:
    alpha = np.zeros((64, 64))
    alpha[30, 10:50] = 1
    with pytest.raises(worker.BadInput, match="too thin"):
        run(tmp_path, save(tmp_path / "row.png", alpha=alpha))


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    with pytest.raises(worker.BadInput, match="cannot be read"):
        run(tmp_path, {"image": tmp_path / "bad.png"})


@pytest.mark.parametrize("kind", ["grey", "grey and alpha", "tall", "large"])
def test_kinds_of_pictures(tmp_path: Path, kind: str) -> None:
    bright = (255 * disc(400, 0.5)).astype(np.uint8)
    picture = {
        "grey": bright,
        "grey and alpha": cv2.merge([bright, bright, bright, bright]),
        "tall": cv2.copyMakeBorder(cv2.merge([bright] * 3), 900, 900, 0, 0, cv2.BORDER_REPLICATE),
        "large": cv2.resize(cv2.merge([bright] * 3), (3000, 3000)),
    }[kind]
    cv2.imwrite(str(tmp_path / "picture.png"), picture)
    result = run(tmp_path, {"image": tmp_path / "picture.png"}, preset="draft")
    assert result.mesh.is_watertight
    assert result.mesh.extents == pytest.approx([1, 1, 1], abs=0.05)
    assert max(cv2.imread(str(result.files["input.png"])).shape) <= 2048


@pytest.mark.parametrize("output_format", MODEL.formats)
@pytest.mark.parametrize("with_texture", [True, False])
def test_formats(tmp_path: Path, output_format: str, with_texture: bool) -> None:
    result = run(tmp_path, {"image": PHOTO}, output_format=output_format, with_texture=with_texture)
    assert result.mesh.is_watertight
    assert ("texture.jpg" in result.files) == with_texture
    kind = "vertex" if output_format == "ply" else "texture"
    if with_texture:
        assert result.mesh.visual.kind == kind
        colours = result.mesh.visual.to_color() if kind == "texture" else result.mesh.visual
        beak = result.mesh.vertices - [0.40, 0.25, 0]
        nearest = np.linalg.norm(beak[:, :2], axis=1).argmin()
        red, _, blue = colours.vertex_colors[nearest, :3].astype(int)
        assert red > blue + 80
    else:
        assert result.mesh.visual.kind != "vertex"
        assert getattr(result.mesh.visual, "uv", None) is None


def test_each_parameter_does_what_its_card_says(tmp_path: Path) -> None:
    usual = run(tmp_path / "usual", {"image": PHOTO})

    def other(**given) -> SimpleNamespace:
        return run(tmp_path / str(given), {"image": PHOTO}, **given)

    thin = other(depth=0.5).mesh
    assert thin.extents[2] == pytest.approx(usual.mesh.extents[2] / 2, rel=1e-3)
    assert thin.extents[:2] == pytest.approx(usual.mesh.extents[:2])
    finer = other(resolution=384).mesh
    assert len(finer.faces) == pytest.approx(4 * len(usual.mesh.faces), rel=0.15)
    assert finer.volume == pytest.approx(usual.mesh.volume, rel=0.01)
    smooth_front = other(relief=0).mesh.vertices
    assert smooth_front[:, 2].max() == pytest.approx(-smooth_front[:, 2].min())
    assert len(smooth_front) == len(usual.mesh.vertices)
    moved = np.abs(smooth_front - usual.mesh.vertices)
    assert moved[:, 2].max() > 0.005
    assert moved[:, :2].max() < 1e-6
    large = cv2.imread(str(other(texture_size=4096).files["texture.jpg"]))
    assert large.shape == cv2.imread(str(usual.files["input.png"])).shape  # never enlarged
    small = cv2.imread(str(other(texture_size=300).files["texture.jpg"]))
    assert max(small.shape) == 300


def test_weights_are_never_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    monkeypatch.setenv("REMBG_HOME", str(tmp_path))
    assert worker.load("cpu", {})["cut"] is worker.find_object


def test_kept_stages_belong_to_every_file_that_made_them(tmp_path: Path) -> None:
    folder = shutil.copytree(MODEL.folder, tmp_path / "inflate")
    with (folder / "service.py").open("a") as serving_side:
        serving_side.write("# changed\n")
    assert replace(MODEL, folder=folder).code_digest == MODEL.code_digest
    with (folder / "surface.py").open("a") as model_side:
        model_side.write("# changed\n")
    assert replace(MODEL, folder=folder).code_digest != MODEL.code_digest


def test_declaration_holds_together() -> None:
    declared = {name for stage in MODEL.stages for name in stage.params}
    without_effect = {"seed", "with_texture"}  # the latter decides whether `texture` runs
    assert declared | without_effect == set(MODEL.params.model_fields)
    assert all(set(preset) <= declared for preset in MODEL.presets.values())
    assert "No effect" in MODEL.card["parameters"]["properties"]["seed"]["description"]
    assert [s.name for s in MODEL.stages] == ["cutout", "inflate", "texture", "export"]
    assert {s.slot for s in MODEL.stages} == {"cpu"}


@pytest.mark.parametrize("name", ["input.png", "texture.jpg"])
def test_a_full_disk_leaves_no_half_picture_that_counts_as_written(tmp_path, name):
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(OSError) as told:
        write_picture(tmp_path / name, np.zeros((64, 64, 3), np.uint8), [])
    assert told.value.errno == errno.ENOSPC
