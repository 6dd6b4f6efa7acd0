"""hunyuan21: Tencent's Hunyuan3D-2.1, one object of a picture as a mesh with PBR textures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from polypod import kit
from polypod.image import Checkout, Compiled, Hub, Step, Url
from polypod.model import (
    Fault,
    Image,
    Input,
    Licence,
    Model,
    Needs,
    Params,
    Setting,
    Stage,
    Weights,
)

REPO = "tencent/Hunyuan3D-2.1"
REVISION = "0b94677654c57bb9a6b6845cd7b704ccf551d327"  # public projects pin these two
DINOV2 = "611a9d42f2335e0f921f1e313ad3c1b7178d206d"
COMMIT = "5e3ec6def57591d22ff44722cfe9bea1266084b0"
OFF = ("0", "false", "no", "off")


class HunyuanParams(Params):
    """What the stages can be told; upstream's own names where it has one."""

    remove_background: bool = Field(
        True,
        description="Cut the object out. A picture with a transparent part, or with a `mask`, is "
        "cut out already. false takes the whole frame for the object.",
    )
    num_inference_steps: int = Field(
        50, ge=1, le=100, description="Sampling steps of the shape; time is linear in them."
    )
    guidance_scale: float = Field(
        5.0,
        ge=-1,
        le=20,
        description="How closely the shape follows the picture; below 0 guidance is off, which "
        "halves the work.",
    )
    octree_resolution: int = Field(
        384,
        ge=16,
        le=512,
        description="Cells along each side of the grid that the surface is read from; time and "
        "memory of the decoding grow with its cube.",
    )
    num_chunks: int = Field(
        8000,
        ge=1000,
        le=5_000_000,
        description="Points that are decoded at once: more is faster and takes more GPU memory.",
    )
    mc_level: float = Field(
        0.0, ge=-1, le=1, description="The field's value at the surface; 0 is upstream's."
    )
    remove_floaters: bool = Field(
        False, description="Remove loose parts of less than 0.5 % of the faces from the shape."
    )
    with_texture: bool = Field(True, description="Paint the shape: albedo, metallic, roughness.")
    face_count: int = Field(
        40_000, ge=1000, le=100_000, description="Most triangles of the painted mesh."
    )
    max_num_view: int = Field(
        8,
        ge=6,
        le=12,
        description="Most views that are painted: six always, more where they show at least 1 % "
        "more of the surface. Each takes GPU memory and time.",
    )
    view_resolution: Literal[512, 768] = Field(
        768, description="Pixels along each side of a painted view, before it is enlarged 4 times."
    )
    seed: int | None = Field(
        1234,
        ge=0,
        lt=2**32,
        description="Seed of the shape; null draws one at submit. The paint's is fixed upstream.",
    )


class ShapeOnly(HunyuanParams):
    """The same where textures are off."""

    with_texture: bool = Field(False, description="Off on this server (ENABLE_TEXTURE=false).")

    @field_validator("with_texture")
    @classmethod
    def _off(cls, value: bool) -> bool:
        if value:
            raise ValueError("textures are off on this server (ENABLE_TEXTURE=false)")
        return value


def without_texture(model: Model) -> Model:
    """Stages and presets without paint, where ENABLE_TEXTURE says so."""
    if model.setting("enable_texture").lower() not in OFF:
        return model
    return replace(
        model,
        params=ShapeOnly,
        stages=tuple(stage for stage in model.stages if stage.name != "paint"),
        presets={name: PRESETS[name] for name in ("draft", "balanced")},
        default_preset="balanced",
    )


DOCTOR = "`polypod doctor` says what; `polypod setup hunyuan21` or a new image brings it."
FAULTS = (
    Fault(
        r"NoSurface",
        "The model found no surface in this picture.",
        "Try another seed, or a picture that shows one whole object from the front.",
        code="no_surface",
    ),
    Fault(
        r"zero-size array|input image is empty",
        "No object was found in the picture.",
        "Send a picture of one whole object, one with a transparent background, or a `mask`.",
        code="bad_input",
    ),
    Fault(
        r"meshVerticeInpaint|has no attribute 'rasterize'",
        "A compiled extension of the model is missing.",
        DOCTOR,
        code="not_installed",
    ),
    Fault(
        r"No such file or directory.*\.(ckpt|yaml|pth|onnx)|Repo id must",
        "Weights are missing.",
        DOCTOR,
        code="weights_missing",
    ),
)

MAPS = ("albedo.jpg", "metallic.jpg", "roughness.jpg")
SHAPE = {"num_inference_steps": 50, "octree_resolution": 384}
PRESETS = {
    "draft": {"num_inference_steps": 30, "octree_resolution": 256, "with_texture": False},
    "balanced": {**SHAPE, "with_texture": False},
    "high": {**SHAPE, "with_texture": True, "max_num_view": 6, "view_resolution": 512},
    "ultra": {**SHAPE, "with_texture": True, "max_num_view": 8, "view_resolution": 768},
}

MODEL = Model(
    name="hunyuan21",
    title="Hunyuan3D 2.1",
    summary="One object of a picture as a mesh with PBR textures (albedo, metallic, roughness), or "
    "its shape alone.",
    folder=Path(__file__).parent,
    params=HunyuanParams,
    inputs={
        "image": Input(
            required=True,
            description="One whole object, best from the front, or a PNG whose transparent part "
            "is the background.",
            rules=(
                "The object covers at least 16 pixels each way; 512 or more look good.",
                "Floors, rugs and strong perspective in the picture spoil the shape.",
            ),
        ),
        "mask": Input(
            description="A picture of the same shape, white (or opaque) where the object is; it "
            "takes the place of the cut-out."
        ),
        "mesh": Input(
            kind="file",
            description="A GLB to paint, in place of the shape that would be made; Y up, facing "
            "+Z, as the picture shows it.",
        ),
    },
    stages=(
        # upstream's crop takes every pixel above 0 for the object, and the same share of a square
        kit.cutout(square=0.85, params=("remove_background",)),
        Stage(
            "shape",
            inputs=("input.png", "mesh"),
            outputs=("shape.glb",),
            params=(
                "seed",
                "num_inference_steps",
                "guidance_scale",
                "octree_resolution",
                "num_chunks",
                "mc_level",
                "remove_floaters",
            ),
            assets=("shape.glb",),
            slot="geometry",
            share=10,
            limit_s=1200,
            lighter="Use the preset draft, or lower octree_resolution or num_chunks.",
        ),
        kit.views("shape.glb"),
        Stage(
            "paint",
            inputs=("shape.glb", "input.png"),
            outputs=("textured.obj", *MAPS),
            params=("face_count", "max_num_view", "view_resolution"),
            assets=MAPS,
            slot="texture",
            share=12,
            limit_s=1800,
            when=({"with_texture": True},),
            lighter="Use the preset high (six views of 512), or balanced or draft, which do not "
            "paint; or lower max_num_view, view_resolution or face_count.",
        ),
        Stage(
            "export",
            inputs=("shape.glb", "textured.obj", *MAPS),
            outputs=("model.glb",),
            assets=("model.glb",),
            slot="cpu",
            share=1,
            limit_s=120,
        ),
    ),
    formats=("glb",),
    presets=PRESETS,
    default_preset="ultra",
    licence=Licence(
        code="Tencent Hunyuan 3D 2.1 Community License",
        weights="Tencent Hunyuan 3D 2.1 Community License",
        commercial=True,
        regions_excluded=("EU", "UK", "KR"),
        url=f"https://github.com/Tencent-Hunyuan/Hunyuan3D-2.1/blob/{COMMIT}/LICENSE",
        note="Neither the model nor what it makes may be used in the European Union, the United "
        "Kingdom or South Korea. Above a million monthly users a licence of its own is needed. "
        "What it makes may not be used to improve other AI models. Serving it counts as use. An "
        "image that is passed on needs the Notice file of section 3d.",
        parts={
            "DINOv2 giant": "Apache-2.0",
            "Real-ESRGAN": "BSD-3-Clause",
            "rembg, u2net": "MIT, Apache-2.0",
            "pymeshlab": "GPL-3.0; a program of its own in the model environment",
        },
    ),
    needs=Needs(
        vram_gb={"geometry": 10, "texture": 21},
        architectures=("8.0", "8.6", "8.9", "9.0"),
        cuda="12.4",
        cpu_cores=4,
        memory_gb=32,
        disk_gb=80,
        source="claimed by upstream, not measured here",
        sources={
            "vram_gb": "upstream's README: 10 GB shape, 21 GB paint with 6 views of 512, 29 GB "
            "both at once. For ultra (8 of 768) upstream gives none: it takes more than 21.",
            "memory_gb": "an estimate",
            "disk_gb": "an estimate; upstream says above 70 GB for its own image",
        },
    ),
    upstream=f"Tencent-Hunyuan/Hunyuan3D-2.1@{COMMIT}",
    image=Image(
        python="3.10",
        base="nvidia/cuda:12.4.1-devel-ubuntu22.04",
        packages=(
            "libegl1",
            "libgl1",
            "libglib2.0-0",
            "libgomp1",
            "libsm6",
            "libxext6",
            "libxrender1",
        ),
        checkouts=(
            Checkout(
                "https://github.com/Tencent-Hunyuan/Hunyuan3D-2.1",
                COMMIT,
                patterns=("hy3dshape/hy3dshape", "hy3dpaint", "torchvision_fix.py", "LICENSE"),
            ),
        ),
        compiled=(
            Compiled(
                "custom_rasterizer",
                "{src}/Hunyuan3D-2.1/hy3dpaint/custom_rasterizer",
                env={"CUDA_NVCC_FLAGS": "-allow-unsupported-compiler"},
            ),
        ),
        steps=(
            Step(
                "c++ -O3 -shared -std=c++11 -fPIC $(python -m pybind11 --includes)"
                " mesh_inpaint_processor.cpp -o mesh_inpaint_processor$(python -c"
                " 'import sysconfig; print(sysconfig.get_config_var(\"EXT_SUFFIX\"))')",
                why="upstream's script asks the system's Python for the suffix, not this one",
                folder="{src}/Hunyuan3D-2.1/hy3dpaint/DifferentiableRenderer",
            ),
        ),
        env={
            "HF_HUB_CACHE": "{weights}/hub",
            "HF_MODULES_CACHE": "{home}/modules",
            "HY3DGEN_MODELS": "{weights}/hy3dgen",
            "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        },
        imports=("torch", "diffusers", "pymeshlab", "custom_rasterizer"),
    ),
    weights=Weights(
        hub=(
            Hub(
                REPO,
                REVISION,
                patterns=("hunyuan3d-dit-v2-1/*",),
                to=f"hy3dgen/{REPO}",
                sha256={
                    "hunyuan3d-dit-v2-1/model.fp16.ckpt": (
                        "6b519fc7242f78e9b5f47ea4d55668fe3d944a2d27332f4ca68d29a6ff603f5e"
                    )
                },
            ),
            Hub(REPO, REVISION, patterns=("hunyuan3d-paintpbr-v2-1/*",), to="hub", cache=True),
            Hub(
                "facebook/dinov2-giant",
                DINOV2,
                patterns=("*.json", "model.safetensors"),
                to="hub",
                cache=True,
            ),
        ),
        urls=(
            Url(
                "https://github.com/xinntao/Real-ESRGAN/releases/download/v0.1.0/"
                "RealESRGAN_x4plus.pth",
                to="ckpt/RealESRGAN_x4plus.pth",
                sha256="4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
            ),
            kit.U2NET,
        ),
        steps=(
            Step(
                "ln -sfn {weights}/ckpt {src}/Hunyuan3D-2.1/ckpt",
                why="HUNYUAN_CKPT_DIR is {HUNYUAN_PATH}/ckpt where nobody says otherwise",
            ),
        ),
    ),
    settings=(
        Setting(
            "enable_texture",
            env=("ENABLE_TEXTURE",),
            default="true",
            description="false: shapes only; the paint model is not loaded.",
        ),
        Setting(
            "model_path",
            env=("MODEL_PATH", "HUNYUAN_MODEL_PATH"),
            default=REPO,
            description="Repository or folder of the weights; REPO/SUBFOLDER names the shape's.",
            changes_results=True,
        ),
        Setting(
            "hunyuan_path",
            env=("HUNYUAN_PATH",),
            default="{src}/Hunyuan3D-2.1",
            description="Upstream's checkout.",
        ),
        Setting(
            "ckpt_dir",
            env=("HUNYUAN_CKPT_DIR",),
            description="Folder of RealESRGAN_x4plus.pth; empty: HUNYUAN_PATH/ckpt.",
        ),
        Setting(
            "rembg_model",
            env=("REMBG_MODEL",),
            default="u2net",
            description="rembg's model for cut-outs; its file lies in U2NET_HOME.",
            changes_results=True,
        ),
    ),
    devices={
        "geometry": ("GEOMETRY_DEVICE", "HUNYUAN_DEVICE"),
        "texture": ("TEXTURE_DEVICE", "HUNYUAN_DEVICE"),
    },
    adapt=without_texture,
    faults=FAULTS,
)
