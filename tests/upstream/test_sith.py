"""Upstream's own code of SiTH on a CPU, with random weights, through our worker.

`make upstream MODEL=sith` runs it; POLYPOD_UPSTREAM names the checkout, at the commit of
`services/sith/model.py`, and PYTHONPATH holds kaolin's source (v0.15.0), whose Python part runs
without its compiled one. The trained networks, nvdiffrast, kaolin's CUDA code and the licensed body
model are not tried here: what stands for them is below.
"""

from __future__ import annotations

import enum
import importlib
import importlib.machinery
import importlib.util
import json
import os
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

if not os.environ.get("POLYPOD_UPSTREAM"):
    pytest.skip(
        "POLYPOD_UPSTREAM names no checkout of SiTH-Diffusion/SiTH", allow_module_level=True
    )
if missing := [
    name
    for name in (
        *("torch", "kaolin", "smplx", "timm", "diffusers", "transformers", "tinyobjloader", "cv2"),
        *("onnxruntime", "onnx", "rtmlib", "trimesh", "skimage", "scipy"),
    )
    if importlib.util.find_spec(name) is None
]:
    pytest.skip(f"{sys.executable} has no {', '.join(missing)}", allow_module_level=True)

import diffusers  # both look for torchvision when they are imported, so before it is
import torch
import transformers  # stood in for

from services.sith import back, pose, reconstruction, worker
from tests.upstream import absent

SOURCE = Path(os.environ["POLYPOD_UPSTREAM"])
EXAMPLES = SOURCE / "data" / "examples"
ITERATIONS, GRID, SMALL = 12, 48, 64
JOINTS, SHAPES, VERTICES = 55, 20, 10475


# --- what stands for packages without a CPU build -------------------------------------------------


class Compose:
    def __init__(self, steps: Any) -> None:
        self.steps = steps

    def __call__(self, value: Any) -> Any:
        for step in self.steps:
            value = step(value)
        return value


class Resize:
    """torchvision's, of a picture: Pillow's."""

    def __init__(self, size: tuple[int, int], interpolation: Any) -> None:
        self.size = size

    def __call__(self, picture: Image.Image) -> Image.Image:
        same = picture.size == self.size[::-1]
        return picture if same else picture.resize(self.size[::-1], Image.Resampling.BILINEAR)


class ToTensor:
    def __call__(self, picture: Image.Image) -> Any:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


class Normalize:
    def __init__(self, mean: Any, std: Any) -> None:
        self.mean, self.std = (torch.tensor(row).reshape(-1, 1, 1) for row in (mean, std))

    def __call__(self, image: Any) -> Any:
        return (image - self.mean) / self.std


def roi_align(feat: Any, boxes: Any, size: tuple[int, int], *_: Any) -> Any:
    """torchvision's, with one sample in each cell."""
    made = []
    for index, left, top, right, bottom in boxes:
        y = top + (torch.arange(size[0]) + 0.5) / size[0] * (bottom - top)
        x = left + (torch.arange(size[1]) + 0.5) / size[1] * (right - left)
        at = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
        at = at / torch.tensor([feat.shape[3], feat.shape[2]]) * 2 - 1
        one = feat[int(index)][None]
        made.append(torch.nn.functional.grid_sample(one, at[None], align_corners=False))
    return torch.cat(made)


def torchvision() -> None:
    top: Any = absent.AbsentModule("torchvision")
    transforms: Any = absent.AbsentModule("torchvision.transforms")
    ops: Any = absent.AbsentModule("torchvision.ops")
    for cls in (Compose, Resize, ToTensor, Normalize):
        vars(transforms)[cls.__name__] = cls
    functional: Any = absent.AbsentModule("torchvision.transforms.functional")
    modes = ("NEAREST", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS")
    for module in (transforms, functional):
        vars(module)["InterpolationMode"] = enum.Enum("InterpolationMode", modes)
    vars(ops)["roi_align"] = roi_align
    top.transforms, top.ops, transforms.functional = transforms, ops, functional
    for module in (top, transforms, functional, ops):
        module.__path__ = []
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None, is_package=True)
        sys.modules[module.__name__] = module
    absent.hide("torchvision")  # what is below them


def rasterize(_: Any, clip: Any, faces: Any, size: tuple[int, int], grad_db: bool = True) -> Any:
    """nvdiffrast's: (cameras, height, width, 4) of u, v, depth, face + 1; the first row is below.

    Args:
        clip: (cameras, vertices, 4), of an orthographic camera.
    """
    made = np.zeros((len(clip), *size, 4), np.float32)
    height, width = size
    for image, corners in zip(made, clip.numpy(), strict=True):
        depth = np.full(size, np.inf, np.float32)
        xy = (corners[:, :2] + 1) / 2 * [width, height] - 0.5
        for number, face in enumerate(faces.numpy()):
            a, b, c = xy[face]
            left, low = np.maximum(np.ceil(np.min([a, b, c], axis=0)), 0).astype(int)
            right, high = np.minimum(np.floor(np.max([a, b, c], axis=0)), [width - 1, height - 1])
            if left > right or low > high:
                continue
            y, x = np.mgrid[low : int(high) + 1, left : int(right) + 1]
            twice = (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])
            if twice == 0:
                continue
            u = ((b[0] - x) * (c[1] - y) - (c[0] - x) * (b[1] - y)) / twice
            v = ((c[0] - x) * (a[1] - y) - (a[0] - x) * (c[1] - y)) / twice
            z = u * corners[face[0], 2] + v * corners[face[1], 2]
            z += (1 - u - v) * corners[face[2], 2]
            hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (z < depth[y, x])
            depth[y[hit], x[hit]] = z[hit]
            image[y[hit], x[hit]] = np.stack([u, v, z, np.full_like(u, number + 1)], -1)[hit]
    return torch.from_numpy(made), None


def interpolate(values: Any, rast: Any, faces: Any) -> Any:
    at = (rast[..., 3].long() - 1).clamp(min=0)
    corners = values[faces.long()][at]  # (cameras, height, width, 3, channels)
    u, v = rast[..., 0:1], rast[..., 1:2]
    made = corners[..., 0, :] * u + corners[..., 1, :] * v + corners[..., 2, :] * (1 - u - v)
    return torch.where(rast[..., 3:] > 0, made, 0.0), None


def nvdiffrast() -> None:
    top, inner = types.ModuleType("nvdiffrast"), types.ModuleType("nvdiffrast.torch")
    vars(inner).update(
        RasterizeCudaContext=lambda device=None: None, rasterize=rasterize, interpolate=interpolate
    )
    vars(top).update(torch=inner, __path__=[])
    sys.modules |= {"nvdiffrast": top, "nvdiffrast.torch": inner}


def soft_mask(height: int, width: int, z: Any, xy: Any, attributes: Any, normals: Any, **_: Any):
    """kaolin's dibr_rasterization without softness: the mask has no gradient."""
    import cv2

    drawn = np.zeros((height, width), np.uint8)
    corners = ((xy[0].detach().numpy() * [1, -1] + 1) / 2 * [width, height]).astype(np.int32)
    for corner in corners:
        cv2.fillConvexPoly(drawn, corner, 1)
    return None, torch.from_numpy(drawn).float()[None] + 0 * xy.sum(), None


def marching_cubes(voxels: Any, iso_value: float) -> Any:
    """kaolin's coordinates: those of the grid with a border of one cell of zeros."""
    from skimage.measure import marching_cubes

    padded = np.pad(voxels[0].numpy(), 1)
    vertices, faces, *_ = marching_cubes(padded, iso_value)
    return [torch.from_numpy(vertices.copy())], [torch.from_numpy(faces.astype(np.int64))]


def nearest(points: Any, face_vertices: Any) -> Any:
    """Squared distance, face and kind (face, corners, edges) of the nearest of few near faces."""
    import trimesh
    from scipy.spatial import cKDTree

    corners, at = face_vertices.numpy().astype(float), points.numpy().astype(float)
    near = cKDTree(corners.mean(1)).query(at, 6)[1]
    hits = [trimesh.triangles.closest_point(corners[row], at) for row in near.T]
    far = np.stack([((hit - at) ** 2).sum(1) for hit in hits], 1)
    best = far.argmin(1)
    face = near[np.arange(len(at)), best]
    hit = np.stack(hits, 1)[np.arange(len(at)), best]
    zero = trimesh.triangles.points_to_barycentric(corners[face], hit) < 1e-6
    kind = np.where(zero.sum(1) == 2, 1 + (~zero).argmax(1), 0)
    kind = np.where(zero.sum(1) == 1, np.array([5, 6, 4])[zero.argmax(1)], kind)
    made = (far.min(1).astype(np.float32), face.astype(np.int64), kind.astype(np.int32))
    return tuple(torch.from_numpy(part) for part in made)


def inside(vertices: Any, faces: Any, points: Any) -> Any:
    """kaolin's check_sign, by the side of the nearest face's plane."""
    corners = vertices[0][faces]
    _, face, _ = nearest(points[0], corners)
    a, b, c = corners[face].unbind(1)
    outwards = torch.linalg.cross(b - a, c - a)
    return (((points[0] - a) * outwards).sum(-1) < 0)[None]


def kaolin() -> None:
    """Its own Python where that is enough; what it compiles is stood in for."""
    spec = importlib.machinery.PathFinder.find_spec("kaolin")
    assert spec and spec.submodule_search_locations
    root = Path(next(iter(spec.submodule_search_locations)))
    for name in ("", ".ops", ".ops.conversions", ".render", ".render.mesh", ".metrics"):
        module = types.ModuleType(f"kaolin{name}")
        module.__path__ = [str(root.joinpath(*name.split(".")))]
        sys.modules[module.__name__] = module
        above, _, own = module.__name__.rpartition(".")
        if above:
            setattr(sys.modules[above], own, module)
    for name in ("kaolin._C", "kaolin.ops.mesh.triangle_hash"):
        sys.modules[name] = types.ModuleType(name)
    vars(sys.modules["kaolin"])["_C"] = sys.modules["kaolin._C"]
    for name in ("ops.mesh", "render.camera", "metrics.render"):
        importlib.import_module(f"kaolin.{name}")
    vars(sys.modules["kaolin.ops.mesh"])["check_sign"] = inside
    vars(sys.modules["kaolin.render.mesh"])["dibr_rasterization"] = soft_mask
    conversions = vars(sys.modules["kaolin.ops.conversions"])
    conversions["voxelgrids_to_trianglemeshes"] = marching_cubes
    camera: Any = vars(sys.modules["kaolin.render.camera"])["Camera"]
    from_args = camera.from_args
    camera.from_args = lambda **given: from_args(**{**given, "device": "cpu"})


@pytest.fixture(scope="module", autouse=True)
def upstream() -> None:
    """Upstream's modules can be imported, and what says cuda is on the CPU."""
    if importlib.util.find_spec("torchvision") is None:
        torchvision()
    nvdiffrast()
    kaolin()
    sys.path.insert(0, str(SOURCE))
    os.chdir(SOURCE)
    linspace, schedulers = torch.linspace, torch.optim.lr_scheduler
    plateau = schedulers.ReduceLROnPlateau

    def on_cpu(*args: Any, device: str = "", **more: Any) -> Any:
        return linspace(*args, **more)

    def quiet(*args: Any, verbose: int = 0, **more: Any) -> Any:
        """Newer torch has no `verbose`."""
        return plateau(*args, **more)

    torch.Tensor.cuda = lambda self, *_: self  # type: ignore[method-assign, assignment]
    torch.nn.Module.cuda = lambda self, *_: self  # type: ignore[method-assign, assignment]
    torch.cuda.empty_cache = lambda: None
    torch.linspace = on_cpu
    schedulers.ReduceLROnPlateau = quiet  # type: ignore[misc, assignment]


# --- jobs -----------------------------------------------------------------------------------------


class Params(dict):
    __getattr__ = dict.__getitem__


class Job:
    """What the harness hands to a stage."""

    def __init__(self, folder: Path, **params: Any) -> None:
        self.outputs, self.params, self.told = folder, Params(params), list[tuple[float, str]]()

    @property
    def inputs(self) -> dict[str, Path]:
        return {path.name: path for path in self.outputs.iterdir()}

    def scratch(self) -> Path:
        number = sum(path.is_dir() for path in self.outputs.iterdir())
        (self.outputs / f"scratch{number}").mkdir()
        return self.outputs / f"scratch{number}"

    def progress(self, fraction: float, message: str = "", until: float = 0) -> None:
        self.told.append((fraction, message))

    def count(self, function: Any, total: int, low: float, high: float, message: str) -> Any:
        def counted(*args: Any) -> Any:
            self.progress(low, message)
            return function(*args)

        return counted


def example(folder: Path, name: str = "000", **params: Any) -> Job:
    """Upstream's own canvas and OpenPose's keypoints of it, through our first two stages."""
    (folder / "image").write_bytes((EXAMPLES / "images" / f"{name}.png").read_bytes())
    (folder / "cutout.png").write_bytes((folder / "image").read_bytes())
    (folder / "keypoints").write_bytes((EXAMPLES / f"images/{name}_keypoints.json").read_bytes())
    job = Job(folder, framed=True, ratio=0.85, keypoint_confidence=0.3, **params)
    worker.frame(None, job)
    worker.keypoints(None, job)
    return job


NAMES = sorted(path.stem for path in (EXAMPLES / "images").glob("*.png"))


# --- frame, keypoints -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["000", "001", "003", "013", "014"])
def test_framing_is_upstream_s_bit_for_bit(tmp_path: Path, name: str) -> None:
    """Of the examples without a margin, which upstream keeps: those that this Pillow makes."""
    source = EXAMPLES / "rgba" / f"{name}.png"
    for to in ("image", "cutout.png"):
        (tmp_path / to).write_bytes(source.read_bytes())
    worker.frame(None, Job(tmp_path, framed=False, ratio=0.85))
    made, wanted = (
        np.asarray(Image.open(path))
        for path in (tmp_path / "input.png", EXAMPLES / "images" / f"{name}.png")
    )
    assert (made == wanted).all()


@pytest.mark.parametrize("name", NAMES)
def test_openpose_s_files_are_taken_and_written_as_upstream_reads_them(
    tmp_path: Path, name: str
) -> None:
    from fitting.utils.kps import load_openpose_json

    job = example(tmp_path, name)
    wanted = load_openpose_json(EXAMPLES / "images" / f"{name}_keypoints.json")
    made = load_openpose_json(job.outputs / "keypoints.json")
    assert made.shape == wanted.shape == (135, 3)
    seen = wanted[:, 2] > 0
    assert made[seen] == pytest.approx(wanted[seen])
    assert Image.open(job.outputs / "keypoints.png").size == (1024, 1024)


def dwpose(path: Path, peaks: np.ndarray) -> None:
    """A network with DWPose's input and outputs, that sees its points always at the same place.

    Args:
        peaks: (133, 2), in half pixels of the input of 288 x 384.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, made, constants = [], [], []
    for axis, (name, width) in enumerate((("simcc_x", 576), ("simcc_y", 768))):
        response = np.zeros((1, 133, width), np.float32)
        response[0, np.arange(133), peaks[:, axis].astype(int)] = 0.8
        constants.append(numpy_helper.from_array(response, f"{name}_at"))
        nodes.append(helper.make_node("Add", [f"{name}_at", "nothing"], [name]))
        made.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 133, width]))
    constants.append(numpy_helper.from_array(np.array([0], np.float32), "zero"))
    nodes.insert(0, helper.make_node("ReduceMax", ["input"], ["most"], keepdims=0))
    nodes.insert(1, helper.make_node("Mul", ["most", "zero"], ["nothing"]))
    shape = [1, 3, 384, 288]
    given = [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "dwpose", given, made, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, path)


def test_the_detector_s_points_come_out_where_they_were_seen(tmp_path: Path) -> None:
    """rtmlib's and onnxruntime's own code, around a network that answers with an example's pose."""
    from fitting.utils.kps import load_openpose_json

    job = example(tmp_path)
    wanted = load_openpose_json(job.outputs / "keypoints.json")
    told = json.loads((job.outputs / "keypoints.json").read_text())["people"][0]
    rows = {name: np.reshape(told[f"{name}_keypoints_2d"], (-1, 3)) for name in
            ("pose", "hand_left", "hand_right", "face")}  # fmt: skip
    body, points = rows["pose"], np.zeros((133, 2))
    for to, of in enumerate(pose.BODY_25):
        if not isinstance(of, tuple):
            points[of] = body[to, :2]
    points[pose.FACE], points[pose.LEFT] = rows["face"][:68, :2], rows["hand_left"][:, :2]
    points[pose.RIGHT] = rows["hand_right"][:, :2]
    left, top, right, bottom = Image.open(job.outputs / "input.png").getchannel("A").getbbox()
    tall = 1.25 * (bottom - top)  # the box is widened to 3 : 4
    corner = np.array([left + right, top + bottom]) / 2 - [tall * 0.375, tall / 2]
    (tmp_path / "dwpose").mkdir()
    dwpose(tmp_path / "dwpose" / "dw-ll_ucoco_384.onnx", (points - corner) / tall * 768)
    (tmp_path / "keypoints").unlink()
    detect = worker.load_detector(tmp_path)
    worker.keypoints(detect, job)
    made = load_openpose_json(job.outputs / "keypoints.json")
    direct = (wanted[:, 2] > 0) & ~np.isin(np.arange(135), (1, 8))
    assert made[direct, :2] == pytest.approx(wanted[direct, :2], abs=tall / 768)
    assert made[1, :2] == pytest.approx(wanted[[2, 5], :2].mean(0), abs=2)
    assert made[8, :2] == pytest.approx(wanted[[9, 12], :2].mean(0), abs=2)
    used = {
        *range(25),
        *(25 + n for n in (4, 8, 12, 16, 20)),
        *(46 + n for n in (4, 8, 12, 16, 20)),
    }
    used |= {107, 110, 113, 116}
    assert made[sorted(used), 2] == pytest.approx(0.8), "the 39 points of the fit are there"


# --- fit ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def body_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A body of SMPL-X's layout, upstream's template in place of the licensed one: it stands."""
    from recon.models.ops.mesh.load_obj import load_obj

    vertices, faces = (part.numpy() for part in load_obj("data/smplx_canonical.obj"))
    random = np.random.default_rng(0)
    places = random.integers(0, VERTICES, JOINTS)
    joints = np.zeros((JOINTS, VERTICES), np.float32)
    joints[np.arange(JOINTS), places] = 1
    joints[0], joints[0, np.abs(vertices - [0, -0.35, 0]).sum(1).argmin()] = 0, 1
    weights = np.zeros((VERTICES, JOINTS), np.float32)
    weights[:, 0] = 1
    corners = {"lmk_faces_idx": 51, "dynamic_lmk_faces_idx": (79, 17)}
    folder = tmp_path_factory.mktemp("weights") / "body_models" / "smplx"
    folder.mkdir(parents=True)
    np.savez_compressed(
        folder / "SMPLX_MALE.npz",
        v_template=vertices,
        f=faces,
        shapedirs=np.zeros((VERTICES, 3, 400), np.float16),
        posedirs=np.zeros((VERTICES, 3, 486), np.float16),
        J_regressor=joints,
        weights=weights,
        kintree_table=np.stack([np.r_[-1, np.zeros(JOINTS - 1)], np.arange(JOINTS)]).astype(int),
        **{f"hands_{kind}{side}": np.zeros(shape, np.float32) for side in "lr" for kind, shape in
           (("mean", 45), ("components", (45, 45)))},
        **{name: random.integers(0, len(faces), shape) for name, shape in corners.items()},
        lmk_bary_coords=np.full((51, 3), 1 / 3),
        dynamic_lmk_bary_coords=np.full((79, 17, 3), 1 / 3),
    )  # fmt: skip
    return folder.parent


class Upright(torch.nn.Module):
    """Upstream's network, whose random poses give way to one that stands."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self.seen = network, list[dict[str, tuple[int, ...]]]()

    def forward(self, given: Any) -> Any:
        made = self.network(given)
        self.seen.append({name: tuple(value.shape) for name, value in made.items()})
        flat = {name: torch.zeros_like(value) for name, value in made.items()}
        flat["smplx_root_pose"][0, 0] = np.pi  # upstream turns it by 180 degrees
        return flat


@pytest.fixture(scope="module")
def fitted(body_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The fit of upstream's first example."""
    from fitting.models.smpler_x_model import Model
    from smplx import SMPLX

    torch.manual_seed(0)
    network = Upright(Model(None)).eval()
    import fit

    assert callable(fit.Model) and callable(fit.SMPLX), "what keep_loaded takes the place of"
    fit.SMPL_PATH = str(body_models)
    worker.keep_loaded(fit, network, SMPLX)
    options = {"opt_orient": True, "opt_betas": True, "opt_pose": False}
    job = example(tmp_path_factory.mktemp("fit"), fit_iterations=ITERATIONS, **options)
    worker.fit_body(fit, job)
    job.fit, job.seen = fit, network.seen  # type: ignore[attr-defined]
    return job


def test_the_fit_runs_in_upstream_s_main(fitted: Any) -> None:
    assert fitted.seen == [
        {
            "smplx_root_pose": (1, 3),
            "smplx_body_pose": (1, 63),
            "smplx_lhand_pose": (1, 45),
            "smplx_rhand_pose": (1, 45),
            "smplx_jaw_pose": (1, 3),
            "smplx_shape": (1, 10),
            "smplx_expr": (1, 10),
        }
    ]
    told = json.loads((fitted.outputs / "smplx.json").read_text())
    assert 0.3 < told["overlap"] < 1 and len(told["body_pose"]) == 63
    assert told["scale"] != [1.0] and fitted.fit.OPT_ITER == ITERATIONS
    assert Image.open(fitted.outputs / "fit.png").size == (1024, 1024)


def test_the_fitted_body_keeps_the_template_s_order(fitted: Any) -> None:
    from recon.models.ops.mesh.load_obj import load_obj

    made, faces = load_obj(str(fitted.outputs / "smplx.obj"))
    template, same = load_obj("data/smplx_canonical.obj")
    assert made.shape == (VERTICES, 3) and (faces == same).all()
    told = json.loads((fitted.outputs / "smplx.json").read_text())
    turn = torch.linalg.matrix_exp(skew(told["global_orient"]))
    pelvis = template[torch.cdist(torch.tensor([[0.0, -0.35, 0]]), template, p=1).argmin()]
    wanted = ((template - pelvis) @ turn.T + pelvis + torch.tensor(told["transl"])) * told["scale"][
        0
    ]
    assert made == pytest.approx(wanted, abs=5e-3)  # the parameters are one step of 1e-3 later


def skew(vector: list[float]) -> Any:
    x, y, z = vector
    return torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])


def test_a_second_fit_reads_nothing_again_and_gives_the_same(
    fitted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("the body model is read again"))
    given = ("fit_iterations", "opt_orient", "opt_betas", "opt_pose")
    job = example(tmp_path, **{name: fitted.params[name] for name in given})
    worker.fit_body(fitted.fit, job)
    made, wanted = ((one.outputs / "smplx.obj").read_text() for one in (job, fitted))
    assert made == wanted


# --- back -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Upstream's pipeline with tiny random networks, written and read as the weights are."""
    from diffusion.lib.ccprojection import CCProjection

    torch.manual_seed(1)
    weights = tmp_path_factory.mktemp("diffusion")
    folder = weights / "SiTH_diffusion"
    clip = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, projection_dim=16, num_hidden_layers=2,
            num_attention_heads=4, image_size=224, patch_size=56,
        )
    )  # fmt: skip
    blocks = {
        "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 16,
        "attention_head_dim": 8, "in_channels": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    }  # fmt: skip
    ups = ("UpBlock2D", "CrossAttnUpBlock2D")
    kinds = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    parts = {
        "image_encoder": clip,
        "unet": diffusers.UNet2DConditionModel(**blocks, out_channels=4, up_block_types=ups),
        "controlnet": diffusers.ControlNetModel(
            **blocks, conditioning_channels=8, conditioning_embedding_out_channels=(16, 16)
        ),
        "vae": diffusers.AutoencoderKL(block_out_channels=(32, 64), latent_channels=4, **kinds),
        "scheduler": diffusers.DDPMScheduler(),
        "projection": CCProjection(clip),
    }
    for weight in parts["controlnet"].parameters():
        if not weight.any():  # untrained, it would say nothing
            torch.nn.init.normal_(weight, std=0.3)
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    to = diffusers.DiffusionPipeline.to
    diffusers.DiffusionPipeline.to = lambda self, device: to(self, "cpu")  # type: ignore[assignment]
    return back.load(weights)


def hallucinated(small: Any, fitted: Any, folder: Path, monkeypatch: Any, **given: Any) -> Any:
    monkeypatch.setitem(back.SIZES, "SiTH_diffusion", SMALL)
    for name in ("input.png", "smplx.obj"):
        (folder / name).write_bytes((fitted.outputs / name).read_bytes())
    usual: dict[str, Any] = {
        "back_model": "SiTH_diffusion", "back_views": 3, "back_views_at_once": 3,
        "num_inference_steps": 4, "guidance_scale": 3.5, "conditioning_scale": 1.0, "seed": 7,
    }  # fmt: skip
    back.hallucinate(small, Job(folder, **{**usual, **given}))
    return [np.asarray(Image.open(path)).astype(int) for path in sorted(folder.glob("back_*.png"))]


def test_candidates_are_the_same_in_any_company(
    small: Any, fitted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"back_views": 1}
    ways: dict[str, dict[str, Any]] = {
        "together": {},
        "alone": {"back_views": 4, "back_views_at_once": 1},
        "unlike": {**few, "seed": 8},
        "unguided": {**few, "guidance_scale": 1.0},
        "loose": {**few, "conditioning_scale": 2.0},
    }
    made: dict[str, list[Any]] = {}
    for way, given in ways.items():
        (tmp_path / way).mkdir()
        made[way] = hallucinated(small, fitted, tmp_path / way, monkeypatch, **given)
    assert [view.shape for view in made["together"]] == [(SMALL, SMALL, 3)] * 3
    for view, same in zip(made["together"], made["alone"], strict=False):
        assert np.abs(view - same).max() <= 1
    assert np.abs(made["together"][1] - made["unlike"][0]).max() <= 1  # seed 7 + 1
    assert np.abs(made["together"][0] - made["together"][1]).max() > 5
    for way in ("unguided", "loose"):
        assert np.abs(made["together"][0] - made[way][0]).max() > 1, way


def test_the_steps_of_upstream_s_own_bar_are_the_progress(
    small: Any, fitted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tqdm.std

    steps: list[int] = []
    update = tqdm.std.tqdm.update
    monkeypatch.setattr(tqdm.std.tqdm, "update", lambda bar, n=1: (steps.append(n), update(bar, n)))
    hallucinated(small, fitted, tmp_path, monkeypatch, back_views_at_once=2)
    assert steps == [1] * 8  # two calls of four steps


def test_the_map_that_steers_the_back_shows_the_person_from_behind(
    small: Any, fitted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recon.models.ops.mesh.load_obj import load_obj

    beside = Job(tmp_path / "beside")
    beside.outputs.mkdir()
    (beside.outputs / "input.png").write_bytes((fitted.outputs / "input.png").read_bytes())
    vertices, faces = load_obj(str(fitted.outputs / "smplx.obj"))
    vertices[:, 0] += 0.3
    lines = [f"v {x} {y} {z}" for x, y, z in vertices.tolist()]
    lines += [f"f {a} {b} {c}" for a, b, c in (faces + 1).tolist()]
    (beside.outputs / "smplx.obj").write_text("\n".join(lines))
    hallucinated(small, beside, tmp_path, monkeypatch, back_views=1)
    uv = np.asarray(Image.open(tmp_path / "uv.png"))[..., :2].any(-1)
    rows, columns = np.flatnonzero(uv.any(1)), np.flatnonzero(uv.sum(0) > SMALL / 4)
    high = (1 - float(vertices[:, 1].max())) * SMALL / 2
    assert rows[0] == pytest.approx(high, abs=1.5)
    body = vertices[vertices[:, 1] < 0, 0]  # the legs
    middle = (1 - float(body.min() + body.max()) / 2) * SMALL / 2  # +x is left, from behind
    assert columns.mean() == pytest.approx(middle, abs=2)


# --- reconstruct ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Upstream's evaluator with random weights; its surface is the body's, its colours are random.

    The template without holes is not in the fetched copy: the canonical one's faces stand for it.
    """
    from recon.datasets.test_dataset import TestFolderDataset
    from recon.models.geo_model import GeoModel
    from recon.models.networks.normal_predictor import define_G
    from recon.models.ops.mesh.load_obj import load_obj
    from recon.models.tex_model import TexModel
    from recon.utils.config import parse_options, parse_yaml_config

    geometry_of_bodies = vars(sys.modules["recon.models.ops.mesh.closest_point"])
    assert {"_unbatched_naive_point_to_mesh_distance", "check_sign"} <= set(geometry_of_bodies)
    geometry_of_bodies["_unbatched_naive_point_to_mesh_distance"] = nearest
    geometry_of_bodies["check_sign"] = inside
    parser = parse_options()
    parse_yaml_config("recon/config.yaml", parser)
    torch.manual_seed(2)
    config = parser.parse_args([])
    geometry, colours = GeoModel(config, None), TexModel(config, None)
    weights = tmp_path_factory.mktemp("recon") / "checkpoints"
    weights.mkdir()
    parts = {
        "nrm_encoder": define_G(3, 3, 64, "global", 4, 9, 1, 3, "instance"),
        "image_encoder": geometry.image_encoder,
        "sdf_decoder": geometry.sdf_decoder,
        "high_res_encoder": colours.image_encoder,
        "rgb_decoder": colours.rgb_decoder,
    }
    torch.save(
        {name: part.state_dict() for name, part in parts.items()}, weights / "recon_model.pth"
    )
    canonical, faces = load_obj("data/smplx_canonical.obj")
    made = SimpleNamespace(
        config=parser.parse_args(["--resume", str(weights / "recon_model.pth")]),
        watertight={"smpl_F": faces},
        canonical=canonical,
        evaluator=None,
    )
    assert (made.config.img_size, made.config.grid_size, made.config.pos_dim) == (1024, 512, 8)
    assert (made.config.num_layers, made.config.hidden_dim, made.config.skip) == (5, 512, [2, 3, 4])
    made.config.img_size = 256
    TestFolderDataset.render_visiblity.__defaults__ = ((256, 256),)  # its loop is over faces
    reconstruction.take_grid(made, GRID)
    return made


class Body(torch.nn.Module):
    """In place of the trained decoder: the signed distance to the body, which it is given."""

    def forward(self, features: Any) -> Any:
        return -features[..., 35:36]  # 32 of the pictures, 3 of the place, then the distance


def rebuilt(state: Any, fitted: Any, folder: Path, **given: Any) -> Job:
    for name in ("input.png", "smplx.obj"):
        (folder / name).write_bytes((fitted.outputs / name).read_bytes())
    Image.new("RGB", (512, 512), (90, 60, 200)).save(folder / "back_1.png")
    usual: dict[str, Any] = {
        "back_view": 1, "grid_size": GRID, "erode_iter": 1, "subdivide": False,
        "chunk_size": 50_000, "with_texture": False,
    }  # fmt: skip
    job = Job(folder, **{**usual, **given})
    state.evaluator.geo_model.sdf_decoder = Body()
    reconstruction.reconstruct(state, job)
    return job


def test_the_surface_is_where_the_body_is(state: Any, fitted: Any, tmp_path: Path) -> None:
    import trimesh

    job = rebuilt(state, fitted, tmp_path)
    mesh = trimesh.load(tmp_path / "mesh.obj", process=False)
    body = trimesh.load(fitted.outputs / "smplx.obj", process=False)
    corners = torch.from_numpy(body.vertices[body.faces]).float()
    apart = nearest(torch.from_numpy(mesh.vertices).float(), corners)[0].sqrt()
    assert apart.mean() < 1.5 / GRID and apart.quantile(0.99) < 3 / GRID
    tall = body.bounds[:, 1].clip(-1, 1)
    assert mesh.bounds[:, 1] == pytest.approx(tall, abs=3 / GRID)  # fingers are thinner than a cell
    assert mesh.visual.kind == "vertex" and len(np.unique(mesh.visual.vertex_colors[:, :3])) > 5
    messages = [message for _, message in job.told]
    assert messages.count("Finding the surface") == -(-(GRID**3) // 50_000)
    assert "Colouring it" in messages
    front, behind = (
        np.asarray(Image.open(tmp_path / f"normal_{n}.png")) for n in ("front", "back")
    )
    assert front.shape == behind.shape == (256, 256, 3)
    assert ((front == 255).all(-1) == (behind == 255).all(-1)[:, ::-1]).mean() > 0.99
    assert "compute_sdf" not in vars(state.evaluator.geo_model)
    assert not state.evaluator.nrm_predictor._forward_hooks


def test_another_grid_is_another_evaluator(state: Any, fitted: Any, tmp_path: Path) -> None:
    usual = state.evaluator
    reconstruction.take_grid(state, 40)
    assert state.evaluator is not usual and state.evaluator.coord.shape == (1, 40**3, 3)
    job = rebuilt(state, fitted, tmp_path, grid_size=40, subdivide=True)
    faces = job.outputs.joinpath("mesh.obj").read_text().count("\nf ")
    assert faces > 4000 and faces % 4 == 0  # each of the grid's is four
    reconstruction.take_grid(state, GRID)


def test_a_texture_has_the_name_that_the_export_looks_for(
    state: Any, fitted: Any, tmp_path: Path
) -> None:
    pytest.importorskip("xatlas")
    import trimesh

    reconstruction.take_grid(state, 24)
    rebuilt(state, fitted, tmp_path, grid_size=24, with_texture=True)
    reconstruction.take_grid(state, GRID)
    texture = np.asarray(Image.open(tmp_path / "mesh.png").convert("RGB"))
    assert texture.shape == (1024, 1024, 3) and texture.std() > 1
    mesh = trimesh.load(tmp_path / "mesh.obj", process=False)
    assert mesh.visual.uv.shape == (len(mesh.vertices), 2) and 0 <= mesh.visual.uv.min() < 0.1


def test_an_empty_surface_fails_as_the_declaration_knows_it(
    state: Any, fitted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`no_surface` in `model.py`; the contract tests lay the same error."""
    monkeypatch.setattr(Body, "forward", lambda self, features: 0 * features[..., :1])
    conversions = sys.modules["recon.models.evaluator"]
    nothing = ([torch.zeros(0, 3)], [torch.zeros((0, 3), dtype=torch.long)])
    monkeypatch.setattr(conversions, "voxelgrids_to_trianglemeshes", lambda *_, **__: nothing)
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute"):
        rebuilt(state, fitted, tmp_path)
    assert "compute_sdf" not in vars(state.evaluator.geo_model)
