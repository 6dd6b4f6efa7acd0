"""What the stand-ins of PSHuman answer: results of the right form, small where they may be.

A view is told by its colour, and its left half is darker, so that a test sees which way round it
is.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open3d
import standin
import torch
import trimesh
import yaml
from PIL import Image
from tqdm import tqdm

SIDE, VIEWS = 768, 7
BUNDLE = Path("smpl_related")
DARKER = 0.5


class Network:
    """The UNet: without its own attention the views would not see each other."""

    device = "cuda:0"

    def __init__(self) -> None:
        self.views_see_each_other = False

    def enable_xformers_memory_efficient_attention(self) -> None:
        standin.note("enable_xformers", {})
        self.views_see_each_other = True


class DiffusionPipeline:
    @classmethod
    def from_pretrained(cls, folder: str, torch_dtype: Any = None) -> Any:
        standin.note("from_pretrained", {"folder": folder, "half": torch_dtype is torch.float16})
        if not Path(folder).is_dir():
            raise ValueError(
                "unet/mvdiffusion.models_unclip.unet_mv2d_condition.py as defined in "
                "`model_index.json` does not exist"
            )
        made = cls.__new__(cls)
        made.unet, made.where = Network(), "cpu"
        return made

    def to(self, where: str) -> Any:
        self.where = where
        return self


def at_home() -> None:
    assert Path("configs").is_dir(), f"{Path.cwd()} is not upstream's checkout"


def load_config(given: SimpleNamespace) -> Any:
    from omegaconf import OmegaConf

    at_home()
    assert not given.cli_args
    return OmegaConf.create(yaml.safe_load(Path(given.yaml_files[0]).read_text()))


def read_pictures(given: SimpleNamespace) -> None:
    at_home()
    assert (given.num_views, given.img_wh) == (VIEWS, [SIDE, SIDE])
    (picture,) = Path(given.root_dir).iterdir()
    assert picture.suffix == ".png", picture
    opened = Image.open(picture)
    assert opened.mode == "RGBA", "upstream takes channel 3 for the alpha"
    given.self.name, given.self.bg_color = picture.name, given.bg_color


def first_picture(given: SimpleNamespace) -> dict[str, Any]:
    """The frame is grey all over, and the face black."""
    frames = np.full((VIEWS, 3, SIDE, SIDE), 0.25, np.float32)
    frames[-1] = 0
    prompts = torch.from_numpy(np.zeros((VIEWS, 77, 1024), np.float16))
    return {
        "imgs_in": torch.from_numpy(frames),
        "normal_prompt_embeddings": prompts,
        "color_prompt_embeddings": prompts,
        "filename": given.self.name.replace(".png", ""),
    }


def draw_views(given: SimpleNamespace) -> Any:
    """Seed 13: the memory is full."""
    assert given.self.unet.views_see_each_other and given.self.where == "cuda:0"
    assert given.image.shape == (2 * VIEWS, 3, SIDE, SIDE)
    assert given.prompt is None and given.prompt_embeds.shape == (2 * VIEWS, 77, 1024)
    assert given.dino_feature is None and given.smpl_in is None and given.output_type == "pt"
    assert str(given.generator.device).startswith("cuda")
    if given.generator.seed == 13:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7.88 GiB.")
    for _ in tqdm(range(given.num_inference_steps)):
        pass
    images = np.empty((2 * VIEWS, 3, SIDE, SIDE), np.float32)
    images[:] = ((np.arange(2 * VIEWS) + 1) / 20)[:, None, None, None]
    images[..., : SIDE // 2] *= DARKER
    return SimpleNamespace(images=torch.Tensor(images, "cuda"))


def read_bundle() -> None:
    at_home()
    for name in ("smpl_data/smplx_to_smpl.pkl", "models/smplx/SMPLX_NEUTRAL.npz"):
        if not (BUNDLE / name).is_file():
            raise FileNotFoundError(f"[Errno 2] No such file or directory: '{BUNDLE / name}'")


def load_body(given: SimpleNamespace) -> None:
    read_bundle()
    wanted = {"seg_dir": None, "colab": False, "has_det": True, "hps_type": "pixie"}
    assert {name: given.cfg[name] for name in wanted} == wanted
    assert Path(given.cfg["image_dir"]).is_dir() and given.device == "cuda:0"
    given.self.detector, given.self.subject_list = object(), []
    given.self.faces = np.zeros((4, 3), np.uint32)


def estimate(given: SimpleNamespace) -> dict[str, Any]:
    """A picture whose top row is red shows nobody."""
    econdataset, imutils = sys.modules["econdataset"], sys.modules["lib.pymaf.utils.imutils"]
    path = given.self.subject_list[given.index]
    assert path.endswith(".png") and "." not in Path(path).name[:-4]
    assert imutils.detection.maskrcnn_resnet50_fpn(pretrained=True) is given.self.detector
    assert imutils.remove(b"png") == b"png"
    if Image.open(path).convert("RGB").getpixel((0, 0)) == (255, 0, 0):
        raise IndexError("index 2 is out of bounds for axis 0 with size 0")
    seen = econdataset.econ_process_image(path, "pixie", True, 512, given.self.detector)
    shapes = {
        "global_orient": (1, 1, 6),
        "body_pose": (1, 21, 6),
        "left_hand_pose": (1, 15, 3, 3),
        "right_hand_pose": (1, 15, 3, 3),
        "jaw_pose": (1, 1, 3, 3),
        "betas": (1, 200),
        "exp": (1, 50),
        "trans": (1, 3),
    }
    pose = {n: torch.Tensor(np.ones(s, np.float32), "cuda") for n, s in shapes.items()}
    return {**pose, "name": "case", "hands_visibility": seen["hands_visibility"]}


def body_model(given: SimpleNamespace) -> None:
    given.self.to = lambda where: given.self


def make_carver(given: SimpleNamespace) -> None:
    at_home()
    needed = ("gpu_id", "num_view", "cam_path", "scale", "debug", "snapshot_step")
    assert all(hasattr(given.opt, name) for name in needed)
    assert given.econ_dataset.faces.astype(np.int64).shape[1] == 3
    assert given.econ_dataset.smpl_model is not None
    assert "mvdiffusion.pipelines.pipeline_mvdiffusion_unclip" not in sys.modules
    given.self.opt, given.self.out_path = given.opt, given.opt.res_path
    standin.note("recon_opt", vars(given.opt))


def carve(given: SimpleNamespace) -> None:
    """Writes what upstream writes: an orange ball."""
    reconstruct, opt = sys.modules["reconstruct"], given.self.opt
    for pictures in (given.clr_img, given.nrm_img):
        assert len(pictures) == 6
        assert all(p.mode == "RGBA" and p.size == (SIDE, SIDE) for p in pictures)
    assert given.pose["body_pose"].shape == (1, 21, 6) and given.pose["trans"].shape == (1, 3)
    assert all(given.pose[name].device.type == "cuda" for name in ("betas", "exp", "jaw_pose"))
    standin.note("hands", {"seen": given.pose["hands_visibility"]})
    folder = Path(given.self.out_path, given.case)
    folder.mkdir(parents=True, exist_ok=True)
    for steps in (100, opt.iters):
        for _ in reconstruct.tqdm(range(steps)):
            pass
    ball = trimesh.creation.icosphere(2)
    ball.export(folder / f"{given.case}_remeshed.obj")
    reconstruct.SMPLX()
    reconstruct.poisson(ball, str(folder / f"{given.case}_final.obj"), 10, False)
    ball.visual.vertex_colors = np.tile([255, 128, 0, 255], (len(ball.vertices), 1))
    result = f"{folder}/result_clr_scale{opt.scale}_{given.case}"
    ball.export(f"./{result}.obj")  # as upstream says it: an absolute path is not found
    given.self.evaluate(1, 2, 3, save_path=f"{result}.mp4", save_nrm=True)


def turn(given: SimpleNamespace) -> None:
    """One frame with four pixels of colour and four of normals in each row."""
    row = np.array([0, 200, 50, 250], np.uint8)
    frame = np.tile(row[None, :, None], (2, 2, 3))
    sys.modules["reconstruct"].write_video([frame], fps=25, save_path=given.save_path)


def write_video(given: SimpleNamespace) -> None:
    standin.note("frame", {"row": given.vclip[0][0, :, 0].tolist()})
    Path(given.save_path).write_bytes(b"mp4")


BASES = {"DiffusionPipeline": DiffusionPipeline}
ANSWERS = {
    "load_config": load_config,
    "SingleImageDataset.__init__": read_pictures,
    "SingleImageDataset.__getitem__": first_picture,
    "StableUnCLIPImg2ImgPipeline.enable_vae_slicing": lambda given: None,
    "StableUnCLIPImg2ImgPipeline.__call__": draw_views,
    "SMPLDataset.__init__": load_body,
    "SMPLDataset.__getitem__": estimate,
    "econ_process_image": lambda given: {"hands_visibility": [[True, False]]},
    "SMPLX.__init__": body_model,
    "ReMesh.__init__": make_carver,
    "ReMesh.optimize_case": carve,
    "ReMesh.evaluate": turn,
    "poisson": lambda given: open3d.geometry.TriangleMesh.create_from_point_cloud_poisson(
        given.mesh, depth=given.depth, n_threads=6
    ),
    "write_video": write_video,
}
