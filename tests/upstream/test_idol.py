"""Upstream's own code of IDOL on a CPU, through our worker: small networks of random weights, a
body and a cache made here.

`make upstream MODEL=idol` runs it; POLYPOD_UPSTREAM names the checkout, at the commit of
`services/idol/model.py`. pytorch3d's and simple-knn's few functions are done with scipy; the
rasterizer is stood in for by one that notes what it is given and draws a dot for each Gaussian.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

if not os.environ.get("POLYPOD_UPSTREAM"):
    pytest.skip(
        "POLYPOD_UPSTREAM names no checkout of yiyuzhuang/IDOL",
        allow_module_level=True,
    )
if importlib.util.find_spec("torch") is None:
    pytest.skip(f"{sys.executable} has no torch", allow_module_level=True)

import torch
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from services.idol import loading, motions, splats, worker
from tests.upstream import absent

UPSTREAM = Path(os.environ["POLYPOD_UPSTREAM"])
WIDTH, DEPTH = 32, 4  # of the small networks
RINGS, AROUND = 6, 8  # of the limbs' tubes

# --- a body: joints of SMPL-X, each bone a tube ---------------------------------------------------

PARENTS = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 15, 15, 15]
for wrist in (20, 21):
    for _ in range(5):
        PARENTS += [wrist, len(PARENTS), len(PARENTS) + 1]
MIDDLE = {0: (0, -0.35, 0), 3: (0, -0.25, 0), 6: (0, -0.1, 0), 9: (0, 0, 0), 12: (0, 0.2, 0)}
MIDDLE |= {15: (0, 0.3, 0), 22: (0, 0.27, 0.05)}
LEFT = {1: (0.1, -0.45, 0), 4: (0.1, -0.85, 0), 7: (0.1, -1.2, 0), 10: (0.1, -1.27, 0.12)}
LEFT |= {13: (0.05, 0.12, 0), 16: (0.18, 0.12, 0), 18: (0.45, 0.12, 0), 20: (0.7, 0.12, 0)}
LEFT |= {23: (0.03, 0.36, 0.08)}


def joints() -> np.ndarray:
    """(55, 3) metres: Y up, facing +Z, arms spread, the left one to +X."""
    places = np.zeros((55, 3))
    for number, place in MIDDLE.items():
        places[number] = place
    for number, place in LEFT.items():
        places[number], places[number + 1] = place, np.array(place) * [-1, 1, 1]
    for side, wrist, first in ((1, 20, 25), (-1, 21, 40)):
        for finger in range(5):
            for bone in range(3):
                along = [side * 0.03 * (bone + 1), 0, 0.02 * (finger - 2)]
                places[first + 3 * finger + bone] = places[wrist] + along
    return places


def tubes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices (V, 3), faces (N, 3) and the joint (V,) that moves each vertex."""
    places, vertices, faces, moved_by = joints(), [], [], []
    for child in range(1, 25):
        parent, radius = PARENTS[child], 0.06
        along = places[child] - places[parent]
        across = np.cross(along, [0.3, 0.2, 0.9])
        across /= np.linalg.norm(across)
        other = np.cross(along / np.linalg.norm(along), across)
        start = len(vertices)
        for ring in range(RINGS):
            for step in range(AROUND):
                angle = 2 * np.pi * step / AROUND
                out = radius * (np.cos(angle) * across + np.sin(angle) * other)
                vertices.append(places[parent] + along * ring / (RINGS - 1) + out)
                moved_by.append(parent)
        for ring in range(RINGS - 1):
            for step in range(AROUND):
                a, b = start + ring * AROUND + step, start + ring * AROUND + (step + 1) % AROUND
                faces += [(a, b, a + AROUND), (b, b + AROUND, a + AROUND)]
    return np.array(vertices), np.array(faces), np.array(moved_by)


def write_body(path: Path, hand_mean: np.ndarray) -> None:
    """A file like SMPLX_NEUTRAL.pkl: betas[0] makes the body larger by 5 %."""
    draw, places = np.random.default_rng(0), joints()
    moved_by = draw.integers(0, 25, 10475)
    moved_by[:55] = np.arange(55)
    vertices = places[moved_by] + draw.normal(size=(10475, 3)) * 0.03
    vertices[:55] = places
    shapes = np.zeros((10475, 3, 20))
    shapes[..., 0] = 0.05 * vertices
    regressor = np.zeros((55, 10475))
    regressor[np.arange(55), np.arange(55)] = 1
    body = {
        "v_template": vertices,
        "shapedirs": shapes,
        "posedirs": np.zeros((10475, 3, 486), np.float32),
        "J_regressor": regressor,
        "kintree_table": np.array([PARENTS, list(range(55))]),
        "weights": np.eye(55)[moved_by],
        "f": draw.integers(0, 10475, (20908, 3)),
        "hands_componentsl": np.eye(45),
        "hands_componentsr": np.eye(45),
        "hands_meanl": hand_mean[:45],
        "hands_meanr": hand_mean[45:],
        "lmk_faces_idx": np.arange(51),
        "lmk_bary_coords": np.full((51, 3), 1 / 3),
    }
    path.write_bytes(pickle.dumps(body))


def write_cache(folder: Path) -> None:
    vertices, faces, moved_by = tubes()
    draw, middles = np.random.default_rng(1), vertices[faces].mean(1)
    count, weights = len(faces), np.eye(55)[moved_by]
    shapes = np.zeros((len(vertices), 3, 20))
    shapes[..., 0] = 0.05 * vertices
    hands = np.abs(middles[:, 0]) > 0.6
    arrays = {
        "init_uv_smplx_newNeutral": draw.random((count, 2)),
        "init_pcd_smplx_newNeutral": middles,
        "init_rot_smplx_newNeutral": Rotation.random(count, random_state=2).as_matrix(),
        "face_mask_thu_newNeutral": middles[:, 1] > 0.25,
        "hands_mask_thu_newNeutral": hands,
        "outside_mask_thu_newNeutral": np.ones(count, bool),  # all by their own weights
        "init_spdir_smplx_thu_newNeutral": shapes,
        "init_podir_smplx_thu_newNeutral": np.zeros((486, 3 * len(vertices))),
        "init_lbsw_smplx_thu_newNeutral": weights[faces].mean(1),
        "init_faces_smplx_newNeutral": faces,
    }
    for name, array in arrays.items():
        kept = array.astype(np.float32) if array.dtype == np.float64 else array
        np.save(folder / f"{name}.npy", kept)


# --- what stands for compiled packages ------------------------------------------------------------


def knn_points(points: Any, others: Any, K: int = 1, return_nn: bool = False) -> Any:
    squares, at = cKDTree(others[0].numpy()).query(points[0].numpy(), K)
    squares, at = squares.reshape(-1, K) ** 2, at.reshape(-1, K)
    found = (torch.from_numpy(a)[None] for a in (squares.astype(np.float32), at))
    return (*found, others[0][torch.from_numpy(at)][None])


def nearest(points: Any) -> Any:
    far = cKDTree(points.numpy()).query(points.numpy(), 4)[0][:, 1:]
    return torch.from_numpy((far**2).mean(1).astype(np.float32))


class Rasterizer:
    """Notes what it is given, and draws a dot at each Gaussian's middle, the nearest on top."""

    given: list[SimpleNamespace] = []

    def __init__(self, raster_settings: Any) -> None:
        self.settings = raster_settings

    def __call__(self, means3D: Any, colors_precomp: Any, cov3D_precomp: Any, **more: Any) -> Any:
        told = self.settings
        note = {"means": means3D, "colours": colors_precomp, "covariance": cov3D_precomp}
        self.given.append(SimpleNamespace(**note, **more, **vars(told)))
        places = torch.cat([means3D, torch.ones(len(means3D), 1)], 1) @ told.projmatrix[0]
        places = (places / places[:, 3:]).detach()
        x = ((places[:, 0] + 1) * told.image_width - 1) / 2
        y = ((places[:, 1] + 1) * told.image_height - 1) / 2
        image = told.bg.reshape(3, 1, 1).repeat(1, told.image_height, told.image_width)
        order = places[:, 2].argsort(descending=True)
        inside = (x >= 2) & (x < told.image_width - 2) & (y >= 2) & (y < told.image_height - 2)
        for one in order[inside[order]].tolist():
            row, column = int(y[one]), int(x[one])
            image[:, row - 2 : row + 3, column - 2 : column + 3] = colors_precomp[one][
                :, None, None
            ]
        return image, None, None


# --- upstream, and a home for it ------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The checkout's `lib` and `configs` beside a body, a cache and weights, as an image has it."""
    folder = tmp_path_factory.mktemp("home")
    root = folder / "src" / "IDOL"
    (root / "configs").mkdir(parents=True)
    (root / "lib/models/deformers/smplx/SMPLX").mkdir(parents=True)
    (root / "work_dirs/cache_sub2").mkdir(parents=True)
    (root / "work_dirs/demo_data").mkdir()
    (folder / "weights/idol").mkdir(parents=True)
    import pytorch_lightning  # noqa: F401  asks whether torchvision is there, as do the others
    import torchmetrics  # noqa: F401
    import transformers  # noqa: F401

    if importlib.util.find_spec("torchvision") is None:
        absent.stand_in_torchvision()
    missing = absent.stand_in("pytorch3d", "simple_knn", "diff_gaussian_rasterization")
    assert len(missing) == 3, "this test draws with stand-ins of its own"
    import diff_gaussian_rasterization
    import pytorch3d.ops
    import pytorch3d.transforms
    import simple_knn._C

    pytorch3d.ops.knn_points = knn_points
    pytorch3d.transforms.axis_angle_to_matrix = lambda turns: torch.from_numpy(
        Rotation.from_rotvec(turns.numpy()).as_matrix().astype(np.float32)
    )
    pytorch3d.transforms.matrix_to_axis_angle = lambda turns: torch.from_numpy(
        Rotation.from_matrix(turns.numpy()).as_rotvec().astype(np.float32)
    )
    simple_knn._C.distCUDA2 = nearest
    diff_gaussian_rasterization.GaussianRasterizationSettings = SimpleNamespace
    diff_gaussian_rasterization.GaussianRasterizer = Rasterizer
    sys.path.insert(0, str(UPSTREAM))
    loading.leave_out_unused()
    from lib.models.deformers.fast_snarf.lib.model import deformer_smplx
    from lib.utils import infer_util

    deformer_smplx.create_voxel_grid.__defaults__ = ("cpu",)
    write_body(
        root / "lib/models/deformers/smplx/SMPLX/SMPLX_NEUTRAL.pkl",
        infer_util.get_hand_pose_mean().reshape(-1),
    )
    write_cache(root / "work_dirs/cache_sub2")
    demo = root / "work_dirs/demo_data/Ways_to_Catch_360_clip1.json"
    demo.write_text(json.dumps({"annotations": [clip_frame(0)]}))
    write_config(root / "configs" / "idol_v0.yaml")
    write_encoder(folder / "weights/idol/sapiens_1b_epoch_173_torchscript.pt2")
    before, cuda = Path.cwd(), torch.Tensor.cuda
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # W:275, GR:229
    yield folder
    torch.Tensor.cuda = cuda
    os.chdir(before)


def write_config(path: Path) -> None:
    """Upstream's own, with small sizes."""
    from omegaconf import OmegaConf

    config = OmegaConf.load(UPSTREAM / "configs" / "idol_v0.yaml")
    params = config.model.params
    params.code_reshape = [32, 6, 6]
    params.encoder.params.layer_num = DEPTH
    params.neck.params.update(
        {
            "num_patches": 36,
            "embed_dim": WIDTH,
            "decoder_embed_dim": WIDTH,
            "decoder_depth": DEPTH,
            "decoder_num_heads": 2,
            "total_num_hidden_states": DEPTH,
        }
    )
    params.decoder.params.vithead_param.update(
        {"in_channels": WIDTH, "deconv_out_channels": [32, 32, 32, 16], "conv_out_channels": [16]}
        | {"conv_kernel_sizes": [3]}
    )
    OmegaConf.save(config, path)


class Patches(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projection = torch.nn.Conv2d(3, WIDTH, 16, 16)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, int, int, int, int]:
        tokens = self.projection(image)
        high, wide = tokens.shape[2], tokens.shape[3]
        return tokens.flatten(2).transpose(1, 2), 0, 0, high, wide


class Backbone(torch.nn.Module):
    """What `pretrain_forward` takes of the encoder's TorchScript."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = Patches()
        self.cls_token = torch.nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embed = torch.nn.Parameter(torch.randn(1, 4097, WIDTH))
        self.drop_after_pos = torch.nn.Identity()
        self.layers = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)))
        self.ln1 = torch.nn.LayerNorm(WIDTH)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.ln1(self.layers(self.patch_embed(image)[0]))


def write_encoder(path: Path) -> None:
    torch.manual_seed(3)
    whole = torch.nn.Module()
    whole.backbone = Backbone()
    torch.jit.save(torch.jit.script(whole), str(path))


def clip_frame(number: int, **more: Any) -> dict[str, Any]:
    draw = np.random.default_rng(number)
    counts = {"trans": 3, "root_orient": 3, "pose_body": 63, "pose_hand": 90, "pose_jaw": 3}
    params = {name: draw.normal(size=n).round(4).tolist() for name, n in counts.items()}
    return {"smplx_params": params | {"face_expr": [0.5] * 50}, **more}


class Params(dict):
    __getattr__ = dict.__getitem__


class Job:
    """What the harness hands to a stage."""

    def __init__(self, folder: Path, **params: Any) -> None:
        self.outputs, self.told = folder, list[tuple[float, str]]()
        self.params = Params(
            {"frame_ratio": 0.85, "pose": "a_pose", "splat_scale": 1.0, "hand_offset_limit": 0.02}
            | {"turntable_frames": 36, "motion_frames": 300, "motion_camera": "file"}
            | {"motion_size": "640x896", "fps": 30}
            | params
        )

    @property
    def inputs(self) -> dict[str, Path]:
        return {path.name: path for path in self.outputs.iterdir()}

    def progress(self, fraction: float, message: str = "", until: float = 0) -> None:
        self.told.append((fraction, message))


def settings(home: Path) -> dict[str, str]:
    return {"src": str(home / "src"), "weights": str(home / "weights"), "device": "cpu"}


@pytest.fixture(scope="module")
def model(home: Path) -> SimpleNamespace:
    """What `load_model` gives, with a checkpoint of another random model."""
    loading.enter(home / "src" / "IDOL")
    from lib.utils.train_util import instantiate_from_config

    torch.manual_seed(7)
    other = instantiate_from_config(loading.read_config(settings(home)))
    kept = other.state_dict() | {"lpips.net.weight": torch.zeros(2)}
    checkpoint = {"state_dict": kept, "optimizer_states": [{"m": torch.zeros(9)}], "epoch": 3}
    torch.save(checkpoint, home / "weights/idol/model.ckpt")
    torch.manual_seed(8)
    made = worker.load("reconstruct", settings(home))
    for name, value in made.model.state_dict().items():
        assert torch.equal(value, kept[name]), name
    assert made.model.lpips is None and next(made.model.encoder.parameters()).dtype == torch.float32
    return made


@pytest.fixture(scope="module")
def person(home: Path, model: Any) -> SimpleNamespace:
    """What `load_body` gives."""
    return worker.load("animate", settings(home))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job with a picture in its frame and no motion."""
    made = Job(tmp_path)
    cut_out(tmp_path / "cutout.png", (140, 380))
    worker.run("frame", None, made)
    worker.run("body", None, made)
    return made


def cut_out(path: Path, size: tuple[int, int]) -> None:
    """An egg with a soft edge and noisy colours."""
    picture = Image.effect_noise((size[0] + 37, size[1] + 64), 80).convert("RGBA")
    alpha = Image.new("L", picture.size)
    ImageDraw.Draw(alpha).ellipse((11, 20, size[0] + 10, size[1] + 19), fill=255, outline=60)
    picture.putalpha(alpha)
    picture.save(path)


def coloured(job: Job, person: Any) -> np.ndarray:
    """Gaussians that sit on the body: red before, blue behind, green on the left hand's side."""
    middles = person.decoder.init_pcd[0].numpy()
    red, green = middles[:, 2] > 0, middles[:, 0] > 0
    colours = np.stack([red, green, ~red], 1).astype(np.float32)
    count = len(middles)
    arrays = {
        "sigma": np.full((count, 1), 0.5),
        "rgbs": colours,
        "radius": np.random.default_rng(5).uniform(-0.9, 0.9, (count, 3)),
        "rot": np.random.default_rng(6).normal(size=(count, 3)),
        "offset": np.random.default_rng(7).normal(size=(count, 3)) * 0.005,
    }
    kept = {name: array.astype(np.float32)[None] for name, array in arrays.items()}
    np.savez(job.outputs / "gaussians.npz", **kept)
    return colours


# --- tests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "ratio"),
    [
        ((140, 380), 0.85),
        ((141, 381), 0.85),
        ((300, 401), 0.85),
        ((350, 380), 0.7),
        ((91, 91), 0.7),
    ],
)
def test_our_frame_is_upstreams_bit_for_bit(
    home: Path, tmp_path: Path, size: Any, ratio: float
) -> None:
    from lib.utils import infer_util

    cut_out(tmp_path / "cutout.png", size)
    worker.run("frame", None, Job(tmp_path, frame_ratio=ratio))
    theirs = infer_util.load_image(tmp_path / "cutout.png", str(tmp_path), ratio)
    ours = np.asarray(Image.open(tmp_path / "input.png"), np.float32) / 255
    assert theirs.shape == (3, 896, 640)
    assert (ours == theirs.permute(1, 2, 0).numpy()).all()


def test_upstream_would_have_cut_off_the_arms(home: Path, tmp_path: Path) -> None:
    """The same picture, and at the ratio that our refusal names nothing is lost."""
    from lib.utils import infer_util

    cut_out(tmp_path / "cutout.png", (350, 380))
    with pytest.raises(motions.BadInput) as refused:
        worker.run("frame", None, Job(tmp_path))
    cut = infer_util.load_image(tmp_path / "cutout.png", str(tmp_path))
    assert (cut[:, 430:470, [0, -1]] < 0.9).float().mean() > 0.5
    fits = float(refused.value.hint.split("frame_ratio ")[1].split(" ")[0])
    whole = infer_util.load_image(tmp_path / "cutout.png", str(tmp_path), fits)
    assert (whole[:, :300, [0, -1]] > 0.99).all()  # only the widest rows come near the edge


def test_the_whole_model_reconstructs(model: Any, job: Job) -> None:
    """Upstream's encoder wrapper, neck, head and decoder; once is what the demo does five times."""
    worker.run("reconstruct", model, job)
    with np.load(job.outputs / "gaussians.npz") as kept:
        shapes = {name: kept[name].shape for name in kept}
        ours = {name: kept[name] for name in kept}
    count = len(tubes()[1])
    assert shapes == {"sigma": (1, count, 1)} | dict.fromkeys(worker.POINTS[1:], (1, count, 3))
    told = [message for _, message in job.told if message.startswith("Block")]
    assert told == [f"Block {n} of {DEPTH}" for n in range(1, DEPTH + 1)]
    assert Image.open(job.outputs / "uv.png").size == (96, 96)
    picture = torch.from_numpy(np.array(Image.open(job.inputs["input.png"]), np.float32) / 255)
    with torch.no_grad():
        code = model.model.forward_image_to_uv(picture.permute(2, 0, 1)[None], is_training=False)
        five = model.model.decoder._sample_feature(
            model.model.decoder._decode_feature(code.expand(5, -1, -1, -1))
        )
    for name, part in zip(worker.POINTS, five, strict=True):
        assert np.allclose(part[4].numpy(), ours[name][0], atol=1e-5), name
    assert not model.model.neck.decoder_blocks_depart[0]._forward_hooks


def test_another_picture_gives_another_person(model: Any, job: Job, tmp_path: Path) -> None:
    worker.run("reconstruct", model, job)
    first = dict(np.load(job.outputs / "gaussians.npz"))
    Image.new("RGB", (640, 896), (20, 200, 90)).save(tmp_path / "input.png")
    worker.run("reconstruct", model, job)
    assert (np.load(job.outputs / "gaussians.npz")["rgbs"] != first["rgbs"]).any()


def test_a_body_that_was_not_trained_with_is_refused(home: Path, model: Any) -> None:
    ours = dict(model.model.state_dict())
    loading.check_body(ours, ours)
    name = loading.BODY + "v_template"
    with pytest.raises(loading.NotInstalled, match=r"SMPLX_NEUTRAL.*v_template"):
        loading.check_body(ours | {name: ours[name] + 0.01}, ours)


def test_a_checkpoint_with_a_gap_is_refused(home: Path, model: Any) -> None:
    path = home / "weights/idol/model.ckpt"
    whole = path.read_bytes()
    kept = torch.load(path, weights_only=False)
    del kept["state_dict"]["neck.mask_token"]
    torch.save(kept, path)
    try:
        with pytest.raises(loading.NotInstalled, match=r"missing weights: neck\.mask_token"):
            loading.load_model(settings(home))
    finally:
        path.write_bytes(whole)


def test_posing_needs_no_trained_weights(model: Any, person: Any, job: Job) -> None:
    """The decoder that is made alone poses as the whole model's does."""
    coloured(job, person)
    vector = torch.from_numpy(worker.chosen_pose(person, job)[None])
    with torch.no_grad():
        posed = [
            decoder.deform_pcd(worker.gaussians(person, job), vector, zeros_hands_off=True, value=1)
            for decoder in (person.decoder, model.model.decoder)
        ]
    for ours, theirs in zip(*posed, strict=True):
        assert torch.equal(ours, theirs)


def covariances(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Middles (N, 3) and covariances (N, 3, 3) of a splat."""
    _, _, rows = path.read_bytes().partition(b"end_header\n")
    data = np.frombuffer(rows, "<f4").reshape(-1, len(splats.COLUMNS)).astype(np.float64)
    turns = Rotation.from_quat(np.roll(data[:, 13:], -1, axis=1)).as_matrix()
    shapes = turns * np.exp(data[:, None, 10:13])
    return data[:, :3], shapes @ shapes.transpose(0, 2, 1)


@pytest.mark.parametrize("pose", ["a_pose", "t_pose"])
def test_the_splat_is_what_upstream_renders(person: Any, job: Job, pose: str) -> None:
    """Against what its own `forward_render` hands to the rasterizer."""
    job.params["pose"] = pose
    coloured(job, person)
    worker.run("pose", person, job)
    vector = torch.from_numpy(worker.chosen_pose(person, job)[None])
    Rasterizer.given.clear()
    with torch.no_grad():
        out = person.decoder.deform_pcd(
            worker.gaussians(person, job), vector, zeros_hands_off=True, value=0.02
        )
        person.decoder.renderer.image_size = [640, 896]
        camera = worker.front_camera(person)
        person.decoder.training = True  # else it also looks for each pixel's neighbour
        person.decoder.forward_render(out, camera[None], num_imgs=1)
        person.decoder.training = False
    (theirs,) = Rasterizer.given
    middles, ours = covariances(job.outputs / "model.ply")
    assert np.allclose(middles, theirs.means.numpy(), atol=1e-6)
    wanted = theirs.covariance.numpy()[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3)
    assert np.abs(ours - wanted).max() < 1e-6 < np.abs(wanted).max()
    with torch.no_grad():
        list(worker.draw(person, job, vector.numpy(), [camera], (640, 896), {}))
    drawn = Rasterizer.given[1]
    assert torch.equal(drawn.covariance, theirs.covariance)
    assert torch.equal(drawn.means, theirs.means) and drawn.antialiasing is True
    assert (drawn.opacities == 1).all()


def test_footprints_are_half_as_wide_and_seven_tenths_as_high(person: Any, job: Job) -> None:
    """What `splat_scale` is for: the rasterizer takes its focal length from the tangent."""
    coloured(job, person)
    Rasterizer.given.clear()
    vector = worker.chosen_pose(person, job)[None]
    with torch.no_grad():
        list(worker.draw(person, job, vector, [worker.front_camera(person)], (640, 896), {}))
    (given,) = Rasterizer.given
    wide = given.image_width / (2 * float(given.tanfovx)) / 12000
    high = given.image_height / (2 * float(given.tanfovy)) / 12000
    assert (wide, high) == pytest.approx((0.5, 0.7), abs=0.01)


def test_the_a_pose_is_upright_and_faces_us(person: Any, job: Job) -> None:
    coloured(job, person)
    worker.run("pose", person, job)
    middles, _ = covariances(job.outputs / "model.ply")
    assert middles[:, 1].min() < -1.2 and middles[:, 1].max() > 0.3
    left = middles[:, 0] > 0.3  # their left hand, lowered
    assert left.any() and middles[left, 1].min() < -0.1
    vector = json.loads((job.outputs / "pose.json").read_text())
    assert (vector[9], vector[54], vector[57]) == (0.1047, -0.7854, 0.7854)


def test_a_mesh_follows_the_gaussians(person: Any, job: Job) -> None:
    """Of the tubes' triangles, with colours where they belong."""
    coloured(job, person)
    job.params["pose"] = "t_pose"
    worker.run("pose", person, job)
    head, _, rows = (job.outputs / "mesh.ply").read_bytes().partition(b"end_header\n")
    vertices, faces, _ = tubes()
    assert f"element vertex {len(vertices)}\n".encode() in head
    layout = [("place", "<f4", 3), ("colour", "u1", 3)]
    made = np.frombuffer(rows[: 15 * len(vertices)], layout)
    body = np.abs(vertices[:, 0]) < 0.6  # the hands' joints of this body are curled otherwise
    assert np.linalg.norm(made["place"] - vertices, axis=1)[body].max() < 0.09
    assert np.median(np.linalg.norm(made["place"] - vertices, axis=1)[body]) < 0.03
    green = made["colour"][:, 1] > 200
    assert (made["place"][green, 0] > -0.05).all() and green.any()
    assert len(rows) == 15 * len(vertices) + 13 * len(faces)


def test_betas_change_the_body(person: Any, job: Job, tmp_path: Path) -> None:
    coloured(job, person)
    heights = []
    for beta in (0, 2):
        (tmp_path / "smplx").write_text(json.dumps({"betas": [beta] + [0] * 9}))
        worker.run("body", None, job)
        worker.run("pose", person, job)
        middles, _ = covariances(job.outputs / "model.ply")
        heights.append(np.ptp(middles[:, 1]))
    assert heights[1] / heights[0] == pytest.approx(1.1, abs=0.01)


def test_the_turntable_is_a_video_of_upstreams_renderer(person: Any, job: Job) -> None:
    """Through its cameras and its encoder; they turn to their left, seen from above."""
    import imageio

    coloured(job, person)
    worker.run("turntable", person, job)
    reader = imageio.get_reader(job.outputs / "turntable.mp4")
    assert reader.get_meta_data()["size"] == (640, 896) and reader.get_meta_data()["fps"] == 30
    assert reader.count_frames() == 36
    seen = {}
    for degrees in (0, 90, 180, 270):
        picture = np.asarray(Image.open(job.outputs / f"turn_{degrees}.png"))
        drawn = (picture < 250).any(2)
        rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
        assert picture.shape == (896, 640, 3) and 150 < rows[0] < 250 and 650 < rows[-1] < 750
        assert abs(columns.mean() - 320) < 40
        seen[degrees] = picture[drawn].mean(0)
        feet = np.flatnonzero(drawn[rows[-1] - 40 :].any(0)).mean()
        left = np.flatnonzero((drawn & (picture[..., 1] > 200)).any(0))
        if degrees in (90, 270):
            assert (feet > 325) == (degrees == 90), "they turn to their left, our right"
        else:
            assert (left.mean() > 330) == (degrees == 0), "their left hand is on our right"
    (red, _, blue), (_, green, _) = seen[0] - seen[180], seen[270] - seen[90]
    assert red > 50 and blue < -50 and green > 100  # their front, and then their left side
    assert [message for _, message in job.told][-1] == "Frame 36 of 36"


def camera(turn: float) -> dict[str, Any]:
    matrix = Rotation.from_euler("xy", [np.pi, turn]).as_matrix()
    return {"cam_R": matrix.tolist(), "cam_T": [0.1, 0.2, 4], "intrins": [900, 900, 160, 128]}


def test_a_json_motion_is_read_as_upstream_reads_it(person: Any, job: Job) -> None:
    clip = {"annotations": [clip_frame(n, cam_params=camera(0.1 * n)) for n in range(4)]}
    (job.outputs / "motion").write_text(json.dumps(clip))
    worker.run("body", None, job)
    theirs = person.util.load_smplx_from_json(str(job.outputs / "motion"), device="cpu").numpy()
    with np.load(job.outputs / "motion.npz") as kept:
        ours, cameras = kept["frames"].copy(), kept["cameras"]
    ours[:, 80:170] -= person.util.get_hand_pose_mean().reshape(-1)
    assert np.allclose(ours, theirs, atol=1e-6)
    path = str(job.outputs / "motion")
    seen = person.util.construct_camera_from_motionx(path, device="cpu").numpy()
    assert np.allclose(cameras, seen[:, 0], atol=1e-6)


def test_a_table_is_read_as_upstream_reads_it(person: Any, job: Job) -> None:
    """Which asks for 1800 frames and leaves out the first; then it makes the first face us."""
    table = np.random.default_rng(9).normal(size=(1800, 322)).astype(np.float32)
    np.save(job.outputs / "motion.npy", table)
    theirs = person.util.load_smplx_from_npy(str(job.outputs / "motion.npy"), device="cpu")
    turned, moved = person.util.reset_first_frame_rotation(theirs[:20, 4:7], theirs[:20, 1:4])
    np.save(job.outputs / "motion.npy", table[1:21])
    ours = motions.read_motion(job.outputs / "motion.npy", 300, own_cameras=True)["frames"]
    ours[:, 80:170] -= person.util.get_hand_pose_mean().reshape(-1)
    assert np.allclose(ours[:, 7:], theirs[:20, 7:].numpy(), atol=1e-5)
    assert np.allclose(ours[:, 1:4], moved.squeeze().numpy(), atol=1e-4)
    same = Rotation.from_rotvec(ours[:, 4:7]).inv() * Rotation.from_rotvec(turned.numpy())
    assert same.magnitude().max() < 1e-3
    with pytest.raises(IndexError):
        person.util.load_smplx_from_npy(str(job.outputs / "motion.npy"), device="cpu")


@pytest.mark.parametrize(
    ("camera_of", "size"), [("file", (320, 256)), ("front", (512, 512))], ids=["file", "front"]
)
def test_a_motion_becomes_a_video(
    person: Any, job: Job, camera_of: str, size: tuple[int, int]
) -> None:
    import imageio

    coloured(job, person)
    clip = {"annotations": [clip_frame(n, cam_params=camera(0)) for n in range(3)]}
    (job.outputs / "motion").write_text(json.dumps(clip))
    job.params.update(motion_camera=camera_of, motion_size="512x512", fps=25)
    worker.run("body", None, job)
    worker.run("animate", person, job)
    reader = imageio.get_reader(job.outputs / "motion.mp4", format="ffmpeg")
    assert reader.get_meta_data()["size"] == size and reader.get_meta_data()["fps"] == 25
    assert reader.count_frames() == 3


def test_our_videos_are_upstreams_frame_by_frame(person: Any, tmp_path: Path) -> None:
    """With the index first, where its own have it last."""
    import imageio

    draw = np.random.default_rng(4)
    frames = [np.kron(draw.integers(0, 255, (8, 6, 3)), np.ones((16, 16, 1))) for _ in range(5)]
    frames = [frame.astype(np.uint8) for frame in frames]
    worker.write_video(tmp_path / "ours.mp4", iter(frames), 25)
    whole = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    person.util.save_video((whole + 0.1) / 255, str(tmp_path / "theirs.mp4"), 25)
    readers = [imageio.get_reader(tmp_path / f"{name}.mp4") for name in ("ours", "theirs")]
    read = [list(reader.iter_data()) for reader in readers]
    assert len(read[0]) == len(read[1]) == 5
    assert all((ours == theirs).all() for ours, theirs in zip(*read, strict=True))
    ours, theirs = ((tmp_path / f"{name}.mp4").read_bytes() for name in ("ours", "theirs"))
    assert ours.find(b"moov") < ours.find(b"mdat") and theirs.find(b"moov") > theirs.find(b"mdat")


def test_no_motion_makes_no_video(person: Any, job: Job) -> None:
    coloured(job, person)
    worker.run("animate", person, job)
    assert not (job.outputs / "motion.mp4").exists()
