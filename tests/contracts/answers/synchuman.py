"""What the stand-ins of SyncHuman answer: results of the right form, and small."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import standin
import torch
import trimesh
from PIL import Image
from tqdm import tqdm
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

SIDE = 16  # 768 in upstream
PROMPTS = "SyncHuman/data/fixed_prompt_embeds_7view/normal_embeds.pt"
NO_SHAPE, NAN, NO_MESH = 13, 14, 15  # seeds that fail as upstream does
ALL_VISIBLE, NOTHING_CUT = 0.01, 0.02  # values of fill_holes_max_size, as if the mesh were so


def load_dino() -> Any:
    """As both pipelines ask for it."""
    found = torch.hub.load("facebookresearch/dinov2", "dinov2_vitl14_reg", pretrained=True)
    assert found == (os.environ["SYNCHUMAN_DINO"], "dinov2_vitl14_reg", {"pretrained": True})
    return found


# --- stage 1 --------------------------------------------------------------------------------------


def load_one(given: SimpleNamespace) -> Any:
    assert Path(given.load_directory, "pipeline_config.json").is_file()
    assert Path(PROMPTS).is_file(), "upstream opens its prompts from the working directory"
    assert os.environ["ATTN_BACKEND"] == os.environ["SPARSE_ATTN_BACKEND"] == "xformers"
    load_dino()
    pipe = given.cls.__new__(given.cls)
    on = set[str]()
    pipe.on, pipe.prompt_embeddings = on, torch.tensor(np.zeros((10, 7, 8)), device="cuda")
    pipe.SyncHuman_2D3DCrossSpaceDiffusion = SimpleNamespace(
        enable_xformers_memory_efficient_attention=lambda: on.add("xformers")
    )
    pipe.vae = SimpleNamespace(enable_slicing=lambda: on.add("slicing"))
    return pipe


def run_one(given: SimpleNamespace) -> None:
    """As upstream's `run`: calls `run_model` with these arguments, and writes its files."""
    assert given.self.on == {"xformers", "slicing"}
    torch.manual_seed(given.seed)
    picture = Image.open(given.image_path)
    assert picture.mode == "RGBA", "IndexError: index 3 is out of bounds"
    if given.seed == NAN:
        print("NAN in sample, stop training.")
        raise SystemExit
    given.self.run_model(
        torch.tensor(np.zeros((10, 3, SIDE, SIDE)), device="cuda"),
        picture,
        None,
        prompt_embeds=given.self.prompt_embeddings,
        guidance_scale=given.guidance_scale,
        output_type="pt",
        num_images_per_prompt=1,
    )
    folder = Path(given.save_path)
    picture.save(folder / "input.png")
    shade = picture.convert("L").getpixel((picture.width // 2, picture.height // 2)) % 90
    for number in range(5):
        view(number, 200, shade).save(folder / f"color_{number}.png")
        view(number, 100, shade).save(folder / f"normal_{number}.png")
    Image.new("RGB", (10 * SIDE, SIDE)).save(folder / "concat.png")
    cells = np.argwhere(np.ones((3, 6, 2)))
    coords = np.concatenate([np.zeros((len(cells), 1)), cells], axis=1).astype(np.float32)
    np.savez(folder / "latent.npz", coords=coords[: 0 if given.seed == NO_SHAPE else None])
    if given.seed != NO_SHAPE:
        (folder / "voxel.ply").write_text("ply\nformat ascii 1.0\nend_header\n")


def view(number: int, bright: int, shade: int) -> Image.Image:
    """As upstream keeps it: the bright half on the left, mirrored in 2 and 3."""
    picture = Image.new("RGB", (SIDE, SIDE), (shade, 10, 10 + number))
    left = SIDE // 2 if number in (2, 3) else 0
    picture.paste((bright,) * 3, (left, 0, left + SIDE // 2, SIDE))
    return picture


def run_model(given: SimpleNamespace) -> Any:
    if given.guidance_scale == 1.0:
        raise UnboundLocalError(
            "local variable 'trellis_latent_input' referenced before assignment"
        )
    for _ in tqdm(range(given.num_inference_steps), desc="Sampling", disable=not given.verbose):
        pass


# --- stage 2 --------------------------------------------------------------------------------------


def load_two(given: SimpleNamespace) -> Any:
    """Any failure of a model's is taken for a repository's name, as upstream does it."""
    load = import_module("SyncHuman.models.SecondStage").from_pretrained
    two = import_module("SyncHuman.pipelines.SyncHumanTwoStage").SyncHumanTwoStagePipeline
    for model in json.loads(Path(given.path, "pipeline.json").read_text())["args"][
        "models"
    ].values():
        try:
            load(f"{given.path}/{model}")
        except Exception:
            load(model)
    pipe = two.__new__(two)
    pipe.models = {
        "slat_decoder_gs": decoder("gs", "SLatGaussianDecoder"),
        "slat_decoder_mesh": decoder("mesh", "SLatMeshDecoder"),
        "image_cond_model": [load_dino(), load_dino()][1],
    }
    pipe.slat_sampler_params = {"steps": 25, "cfg_strength": 5.0}
    pipe.seed = None
    return pipe


def load_model(given: SimpleNamespace) -> None:
    if os.environ.get("STANDIN_NO_PACKAGE"):
        if Path(given.path).is_absolute():
            raise ModuleNotFoundError("No module named 'spconv'")
        raise ValueError("Repo id must be in the form 'namespace/repo_name'")


def decoder(kind: str, name: str) -> Any:
    folder = "SyncHuman.models.SecondStage.structured_latent_vae"
    made = getattr(import_module(f"{folder}.decoder_{kind}"), name)()
    return made.forward


def read_views(given: SimpleNamespace) -> dict[str, Any]:
    """As upstream: four views and the face, each of colours and of normals."""

    def read(kind: str, number: int) -> np.ndarray:
        pixels = np.asarray(Image.open(Path(given.root, f"{kind}_{number}.png")))
        bright = pixels[:, : SIDE // 2] if number in (0, 1, 4) else pixels[:, SIDE // 2 :]
        assert bright.min() >= 100, f"{kind}_{number}.png is not as upstream keeps it"
        return pixels.transpose(2, 0, 1).astype(np.float32) / 255

    four = {k: np.stack([read(k, n) for n in range(4)]) for k in ("color", "normal")}
    return {
        "mv_img": torch.tensor(four["color"]),
        "mv_normal": torch.tensor(four["normal"]),
        "faces_img": read("color", 4),
        "faces_normal": read("normal", 4),
    }


def prepare(given: SimpleNamespace) -> Image.Image:
    picture = Image.open(given.root)
    assert picture.mode == "RGBA" and picture.getchannel("A").getextrema()[0] < 255, "NameError"
    return picture.convert("RGB")


def condition(given: SimpleNamespace) -> dict[str, Any]:
    assert isinstance(given.image, list)
    return {name: torch.tensor(np.ones((1, 4)), device="cuda") for name in ("cond", "neg_cond")}


def sample(given: SimpleNamespace) -> Any:
    """Numbers from the generator that was seeded."""
    assert str(given.coords.device) == "cuda" and given.coords.shape[1] == 4
    params = {**given.self.slat_sampler_params, **given.sampler_params}
    for _ in tqdm(range(params["steps"]), desc="Sampling"):
        pass
    tensor = import_module("SyncHuman.modules.sparse.basic").SparseTensor
    return tensor(feats=torch.draw(len(given.coords), 8), coords=given.coords)


def sparse_tensor(self: Any, feats: Any, coords: Any) -> None:
    """Upstream's takes anything and sorts it out; these two are what it needs."""
    assert {str(feats.device), str(coords.device)} == {"cuda"}
    assert feats.shape[0] == coords.shape[0] and coords.dtype is np.int32
    self.feats, self.coords = feats, coords


def condition_views(given: SimpleNamespace) -> Any:
    assert given.cond.shape == (1, 4, 3, SIDE, SIDE) and str(given.cond.device) == "cuda"
    return given.cond


def decode_mesh(given: SimpleNamespace) -> list[Any]:
    result = import_module("SyncHuman.representations.mesh.cube2mesh")
    assert result.CHECK_TENSOR(SimpleNamespace(dim=lambda: 2, shape=(5, 3)), (None, 3), throw=False)
    assert not result.CHECK_TENSOR(SimpleNamespace(dim=lambda: 1, shape=(5,)), (4,), throw=False)
    ball = trimesh.creation.icosphere(2)
    faces = ball.faces.astype(np.int64)
    if float(given.x.feats.cpu().numpy()[0, 0]) == first_drawn(NO_MESH):
        faces = faces[:0]
    colours = np.full((len(ball.vertices), 6), 0.5, np.float32)
    return [
        result.MeshExtractResult(
            torch.tensor(ball.vertices.astype(np.float32) / 2, device="cuda"),
            torch.tensor(faces, device="cuda"),
            torch.tensor(colours, device="cuda"),
        )
    ]


def first_drawn(seed: int) -> float:
    return float(np.random.default_rng(seed).random((1, 8)).astype(np.float32)[0, 0])


def fill_holes(given: SimpleNamespace) -> Any:
    verts, faces = given.verts, given.faces
    if given.max_hole_size == ALL_VISIBLE:
        return verts, faces
    if given.max_hole_size != NOTHING_CUT:
        mask = np.ones(3)
    return verts, faces, mask.sum()


def to_glb(given: SimpleNamespace) -> trimesh.Trimesh:
    """As upstream's: three values of each closing of holes, bars, y up, no metallic factor."""
    post = import_module("SyncHuman.utils.postprocessing_utils")
    vertices, faces = given.mesh.vertices.cpu().numpy(), given.mesh.faces.cpu().numpy()
    assert given.app_rep == "Gaussians"
    assert given.mv_img.shape == given.mv_normal.shape == (4, 3, SIDE, SIDE)
    assert given.faces_img.shape == given.faces_normal.shape == (3, SIDE, SIDE)
    if given.fill_holes:
        for _ in tqdm(range(10), desc="Rasterizing", disable=not given.verbose):
            pass
        vertices, faces, removed = post._fill_holes(
            vertices, faces, max_hole_size=given.fill_holes_max_size, verbose=given.verbose
        )
        print("num_removed:", removed)
    for _ in tqdm(range(1000), desc="Texture baking (opt): optimizing", disable=not given.verbose):
        pass
    noise = np.random.randint(0, 255, (given.texture_size // 64,) * 2 + (3,)).astype(np.uint8)
    material = PBRMaterial(roughnessFactor=1.0, baseColorTexture=Image.fromarray(noise))
    uv = (vertices[:, :2] + 0.5).clip(0, 1)
    vertices = vertices @ np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]])
    return trimesh.Trimesh(vertices, faces, visual=TextureVisuals(uv=uv, material=material))


ANSWERS = {
    "SyncHumanOneStagePipeline.from_pretrained": load_one,
    "SyncHumanOneStagePipeline.run": run_one,
    "SyncHumanOneStagePipeline.run_model": run_model,
    "SyncHumanTwoStagePipeline.from_pretrained": load_two,
    "SyncHumanTwoStagePipeline.cuda": lambda given: standin.note("on_gpu", {}),
    "from_pretrained": load_model,
    "SyncHumanTwoStagePipeline._get_mv_generate": read_views,
    "SyncHumanTwoStagePipeline._get_coords_gen": lambda given: torch.tensor(
        np.load(Path(given.root, "latent.npz"))["coords"], np.int32
    ),
    "SyncHumanTwoStagePipeline.preprocess_image": prepare,
    "SyncHumanTwoStagePipeline.get_cond": condition,
    "SyncHumanTwoStagePipeline.sample_slat": sample,
    "SyncHumanTwoStagePipeline.get_cond_mv": condition_views,
    "SLatGaussianDecoder.forward": lambda given: ["Gaussians"],
    "SLatMeshDecoder.forward": decode_mesh,
    "SparseTensor.__init__": sparse_tensor,
    "_fill_holes": fill_holes,
    "to_glb": to_glb,
}
