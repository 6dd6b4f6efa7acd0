"""idol: IDOL, one person of a picture as Gaussians that can be animated."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from polypod import kit
from polypod.image import Checkout, Compiled, Hub, Licensed, Step, Wheels
from polypod.model import Fault, Image, Input, Licence, Model, Needs, Stage, Weights

COMMIT = "69b6df7dc1f9605959bffba92bb9825af6fc0ba5"


class IdolParams(kit.PersonParams):
    """What the stages can be told. Upstream's demo takes none of them; all are fixed there."""

    output_format: str = Field(
        "ply", description="The main result: the Gaussians (ply), or the mesh made of them (glb)."
    )
    with_mesh: bool = Field(
        True,
        description="Also write model.glb, a mesh with vertex colours that polypod makes of the "
        "Gaussians; upstream has none.",
    )
    with_texture: bool = Field(
        True, description="No effect: Gaussians and mesh always have their colours."
    )
    seed: int | None = Field(
        42, ge=0, lt=2**32, description="No effect: nothing here is drawn at random."
    )
    frame_ratio: float = Field(
        0.85,
        ge=0.5,
        le=1,
        description="Share of the frame's height that the person fills, where they are taller than "
        "wide. Smaller keeps spread arms inside the frame and costs resolution.",
    )
    pose: Literal["a_pose", "t_pose", "given"] = Field(
        "a_pose",
        description="Pose of model.ply, model.glb and the turntable; given: that of `smplx`. "
        "Another pose does not compute the person again.",
    )
    splat_scale: float = Field(
        0.6,
        ge=0.4,
        le=1,
        description="Size of the Gaussians in model.ply. Upstream's renderer draws them at 0.50 of "
        "their width and 0.70 of their height, so at 1 other viewers show them fat and blurred.",
    )
    hand_offset_limit: float = Field(
        0.02,
        ge=0,
        le=0.1,
        description="Most metres that the hands' Gaussians leave the body model.",
    )
    turntable_frames: Literal[0, 36, 60, 72, 120, 180, 360] = Field(
        60, description="Frames of turntable.mp4, one turn; 0: no video and no pictures of it."
    )
    motion_frames: int = Field(
        300, ge=1, le=900, description="Most frames of `motion` that are drawn, from its beginning."
    )
    motion_camera: Literal["file", "front"] = Field(
        "file",
        description="Where `motion` is seen from. file: its own cameras, where it has some; front: "
        "from where the person of the first frame looks.",
    )
    motion_size: Literal["640x896", "512x512"] = Field(
        "640x896",
        description="Pixels of a motion.mp4 that is seen from the front. Upstream's 512x512 sees "
        "1.7 m, which can cut off head and feet.",
    )
    fps: int = Field(30, ge=1, le=60, description="Frames a second of both videos.")


IMAGE = Image(
    python="3.10",
    base="nvidia/cuda:11.8.0-devel-ubuntu22.04",
    packages=("libglib2.0-0", "libgomp1"),
    wheels=(
        Wheels(
            "https://download.pytorch.org/whl/cu118",
            ("torch==2.3.1+cu118", "torchvision==0.18.1+cu118"),
        ),
    ),
    checkouts=(
        Checkout("https://github.com/yiyuzhuang/IDOL", COMMIT, patterns=("/lib", "/configs")),
    ),
    compiled=(
        Compiled(
            "pytorch3d",  # v0.7.7
            "https://github.com/facebookresearch/pytorch3d",
            "89653419d0973396f3eff1a381ba09a07fffc2ed",
            env={"FORCE_CUDA": "1"},  # else it asks for a GPU, and builds see none
        ),
        Compiled(
            "simple_knn",
            "https://gitlab.inria.fr/bkerbl/simple-knn",
            "86710c2d4b46680c02301765dd79e465819c8f19",
        ),
        Compiled(
            "diff_gaussian_rasterization",  # of branch dr_aa: `antialiasing`, and three results
            "https://github.com/graphdeco-inria/diff-gaussian-rasterization",
            "9c5c2028f6fbee2be239bc4c9421ff894fe4fbe0",
            submodules=("third_party/glm",),
        ),
    ),
    steps=(
        Step(
            "ln -sfn {weights}/work_dirs work_dirs"
            " && mkdir -p lib/models/deformers/smplx/SMPLX"
            " && ln -sfn {weights}/smplx/SMPLX_NEUTRAL.pkl lib/models/deformers/smplx/SMPLX/",
            why="upstream looks for the cache and the body model below its working directory",
            folder="{src}/IDOL",
        ),
    ),
    env={"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
    imports=(
        *("torch", "torchvision", "pytorch3d.ops", "simple_knn._C", "diff_gaussian_rasterization"),
        *("pytorch_lightning", "torchmetrics", "timm", "transformers", "omegaconf", "einops"),
        *("cv2", "scipy", "matplotlib", "imageio", "imageio_ffmpeg"),
    ),
)

SMPLX = (
    "Get SMPL-X v1.1 (models_smplx_v1_1.zip, in it models/smplx/SMPLX_NEUTRAL.pkl) from "
    "https://smpl-x.is.tue.mpg.de with an account of your own, for non-commercial research only."
)
WEIGHTS = Weights(
    hub=(
        Hub(
            "yiyuzhuang/IDOL",
            "3c80ec956f9bede01d9fbb3917ca229f8d2673b1",
            patterns=("model.ckpt", "sapiens_1b_epoch_173_torchscript.pt2", "cache_sub2.zip"),
            to="idol",
            sha256={
                "model.ckpt": "2294c7714afd8eb883fcb8d9d386fb0573f066b0f3df9c44eacdea5ef440f180",
                "sapiens_1b_epoch_173_torchscript.pt2": "b5094b60a11ea8f94ef77b9e0a98439f"
                "677a5451c995e4dfda1de29538e8d861",
                "cache_sub2.zip": "fe833dc7c58b35d3b08a8ca8a82704d1"
                "c84aa9287afd8f5c47cafbdab01e718b",
            },
        ),
    ),
    urls=(kit.U2NET,),
    licensed=(Licensed("smplx/SMPLX_NEUTRAL.pkl", where=SMPLX),),
    steps=(
        Step(
            "python3 -m zipfile -e {weights}/idol/cache_sub2.zip {weights}/work_dirs",
            why="the cache of the body's points, and a file that upstream opens at start",
        ),
    ),
)

DOCTOR = "Run `polypod doctor` in the model's image; it names what is missing."
FAULTS = (
    Fault(
        r"SMPLX_NEUTRAL|body_model|chumpy",
        "The SMPL-X body model is missing, or it is another one than IDOL was trained with.",
        f"{SMPLX} Build the image with `--licensed FOLDER`, the file as "
        "FOLDER/smplx/SMPLX_NEUTRAL.pkl. One that asks for chumpy: write it anew from the .npz.",
        code="weights_missing",
    ),
    Fault(
        r"No such file or directory.*(\.npy|\.json|\.ckpt|\.yaml|\.onnx)|is not there\."
        r"|The provided filename|Unexpected or missing weights|size mismatch for",
        "Weights are missing or are others, and a job may not fetch them.",
        f"model.ckpt, the Sapiens encoder and cache_sub2.zip belong together. {DOCTOR}",
        code="weights_missing",
    ),
    Fault(
        r"antialiasing|not enough values to unpack \(expected 3, got 2\)",
        "The Gaussian rasterizer is another version than upstream needs.",
        "It has to be the commit of `polypod image idol`, the one with antialiasing. Build the "
        "image again.",
        code="not_installed",
    ),
)

STILLS = ("turn_0.png", "turn_90.png", "turn_180.png", "turn_270.png")

MODEL = Model(
    name="idol",
    title="IDOL",
    summary="One person of a picture as 3D Gaussians on the SMPL-X body, in any pose and animated "
    "by motions; as splat, mesh and video.",
    folder=Path(__file__).parent,
    params=IdolParams,
    inputs={
        "image": Input(
            required=True,
            description="One whole person, upright and best from the front, or a PNG whose "
            "transparent part is the background.",
            rules=(
                *kit.PERSON_RULES,
                "Lowered arms: at frame_ratio 0.85 a person wider than 0.84 of their height is "
                "refused, since upstream's frame would cut off the hands.",
            ),
        ),
        "mask": Input(
            description="A picture of the same shape, white (or opaque) where the person is."
        ),
        "smplx": Input(
            kind="json",
            description="SMPL-X of the person: `betas`, at least 10 numbers, for the proportions "
            "(without it those of the average body); for pose `given` also `body_pose` (63 numbers,"
            " axis-angle), and `lhand_pose`, `rhand_pose` (45 each), `jaw_pose` (3) if known.",
            rules=("Upstream's own names `betas_save` and `shapes` stand for `betas` too.",),
        ),
        "motion": Input(
            kind="file",
            description="A motion to animate the person with: Motion-X's .json (with cameras or "
            "without) or its .npy of frames x 322 numbers.",
            rules=("The person is not computed again for another motion.",),
        ),
    },
    stages=(
        kit.cutout(person=True, matting=True, output="cutout.png", params=("mask_mode",)),
        Stage(
            "frame",
            inputs=("cutout.png",),
            outputs=("input.png",),
            params=("frame_ratio",),
            assets=("input.png",),
            slot="cpu",
            share=0.5,
            limit_s=60,
        ),
        Stage(
            "body",
            inputs=("smplx", "motion"),
            outputs=("body.npz", "motion.npz"),
            optional=("motion.npz",),
            params=("pose", "motion_frames", "motion_camera"),
            slot="cpu",
            share=0.5,
            limit_s=120,
        ),
        Stage(
            "reconstruct",
            inputs=("input.png",),
            outputs=("gaussians.npz", "uv.png"),
            assets=("gaussians.npz", "uv.png"),
            slot="reconstruct",
            share=6,
            limit_s=600,
            lighter="No preset or parameter makes this stage smaller.",
        ),
        Stage(
            "pose",
            inputs=("gaussians.npz", "body.npz"),
            outputs=("model.ply", "pose.json", "mesh.ply"),
            params=("pose", "splat_scale", "hand_offset_limit"),
            assets=("model.ply", "pose.json"),
            slot="animate",
            limit_s=300,
            lighter="No preset or parameter makes this stage smaller.",
        ),
        kit.export("mesh.ply", when=({"with_mesh": True}, {"output_format": "glb"})),
        Stage(
            "turntable",
            inputs=("gaussians.npz", "body.npz"),
            outputs=("turntable.mp4", *STILLS),
            params=("pose", "hand_offset_limit", "turntable_frames", "fps"),
            assets=("turntable.mp4", *STILLS),
            slot="animate",
            share=6,
            limit_s=900,
            when=({"turntable_frames": {"min": 1}},),
            lighter="Use turntable_frames 0 (preset draft), which leaves the video out.",
        ),
        Stage(
            "animate",
            inputs=("gaussians.npz", "body.npz", "motion.npz"),
            outputs=("motion.mp4",),
            params=("hand_offset_limit", "motion_size", "fps"),
            assets=("motion.mp4",),
            slot="animate",
            share=6,
            limit_s=1800,
            only_with="motion",
            lighter="Use motion_camera front, or a motion whose cameras make smaller pictures.",
        ),
    ),
    formats=("ply", "glb"),
    presets={"draft": {"turntable_frames": 0, "with_mesh": False}, "high": {}},
    default_preset="high",
    licence=Licence(
        code="MIT by upstream's README (no licence file); parts of it and what it needs are "
        "non-commercial",
        weights="not stated; trained on HuGe100K, in part made of DeepFashion: no commercial use",
        commercial=False,
        url="https://github.com/yiyuzhuang/IDOL#license-and-attribution",
        note="For non-commercial research. An image holds SMPL-X, which may not be passed on.",
        parts={
            "SMPL-X (body model, and lib/models/deformers/smplx)": "Max Planck: non-commercial "
            "research, each user registers",
            "diff-gaussian-rasterization, simple-knn": "Inria, MPII: non-commercial research",
            "Sapiens encoder": "CC-BY-NC-4.0 by the model cards of its sister weights",
            "PyTorch3D": "BSD-3-Clause",
            "u2net (background remover)": "Apache-2.0",
        },
    ),
    needs=Needs(
        vram_gb={"reconstruct": 16, "animate": 4},
        architectures=("8.0", "8.6", "8.9", "9.0"),
        cuda="11.8",
        driver="520.61.05",
        cpu_cores=4,
        memory_gb=24,
        disk_gb=50,
        source="computed, not measured here",
        sources={
            "vram_gb": "computed: weights 6.8 GB in fp32 and 4.8 GB in the largest layer, for one "
            "copy. Upstream says 24, for a demo that decodes five; a third party measured a peak "
            "of 8.8. animate: its tables and one frame.",
            "memory_gb": "computed: the model is made in main memory first",
            "disk_gb": "weights 14.1 GB; the rest is an estimate",
        },
    ),
    upstream=f"yiyuzhuang/IDOL@{COMMIT}",
    image=IMAGE,
    weights=WEIGHTS,
    notes={
        "input.png": "what the network sees: 640 x 896, the person on white",
        "model.ply": "3D Gaussians (3DGS layout, degree 0): Y up, facing +Z, metres of the SMPL-X "
        "body; viewers made for COLMAP scenes (Y down) show it upside down; scales are multiplied "
        "by splat_scale",
        "model.glb": "polypod's own conversion, which upstream does not have: the SMPL-X template "
        "through the means of the Gaussians; Y up, facing +Z, metres",
        "gaussians.npz": "the person without a pose: float32 arrays (1, N, c) sigma 1, rgbs 3, "
        "radius 3, rot 3 (axis-angle), offset 3 (metres)",
        "uv.png": "colours in the layout of IDOL's cache, not SMPL-X's usual one; top row v = 0",
        "pose.json": "SMPL-X of model.ply, 189 numbers: scale 1, transl 3, global_orient 3, "
        "body_pose 63, betas 10, hands 45 and 45 (relative to the mean hand), jaw 3, eyes 6, "
        "expression 10",
        **{name: "degrees turned to their left, from 0 = facing us" for name in STILLS},
    },
    faults=FAULTS,
)
