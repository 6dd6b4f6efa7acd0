"""Upstream's own code of PSHuman on a CPU, through our worker.

`make upstream MODEL=pshuman` runs it; POLYPOD_UPSTREAM names the checkout, at the commit of
`services/pshuman/model.py`. Networks are small and have random weights. The body model has the form
of SMPL-X's files and is made up. nvdiffrast and torch_scatter are stood in for by Open3D's rays and
torch; pytorch3d, which lays the colours on, is not tried.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

if not os.environ.get("POLYPOD_UPSTREAM"):
    pytest.skip("POLYPOD_UPSTREAM names no checkout of pengHTYX/PSHuman", allow_module_level=True)
if missing := [
    name
    for name in ("torch", "diffusers", "transformers", "open3d", "trimesh", "kornia", "omegaconf")
    if importlib.util.find_spec(name) is None
]:
    pytest.skip(f"{sys.executable} has no {', '.join(missing)}", allow_module_level=True)

import diffusers  # noqa: F401  both look for torchvision when imported, so before it is stood in
import torch
import transformers
import trimesh

from services.pshuman import mends, worker
from tests.upstream import absent

SOURCE = Path(os.environ["POLYPOD_UPSTREAM"]).resolve()
STEPS, CARVING, RESOLUTION = 2, 20, 128
absent.stand_in("torchvision", "pytorch3d", "kaolin", "nvdiffrast", "torch_scatter", "pymeshlab")
absent.stand_in("mediapipe", "numba", "rembg", "dash", "vedo")


# --- what has no build without a GPU --------------------------------------------------------------


def to_pil_image(picture: Any) -> Image.Image:
    """torchvision's, of a tensor (3, height, width) of 0 to 1."""
    return Image.fromarray(picture.mul(255).byte().permute(1, 2, 0).numpy())


def to_tensor(picture: Image.Image) -> Any:
    """torchvision's, back again."""
    pixels = np.array(picture).reshape(picture.height, picture.width, -1)
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div(255)


class Compose:
    def __init__(self, steps: Any) -> None:
        self.steps = steps

    def __call__(self, value: Any) -> Any:
        for step in self.steps:
            value = step(value)
        return value


class Resize:
    """torchvision's, of square pictures and tensors."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Image.Image):
            return value.resize((self.size, self.size), Image.Resampling.BILINEAR)
        size, smooth = (self.size, self.size), {"mode": "bilinear", "antialias": True}
        return torch.nn.functional.interpolate(value[None], size, **smooth)[0]


class Normalize:
    def __init__(self, mean: Any, std: Any) -> None:
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    def __call__(self, value: Any) -> Any:
        return (value - self.mean) / self.std


def softmax_attention(query: Any, key: Any, value: Any, attn_bias: Any = None) -> Any:
    """xformers', of tensors (batch times heads, tokens, channels)."""
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=attn_bias)


def rasterize(_: Any, places: Any, faces: Any, resolution: Any, **__: Any) -> tuple[Any, None]:
    """nvdiffrast's: (views, height, width, 4) of two weights, depth, and the triangle from 1 on.

    The least depth is nearest; row 0 is where y is -1.
    """
    import open3d

    height, width = resolution
    rows, columns = (2 * (np.arange(n) + 0.5) / n - 1 for n in (height, width))
    rays = np.zeros((height, width, 6), np.float32)
    rays[..., 0], rays[..., 1], rays[..., 2], rays[..., 5] = columns, rows[:, None], -10, 1
    made = []
    for view in places.detach().numpy().astype(np.float32):
        scene = open3d.t.geometry.RaycastingScene()
        scene.add_triangles(np.ascontiguousarray(view[:, :3]), faces.numpy().astype(np.uint32))
        hits = scene.cast_rays(open3d.core.Tensor(rays))
        depth, uv = hits["t_hit"].numpy(), hits["primitive_uvs"].numpy()
        seen = np.isfinite(depth)
        triangle = np.where(seen, hits["primitive_ids"].numpy().astype(np.float64) + 1, 0)
        first = np.where(seen, 1 - uv.sum(-1), 0)
        parts = (first, np.where(seen, uv[..., 0], 0), np.where(seen, depth - 10, 0), triangle)
        made.append(np.stack(parts, -1))
    return torch.from_numpy(np.stack(made)).float(), None


def interpolate(values: Any, drawn: Any, faces: Any) -> tuple[Any, None]:
    triangle = drawn[..., 3].long()
    corners = values[faces.long()[(triangle - 1).clamp(min=0)]]
    first, second = drawn[..., 0:1], drawn[..., 1:2]
    weights = torch.cat((first, second, 1 - first - second), -1)
    return (corners * weights[..., None]).sum(-2) * (triangle > 0)[..., None], None


def scatter_mean(src: Any, index: Any, dim: int, out: Any) -> None:
    wide = index.expand_as(src)
    out.scatter_reduce_(dim, wide, src, "mean", include_self=False)


def scatter_max(src: Any, index: Any, dim: int, out: Any) -> None:
    out.scatter_reduce_(dim, index, src.expand_as(index), "amax")


vars(importlib.import_module("torchvision.transforms.functional")).update(
    to_pil_image=to_pil_image, to_tensor=to_tensor
)
vars(importlib.import_module("torchvision.transforms")).update(
    Compose=Compose, Resize=Resize, Normalize=Normalize, ToTensor=lambda: to_tensor
)
vars(importlib.import_module("nvdiffrast.torch")).update(
    rasterize=rasterize, interpolate=interpolate, antialias=lambda colors, *drawn: colors
)
vars(importlib.import_module("torch_scatter")).update(
    scatter_mean=scatter_mean, scatter_max=scatter_max
)


class OlderScheduler(torch.optim.lr_scheduler.ReduceLROnPlateau):
    """With the argument that torch 2.1 still takes."""

    def __init__(self, *args: Any, verbose: Any = None, **options: Any) -> None:
        super().__init__(*args, **options)


torch.optim.lr_scheduler.ReduceLROnPlateau = OlderScheduler


class Job:
    """As the harness gives it, as far as the stages ask."""

    def __init__(self, folder: Path, inputs: dict[str, Path], **params: Any) -> None:
        self.inputs, self.outputs, self.params = inputs, folder / "made", Params(params)
        self.outputs.mkdir(parents=True)
        self.said: list[str] = []

    def progress(self, fraction: float, message: str = "", until: float | None = None) -> None:
        self.said.append(message)

    def count(self, function: Any, *told: Any) -> Any:
        return function

    def scratch(self) -> Path:
        folder = self.outputs.parent / "scratch"
        folder.mkdir(exist_ok=True)
        return folder


class Params(dict[str, Any]):
    __getattr__ = dict.__getitem__


# --- a checkout with a body model of the same form, made up ---------------------------------------

BALL = trimesh.creation.icosphere(3)
JOINTS = 55


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout, by links, with `smpl_related` beside."""
    home = tmp_path_factory.mktemp("home")
    made = home / "src" / "PSHuman"
    made.mkdir(parents=True)
    for path in SOURCE.iterdir():
        if path.name != "smpl_related":
            (made / path.name).symlink_to(path)
    write_bundle(made / "smpl_related")
    before = Path.cwd()
    sys.path.insert(0, str(made))
    yield home
    os.chdir(before)


def write_bundle(folder: Path) -> None:
    corners = np.asarray(BALL.vertices, np.float32) * (0.25, 0.9, 0.25)
    count, faces = len(corners), np.asarray(BALL.faces, np.uint32)
    pixie, data, models = (folder / n for n in ("HPS/pixie_data", "smpl_data", "models/smplx"))
    for each in (pixie, data, models):
        each.mkdir(parents=True)
    rng = np.random.default_rng(0)
    shapes = np.zeros((count, 3, 400), np.float32)
    shapes[..., :10] = rng.normal(0, 0.01, (count, 3, 10))
    regressor = np.full((JOINTS, count), 1 / count, np.float32)
    tree = np.array([[0, *[0] * (JOINTS - 1)], range(JOINTS)])
    weights = np.zeros((count, JOINTS), np.float32)
    weights[:, 0] = 1
    np.savez(
        pixie / "SMPLX_NEUTRAL_2020.npz",
        f=faces,
        v_template=corners,
        shapedirs=shapes,
        posedirs=np.zeros((count, 3, 9 * (JOINTS - 1)), np.float32),
        J_regressor=regressor,
        kintree_table=tree,
        weights=weights,
        lmk_faces_idx=np.zeros(51, np.int64),
        lmk_bary_coords=np.full((51, 3), 1 / 3),
        dynamic_lmk_faces_idx=np.zeros((79, 17), np.int64),
        dynamic_lmk_bary_coords=np.full((79, 17, 3), 1 / 3),
    )
    (pixie / "pixie_model.tar").touch()
    (pixie / "smplx_extra_joints.yaml").write_text("toe: {face: 0, bc: [1, 0, 0]}\n")
    (pixie / "SMPLX_to_J14.pkl").write_bytes(pickle.dumps(regressor[:14]))
    np.savez(models / "SMPLX_NEUTRAL.npz", f=faces)
    ids = np.arange(20)
    for name in ("smpl", "smplx"):
        np.save(data / f"{name}_verts.npy", corners)
        np.save(data / f"{name}_faces.npy", faces.astype(np.int64))
    np.save(data / "eyeball_fid.npy", ids)
    np.save(data / "fill_mouth_fid.npy", faces[:3])
    np.save(data / "FLAME_SMPLX_vertex_ids.npy", ids)
    np.save(data / "FLAME_face_mask_ids.npy", ids[:5])
    np.save(data / "smplx_vertex_lmkid.npy", np.zeros(count, np.int64))
    hands = {"left_hand": ids, "right_hand": ids + 20}
    (data / "MANO_SMPLX_vertex_ids.pkl").write_bytes(pickle.dumps(hands))
    (data / "smplx_to_smpl.pkl").write_bytes(pickle.dumps({"bc": 1}))
    parts = dict.fromkeys(
        ("rightHand", "rightHandIndex1", "leftHand", "leftHandIndex1"), ids.tolist()
    )
    (folder / "smpl_vert_segmentation.json").write_text(json.dumps(parts))


# --- views ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def views(root: Path) -> Any:
    """What `load` leaves: upstream's pipeline of small networks, saved and read as a folder."""
    attention = importlib.import_module("mvdiffusion.models_unclip.attn_processors")
    attention.xformers = SimpleNamespace(
        ops=SimpleNamespace(memory_efficient_attention=softmax_attention)
    )
    save_pipeline(root / "weights" / "pshuman", root)
    settings = {"src": root / "src", "weights": root / "weights", "device": "cpu"}
    state = worker.load("views", settings)
    assert Path.cwd() == root / "src" / "PSHuman"
    state.pipe.to(torch.float32)  # half precision is for GPUs
    return state


def save_pipeline(folder: Path, home: Path) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
        StableUnCLIPImageNormalizer,
    )
    from mvdiffusion.models_unclip.unet_mv2d_condition import UNetMV2DConditionModel
    from mvdiffusion.pipelines.pipeline_mvdiffusion_unclip import StableUnCLIPImg2ImgPipeline

    torch.manual_seed(0)
    words = home / "words"
    words.mkdir()
    (words / "vocab.json").write_text('{"<|startoftext|>": 0, "<|endoftext|>": 1}')
    (words / "merges.txt").write_text("#version: 0.2\n")
    clip = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=37, projection_dim=16, num_hidden_layers=1,
        num_attention_heads=4, image_size=28, patch_size=14,
    )  # fmt: skip
    text = transformers.CLIPTextConfig(
        hidden_size=32, intermediate_size=37, num_hidden_layers=1, num_attention_heads=4,
        vocab_size=2,
    )  # fmt: skip
    unet = UNetMV2DConditionModel(
        sample_size=12, in_channels=8, out_channels=4, block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlockMV2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlockMV2D"),
        cross_attention_dim=1024, attention_head_dim=8, norm_num_groups=8, layers_per_block=1,
        class_embed_type="projection", projection_class_embeddings_input_dim=32,
        num_views=7, sparse_mv_attention=True, selfattn_block="self_rowwise", mvcd_attention=True,
    )  # fmt: skip
    blocks = 7  # 768 pixels are 12 of the latent
    vae = AutoencoderKL(
        block_out_channels=(8,) * blocks, norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
    )  # fmt: skip
    StableUnCLIPImg2ImgPipeline(
        feature_extractor=transformers.CLIPImageProcessor(crop_size=28, size={"shortest_edge": 28}),
        image_encoder=transformers.CLIPVisionModelWithProjection(clip),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=16),
        image_noising_scheduler=DDPMScheduler(),
        tokenizer=transformers.CLIPTokenizer(str(words / "vocab.json"), str(words / "merges.txt")),
        text_encoder=transformers.CLIPTextModel(text),
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False),
        vae=vae,
    ).save_pretrained(str(folder))


def person(folder: Path) -> Path:
    """A dark figure with a light head, cut out: 100 x 240 in 200 x 300."""
    picture = Image.new("RGBA", (200, 300), (255, 255, 255, 0))
    picture.paste((60, 40, 30, 255), (50, 30, 150, 270))
    picture.paste((250, 200, 180, 255), (80, 30, 120, 80))
    picture.save(folder / "input.png")
    return folder / "input.png"


def draw(state: Any, folder: Path, **given: Any) -> dict[str, np.ndarray]:
    usual = {"crop_size": 740, "bg_color": "white", "seed": 600, "guidance_scale": 3.0, "eta": 1.0}
    params = {**usual, "num_inference_steps": STEPS, **given}
    folder.mkdir()
    job = Job(folder, {"input.png": person(folder)}, **params)
    worker.views(state, job)
    return {path.stem: np.asarray(Image.open(path)) for path in job.outputs.iterdir()}


@pytest.fixture(scope="module")
def drawn(views: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return draw(views, tmp_path_factory.mktemp("drawn") / "first")


def test_views_through_upstreams_pipeline(views: Any, drawn: Any, tmp_path: Path) -> None:
    sides = (*worker.SIDES, "face")
    assert set(drawn) == {f"{kind}_{side}" for kind in ("color", "normal") for side in sides}
    assert all(picture.shape == (768, 768, 3) for picture in drawn.values())
    again = draw(views, tmp_path / "again")
    assert all(np.array_equal(drawn[name], again[name]) for name in drawn), "the same seed"
    other = draw(views, tmp_path / "other", seed=42)
    assert not np.array_equal(drawn["color_back"], other["color_back"])
    unguided = draw(views, tmp_path / "unguided", guidance_scale=1.0)
    assert not np.array_equal(drawn["color_back"], unguided["color_back"])


def test_the_front_is_the_picture_as_upstream_frames_it(drawn: Any) -> None:
    dark = (drawn["color_front"] < 128).all(-1)
    rows = np.flatnonzero((drawn["color_front"] < 254).any((1, 2)))
    assert (rows[0], len(rows)) == (14, 740), "crop_size, centred"
    assert dark[400, 384] and drawn["color_front"][60, 384].tolist()[0] > 240, "the head is on top"


def test_the_result_is_that_of_inference_py(views: Any, drawn: Any, tmp_path: Path) -> None:
    """Its loop over views (inference.py:144-166), with its own functions, beside our stage."""
    batch = views.Dataset(
        **{**views.options, "root_dir": str(person(tmp_path).parent), "crop_size": 740}
    )[0]
    prompts = (batch["normal_prompt_embeddings"], batch["color_prompt_embeddings"])
    views.set_seed(600)
    frames = torch.cat([batch["imgs_in"]] * 2)
    made = views.pipe(
        frames, None, prompt_embeds=torch.cat(prompts), dino_feature=None, smpl_in=None,
        generator=torch.Generator().manual_seed(600), guidance_scale=3.0, output_type="pt",
        num_images_per_prompt=1, num_inference_steps=STEPS, eta=1.0,
    ).images  # fmt: skip
    for number, side in enumerate(worker.SIDES):
        normal, color = made[number], made[7 + number] if number else frames[0]
        if number in (3, 4):
            normal, color = torch.flip(normal, dims=[2]), torch.flip(color, dims=[2])
        if number == 0:
            face = torch.nn.functional.interpolate(
                made[6][None], size=(256, 256), mode="bilinear", align_corners=False
            )
            normal[:, :256, 256:512] = face[0]
        for kind, tensor in (("normal", normal), ("color", color)):
            levels = tensor.mul(255).add_(0.5).clamp_(0, 255).permute(1, 2, 0).to(torch.uint8)
            assert np.array_equal(drawn[f"{kind}_{side}"], levels.numpy()), (kind, side)


def test_without_the_call_for_xformers_the_views_differ(
    views: Any, drawn: Any, tmp_path: Path
) -> None:
    """And nothing fails: why the worker makes it when it loads."""
    processors = views.pipe.unet.attn_processors
    assert {type(one).__name__ for one in processors.values()} >= {"XFormersMVAttnProcessor"}
    views.pipe.unet.set_default_attn_processor()
    try:
        apart = draw(views, tmp_path / "apart")
    finally:
        views.pipe.unet.set_attn_processor(dict(processors))
    assert not np.array_equal(apart["color_back"], drawn["color_back"])


def test_pictures_decoded_one_by_one_are_the_same(views: Any, drawn: Any, tmp_path: Path) -> None:
    views.pipe.disable_vae_slicing()
    try:
        together = draw(views, tmp_path / "together")
    finally:
        views.pipe.enable_vae_slicing()
    apart = [np.abs(together[name].astype(int) - drawn[name]).max() for name in drawn]
    assert max(apart) <= 1


# --- body -----------------------------------------------------------------------------------------


class Detector:
    """Mask R-CNN's answer: one box, of a person (1) or of something else."""

    def __init__(self, label: int) -> None:
        self.label = label

    def eval(self) -> None:
        pass

    def __call__(self, images: Any) -> Any:
        (picture,) = images
        assert picture.shape == (3, 1024, 1024)
        box = torch.tensor([[300.0, 40.0, 720.0, 980.0]])
        return [{"labels": torch.tensor([self.label]), "scores": torch.tensor([0.9]), "boxes": box}]


@pytest.fixture
def imutils(root: Path) -> Any:
    os.chdir(root / "src" / "PSHuman")
    module = importlib.import_module("lib.pymaf.utils.imutils")
    before = dict(vars(module))
    yield module
    vars(module).update(before)


def test_the_estimate_does_not_read_the_cut_out(imutils: Any, tmp_path: Path) -> None:
    """So `estimate_only` can leave it out: PIXIE sees the same pixels."""
    given = (str(person(tmp_path)), "pixie", 512, "cpu")
    seen: list[bytes] = []
    imutils.detection = SimpleNamespace(maskrcnn_resnet50_fpn=lambda pretrained: Detector(1))
    imutils.remove = lambda png: seen.append(png) or black_png()
    _, cut, *_ = imutils.process_image(*given)
    mends.estimate_only(imutils, Detector(1))
    _, whole, *_ = imutils.process_image(*given)
    assert len(seen) == 1 and cut.shape == (1, 3, 224, 224)
    assert torch.equal(cut, whole) and whole.std() > 0.1


def black_png() -> bytes:
    data = io.BytesIO()
    Image.new("RGBA", (512, 512)).save(data, "png")
    return data.getvalue()


def test_nobody_in_the_picture_is_the_error_that_is_declared(imutils: Any, tmp_path: Path) -> None:
    mends.estimate_only(imutils, Detector(18))
    with pytest.raises(IndexError, match="index 2 is out of bounds for axis 0 with size 0"):
        imutils.process_image(str(person(tmp_path)), "pixie", 512, "cpu")


# --- mesh -----------------------------------------------------------------------------------------

SHAPE = BALL.copy()
SHAPE.apply_scale((0.25 / 0.45, 2, 0.25 / 0.45))  # as the body is when the carving begins
RED, BLUE = (200, 20, 20), (20, 20, 200)


@pytest.fixture(scope="module")
def carved(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the mesh stage makes of the maps of a known shape: red where x < 0, else blue."""
    settings = {"src": root / "src", "weights": root / "weights", "device": "cpu"}
    state = worker.load("mesh", settings)
    assert "mvdiffusion.pipelines" not in vars(state)
    state.reconstruct.ReMesh.proj_texture = halves
    folder = tmp_path_factory.mktemp("carved")
    inputs = {"maps.png": write_maps(folder), "pose.npz": write_pose(folder)}
    job = Job(
        folder / "job", inputs, iters=CARVING, resolution=RESOLUTION, replace_hand=False,
        with_video=True,
    )  # fmt: skip
    worker.mesh(state, job)
    assert [s for s in job.said if s] == ["Fitting the body", "Carving the surface"]
    return job.outputs


def halves(carver: Any, images: Any, vertices: Any, faces: Any) -> Any:
    """In place of pytorch3d's projection of the views."""
    assert len(images) == 6 and images[0].shape == (4, RESOLUTION, RESOLUTION)
    colors = torch.tensor([RED, BLUE])[(vertices[:, 0] >= 0).long()] / 255
    return SimpleNamespace(
        verts_packed=lambda: vertices,
        faces_packed=lambda: faces,
        textures=SimpleNamespace(verts_features_packed=lambda: colors),
    )


def normals_of(shape: Any, side: int) -> np.ndarray:
    """The six maps of normals of a shape, RGBA of 0 to 1, by upstream's cameras and renderer."""
    from core.remesh import calc_vertex_normals
    from utils.func import make_sparse_camera
    from utils.render import NormalsRenderer

    views = [0, 1, 2, 4, 6, 7]
    cameras = make_sparse_camera("mvdiffusion/data/six_human_pose", 4, views=views, device="cpu")
    corners = torch.tensor(np.asarray(shape.vertices), dtype=torch.float32)
    faces = torch.tensor(np.asarray(shape.faces))
    normals = calc_vertex_normals(corners, faces)
    renderer = NormalsRenderer(*cameras, [side, side], device="cpu")
    return renderer.render(corners, faces, normals=normals).numpy()


def write_maps(folder: Path) -> Path:
    sheet = np.zeros((2 * 768, 6 * 768, 4), np.uint8)
    for number, view in enumerate(normals_of(SHAPE, 768)):
        left = number * 768
        sheet[768:, left : left + 768] = (view * 255).round().astype(np.uint8)
        sheet[:768, left : left + 768] = (*RED, 255)
    Image.fromarray(sheet).save(folder / "maps.png")
    return folder / "maps.png"


def write_pose(folder: Path) -> Path:
    straight, eye = np.array([1, 0, 0, 1, 0, 0], np.float32), np.eye(3, dtype=np.float32)
    np.savez(
        folder / "pose.npz",
        global_orient=np.tile(straight, (1, 1, 1)),
        body_pose=np.tile(straight, (1, 21, 1)),
        left_hand_pose=np.tile(eye, (1, 15, 1, 1)),
        right_hand_pose=np.tile(eye, (1, 15, 1, 1)),
        jaw_pose=np.tile(eye, (1, 1, 1, 1)),
        betas=np.zeros((1, 200), np.float32),
        exp=np.zeros((1, 50), np.float32),
        trans=np.zeros((1, 3), np.float32),
        hands=np.array([[False, False]]),
    )
    return folder / "pose.npz"


def test_the_surface_is_remeshed_where_it_was(carved: Path) -> None:
    """Not how well it fits: the stand-in for nvdiffrast gives outlines no gradient."""
    made = trimesh.load(carved / "remeshed.obj", force="mesh", process=False)
    assert len(made.faces) > 2 * len(BALL.faces)
    assert np.abs(made.bounds - SHAPE.bounds).max() < 0.4


def test_it_is_closed_with_few_processors(carved: Path) -> None:
    """Poisson of Open3D itself, which upstream asks for six threads."""
    made = trimesh.load(carved / "mesh.obj", force="mesh", process=False)
    assert made.is_watertight and made.body_count == 1
    assert np.abs(made.bounds).max() < 2.2 and np.ptp(made.bounds, axis=0).argmax() == 1
    colors = np.asarray(made.visual.vertex_colors)[:, :3]
    right = made.vertices[:, 0] > 0.1
    assert np.abs(colors[right].astype(int) - BLUE).max() <= 1


def test_the_turntable_is_not_mirrored(carved: Path) -> None:
    """It begins in front: what has x above 0 is right there, as in the picture."""
    import imageio.v3

    frames = imageio.v3.imread(carved / "turntable.mp4", plugin="FFMPEG")
    assert frames.shape[1:] == (512, 1024, 3) and len(frames) >= 60
    front, back = frames[0].astype(int), frames[30].astype(int)
    assert near(front[256, 200], RED) and near(front[256, 312], BLUE)
    assert near(back[256, 200], BLUE) and near(back[256, 312], RED)
    normals = front[:, 512:]
    assert normals[256, 312, 0] > normals[256, 200, 0] + 50, "normals to the right are redder"


def near(pixel: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool(np.abs(pixel - color).max() < 60)


def test_upstreams_cameras_of_the_turntable_are_reflections(root: Path) -> None:
    """Why its frames are turned round; when this fails, `write_unmirrored` can go."""
    from utils.func import make_round_views

    cameras, _ = make_round_views(60, 4, device="cpu")
    assert torch.allclose(torch.linalg.det(cameras[:, :3, :3]), torch.tensor(-1.0))
    frame = np.arange(2 * 8 * 3).reshape(2, 8, 3)
    assert np.array_equal(mends.unmirrored(mends.unmirrored(frame)), frame)
