"""synchuman: SyncHuman, a clothed person of one photograph as a textured mesh, in two stages."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from polypod import kit
from polypod.image import Checkout, Compiled, Hub, Step, Url
from polypod.model import Fault, Image, Input, Licence, Model, Needs, Stage, Weights


class SyncHumanParams(kit.PersonParams):
    """What the stages can be told; `stage1_steps` and `stage2_steps` as the public wrappers say."""

    stage1_steps: int = Field(
        50, ge=1, le=200, description="Sampling steps of views and coarse shape; time is linear."
    )
    guidance_scale: float = Field(
        3.0,
        gt=1,
        le=20,
        description="How closely views and coarse shape follow the picture. Upstream fails at 1.",
    )
    rescale_t: float = Field(
        3.0, gt=0, le=10, description="Spends more of stage 1's steps on its beginning; 1: evenly."
    )
    stage2_steps: int = Field(
        25, ge=1, le=200, description="Sampling steps of the structured latent; time is linear."
    )
    cfg_strength: float = Field(
        5.0, ge=0, le=20, description="Guidance of the structured latent; 0: none."
    )
    with_texture: bool = Field(
        True,
        description="Bake a texture from the views and the Gaussians. false keeps the decoded "
        "mesh as it is with a colour per vertex; the parameters below have no effect then.",
    )
    simplify: float = Field(
        0.7,
        ge=0,
        lt=1,
        description="The share of triangles that is REMOVED; lower is denser and unwraps slower.",
    )
    fill_holes: bool = Field(True, description="Remove hidden faces and close holes.")
    fill_holes_max_size: float = Field(
        0.04, ge=0, le=1, description="Largest hole to close, as an area (the person is 1 tall)."
    )
    texture_size: Literal[512, 1024, 2048, 4096] = Field(
        1024,
        description="Pixels along each side of the texture. Its sources are 768 for each view, and "
        "768 more for the face.",
    )
    seed: int | None = Field(
        43, ge=0, lt=2**32, description="Seed of both stages; null draws one at submit."
    )


COMMIT = "1b540b7b513d49375f11db2f720164d684dd3f49"
SIDES = ("front", "left side", "back", "right side", "face")
VIEWS = tuple(f"{kind}_{n}.png" for kind in ("color", "normal") for n in range(len(SIDES)))
MODELS = {
    "slat_decoder_gs": "ckpts/decoder_GS",
    "slat_decoder_mesh": "ckpts/decoder_Mesh",
    "slat_flow_model": "ckpts/slat_flow",
}

IMAGE = Image(
    python="3.10",
    base="nvidia/cuda:12.1.1-devel-ubuntu22.04",
    packages=("libgl1", "libglib2.0-0", "libgomp1", "libx11-6", "libxrender1"),
    checkouts=(
        Checkout("https://github.com/IGL-HKUST/SyncHuman", COMMIT, patterns=("SyncHuman",)),
        Checkout(
            "https://github.com/EasternJournalist/utils3d",
            "9a4eb15e4021b67b12c460c7057d642626897ec8",
            patterns=("utils3d", "LICENSE"),
        ),
        Checkout(
            "https://github.com/facebookresearch/dinov2",
            "b8931f7bf91576930313be2c6d6af376033b35f0",  # main, which upstream would fetch
            patterns=("dinov2", "hubconf.py", "LICENSE"),
        ),
    ),
    compiled=(
        Compiled(
            "nvdiffrast",  # 0.4: compiled here; earlier ones compile at their first use
            "https://github.com/NVlabs/nvdiffrast",
            "253ac4fcea7de5f396371124af597e6cc957bfae",
        ),
        Compiled(
            "diff_gaussian_rasterization",  # mip-splatting's alone knows kernel_size
            "https://github.com/autonomousvision/mip-splatting",
            "dda02ab5ecf45d6edb8c540d9bb65c7e451345a9",
            folder="submodules/diff-gaussian-rasterization",
        ),
    ),
    env={
        "PYTHONPATH": "{src}/SyncHuman:{src}/utils3d",
        "ATTN_BACKEND": "xformers",  # both are read at upstream's import
        "SPARSE_ATTN_BACKEND": "xformers",
        "TORCH_HOME": "{weights}/torch",
        "SYNCHUMAN_ROOT": "{src}/SyncHuman",
        "SYNCHUMAN_CKPTS": "{weights}/SyncHuman/ckpts",
        "SYNCHUMAN_DINO": "{src}/dinov2",
    },
    imports=(
        *("torch", "torchvision", "xformers.ops", "spconv.pytorch", "diffusers", "transformers"),
        *("nvdiffrast.torch", "diff_gaussian_rasterization", "utils3d", "xatlas", "pyvista"),
        *("pymeshfix", "igraph", "cv2", "plyfile", "einops"),
    ),
)

WEIGHTS = Weights(
    hub=(Hub("xishushu/SyncHuman", patterns=("ckpts/*",)),),
    urls=(
        Url(
            "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_reg4_pretrain.pth",
            to="torch/hub/checkpoints/dinov2_vitl14_reg4_pretrain.pth",
            # as several public projects note it; Meta tells none
            sha256="36e4deffbaef061a2576705b0c36f93621e2ae20bf6274694821b0b492551b51",
        ),
        kit.U2NET,
    ),
    steps=(
        Step(
            "python -c \"import json, pathlib; file = pathlib.Path('pipeline.json'); "
            "told = json.loads(file.read_text()); "
            f"told['args']['models'] = {MODELS!r}; "
            'file.write_text(json.dumps(told, indent=1))"',
            why="published copies differ: some name repositories, which would be downloaded",
            folder="{weights}/SyncHuman/ckpts/SecondStage",
        ),
    ),
)

DOCTOR = "`polypod doctor` says what; `polypod setup synchuman` or a new image brings it."
FAULTS = (
    Fault(
        r"NoShape",
        "The model found no person's shape in this picture.",
        "Try another seed, or a picture that shows one whole person from the front.",
        code="no_surface",
    ),
    Fault(
        r"called exit\(",
        "The sampling of the views went astray: its numbers are no longer finite.",
        "Try another seed, or guidance_scale and rescale_t nearer to their defaults.",
        code="diverged",
    ),
    Fault(
        r"zero-size array|axis 2 with size 3|name 'rembg' is not defined",
        "The cut-out has no solid person before a transparent background.",
        "Send a picture of one whole person, one with a transparent background, or a `mask`.",
        code="bad_input",
    ),
    Fault(
        r"No such file or directory.*\.(json|safetensors|pth)|\.(json|safetensors|pth) is not there"
        r"|Repo id must|LocalEntryNotFound|not the path to a directory|couldn't connect"
        r"|outgoing traffic|urlopen error|HTTP Error|no internet connection|no file named",
        "Weights are missing, and a job may not fetch them.",
        DOCTOR,
        code="weights_missing",
    ),
    Fault(
        r"No module named|cannot import name|undefined symbol|placeholder wheel|_embeds\.pt"
        r"|unexpected keyword argument '(kernel_size|subpixel_offset)'|[Nn]inja is required|nvcc"
        r"|XFormersCrossAttnProcessor|xformers is not",
        "A package or a compiled extension of the model is missing, or is another one's.",
        DOCTOR,
        code="not_installed",
    ),
)

MODEL = Model(
    name="synchuman",
    title="SyncHuman",
    summary="A clothed person of one photograph as a textured mesh: five views of colours and "
    "normals and a coarse shape first, then the mesh and its texture from these.",
    folder=Path(__file__).parent,
    params=SyncHumanParams,
    inputs={
        "image": Input(
            required=True,
            description="One whole person, best from the front, or a PNG whose transparent part "
            "is the background.",
            rules=(
                *kit.PERSON_RULES,
                "The face is read where a head is in the middle at the top: arms below the head.",
            ),
        ),
        "mask": Input(
            description="A picture of the same shape, white (or opaque) where the person is; it "
            "takes the place of the cut-out."
        ),
    },
    stages=(
        kit.cutout(person=True),
        Stage(
            "multiview",
            inputs=("input.png",),
            outputs=(*VIEWS, "latent.npz", "voxel.ply"),
            params=("seed", "stage1_steps", "guidance_scale", "rescale_t"),
            assets=(*VIEWS, "latent.npz", "voxel.ply"),
            slot="stage1",
            share=10,
            limit_s=1800,
            lighter="No preset or parameter makes stage 1 smaller; 40 GB are needed.",
        ),
        Stage(
            "latent",
            inputs=("input.png", *VIEWS, "latent.npz"),
            outputs=("slat.npz",),
            params=("seed", "stage2_steps", "cfg_strength"),
            slot="stage2",
            share=4,
            lighter="No preset or parameter makes this stage smaller.",
        ),
        Stage(
            "texture",
            inputs=(*VIEWS, "slat.npz"),
            outputs=("mesh.glb",),
            params=(
                *("seed", "with_texture", "simplify", "fill_holes", "fill_holes_max_size"),
                "texture_size",
            ),
            slot="stage2",
            share=12,
            limit_s=1800,
            lighter="Lower texture_size, or use with_texture false, which does not bake.",
        ),
        kit.export("mesh.glb"),
    ),
    formats=("glb",),
    presets={
        "draft": {"stage1_steps": 30, "stage2_steps": 15, "with_texture": False},
        "balanced": {"stage1_steps": 30, "stage2_steps": 15},
        "high": {},
        "ultra": {"stage1_steps": 100, "stage2_steps": 40, "texture_size": 2048},
    },
    default_preset="high",
    licence=Licence(
        code="none given: all rights reserved; parts for research only",
        weights="none given",
        commercial=False,
        url="https://github.com/IGL-HKUST/SyncHuman",
        note="Upstream's repository has no licence, and the one of its weights is not known: ask "
        "the authors before you use it for more than research.",
        parts={
            "FlexiCubes in upstream's code": "NVIDIA: research or evaluation only",
            "gaussian_render.py in upstream's code": "Inria: non-commercial",
            "nvdiffrast": "NVIDIA Source Code License: non-commercial",
            "diff-gaussian-rasterization of mip-splatting": "Inria, MPII: non-commercial",
            "encoders and VAE of Stable Diffusion 2.1 unCLIP, in its weights": "CreativeML Open "
            "RAIL++-M: restrictions of use",
            "DINOv2": "Apache-2.0",
            "u2net (background remover)": "Apache-2.0",
            "igraph": "GPL-2.0; used in the model's own process",
            "pymeshfix": "GPL-3.0; the same",
        },
    ),
    needs=Needs(
        vram_gb={"stage1": 40, "stage2": 40},
        architectures=("8.0", "8.6", "8.9", "9.0"),
        cuda="12.1",
        driver="525.60.13",
        cpu_cores=4,
        memory_gb=32,
        disk_gb=60,
        source="an estimate",
        sources={
            "vram_gb": "stage 1: 40 GB at the peak on an A40, reported by a public wrapper; stage "
            "2: the same wrappers' figure for both, measured by nobody. Nothing was measured here.",
            "cuda": "upstream's README: tried with CUDA 12.1 on H800",
        },
    ),
    upstream=f"IGL-HKUST/SyncHuman@{COMMIT}",
    image=IMAGE,
    weights=WEIGHTS,
    notes={
        "model.glb": "glTF axes: +Y up, the person faces +Z, their left side at +X; not metric: "
        "within a cube of 1 around the origin, at most 1 tall",
        **{
            name: f"{SIDES[int(name[-5])]}; 768 square, as a viewer sees it (upstream keeps the "
            "back and the right side mirrored)"
            for name in VIEWS
        },
        "voxel.ply": "the coarse shape: one cube for each occupied cell of 64 x 64 x 64; Z up, the "
        "person faces -Y; units are cells",
        "latent.npz": "`coords`: (n, 4), batch 0 and the cells of voxel.ply",
    },
    devices={"stage1": ("STAGE1_DEVICE",), "stage2": ("STAGE2_DEVICE",)},
    faults=FAULTS,
)
