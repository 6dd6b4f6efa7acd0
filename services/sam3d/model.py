"""sam3d: Meta's SAM 3D Objects, one object of a photograph as textured mesh or Gaussian splat."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from polypod import kit
from polypod.image import Checkout, Compiled, Hub, Url, Wheels
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


class Sam3dParams(kit.CutoutParams):
    """What the stages can be told; upstream's own names where it has one."""

    stage1_inference_steps: int = Field(
        25, ge=1, le=200, description="Sampling steps of the sparse structure; time is linear."
    )
    stage2_inference_steps: int = Field(
        25, ge=1, le=200, description="Sampling steps of the structured latent; time is linear."
    )
    use_stage1_distillation: bool = Field(
        False,
        description="Sample the structure with the shortcut model, without guidance: meant for 2 "
        "to 4 steps. The number of steps is not lowered by itself.",
    )
    use_stage2_distillation: bool = Field(
        False, description="Sample the latent without guidance: half the work in half of the steps."
    )
    ss_cfg_strength: float | None = Field(
        None, ge=0, le=20, description="Guidance of the structure; null: upstream's (7)."
    )
    ss_rescale_t: float | None = Field(
        None,
        gt=0,
        le=10,
        description="Spends more of the structure's steps on its beginning; null: upstream's (3).",
    )
    slat_cfg_strength: float | None = Field(
        None, ge=0, le=20, description="Guidance of the latent; null: that of the weights."
    )
    slat_rescale_t: float | None = Field(
        None, gt=0, le=10, description="The same for the latent; null: that of the weights."
    )
    with_texture: bool = Field(
        True,
        description="GLB: bake a texture from the Gaussians. false keeps the decoded mesh as it is "
        "with a colour per vertex; the parameters of the bake have no effect then.",
    )
    with_splat: bool = Field(
        False, description="Beside a GLB also write the Gaussians as model.ply, from the same run."
    )
    with_mesh_postprocess: bool = Field(
        True, description="Textured GLB: simplify and close holes before the bake, which it speeds."
    )
    simplify: float = Field(
        0.95,
        ge=0,
        lt=1,
        description="Textured GLB: the share of triangles that is REMOVED; 0 keeps all (slow: "
        "unwrapping takes minutes above about 150 000).",
    )
    fill_holes: bool = Field(True, description="Textured GLB: remove hidden faces, close holes.")
    fill_holes_max_size: float = Field(
        0.04, ge=0, le=1, description="Largest hole to close, as an area (the object is 1 long)."
    )
    texture_size: Literal[256, 512, 1024, 2048, 4096] = Field(
        1024,
        description="Pixels along each side of the texture. nvdiffrast halves it down to 1.",
    )
    nviews: int = Field(
        100, ge=8, le=300, description="Views of the Gaussians from which the texture is baked."
    )
    view_resolution: int = Field(
        1024,
        ge=256,
        le=2048,
        description="Pixels along each side of a view. The bake keeps 37 bytes of GPU memory for "
        "each pixel of each view: 3.9 GB at 100 of 1024, 31 GB at 200 of 2048.",
    )
    rendering_engine: Literal["nvdiffrast", "pytorch3d"] = Field(
        "nvdiffrast", description="Of the bake; pytorch3d leaves the texture pale."
    )


COMMIT = "cf066761706cd02b07e2fc6274570ec8cdafb683"

IMAGE = Image(
    python="3.11",
    base="nvidia/cuda:12.1.1-devel-ubuntu22.04",
    packages=("libgl1", "libglib2.0-0", "libgomp1", "libsm6", "libxext6", "libxrender1"),
    wheels=(
        Wheels(
            "https://download.pytorch.org/whl/cu121",
            ("torch==2.5.1+cu121", "torchvision==0.20.1+cu121", "xformers==0.0.28.post3"),
        ),
        Wheels(
            "https://nvidia-kaolin.s3.us-east-2.amazonaws.com/torch-2.5.1_cu121.html",
            ("kaolin==0.17.0",),
            find_links=True,
        ),
    ),
    checkouts=(
        Checkout(
            "https://github.com/facebookresearch/sam-3d-objects",
            COMMIT,
            patterns=("sam3d_objects", "LICENSE"),
        ),
        Checkout(
            "https://github.com/microsoft/MoGe",
            "a8c37341bc0325ca99b9d57981cc3bb2bd3e255b",
            patterns=("moge", "LICENSE"),
        ),
        Checkout(
            "https://github.com/EasternJournalist/utils3d",
            "3913c65d81e05e47b9f367250cf8c0f7462a0900",
            patterns=("utils3d", "LICENSE"),
        ),
        Checkout(
            "https://github.com/facebookresearch/dinov2",
            "b8931f7bf91576930313be2c6d6af376033b35f0",
            patterns=("dinov2", "hubconf.py", "LICENSE"),
        ),
    ),
    compiled=(
        Compiled(
            "pytorch3d",
            "https://github.com/facebookresearch/pytorch3d",
            "75ebeeaea0908c5527e7b1e305fbc7681382db47",
            env={"FORCE_CUDA": "1"},  # else it asks for a GPU, and builds see none
        ),
        Compiled(
            "gsplat",
            "https://github.com/nerfstudio-project/gsplat",
            "2323de5905d5e90e035f792fe65bad0fedd413e7",
            submodules=("gsplat/cuda/csrc/third_party/glm",),
        ),
        Compiled(
            "nvdiffrast",  # upstream does not name it, and needs it for simplifying and baking
            "https://github.com/NVlabs/nvdiffrast",
            "253ac4fcea7de5f396371124af597e6cc957bfae",
        ),
        Compiled(
            "flash_attn",  # takes the wheel of its release where one fits
            "https://github.com/Dao-AILab/flash-attention",
            "060c9188beec3a8b62b33a3bfa6d5d2d44975fab",
            submodules=("csrc/cutlass",),
            env={"FLASH_ATTENTION_TRITON_AMD_ENABLE": "TRUE"},  # else it clones AMD's kernels
        ),
    ),
    env={
        "PYTHONPATH": "{src}/sam-3d-objects:{src}/MoGe:{src}/utils3d",
        "LIDRA_SKIP_INIT": "true",  # the released code lacks what it would import
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "TORCH_HOME": "{weights}/torch",
        "SAM3D_CHECKPOINTS": "{weights}/sam-3d-objects/checkpoints",
        "SAM3D_MOGE": "{weights}/moge/model.pt",
        "SAM3D_DINO": "{src}/dinov2",
    },
    imports=(
        *("torch", "torchvision", "xformers", "kaolin", "spconv", "pytorch3d", "gsplat"),
        *("nvdiffrast", "flash_attn", "open3d", "lightning", "hydra"),
        *("moge.model.v1", "utils3d"),
    ),
)

WEIGHTS = Weights(
    hub=(
        Hub(
            "facebook/sam-3d-objects",
            "2e73555018d2741ccd486e56c24fac41155a1dc6",
            patterns=(
                "checkpoints/pipeline.yaml",
                *(
                    f"checkpoints/{name}.{kind}"
                    for name in (
                        *("ss_generator", "slat_generator", "ss_decoder"),
                        *("slat_decoder_gs", "slat_decoder_mesh"),
                    )
                    for kind in ("yaml", "ckpt")
                ),
            ),
            gated=True,
        ),
        Hub(
            "Ruicheng/moge-vitl",
            "ad326bfb61facd6c52b5a825bc1e34d7c97d9672",
            patterns=("model.pt",),
            to="moge",
        ),
    ),
    urls=(
        Url(
            "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_reg4_pretrain.pth",
            to="torch/hub/checkpoints/dinov2_vitl14_reg4_pretrain.pth",
            size=1_217_607_321,
        ),
        kit.U2NET,
    ),
)

DOCTOR = "Run `polypod doctor` in the model's image; it names what is missing."
FAULTS = (
    Fault(
        r"No module named 'flash_attn",
        "flash_attn is missing.",
        f"{DOCTOR} ATTN_BACKEND=xformers does without it.",
        code="not_installed",
    ),
    Fault(
        r"GaussianRasterizationSettings",
        "A package that the image holds is missing.",
        DOCTOR,
        code="not_installed",
    ),
    Fault(
        r"No such file or directory.*(pipeline\.yaml|\.ckpt)",
        "Weights are missing.",
        "The weights of SAM 3D Objects are gated: accept their licence at Hugging Face, then build "
        f"the image with HF_TOKEN. {DOCTOR}",
        code="weights_missing",
    ),
    Fault(
        r"Error in call to target '?moge",
        "MoGe's weights are not where the image has them.",
        DOCTOR,
        code="weights_missing",
    ),
    Fault(
        r"gpu_name",  # upstream's way to say it
        "There is no GPU that CUDA can use.",
        f"Start the container with `--gpus all`. {DOCTOR}",
        code="no_gpu",
    ),
    Fault(
        r"Expected reduction dim|BoundingBox",
        "The object's mask is too small for the model.",
        "Send a larger picture of the object, or a better `mask`.",
        code="bad_input",
    ),
)
LIGHTER_BAKE = (
    "Lower nviews, view_resolution (memory of the bake grows with its square) or texture_size, "
    "use preset high instead of ultra, or with_texture false."
)
LIGHTER_DECODE = "Use output_format ply, which does not decode the mesh."
NOT_LIGHTER = "No preset or parameter makes this stage smaller."

MODEL = Model(
    name="sam3d",
    title="SAM 3D Objects",
    summary="One object of a photograph, also a partly hidden one in a full scene, as a textured "
    "mesh or a Gaussian splat, with its pose before the camera.",
    folder=Path(__file__).parent,
    params=Sam3dParams,
    inputs={
        "image": Input(
            required=True,
            description="A photograph with the object in its surroundings, which help; or a PNG "
            "whose transparent part is not the object (its colours are still looked at).",
            rules=(
                "The object covers at least 16 pixels each way; 500 or more look good.",
                "For people there is a model of its own; this one is for things.",
            ),
        ),
        "mask": Input(
            description="A picture of the same shape, white (or opaque) where the object is.",
            rules=("It wins over `mask_mode`; anything brighter than half is the object.",),
        ),
    },
    stages=(
        kit.cutout(keep_background=True),
        Stage(
            "depth",
            inputs=("input.png",),
            outputs=("pointmap.npz",),
            share=2,
            limit_s=300,
            lighter="Send a smaller picture.",
        ),
        Stage(
            "structure",
            inputs=("input.png", "pointmap.npz"),
            outputs=("structure.npz", "pose.json"),
            params=(
                "seed",
                "stage1_inference_steps",
                "use_stage1_distillation",
                "ss_cfg_strength",
                "ss_rescale_t",
            ),
            assets=("pose.json",),
            share=8,
            lighter=NOT_LIGHTER,
        ),
        Stage(
            "latent",
            inputs=("input.png", "structure.npz"),
            outputs=("latent.npz",),
            params=(
                "stage2_inference_steps",
                "use_stage2_distillation",
                "slat_cfg_strength",
                "slat_rescale_t",
            ),
            share=8,
            lighter=NOT_LIGHTER,
        ),
        Stage(
            "decode",
            inputs=("latent.npz",),
            outputs=("model.ply", "mesh.npz"),
            optional=("model.ply", "mesh.npz"),
            params=("output_format", "with_splat"),
            assets=("model.ply",),
            share=2,
            lighter=LIGHTER_DECODE,
        ),
        Stage(
            "bake",
            inputs=("mesh.npz", "latent.npz"),
            outputs=("model.glb",),
            params=(
                "seed",
                "with_texture",
                "with_mesh_postprocess",
                "simplify",
                "fill_holes",
                "fill_holes_max_size",
                "texture_size",
                "nviews",
                "view_resolution",
                "rendering_engine",
            ),
            assets=("model.glb",),
            share=20,
            limit_s=1800,
            lighter=LIGHTER_BAKE,
            when=({"output_format": "glb"},),
        ),
    ),
    formats=("glb", "ply"),
    licence=Licence(
        code="SAM License, 2025-11-19; needed third parties do not allow commercial use (parts)",
        weights="SAM License, 2025-11-19",
        commercial=False,
        url="https://github.com/facebookresearch/sam-3d-objects/blob/main/LICENSE",
        note="The SAM License itself allows commercial use, but no military, nuclear, espionage or "
        "weapons use; pass its text on with the code and weights. The weights are gated: access "
        "is granted by hand, and refused from sanctioned jurisdictions.",
        parts={
            "gaussian_render.py in upstream's code": "Inria: non-commercial",
            "nvdiffrast": "NVIDIA Source Code License: non-commercial",
            "MoGe": "MIT, its DINOv2 part Apache-2.0",
            "DINOv2": "Apache-2.0",
            "u2net (background remover)": "Apache-2.0",
        },
    ),
    needs=Needs(
        vram_gb={"gpu": 32},
        cases=(
            Case(
                when={
                    "output_format": "glb",
                    "with_texture": True,
                    "nviews": {"min": 150},
                    "view_resolution": {"min": 1536},
                },
                vram_gb={"gpu": 64},
                source="computed: 31 GB of views beside the loaded model; the public wrapper says "
                "80 GB cards",
            ),
        ),
        architectures=("8.0", "8.6", "8.9", "9.0"),
        cuda="12.1",
        driver="525.60.13",
        cpu_cores=4,
        memory_gb=32,
        disk_gb=60,
        source="GPU memory: stated by upstream (doc/setup.md); nothing was measured here. Others "
        "report 17.5 GB at the peak with xformers, and that 24 GB cards ran out with sdpa.",
    ),
    presets={
        "draft": {
            "stage1_inference_steps": 4,
            "use_stage1_distillation": True,
            "stage2_inference_steps": 12,
            "with_texture": False,
        },
        "balanced": {"stage1_inference_steps": 4, "use_stage1_distillation": True},
        "high": {},
        "ultra": {
            "stage1_inference_steps": 50,
            "stage2_inference_steps": 50,
            "simplify": 0.3,
            "texture_size": 2048,
            "nviews": 200,
            "view_resolution": 2048,
        },
    },
    default_preset="high",
    upstream=f"facebookresearch/sam-3d-objects@{COMMIT}",
    image=IMAGE,
    weights=WEIGHTS,
    notes={
        "model.glb": "glTF axes: +Y up; canonical frame of the object, not metric, about 1 long",
        "model.ply": "Z up, unlike the GLB, and not rotated; same frame and size otherwise",
        "pose.json": "object (Z up) to camera: scale, rotate, translate; PyTorch3D's camera (x "
        "left, y up, z forward); units of the depth estimate, not metric",
    },
    faults=FAULTS,
)
