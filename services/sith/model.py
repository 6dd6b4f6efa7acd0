"""sith: ETH Zurich's SiTH, one person of a photograph as a mesh with colours."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from polypod import kit
from polypod.image import Checkout, Compiled, Hub, Licensed, Url, Wheels
from polypod.model import (
    Case,
    Fault,
    Image,
    Input,
    Licence,
    Model,
    Needs,
    Stage,
    Weights,
)

COMMIT = "6401549120a4a6246b5cb4a10d8c3e1b2d9e8c7d"
MOST_VIEWS = 8


class SithParams(kit.PersonParams):
    """What the stages can be told; upstream's own names where it has one."""

    framed: bool = Field(
        False,
        description="The picture is the canvas already: 1024 x 1024 with transparency, as "
        "upstream's tools/centralize_rgba.py makes it.",
    )
    ratio: float = Field(
        0.85,
        ge=0.6,
        le=0.95,
        description="The person's height as a part of the canvas, which stands for 2 metres; "
        "0.80 to 0.90 suits adults.",
    )
    keypoint_confidence: float = Field(
        0.3, ge=0, le=0.9, description="Detected keypoints that are less sure are left out."
    )
    opt_orient: bool = Field(True, description="Fit: optimise the body's orientation.")
    opt_betas: bool = Field(True, description="Fit: optimise the body's shape.")
    opt_pose: bool = Field(
        False,
        description="Fit: also optimise head, shoulders, elbows and wrists. Helps where the arms "
        "are wrong, and may bend them oddly.",
    )
    fit_iterations: int = Field(
        200, ge=10, le=1000, description="Steps of the fit; time is linear in them."
    )
    back_model: Literal["SiTH_diffusion", "SiTH-diffusion-2000", "SiTH-diffusion-1K"] = Field(
        "SiTH_diffusion",
        description="Weights of the back view: 526 scans at 512 pixels (the paper's), over 2000 "
        "scans at 512 (upstream's demo), over 4000 at 1024 (the newest; more memory and time).",
    )
    back_views: int = Field(
        8,
        ge=1,
        le=MOST_VIEWS,
        description="Candidates of the back view, of which `back_view` is used; time is linear.",
    )
    back_views_at_once: int = Field(
        8,
        ge=1,
        le=MOST_VIEWS,
        description="Candidates that are computed together: fewer take less memory and more time; "
        "the pictures are the same but for rounding.",
    )
    back_view: int = Field(
        0,
        ge=0,
        lt=MOST_VIEWS,
        description="The candidate (from 0) that the person is reconstructed with. Look at "
        "back_0.png and on, then continue with another: only the reconstruction runs again.",
    )
    num_inference_steps: int = Field(
        50, ge=2, le=150, description="Steps of the back view; time is linear in them."
    )
    guidance_scale: float = Field(
        3.5,
        ge=0,
        le=10,
        description="How closely the back view follows the front; at 1 and below guidance is off, "
        "which halves work and memory.",
    )
    conditioning_scale: float = Field(
        1.0, ge=0.1, le=2, description="How closely the back view follows body and outline."
    )
    seed: int | None = Field(
        2434,
        ge=0,
        lt=2**32,
        description="Seed of the first back view; candidate n has seed + n. null draws one at "
        "submit. Nothing else is random.",
    )
    grid_size: int = Field(
        512,
        ge=64,
        le=512,
        description="Cells along each side of the grid that the surface is read from; time and "
        "memory grow with its cube.",
    )
    erode_iter: int = Field(
        0,
        ge=0,
        le=20,
        description="Shrink the outline by 2 pixels so many times: raise it where the border of "
        "the cut-out shows in the colours.",
    )
    subdivide: bool = Field(
        True, description="Split each triangle into four before it is coloured: finer colours."
    )
    chunk_size: int = Field(
        100_000,
        ge=10_000,
        le=1_000_000,
        description="Points that the reconstruction looks at together: fewer take less memory.",
    )
    with_texture: bool = Field(
        False,
        description="Unwrap the mesh into a texture of 1024 x 1024 in place of colours at its "
        "vertices. Takes over 10 minutes; upstream lowers grid_size to 300 for it.",
    )

    @field_validator("back_view")
    @classmethod
    def _one_that_is_made(cls, value: int, info: ValidationInfo) -> int:
        if value >= info.data.get("back_views", MOST_VIEWS):
            raise ValueError(f"back_views is {info.data['back_views']}, and the first of them is 0")
        return value


IMAGE = Image(
    python="3.10",
    base="nvidia/cuda:12.1.1-devel-ubuntu22.04",
    packages=("libglib2.0-0", "libgomp1"),
    wheels=(
        Wheels(
            "https://nvidia-kaolin.s3.us-east-2.amazonaws.com/torch-2.1.0_cu121.html",
            ("kaolin==0.15.0",),
            find_links=True,
        ),
    ),
    checkouts=(
        Checkout(
            "https://github.com/SiTH-Diffusion/SiTH",
            COMMIT,
            patterns=(
                *("/fit.py", "/fitting/", "/diffusion/", "/recon/", "/LICENSE"),
                *("/tools/centralize_rgba.py", "/data/smplx_*"),
            ),
        ),
        Checkout(
            "https://github.com/Tau-J/rtmlib",
            "2f36e3b62d73ed27a0b492a0d0fee1bba5fe3ace",
            patterns=("rtmlib", "LICENSE"),
        ),
    ),
    compiled=(
        Compiled(
            "nvdiffrast",  # upstream names no revision; its older ones compile in the job
            "https://github.com/NVlabs/nvdiffrast",
            "253ac4fcea7de5f396371124af597e6cc957bfae",
        ),
        Compiled(
            "tinyobjloader",  # its tag v2.0.0rc8
            "https://github.com/tinyobjloader/tinyobjloader",
            "94d2f7fe1f7742818dbcd0917d11679d055a33de",
            folder="python",
        ),
    ),
    env={
        "PYTHONPATH": "{src}/SiTH:{src}/rtmlib",
        "SITH_PATH": "{src}/SiTH",
        "SITH_WEIGHTS": "{weights}",
        "TRANSFORMERS_OFFLINE": "1",
    },
    imports=(
        *("torch", "torchvision", "nvdiffrast.torch", "kaolin", "diffusers", "transformers"),
        *("accelerate", "smplx", "timm", "tinyobjloader", "trimesh", "cv2", "xatlas"),
        *("onnxruntime", "rtmlib", "fitting.models.smpler_x_model", "diffusion.lib.pipeline"),
    ),
)

WEIGHTS = Weights(
    hub=(
        Hub("hohs/SiTH_diffusion"),  # revision known by its beginning alone: 33f91da
        Hub("hohs/SiTH-diffusion-2000"),  # f11ec5e
        Hub("hohs/SiTH-diffusion-1K"),  # 11a023a
        Hub(
            "yzd-v/DWPose",
            "f7c16a3d45ad3783db41471848c80fbc281cabac",
            patterns=("dw-ll_ucoco_384.onnx",),
            to="dwpose",
            sha256={
                "dw-ll_ucoco_384.onnx": "724f4ff2439ed61afb86fb8a1951ec39"
                "c6220682803b4a8bd4f598cd913b1843"
            },
        ),
    ),
    urls=(
        Url(
            "https://files.ait.ethz.ch/projects/SiTH/recon_model.pth",
            to="checkpoints/recon_model.pth",
        ),
        Url(
            "https://files.ait.ethz.ch/projects/SiTH/save_smplerx.pth",
            to="checkpoints/save_smplerx.pth",
        ),
        kit.U2NET,
    ),
    licensed=(
        Licensed(
            "smplx/SMPLX_MALE.npz",
            "SMPL-X, for research: register at https://smpl-x.is.tue.mpg.de, accept its licence, "
            "download the models (NPZ+PKL, v1.0 or v1.1) and put models/smplx/SMPLX_MALE.npz into "
            "the folder `smplx` of the one that you name.",
            to="body_models/smplx/SMPLX_MALE.npz",
        ),
    ),
)

DOCTOR = "`polypod doctor` says what; `polypod setup sith` or a new image brings it."
FAULTS = (
    Fault(
        r"SMPLX_MALE",
        "The body model SMPL-X is missing, which its licence forbids to pass on.",
        "Register at https://smpl-x.is.tue.mpg.de, download SMPLX_MALE.npz and build the image "
        "with `--licensed FOLDER`.",
        code="weights_missing",
    ),
    Fault(
        r"has no attribute 'torch'|Cannot compile nvdiffrast|_nvdiffrast_c|kaolin\._C"
        r"|No module named|undefined symbol|No such file or directory.*(smplx_|config\.yaml)"
        r"|smplx_watertight\.pkl is not there",
        "A package, a compiled extension or a file of upstream's code is missing.",
        DOCTOR,
        code="not_installed",
    ),
    Fault(
        r"is not there\.|does not appear to have a file|no file named|LocalEntryNotFound"
        r"|couldn't connect|Max retries exceeded|PytorchStreamReader|NO_SUCHFILE",
        "Weights are missing, and a job may not fetch them.",
        DOCTOR,
        code="weights_missing",
    ),
    Fault(
        r"NoneType' object has no attribute|index 0 is out of bounds for dimension 0 with size 0"
        r"|tuple index out of range|zero-size array",
        "The reconstruction came out empty.",
        "Look at fit.png and the back views: try another back_view, `keypoints` of your own, or "
        "another picture.",
        code="no_surface",
    ),
)

BACK_VIEWS = tuple(f"back_{number}.png" for number in range(MOST_VIEWS))
TEXTURE = "mesh.png"
NORMALS = ("normal_front.png", "normal_back.png")

MODEL = Model(
    name="sith",
    title="SiTH",
    summary="One standing person of a photograph as a mesh with colours: a body model is fitted, "
    "the back is imagined by a diffusion model, and the clothed surface is read from both sides.",
    folder=Path(__file__).parent,
    params=SithParams,
    inputs={
        "image": Input(
            required=True,
            description="One person from the front, from head to feet; or a PNG whose transparent "
            "part is the background.",
            rules=(
                *kit.PERSON_RULES,
                "Arms apart from the body, open hands, nothing held: crossed arms and fists come "
                "out wrong, loose things are left out. Not made for children.",
            ),
        ),
        "mask": Input(
            description="A picture of the same shape, white (or opaque) where the person is."
        ),
        "keypoints": Input(
            kind="json",
            description="OpenPose's JSON (BODY_25, hands, face) in pixels of the picture that is "
            "sent; it takes the place of the detector.",
            rules=(
                "Hands and face may be missing. Of several people the surest is taken.",
                "Both shoulders and hips are there, and the points lie on the person.",
            ),
        ),
    },
    stages=(
        kit.cutout(person=True, output="cutout.png"),
        Stage(
            "frame",
            inputs=("image", "cutout.png"),
            outputs=("input.png", "frame.json"),
            params=("framed", "ratio"),
            assets=("input.png",),
            slot="cpu",
            share=0.5,
            limit_s=120,
        ),
        Stage(
            "keypoints",
            inputs=("input.png", "frame.json", "keypoints"),
            outputs=("keypoints.json", "keypoints.png"),
            params=("keypoint_confidence",),
            assets=("keypoints.json", "keypoints.png"),
            slot="cpu",
            share=1,
            limit_s=300,
        ),
        Stage(
            "fit",
            inputs=("input.png", "keypoints.json"),
            outputs=("smplx.obj", "smplx.json", "fit.png"),
            params=("opt_orient", "opt_betas", "opt_pose", "fit_iterations"),
            assets=("smplx.obj", "smplx.json", "fit.png"),
            worker="fit",
            share=6,
            lighter="No parameter makes this stage smaller.",
        ),
        Stage(
            "back",
            inputs=("input.png", "smplx.obj"),
            outputs=(*BACK_VIEWS, "uv.png"),
            optional=BACK_VIEWS[1:],
            params=(
                "back_model",
                "back_views",
                "back_views_at_once",
                "num_inference_steps",
                "guidance_scale",
                "conditioning_scale",
                "seed",
            ),
            assets=(*BACK_VIEWS, "uv.png"),
            worker="back",
            share=10,
            limit_s=1800,
            lighter="Lower back_views_at_once, or use back_model SiTH_diffusion (preset high).",
        ),
        Stage(
            "reconstruct",
            inputs=("input.png", "smplx.obj", *BACK_VIEWS),
            outputs=("mesh.obj", TEXTURE, *NORMALS),
            optional=(TEXTURE,),
            params=(
                "back_view",
                "grid_size",
                "erode_iter",
                "subdivide",
                "chunk_size",
                "with_texture",
            ),
            assets=NORMALS,
            worker="reconstruct",
            share=10,
            limit_s=3600,
            lighter="Lower grid_size (preset balanced has 400) or chunk_size, or subdivide false.",
        ),
        kit.export("mesh.obj", texture=TEXTURE, share=2),
    ),
    formats=("glb",),
    presets={
        "draft": {
            "back_views": 1,
            "num_inference_steps": 25,
            "grid_size": 256,
            "subdivide": False,
        },
        "balanced": {"back_views": 2, "grid_size": 400},
        "high": {},
        "ultra": {"back_model": "SiTH-diffusion-1K", "back_views_at_once": 1},
    },
    default_preset="high",
    licence=Licence(
        code="MIT; needed parts do not allow commercial use (parts)",
        weights="CC BY-NC 4.0 (SiTH-diffusion-1K: MIT; recon_model and save_smplerx: not stated)",
        commercial=False,
        url=f"https://github.com/SiTH-Diffusion/SiTH/blob/{COMMIT}/LICENSE",
        note="SMPL-X may not be passed on: an image that holds it stays private.",
        parts={
            "SMPL-X and the package smplx": "Max Planck: non-commercial research; not passed on",
            "fitting/ (SMPLer-X)": "S-Lab License 1.0: non-commercial",
            "fitting/utils/": "OpenPose: academic or non-profit research, non-commercial",
            "recon/models/ops, networks/{layers,mlps}.py": "NVIDIA, all rights reserved (headers)",
            "nvdiffrast": "NVIDIA Source Code License: research or evaluation, non-commercial",
            "kaolin": "Apache-2.0; also imports its non-commercial part",
            "DWPose, rtmlib": "Apache-2.0",
            "u2net (background remover)": "Apache-2.0",
        },
    ),
    needs=Needs(
        vram_gb={"fit": 8, "back": 20, "reconstruct": 20},
        cases=(
            Case(
                when={
                    "back_model": "SiTH-diffusion-1K",
                    "back_views": {"min": 3},
                    "back_views_at_once": {"min": 3},
                },
                vram_gb={"back": 40},
                source="an estimate: upstream only says to lower the number of pictures at 1024",
            ),
        ),
        architectures=("8.0", "8.6", "8.9", "9.0"),
        cuda="12.1",
        driver="525.60.13",
        cpu_cores=4,
        memory_gb=24,
        disk_gb=70,
        source="estimates; nothing was measured here",
        sources={
            "vram_gb": "estimates from the sizes of weights and tensors, below the 24 GB of the "
            "RTX 3090 on which upstream runs each step; nothing was measured here",
        },
    ),
    upstream=f"SiTH-Diffusion/SiTH@{COMMIT}",
    image=IMAGE,
    weights=WEIGHTS,
    notes={
        "model.glb": "glTF axes: +Y up, facing +Z; within -1 to 1, about 1 unit a metre (the "
        "canvas is 2 high, whatever the person's true height); colours at vertices, sRGB in the "
        "prediction and linear in the file",
        "smplx.obj": "the fitted SMPL-X body, same axes and units as model.glb",
        "smplx.json": "its parameters (axis-angle in radians, 10 shape and 10 expression "
        "coefficients, male), transl and scale: vertices are (body + transl) * scale, one step of "
        "the fit later than smplx.obj; overlap is that of body and outline (their intersection "
        "over their union)",
        "keypoints.json": "OpenPose's JSON in pixels of input.png",
        "normal_front.png": "predicted normals as colours, (n + 1) / 2, seen from the front",
        "normal_back.png": "the same seen from behind; x is that of the front's camera",
    },
    faults=FAULTS,
)
