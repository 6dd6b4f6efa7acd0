"""What the stand-ins of IDOL answer: results of the right form, and small.

The person is a ball of 80 triangles with a Gaussian on each; moving the body moves all of it.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import trimesh

BALL = trimesh.creation.icosphere(1, radius=0.5)
MIDDLES = BALL.triangles_center.astype(np.float32)[None]  # (1, 80, 3)
BODY = "decoder.deformer.body_model."
SMPLX = Path("lib/models/deformers/smplx/SMPLX/SMPLX_NEUTRAL.pkl")
HAND_MEAN = np.full((1, 90), 0.25)


class Module:
    """As much of a torch module as workers touch; upstream's arrays are on its device."""

    on = "cpu"

    def to(self, device: str) -> Module:
        self.on = device.partition(":")[0]
        for part in vars(self).values():
            if isinstance(part, Module):
                part.to(device)
        return self

    def eval(self) -> Module:
        return self

    def tensor(self, array: Any) -> Any:
        return torch.tensor(np.asarray(array, np.float32), device=self.on)


class Block:
    """A block of the neck, with torch's hooks."""

    def __init__(self) -> None:
        self.hooks: list[Any] = []

    def register_forward_hook(self, hook: Any) -> Any:
        self.hooks.append(hook)
        return SimpleNamespace(remove=lambda: self.hooks.remove(hook))

    def __call__(self) -> None:
        for hook in list(self.hooks):
            hook(self, (), None)


def instantiate(given: SimpleNamespace) -> Any:
    util = import_module("lib.utils.train_util")
    return util.get_obj_from_str(given.config["target"])(**given.config["params"])


def object_of(given: SimpleNamespace) -> Any:
    module, _, name = given.string.rpartition(".")
    return getattr(import_module(module), name)


def make_model(given: SimpleNamespace) -> None:
    model, build = given.self, import_module("lib.utils.train_util").instantiate_from_config
    assert given.lambda_lpips == 0, "VGG would be downloaded"
    model.decoder, model.encoder = build(given.decoder), build(given.encoder)
    model.neck = build(given.neck)
    json.loads(Path("./work_dirs/demo_data/Ways_to_Catch_360_clip1.json").read_text())
    model.state_dict = lambda: state_dict(model)
    model.load_state_dict = lambda kept, strict=True: load_state_dict(model, kept, strict)


def state_dict(model: Any) -> dict[str, Any]:
    names = ("v_template", "shapedirs", "posedirs", "lbs_weights")
    body = {BODY + name: model.decoder.deformer.template for name in names}
    return body | {name: torch.tensor([0.0]) for name in ("encoder.x", "neck.x", "decoder.x")}


def load_state_dict(model: Any, kept: dict[str, Any], strict: bool) -> Any:
    assert not strict, "the checkpoint has lpips.* too"
    own = state_dict(model)
    return [n for n in own if n not in kept], [n for n in kept if n not in own]


def make_encoder(given: SimpleNamespace) -> None:
    assert Path(given.model_path).is_file(), f"The provided filename {given.model_path}"


def make_neck(given: SimpleNamespace) -> None:
    given.self.decoder_blocks_depart = [Block() for _ in range(given.decoder_depth)]


def make_decoder(given: SimpleNamespace) -> None:
    decoder = given.self
    assert given.is_sub2 and given.fix_sigma
    assert SMPLX.exists(), f"Path {SMPLX} does not exist!"
    template = np.full((4, 3), 0.0 if "v1.1" in SMPLX.read_text() else 0.5, np.float32)
    faces = torch.tensor(BALL.faces.astype(np.int64)[None])
    decoder.deformer = SimpleNamespace(template=torch.tensor(template), init_faces=faces)
    decoder.renderer = SimpleNamespace(image_size=list(given.image_size))
    type(decoder).init_rot = property(lambda own: own.tensor(np.tile(np.eye(3), (80, 1, 1))))


def default_pose(given: SimpleNamespace) -> Any:
    pose = np.zeros((1, 189), np.float32)
    pose[0, [0, 9, 54, 57]] = 1, 0.1047, -0.7854, 0.7854
    pose[0, 80:170] = -HAND_MEAN
    return torch.tensor(pose)


def to_uv(given: SimpleNamespace) -> Any:
    image = given.inputs_img
    assert "run_demo" not in sys.modules, "it moves every process to GPU 0"
    assert given.is_training is False and image.shape == (1, 3, 896, 640)
    assert str(image.device) == "cuda" and image.dtype == np.float32
    assert image.array.min() >= 0 and image.array.max() == 1
    for block in given.self.neck.decoder_blocks_depart:
        block()
    return torch.tensor(np.zeros((1, 32, 16, 16), np.float32), device="cuda")


def decode(given: SimpleNamespace) -> dict[str, Any]:
    assert given.point_code.shape == (1, 32, 16, 16), "decoded once, for one copy"
    counts = {"output": 13, "sigma": 1, "offset": 3, "rgbs": 3, "radius": 3, "rot": 3}
    return {
        name: torch.tensor(np.full((1, count, 16, 16), 0.5, np.float32), device="cuda")
        for name, count in counts.items()
    }


def sample(given: SimpleNamespace) -> tuple[Any, ...]:
    """Red above, green below; hands (the first ten) far off, as untamed offsets are."""
    colours = np.where(MIDDLES[..., 1:2] > 0, [1.0, 0, 0], [0, 1.0, 0]).astype(np.float32)
    offset = np.zeros((1, 80, 3), np.float32)
    offset[:, :10, 0] = 0.05
    arrays = np.ones((1, 80, 1)), colours, np.full((1, 80, 3), -0.5), np.zeros((1, 80, 3)), offset
    return tuple(torch.tensor(array.astype(np.float32), device="cuda") for array in arrays)


def deform(given: SimpleNamespace) -> tuple[Any, ...]:
    sigma, rgbs, radius, rot, offset = given.code
    pose = given.smpl_params
    assert pose.shape == (1, 189) and sigma.shape == (1, 80, 1), "batches of one"
    assert {str(part.device) for part in (*given.code, pose)} == {"cuda"}
    assert given.zeros_hands_off
    offset.array[:, :10] = offset.array[:, :10].clip(-given.value, given.value)  # in place
    moved = np.tile(np.eye(4, dtype=np.float32), (1, 80, 1, 1))
    moved[..., 0, 1] = 0.5  # a shear, as blended bones have it
    xyz = (MIDDLES + offset.array) * (1 + pose.array[0, 70]) + pose.array[0, 1:4]
    print(f"pose {pose.array[0, [4, 5, 6, 7, 54, 80, 125]].astype(float).round(3).tolist()}")
    place = torch.tensor(xyz[:, :, None].astype(np.float32), device="cuda")
    return place, sigma, rgbs, offset, radius, torch.tensor(moved, device="cuda"), rot


def rotations(given: SimpleNamespace) -> Any:
    assert given.rot_vecs.shape == (80, 3)
    return torch.tensor(np.tile(np.eye(3, dtype=np.float32), (80, 1, 1)), device="cuda")


def render(given: SimpleNamespace) -> Any:
    """A grey picture, brighter in one corner than a byte can be."""
    assert given.num_scenes == given.num_imgs == 1 and given.use_scale and not given.return_viz
    assert given.cameras.shape == (1, 20) and str(given.cameras.device) == "cuda"
    assert given.pcd.shape == given.rgbs.shape == given.radius.shape == (80, 3)
    assert given.rot.shape == (80, 3, 3) and given.sigmas.shape == (80, 1)
    width, height = given.self.renderer.image_size
    image = np.full((1, 1, height, width, 3), 0.5, np.float32)
    image[..., :8, :8, :] = 1.2
    return torch.tensor(image, device="cuda"), None, None, given.radius


def cameras(given: SimpleNamespace) -> Any:
    assert (given.resolution_x, given.resolution_y) == (896, 640), "the height is its x"
    return np.diag([12000.0, 12000.0, 1.0]), [np.eye(4)] * len(range(0, given.num_views))


def camera_vectors(given: SimpleNamespace) -> Any:
    vector = np.concatenate([[12000, 12000, 448, 320], np.eye(4).reshape(-1)]).astype(np.float32)
    return torch.tensor(np.tile(vector, (len(given.cam_list), 1)), device=given.device)


def turned(given: SimpleNamespace) -> Any:
    assert given.smpl_tmp.shape == (189,) and given.device == "cpu"
    frames = np.tile(given.smpl_tmp.array, (given.frames_num, 1))
    frames[:, 5] = np.radians(360 // given.frames_num * np.arange(given.frames_num))
    return torch.tensor(frames)


BASES = {"pl.LightningModule": Module, "nn.Module": Module}
ANSWERS = {
    "instantiate_from_config": instantiate,
    "get_obj_from_str": object_of,
    "SapiensGS_SA_v1.__init__": make_model,
    "SapiensGS_SA_v1.get_default_smplx_params": default_pose,
    "SapiensGS_SA_v1.forward_image_to_uv": to_uv,
    "SapiensWrapper_ts.__init__": make_encoder,
    "neck_SA_v3_skip.__init__": make_neck,
    "UVNDecoder_gender.__init__": make_decoder,
    "UVNDecoder_gender._decode_feature": decode,
    "UVNDecoder_gender._sample_feature": sample,
    "UVNDecoder_gender.deform_pcd": deform,
    "UVNDecoder_gender.gaussian_render": render,
    "batch_rodrigues": rotations,
    "prepare_camera": cameras,
    "construct_camera": camera_vectors,
    "add_root_rotate_to_smplx": turned,
    "get_hand_pose_mean": lambda given: HAND_MEAN,
}
