"""pshuman: PSHuman, a clothed person of one photograph as a mesh with a colour per vertex."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from polypod import kit
from polypod.image import Checkout, Compiled, Hub, Licensed, Step, Url, Wheels
from polypod.model import (
    Fault,
    Image,
    Input,
    Licence,
    Model,
    Needs,
    Stage,
    Weights,
)

COMMIT = "f2a635126dca3bf0526b4a08723cb84a79b57cab"
REPO = "pengHTYX/PSHuman_Unclip_768_6views"
SIDES = ("front", "front_right", "right", "back", "left", "front_left")
MAPS = tuple(f"{kind}_{side}.png" for kind in ("color", "normal") for side in SIDES)
FACE = ("color_face.png", "normal_face.png")


class PSHumanParams(kit.PersonParams):
    """What the stages can be told; upstream's own names where it has one."""

    with_texture: bool = Field(
        True, description="No effect: the colours are the vertices' own, and always there."
    )
    seed: int | None = Field(
        600,
        ge=0,
        lt=2**32,
        description="Seed of the views; null draws one at submit. Upstream's advice for a view "
        "that went wrong: 42.",
    )
    crop_size: int = Field(
        740,
        ge=512,
        le=768,
        description="Height (or width) of the person in the frame of 768 pixels that the model "
        "sees. The face is taken from a fixed window at its top; upstream's advice where that "
        "misses: 720.",
    )
    bg_color: Literal["white", "black", "gray"] = Field(
        "white", description="Behind the person in that frame; trained and official is white."
    )
    num_inference_steps: int = Field(
        40, ge=1, le=200, description="Sampling steps of the views; time is linear in them."
    )
    guidance_scale: float = Field(
        3.0,
        ge=1,
        le=20,
        description="How closely the views follow the picture. 1 switches guidance off, which "
        "halves the network's batch and its memory.",
    )
    eta: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Fresh noise in each step, 0 for none; only schedulers that take it (DDIM).",
    )
    iters: int = Field(
        700,
        ge=1,
        le=3000,
        description="Steps in which the surface is carved after the normals; time is linear in "
        "them. It is remeshed at every 4th step, from 500 at every 2nd, from 800 at each.",
    )
    resolution: int = Field(
        1024,
        ge=256,
        le=2048,
        multiple_of=8,
        description="Pixels along each side of the six pictures that the surface is compared "
        "with; they come with 768. Time and memory of the carving grow with its square.",
    )
    replace_hand: bool = Field(
        False,
        description="Put the body model's hands in place of carved ones, where a detector sees "
        "hands in the picture. Off upstream.",
    )
    with_video: bool = Field(
        True, description="Also turntable.mp4: colours left, normals right, 60 frames."
    )


IMAGE = Image(
    python="3.10",
    base="nvidia/cuda:12.1.1-cudnn8-devel-ubuntu22.04",
    packages=("libgl1", "libglib2.0-0", "libgomp1", "libudev1", "libx11-6"),
    wheels=(
        Wheels(
            "https://nvidia-kaolin.s3.us-east-2.amazonaws.com/torch-2.1.0_cu121.html",
            ("kaolin==0.17.0",),
            find_links=True,
        ),
        Wheels(
            "https://data.pyg.org/whl/torch-2.1.0+cu121.html",
            ("torch-scatter==2.1.2+pt21cu121",),
            find_links=True,
        ),
    ),
    checkouts=(
        Checkout(
            "https://github.com/pengHTYX/PSHuman",
            COMMIT,
            patterns=(
                *("/configs", "/core", "/lib", "/mvdiffusion", "/utils"),
                *("/econdataset.py", "/reconstruct.py", "/LICENSE.txt"),
            ),
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
            "nvdiffrast",  # upstream's, 0.3.3, compiles in the first job
            "https://github.com/NVlabs/nvdiffrast",
            "253ac4fcea7de5f396371124af597e6cc957bfae",
        ),
    ),
    env={
        "PYTHONPATH": "{src}/PSHuman",
        "TORCH_HOME": "{weights}/torch",
        "U2NET_HOME": "{weights}/u2net",
    },
    imports=(
        *("torch", "torchvision", "xformers", "pytorch3d", "kaolin", "nvdiffrast.torch"),
        *("torch_scatter", "open3d", "pymeshlab", "mediapipe", "rembg", "moviepy.editor"),
        # their names are common: a package that has one of them would go before upstream's
        *("utils.misc", "core.opt", "lib.pixielib.pixie", "mvdiffusion.data.single_image_dataset"),
    ),
)

BUNDLE = (
    "the bundle that the README of PSHuman links (OneDrive), unpacked, once you have registered "
    "and accepted the licence at https://smpl-x.is.tue.mpg.de"
)
KNOWN = {  # as several public projects note it; the other files' digests are not told anywhere
    "HPS/pixie_data/SMPLX_NEUTRAL_2020.npz": "bdf06146e27d92022fe5dadad3b9203373f6879e"
    "ca8e4d8235359ee3ec6a5a74",
}
PIXIE = f"{BUNDLE} and, for PIXIE, at https://pixie.is.tue.mpg.de"
WEIGHTS = Weights(
    hub=(Hub(REPO, to="pshuman"),),
    urls=(
        kit.U2NET,
        Url(
            "https://download.pytorch.org/models/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
            to="torch/hub/checkpoints/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
            sha256="bf2d0c1e",
        ),
        Url(
            "https://download.pytorch.org/models/resnet50-0676ba61.pth",
            to="torch/hub/checkpoints/resnet50-0676ba61.pth",
            sha256="0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
        ),
        Url(
            "https://storage.googleapis.com/mediapipe-assets/pose_landmark_heavy.tflite"
            "?generation=1661875897944151",
            to="mediapipe/pose_landmark_heavy.tflite",
            sha256="59e42d71bcd44cbdbabc419f0ff76686595fd265419566bd4009ef703ea8e1fe",
        ),
    ),
    licensed=tuple(
        Licensed(name, where, to=f"smpl_related/{name}", sha256=KNOWN.get(name, ""))
        for where, names in (
            (
                BUNDLE,
                (
                    "smpl_vert_segmentation.json",
                    "smpl_data/smpl_verts.npy",
                    "smpl_data/smpl_faces.npy",
                    "smpl_data/smplx_verts.npy",
                    "smpl_data/smplx_faces.npy",
                    "smpl_data/eyeball_fid.npy",
                    "smpl_data/fill_mouth_fid.npy",
                    "smpl_data/smplx_to_smpl.pkl",
                    "smpl_data/FLAME_SMPLX_vertex_ids.npy",
                    "smpl_data/MANO_SMPLX_vertex_ids.pkl",
                    "smpl_data/FLAME_face_mask_ids.npy",
                    "smpl_data/smplx_vertex_lmkid.npy",
                    "models/smplx/SMPLX_NEUTRAL.npz",
                ),
            ),
            (
                PIXIE,
                (
                    "HPS/pixie_data/pixie_model.tar",
                    "HPS/pixie_data/SMPLX_NEUTRAL_2020.npz",
                    "HPS/pixie_data/SMPLX_to_J14.pkl",
                    "HPS/pixie_data/smplx_extra_joints.yaml",
                ),
            ),
        )
        for name in names
    ),
    steps=(
        Step(
            "ln -sfn {weights}/smpl_related {src}/PSHuman/smpl_related",
            why="upstream looks for the body model in its own folder (utils/smpl_util.py:1012)",
        ),
        Step(
            "ln -sfn {weights}/mediapipe/pose_landmark_heavy.tflite $(python -c 'import mediapipe;"
            " print(mediapipe.__path__[0])')/modules/pose_landmark/pose_landmark_heavy.tflite",
            why="mediapipe would download it into its own package at the first job",
        ),
    ),
)

DOCTOR = "Run `polypod doctor` in the model's image; it names what is missing."
OTHER_VIEWS = "Try another seed (42, 600) or crop_size (720, 740), or a picture with lowered arms."
FAULTS = (
    Fault(
        r"index 2 is out of bounds for axis 0 with size 0|max\(\): Expected reduction dim",
        "No person was found in the picture, or something else stands out more.",
        "Send a picture of one person from head to feet, upright and well lit, without large "
        "objects.",
        code="bad_input",
    ),
    Fault(
        r"view direction is not correct|^AssertionError$",
        "The carved surface collapsed: the views do not fit together.",
        OTHER_VIEWS,
        code="no_surface",
    ),
    Fault(
        r"smpl_related|pixie_model|SMPLX_NEUTRAL|code called exit\(None\)",
        "A file of the body model (SMPL-X, PIXIE) is missing.",
        "These are under licence: get them yourself and build with --licensed FOLDER; `polypod "
        f"build pshuman` says from where. {DOCTOR}",
        code="weights_missing",
    ),
    Fault(
        r"is not there\.|No such file or directory.*\.(onnx|pth|json|safetensors|tflite)"
        r"|unet_mv2d_condition.* does not exist",
        "Weights are missing, and a job may not fetch them.",
        DOCTOR,
        code="weights_missing",
    ),
    Fault(
        r"memory_efficient_attention_forward",
        "xformers has no kernel for this GPU, or is not of this torch.",
        f"Use a GPU of compute capability 8.0 to 9.0. {DOCTOR}",
        code="unsupported_gpu",
    ),
)

MODEL = Model(
    name="pshuman",
    title="PSHuman",
    summary="A clothed person, whole and standing, of one photograph: as a mesh with a colour per "
    "vertex, and as seven views in colour and normals, one of the face alone.",
    folder=Path(__file__).parent,
    params=PSHumanParams,
    inputs={
        "image": Input(
            required=True,
            description="One person from head to feet, or a PNG with that person cut out.",
            rules=(
                *kit.PERSON_RULES,
                "The head belongs at the top, in the middle: no raised arms, no seat, nothing "
                "held far to a side. The face is looked for in a fixed window there.",
            ),
        ),
        "mask": Input(
            description="A picture of the same shape, white (or opaque) where the person is."
        ),
    },
    stages=(
        kit.cutout(person=True),
        Stage(
            "views",
            inputs=("input.png",),
            outputs=(*MAPS, *FACE),
            params=(
                *("seed", "crop_size", "bg_color"),
                *("num_inference_steps", "guidance_scale", "eta"),
            ),
            assets=(*MAPS, *FACE),
            slot="views",
            share=20,
            limit_s=1200,
            lighter="guidance_scale 1 halves the batch, and with it how well views fit the "
            "picture. No preset makes it smaller.",
        ),
        Stage(
            "masks",
            inputs=MAPS,
            outputs=("maps.png",),
            assets=("maps.png",),
            slot="cpu",
            worker="masks",
            share=3,
            limit_s=600,
        ),
        Stage(
            "body",
            inputs=("input.png",),
            outputs=("pose.npz",),
            params=("replace_hand",),
            slot="mesh",
            worker="body",
            share=2,
            limit_s=300,
            lighter="No preset or parameter makes this stage smaller.",
        ),
        Stage(
            "mesh",
            inputs=("maps.png", "pose.npz"),
            outputs=("mesh.obj", "remeshed.obj", "turntable.mp4"),
            optional=("turntable.mp4",),
            params=("iters", "resolution", "replace_hand", "with_video"),
            assets=("mesh.obj", "remeshed.obj", "turntable.mp4"),
            slot="mesh",
            worker="mesh",
            share=20,
            limit_s=1800,
            lighter="Lower resolution, or use the preset draft (512).",
        ),
        kit.export("mesh.obj"),
    ),
    formats=("glb",),
    presets={
        "draft": {"num_inference_steps": 20, "iters": 300, "resolution": 512},
        "balanced": {"num_inference_steps": 30, "iters": 500},
        "high": {},
    },
    default_preset="high",
    licence=Licence(
        code="MIT; files that it needs are of the Max Planck Society: non-commercial research",
        weights="CC-BY-4.0, of Stable Diffusion 2.1 unCLIP; SMPL-X and PIXIE: research only",
        commercial=False,
        url=f"https://github.com/pengHTYX/PSHuman/blob/{COMMIT}/LICENSE.txt",
        note="SMPL-X's and PIXIE's files may not be passed on: an image that holds them is for "
        "whoever has accepted their licences, so keep it in a private registry. They serve "
        "non-commercial research, and no pornography, defamation or military use.",
        parts={
            "SMPL-X and its code (lib/smplx)": "Max Planck: non-commercial scientific research",
            "PIXIE": "Max Planck: non-commercial scientific research",
            "code of ECON (econdataset.py, mesh_util.py)": "Max Planck: a licence is needed",
            "nvdiffrast": "NVIDIA Source Code License: non-commercial",
            "Stable Diffusion 2.1 unCLIP": "CreativeML Open RAIL++-M: restrictions of use",
            "pymeshlab": "GPL-3.0; a program of its own in the model environment",
            "u2net (background remover)": "Apache-2.0",
        },
    ),
    needs=Needs(
        vram_gb={"views": 40, "body": 6, "mesh": 16},
        architectures=("8.0", "8.6", "8.9", "9.0"),
        cuda="12.1",
        driver="525.60.13",
        cpu_cores=6,
        memory_gb=32,
        disk_gb=60,
        source="estimates; nothing was measured here",
        sources={
            "vram_gb": "views: upstream's README (more than 40 GB), before VAE slicing, which is "
            "on here; body and mesh: estimates. Public demos run on 48 GB (L40S).",
        },
    ),
    upstream=f"pengHTYX/PSHuman@{COMMIT}",
    image=IMAGE,
    weights=WEIGHTS,
    notes={
        "model.glb": "glTF axes: +Y up, facing +Z, +X is right in the picture; not metric: a "
        "person is about 3.85 units tall, the body model's box around the origin",
        "mesh.obj": "the same before export: sRGB colours as `v x y z r g b`, same axes and units",
        "remeshed.obj": "the carved surface before it was closed (Poisson) and coloured; same "
        "axes and units",
        "turntable.mp4": "colours left, normals right; upstream's is mirrored, this one is not",
        "maps.png": "what the surface is carved from: six colours above six normals, 768 each, cut "
        "out: front, front right, right, back, left, front left",
        **{
            f"normal_{side}.png": "normals in the mesh's frame, (n + 1) / 2 as red, green, blue"
            for side in (*SIDES, "face")
        },
    },
    faults=FAULTS,
)
