"""idol through the real harness, against stand-ins that accept what upstream accepts, no more."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from polypod.image import Image as Environment
from polypod.jobs.faults import explained
from polypod.jobs.job import JobError
from polypod.settings import Settings
from services.idol.loading import BODY, NotInstalled, check_body
from services.idol.model import MODEL, STILLS
from services.idol.motions import read_motion
from services.idol.splats import COLUMNS, write_mesh, write_splats
from tests.api.serving import Server, until
from tests.contracts import standins
from tests.contracts.harnessed import Harnessed, Ran, harnessed
from tests.contracts.idol import SMPLX, environment

pytestmark = pytest.mark.anyio

CONTRACT = standins.contract("idol")
README = MODEL.folder / "README.md"
SCALE = 0.28209479177387814  # of the harmonic of degree 0


@pytest.fixture(scope="module")
async def idol(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Harnessed]:
    folder = tmp_path_factory.mktemp("idol")
    async with harnessed(MODEL, folder, environment(folder)) as running:
        yield running


@pytest.fixture
def calls(idol: Harnessed) -> Any:
    """What the current test has called upstream with, by name."""
    return standins.calls_from_now(idol.folder / "src" / "IDOL")


def standing(path: Path, wide: int = 120, tall: int = 360) -> dict[str, Path]:
    """Somebody of these pixels, cut out."""
    picture = Image.new("RGBA", (wide + 60, tall + 60))
    ImageDraw.Draw(picture).ellipse((30, 30, wide + 29, tall + 29), fill=(90, 60, 40, 255))
    picture.save(path / "person.png")
    return {"image": path / "person.png"}


@pytest.fixture
def person(tmp_path: Path) -> dict[str, Path]:
    return standing(tmp_path)


def sent(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def motion_frame(**changes: Any) -> dict[str, Any]:
    """A frame of Motion-X's JSON."""
    params = {"trans": [0.0] * 3, "root_orient": [0.0] * 3, "pose_body": [0.0] * 63}
    params |= {"pose_hand": [0.25] * 90, "pose_jaw": [0.0] * 3, "face_expr": [0.5] * 50}
    return {"smplx_params": {**params, **changes}}


def camera(wide: int = 320, tall: int = 256) -> dict[str, Any]:
    turned = [[1, 0, 0], [0, -1, 0], [0, 0, -1]]
    return {"cam_R": turned, "cam_T": [0, 0, 3], "intrins": [1500, 1500, wide / 2, tall / 2]}


def video(path: Path) -> dict[str, Any]:
    """What the stand-in's video holds."""
    return json.loads(path.read_bytes()[8:])


def splats(path: Path) -> np.ndarray:
    head, _, rows = path.read_bytes().partition(b"end_header\n")
    names = [line.split()[2] for line in head.decode().splitlines() if line.startswith("property")]
    assert tuple(names) == COLUMNS
    return np.frombuffer(rows, [(name, "<f4") for name in names])


def gltf(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])


@pytest.mark.parametrize("preset", list(MODEL.presets))
async def test_every_preset_runs_all_stages(
    idol: Harnessed, person: Any, calls: Any, preset: str
) -> None:
    ran = await idol.run(person, preset=preset)
    assert ran.error is None, (ran.error, ran.log)
    assert len(calls("_decode_feature")) == len(calls("forward_image_to_uv")) == 1
    assert ran.progress["reconstruct"][-1] == (0.9, "Decoding the Gaussians")
    assert len(splats(ran.files["model.ply"])) == 80
    full = preset == "high"
    assert ("model.glb" in ran.files, "turntable.mp4" in ran.files) == (full, full)
    assert "motion.mp4" not in ran.files
    if full:
        frames = {"frames": 60, "shape": [896, 640, 3], "fps": 30}
        assert video(ran.files["turntable.mp4"]) == {**frames, "corner": 255, "middle": 127}
        assert {Image.open(ran.files[name]).size for name in STILLS} == {(640, 896)}
        assert "COLOR_0" in gltf(ran.files["model.glb"])["meshes"][0]["primitives"][0]["attributes"]


async def test_upstream_is_set_up_for_a_machine_without_network(
    idol: Harnessed, person: Any
) -> None:
    await idol.run(person, preset="draft")
    made = standins.calls(idol.folder / "src" / "IDOL")
    encoder = next(row["values"] for row in made if row["call"] == "SapiensWrapper_ts.__init__")
    name = "sapiens_1b_epoch_173_torchscript.pt2"
    assert encoder["model_path"] == str(idol.folder / "weights" / "idol" / name)
    (whole,) = [row["values"] for row in made if row["call"] == "SapiensGS_SA_v1.__init__"]
    assert whole["lambda_lpips"] == 0
    assert len([row for row in made if row["call"] == "UVNDecoder_gender.__init__"]) == 2
    for source in MODEL.folder.glob("*.py"):
        assert "import run_demo" not in source.read_text()


async def test_the_frame_is_upstreams(idol: Harnessed, person: Any, tmp_path: Path) -> None:
    """360 of 423 pixels high: 761 of 896, from row 67 on, on white."""
    ran = await idol.run(person, until="frame")
    picture = np.asarray(Image.open(ran.files["input.png"]).convert("RGB"))
    assert picture.shape == (896, 640, 3) and (picture[0] == 255).all()
    rows = np.flatnonzero((picture < 200).any((1, 2)))
    assert abs(rows[0] - 67) <= 2 and abs(rows[-1] - 828) <= 2
    assert picture[448, 320].tolist() == [90, 60, 40]
    small = await idol.run(person, until="frame", frame_ratio=0.5)
    picture = np.asarray(Image.open(small.files["input.png"]).convert("RGB"))
    assert np.ptp(np.flatnonzero((picture < 200).any((1, 2)))) == pytest.approx(447, abs=3)


async def test_spread_arms_are_refused_with_the_ratio_that_fits(
    idol: Harnessed, tmp_path: Path
) -> None:
    wide = standing(tmp_path, 324, 360)
    ran = await idol.run(wide)
    assert ran.failed_in == "frame" and ran.error and ran.error.code == "bad_input"
    assert "0.90 times as wide" in ran.error.message and "frame_ratio 0.79" in ran.error.hint
    fits = await idol.run(wide, until="frame", frame_ratio=0.79)
    picture = np.asarray(Image.open(fits.files["input.png"]).convert("RGB"))
    assert 636 <= np.ptp(np.flatnonzero((picture < 200).any((0, 2)))) <= 639


async def test_a_picture_without_a_whole_person_never_reaches_the_gpu(
    idol: Harnessed, tmp_path: Path, calls: Any
) -> None:
    lying = await idol.run(standing(tmp_path, 400, 200))
    assert lying.failed_in == "cutout" and lying.error and lying.error.code == "bad_input"
    assert not calls("forward_image_to_uv")


async def test_poses(idol: Harnessed, person: Any, tmp_path: Path) -> None:
    """The stand-in prints root (2), first of body, left shoulder and first of each hand."""
    own = {"body_pose": [0.5] * 63, "lhand_pose": [0.1] * 45, "betas": [0.5] * 16}
    smplx = sent(tmp_path / "smplx", {**own, "root_pose": [3, 0, 0], "trans": [1, 1, 1]})
    told = {
        "a_pose": [0, 0, 0, -0.7854, -0.25, -0.25],
        "t_pose": [0, 0, 0, 0, -0.25, -0.25],
        "given": [0, 0, 0.5, 0.5, 0.1, 0],
    }
    heights = []
    for pose, numbers in told.items():
        sending = {**person, "smplx": smplx} if pose == "given" else person
        ran = await idol.run(sending, pose=pose, preset="draft")
        assert ran.error is None, ran.error
        vector = json.loads(ran.files["pose.json"].read_text())
        shown = [vector[n] for n in (4, 5, 7, 54, 80, 125)]
        assert shown == pytest.approx(numbers, abs=1e-4)
        assert vector[0] == 1 and vector[1:4] == [0, 0, 0] and len(vector) == 189
        heights.append(np.ptp(splats(ran.files["model.ply"])["y"]))
    assert heights[2] == pytest.approx(1.5 * heights[0], rel=1e-3)  # its betas


async def test_the_splat_is_what_upstream_draws(idol: Harnessed, person: Any) -> None:
    ran = await idol.run(person, preset="draft", splat_scale=1.0)
    rows = splats(ran.files["model.ply"])
    turns = np.stack([rows[f"rot_{n}"] for n in range(4)], 1)
    assert np.linalg.norm(turns, axis=1) == pytest.approx(1, abs=1e-5)
    assert (rows["opacity"] > 9).all() and (rows["nx"] == 0).all()
    colours = 0.5 + SCALE * np.stack([rows[f"f_dc_{n}"] for n in range(3)], 1)
    assert np.abs(colours[rows["y"] > 0.01] - [1, 0, 0]).max() < 1e-6
    smaller = splats((await idol.run(person, preset="draft")).files["model.ply"])
    assert smaller["scale_0"] - rows["scale_0"] == pytest.approx(np.log(0.6), abs=1e-5)
    tame = await idol.run(person, preset="draft", hand_offset_limit=0.01)
    moved = rows["x"] - splats(tame.files["model.ply"])["x"]
    assert moved[:10] == pytest.approx(0.01, abs=1e-6) and moved[10:] == pytest.approx(0)


def test_scales_and_rotation_keep_the_covariance(tmp_path: Path) -> None:
    """Of axes that are blended, so neither of one length nor at right angles; some mirrored."""
    draw = np.random.default_rng(3)
    shapes = draw.normal(size=(500, 3, 3)) * 0.01
    write_splats(tmp_path / "a.ply", draw.normal(size=(500, 3)), draw.random((500, 3)), shapes)
    assert (tmp_path / "a.ply").read_bytes().count(b"property float") == 17
    rows = splats(tmp_path / "a.ply")
    w, x, y, z = (rows[f"rot_{n}"].astype(np.float64) for n in range(4))
    turns = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    ).transpose(2, 0, 1)
    scaled = turns * np.exp(np.stack([rows[f"scale_{n}"] for n in range(3)], 1))[:, None]
    assert (
        np.abs(scaled @ scaled.transpose(0, 2, 1) - shapes @ shapes.transpose(0, 2, 1)).max() < 1e-6
    )


def test_a_vertex_is_the_mean_of_the_gaussians_around_it(tmp_path: Path) -> None:
    import trimesh

    faces = np.array([[0, 1, 2], [2, 1, 3]])
    xyz, colours = np.array([[0.0, 0, 0], [2, 0, 0]]), np.array([[1.0, 0, 0], [0, 0, 1]])
    write_mesh(tmp_path / "mesh.ply", xyz, colours, faces)
    mesh = trimesh.load(tmp_path / "mesh.ply", process=False)
    assert mesh.faces.tolist() == faces.tolist()
    assert mesh.vertices[:, 0].tolist() == [0, 1, 1, 2]
    assert mesh.visual.vertex_colors[:, 0].tolist() == [255, 128, 128, 0]


OPTIONS = [
    ({"hand_offset_limit": 0.05}, "deform_pcd", "value", 0.05),
    ({"turntable_frames": 36}, "add_root_rotate_to_smplx", "frames_num", 36),
    ({"turntable_frames": 36}, "prepare_camera", "resolution_x", 896),
]


@pytest.mark.parametrize(("given", "call", "parameter", "value"), OPTIONS)
async def test_each_option_reaches_upstream(
    idol: Harnessed, person: Any, calls: Any, given: Any, call: str, parameter: str, value: Any
) -> None:
    ran = await idol.run(person, **given)
    assert ran.error is None, ran.log
    assert {made[parameter] for made in calls(call)} == {value}


async def test_a_motion_is_seen_from_its_own_cameras(
    idol: Harnessed, person: Any, calls: Any, tmp_path: Path
) -> None:
    frames = [motion_frame(root_orient=[0, 0.1 * n, 0]) | {"cam_params": camera()} for n in (1, 2)]
    motion = sent(tmp_path / "motion", {"annotations": frames})
    ran = await idol.run({**person, "motion": motion}, preset="draft", fps=25)
    assert ran.error is None, ran.error
    told = {"frames": 2, "shape": [256, 320, 3], "fps": 25, "corner": 255, "middle": 127}
    assert video(ran.files["motion.mp4"]) == told
    assert "pose [0.0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0]" in ran.log  # hands relative to the mean hand
    assert not calls("prepare_camera")


@pytest.mark.parametrize("size", ["640x896", "512x512"])
async def test_a_motion_is_seen_from_the_front(
    idol: Harnessed, person: Any, tmp_path: Path, size: str
) -> None:
    """Its first frame then stands at the origin and looks at us."""
    frames = [
        motion_frame(root_orient=[0, 1.5 + 0.1 * n, 0], trans=[n, 1, 0]) | {"cam_params": camera()}
        for n in range(5)
    ]
    motion = sent(tmp_path / "motion", {"annotations": frames})
    given = {"motion_camera": "front", "motion_size": size, "motion_frames": 3}
    ran = await idol.run({**person, "motion": motion}, preset="draft", **given)
    shape = [int(n) for n in reversed(size.split("x"))]
    assert video(ran.files["motion.mp4"])["shape"] == [*shape, 3]
    assert video(ran.files["motion.mp4"])["frames"] == 3
    with np.load(ran.files["motion.npz"]) as kept:
        assert kept["cameras"].shape == (0, 20)
        assert kept["frames"][0, 1:7] == pytest.approx(0, abs=1e-6)
        assert kept["frames"][2, 4:7] == pytest.approx([0, 0.2, 0], abs=1e-6)
        assert np.linalg.norm(kept["frames"][2, 1:4]) == pytest.approx(2, abs=1e-6)


async def test_a_table_of_motion_x_may_be_short(
    idol: Harnessed, person: Any, tmp_path: Path
) -> None:
    """Upstream itself asks for 1800 frames."""
    table = np.arange(2 * 322, dtype=np.float32).reshape(2, 322) / 1000
    np.save(tmp_path / "motion.npy", table)
    read = read_motion(tmp_path / "motion.npy", 300, own_cameras=True)["frames"]
    assert (read[:, 7:70] == table[:, 3:66]).all() and (read[:, 80:170] == table[:, 66:156]).all()
    assert (read[:, 170:173] == table[:, 156:159]).all() and (read[:, 70:80] == 0).all()
    assert (read[:, 179:189] == table[:, 159:169]).all() and (read[:, 0] == 1).all()
    ran = await idol.run({**person, "motion": tmp_path / "motion.npy"}, preset="draft")
    assert video(ran.files["motion.mp4"])["frames"] == 2


def annotations(*frames: Any) -> bytes:
    return json.dumps({"annotations": frames}).encode()


UNREADABLE = [
    ("motion", b"{}", "no such JSON"),
    ("motion", b"\x00\x01", "no such JSON"),
    ("motion", annotations(), "no frames"),
    ("motion", annotations({}), "no frame 0"),
    ("motion", annotations(motion_frame(trans=[1, 2])), "`trans`"),
    ("motion", annotations(motion_frame(), motion_frame() | {"cam_params": camera()}), "some have"),
    ("motion", annotations(motion_frame() | {"cam_params": camera(9000)}), "9000 x 256"),
    ("motion", b"\x93NUMPY\x01", "cannot be read"),
    ("smplx", b"[1]", "not an object"),
    ("smplx", json.dumps({"betas": [1, "x"]}).encode(), "10 numbers"),
    ("smplx", json.dumps({"body_pose": [float("inf")] * 63}).encode(), "63 numbers"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "message"), UNREADABLE)
async def test_what_users_send_is_checked_before_a_gpu_is_touched(
    idol: Harnessed, person: Any, tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    ran = await idol.run({**person, name: tmp_path / name})
    assert ran.failed_in == "body" and ran.error and ran.error.code == "bad_input"
    assert message in ran.error.message and ran.error.hint


async def test_a_pickle_in_a_table_is_never_opened(
    idol: Harnessed, person: Any, tmp_path: Path
) -> None:
    np.save(tmp_path / "motion.npy", np.array([{"root_orient": 1}]), allow_pickle=True)
    ran = await idol.run({**person, "motion": tmp_path / "motion.npy"})
    assert ran.error and ran.error.code == "bad_input" and "cannot be read" in ran.error.message


async def test_a_given_pose_that_was_not_sent_is_refused(idol: Harnessed, person: Any) -> None:
    ran = await idol.run(person, pose="given")
    assert ran.failed_in == "body" and ran.error and "body_pose" in ran.error.message


@pytest.mark.parametrize(
    ("altered", "stage"),
    [
        (standins.with_renamed(CONTRACT, "UVNDecoder_gender.deform_pcd", "value", "v"), "pose"),
        (
            standins.without_default(CONTRACT, "UVNDecoder_gender.gaussian_render", "mask"),
            "turntable",
        ),
    ],
    ids=["renamed parameter", "dropped default"],
)
async def test_a_changed_upstream_fails(
    tmp_path: Path, person: Any, altered: Any, stage: str
) -> None:
    env = environment(tmp_path / "changed", altered)
    async with harnessed(MODEL, tmp_path / "changed", env) as running:
        ran = await running.run(person)
    assert ran.failed_in == stage and ran.error and ran.error.message.startswith("TypeError")


TOLD = [
    # call, error, what upstream says, stage, code, a word of what to do
    ("forward_image_to_uv", "RuntimeError", "CUDA error: no kernel image is available for "
     "execution on the device", "reconstruct", "unsupported_gpu", "H100"),
    ("_decode_feature", "RuntimeError", "CUDA out of memory. Tried to allocate 3.02 GiB",
     "reconstruct", "out_of_memory", "No preset"),
    ("gaussian_render", "RuntimeError", "CUDA out of memory. Tried to allocate 1 GiB",
     "turntable", "out_of_memory", "turntable_frames 0"),
    ("gaussian_render", "TypeError", "GaussianRasterizationSettings.__new__() got an unexpected "
     "keyword argument 'antialiasing'", "turntable", "not_installed", "antialiasing"),
    ("gaussian_render", "ValueError", "not enough values to unpack (expected 3, got 2)",
     "turntable", "not_installed", "antialiasing"),
    ("add_root_rotate_to_smplx", "TypeError", "something new", "turntable", "upstream_failure",
     ""),
]  # fmt: skip
TOLD_AT_LOAD = [
    ("ValueError", "The provided filename sapiens_1b.pt2 does not exist", "weights_missing",
     "cache_sub2.zip"),
    ("FileNotFoundError", "[Errno 2] No such file or directory: 'work_dirs/cache_sub2/"
     "init_spdir_smplx_thu_newNeutral.npy'", "weights_missing", "doctor"),
    ("FileNotFoundError", "[Errno 2] No such file or directory: './work_dirs/demo_data/"
     "Ways_to_Catch_360_clip1.json'", "weights_missing", "doctor"),
    ("AssertionError", "Path lib/models/deformers/smplx/SMPLX/SMPLX_NEUTRAL.pkl does not exist!",
     "weights_missing", "smpl-x.is.tue.mpg.de"),
    ("RuntimeError", "Error(s) in loading state_dict for SapiensGS_SA_v1: size mismatch for "
     "decoder.deformer.body_model.shapedirs", "weights_missing", "SMPL-X v1.1"),
    ("ModuleNotFoundError", "No module named 'chumpy'", "weights_missing", ".npz"),
    ("RuntimeError", "size mismatch for neck.mask_token", "weights_missing", "belong together"),
    ("URLError", "<urlopen error [Errno -2] Name or service not known>", "weights_missing",
     "doctor"),
    ("ModuleNotFoundError", "No module named 'pkg_resources'", "not_installed", "doctor"),
    ("ModuleNotFoundError", "No module named 'simple_knn'", "not_installed", "doctor"),
    ("RuntimeError", "No CUDA GPUs are available", "no_gpu", "--gpus all"),
]  # fmt: skip


def in_words(ran: Ran) -> JobError:
    """As the job would show it."""
    assert ran.error
    error = explained(ran.error, MODEL)
    lighter = next((s.lighter for s in MODEL.stages if s.name == ran.failed_in), "")
    return replace(error, hint=lighter) if error.code == "out_of_memory" else error


@pytest.mark.parametrize(("call", "error", "text", "stage", "code", "todo"), TOLD)
async def test_failures_are_told_in_words(
    idol: Harnessed, person: Any, call: str, error: str, text: str, stage: str, code: str, todo: str
) -> None:
    upstream = idol.folder / "src" / "IDOL"
    qualname = next(r["qualname"] for r in CONTRACT["symbols"] if r["qualname"].endswith(call))
    standins.lay_fault(upstream, qualname, error, text)
    ran = await idol.run(person, turntable_frames=36)
    standins.lay_fault(upstream, "", "", "")
    told = in_words(ran)
    assert (ran.failed_in, told.code, todo in told.hint) == (stage, code, True), told
    assert (await idol.run(person, preset="draft")).error is None  # the worker, or the next


@pytest.mark.parametrize(("error", "text", "code", "todo"), TOLD_AT_LOAD)
def test_failures_of_the_load_are_known(error: str, text: str, code: str, todo: str) -> None:
    told = explained(JobError("load_failed", f"{error}: {text}"), MODEL)
    assert (told.code, todo in told.hint) == (code, True), told


async def test_another_body_model_is_told_at_the_load(tmp_path: Path, person: Any) -> None:
    env = environment(tmp_path / "other", smplx="v1.0 male")
    async with harnessed(MODEL, tmp_path / "other", env) as running:
        ran = await running.run(person)
    told = in_words(ran)
    assert (ran.failed_in, told.code) == ("reconstruct", "weights_missing")
    assert "SMPL-X body model" in told.message and "v_template" in told.message


class Tensor:
    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def cpu(self) -> Tensor:
        return self

    float = cpu

    def numpy(self) -> np.ndarray:
        return self.values


def test_a_body_that_training_has_rounded_is_the_same() -> None:
    names = [f"{BODY}{name}" for name in ("v_template", "shapedirs", "posedirs", "lbs_weights")]
    values = np.random.default_rng(1).uniform(-1, 1, (200, 3)).astype(np.float32)
    rounded = ((values.view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32)  # as bf16
    assert abs(rounded - values).max() > 1e-3
    ours = {name: Tensor(values) for name in names}
    check_body(ours, {name: Tensor(rounded) for name in names})
    with pytest.raises(NotInstalled, match="v_template differs"):
        check_body(ours, {name: Tensor(rounded + 0.01) for name in names})


async def test_a_missing_body_model_is_told_at_the_load(tmp_path: Path, person: Any) -> None:
    env = environment(tmp_path / "none")
    (tmp_path / "none" / "src" / "IDOL" / SMPLX).unlink()
    async with harnessed(MODEL, tmp_path / "none", env) as running:
        told = in_words(await running.run(person))
    assert told.code == "weights_missing" and "models_smplx_v1_1.zip" in told.hint


def test_another_motion_does_not_compute_the_person_again(tmp_path: Path, person: Any) -> None:
    """Through the API: two jobs, two motions, one reconstruction; the videos are mp4 assets."""
    env = environment(tmp_path / "home" / "idol")
    env |= {"PYTHONPATH": str(tmp_path / "home" / "idol" / "src" / "IDOL")}
    model = replace(MODEL, image=Environment(env=env))
    settings = Settings(data=tmp_path / "data", home=tmp_path / "home", doctor="off", needs="off")
    server = Server(settings, model)
    try:
        videos, kept = [], []
        for count in (2, 3):
            motion = sent(tmp_path / "motion", {"annotations": [motion_frame()] * count})
            with person["image"].open("rb") as image, motion.open("rb") as frames:
                answer = server.client.post(
                    "/generate",
                    files={"image": image, "motion": frames},
                    data={"preset": "draft"},
                )
            job = until(lambda a=answer: finished(server, a.json()["job_id"]), 60)
            assert job["status"] == "completed", job["error"]
            manifest = server.client.get(f"/job/{job['job_id']}/result/manifest.json").json()
            kept.append({run["stage"]: run["kept"] for run in manifest["stages"]})
            assert manifest["outputs"]["motion.mp4"]["media_type"] == "video/mp4"
            answer = server.client.get(f"/job/{job['job_id']}/result/motion.mp4")
            assert answer.headers["content-type"] == "video/mp4"
            assert answer.headers["content-disposition"].startswith("inline")
            videos.append(json.loads(answer.content[8:])["frames"])
        assert videos == [2, 3]
        assert [run["reconstruct"] for run in kept] == [False, True]
        assert [run["animate"] for run in kept] == [False, False]
        assert kept[1]["pose"]
        with person["image"].open("rb") as image:
            still = server.client.post(
                "/generate", files={"image": image}, data={"preset": "draft", "until": "frame"}
            )
        job = until(lambda: finished(server, still.json()["job_id"]), 60)
        assert job["remaining_stages"] == ["body", "reconstruct", "pose"]
    finally:
        server.stop()


def finished(server: Server, job_id: str) -> dict[str, Any] | None:
    job = server.client.get(f"/job/{job_id}").json()
    return job if job["status"] in ("completed", "failed", "cancelled") else None


def test_declaration_holds_together() -> None:
    declared = {name for stage in MODEL.stages for name in stage.params}
    without = {"output_format", "with_mesh", "with_texture", "seed"}  # decided by `when`, or none
    assert declared | without == set(MODEL.params.model_fields) and not declared & without
    assert MODEL.result_name(MODEL.resolve({})) == "model.ply"
    mesh = MODEL.plan(MODEL.resolve({"output_format": "glb", "preset": "draft"}))
    assert [stage.name for stage in mesh][-2:] == ["export", "animate"]
    still = MODEL.plan(MODEL.resolve({}), inputs=["image"])
    assert [stage.name for stage in still][-2:] == ["export", "turntable"]
    card = README.read_text()
    for name in MODEL.params.model_fields:
        assert f"`{name}`" in card, name
    for fault in MODEL.faults:
        assert fault.message in card, fault.message
