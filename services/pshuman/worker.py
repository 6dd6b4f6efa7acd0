"""PSHuman, stage by stage: views by diffusion, their masks, the body's pose, the carved mesh.

Upstream's inference.py is cut where files can lie between its steps; it is not imported, since it
does all at once and loads everything. Files and lines are of the commit that model.py pins.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from .mends import estimate_only, poisson_within, read_tables_once, write_unmirrored

CONFIG = "configs/inference-768-6view.yaml"
SIDE = 768  # pixels of a view; the network takes no other
SIDES = ("front", "front_right", "right", "back", "left", "front_left")
MAPS = tuple(f"{kind}_{side}.png" for kind in ("color", "normal") for side in SIDES)
MIRRORED = (3, 4)  # back and left come out of the network as in a mirror (inference.py:154)
POSE = (
    *("global_orient", "body_pose", "left_hand_pose", "right_hand_pose", "jaw_pose"),
    *("betas", "exp", "trans"),
)
CASE = "case"  # goes into file names


class NotInstalled(Exception):
    """Weights, or files under licence, are not where they should be."""

    hint = "Run `polypod doctor`; building the image, or `polypod setup pshuman`, puts it there."


def load(worker: str, settings: dict):
    """What a worker keeps loaded; each of the four is a process of its own."""
    if worker == "masks":
        return load_cutter()
    root, device = Path(settings["src"], "PSHuman"), settings["device"]
    os.chdir(root)  # upstream takes its own files from the working directory
    sys.path.insert(0, str(root))
    if worker == "views":
        return load_views(Path(settings["weights"], "pshuman"), device)
    require(root / "smpl_related" / "HPS" / "pixie_data" / "pixie_model.tar")  # else: exit()
    return load_body(device) if worker == "body" else load_mesh(device)


def run(stage: str, state, job) -> None:
    {"views": views, "masks": masks, "body": body, "mesh": mesh}[stage](state, job)


# --- views: input.png -> six colours, six normals, and both of the face ---------------------------


def load_views(weights: Path, device: str) -> SimpleNamespace:
    require(weights / "model_index.json")
    import torch
    from accelerate.utils import set_seed
    from mvdiffusion.data.single_image_dataset import SingleImageDataset
    from mvdiffusion.pipelines.pipeline_mvdiffusion_unclip import StableUnCLIPImg2ImgPipeline
    from utils.misc import load_config

    # a folder, not the name at the hub: diffusers finds upstream's UNet only from there
    pipe = StableUnCLIPImg2ImgPipeline.from_pretrained(str(weights), torch_dtype=torch.float16)
    pipe.unet.enable_xformers_memory_efficient_attention()  # or the views do not see each other
    pipe.enable_vae_slicing()  # picture by picture: the same result, where 24 GB ran out
    pipe.to(device)
    return SimpleNamespace(
        torch=torch,
        pipe=pipe,
        set_seed=set_seed,
        Dataset=SingleImageDataset,
        options=load_config(CONFIG, cli_args=[]).validation_dataset,
    )


def views(state, job) -> None:
    torch, pipe, params = state.torch, state.pipe, job.params
    picture = as_png(job)
    state.set_seed(params.seed)
    own = {"root_dir": str(picture.parent)}
    own.update({name: params[name] for name in ("crop_size", "bg_color")})
    batch = state.Dataset(**{**state.options, **own})[0]
    frames = torch.cat([batch["imgs_in"]] * 2)  # 14 x 3 x 768 x 768: for normals, for colours
    prompts = [batch[f"{kind}_prompt_embeddings"] for kind in ("normal", "color")]
    job.progress(0.02, "Drawing the views", until=0.95)
    with torch.autocast("cuda"):
        made = pipe(
            frames,
            None,
            prompt_embeds=torch.cat(prompts),
            dino_feature=None,
            smpl_in=None,
            generator=torch.Generator(device=pipe.unet.device).manual_seed(params.seed),
            guidance_scale=params.guidance_scale,
            output_type="pt",
            num_images_per_prompt=1,
            num_inference_steps=params.num_inference_steps,
            eta=params.eta,
        ).images
    normals, colors = (as_bytes(torch, half) for half in (made[:7], made[7:]))
    for name, picture in arranged(colors, normals, as_bytes(torch, frames[:1])[0]).items():
        Image.fromarray(picture).save(job.outputs / f"{name}.png", compress_level=1)


def as_bytes(torch, images) -> np.ndarray:
    """Pictures of 0 to 1, (n, 3, height, width), as upstream rounds them: (n, height, width, 3)."""
    levels = (images * 255 + 0.5).clamp(0, 255).to("cpu", torch.uint8)
    return levels.permute(0, 2, 3, 1).numpy()


def arranged(colors: np.ndarray, normals: np.ndarray, frame: np.ndarray) -> dict:
    """As inference.py:144-166 does: the front is the picture itself, the face has its own normals.

    What came out mirrored is turned, so that each view is what a camera would see from there.
    """
    made = {}
    for kind, pictures in (("color", colors), ("normal", normals)):
        pictures = [p[:, ::-1] if i in MIRRORED else p for i, p in enumerate(pictures)]
        made.update({f"{kind}_{side}": pictures[i] for i, side in enumerate((*SIDES, "face"))})
    made["color_front"] = frame
    front = made["normal_front"] = made["normal_front"].copy()
    front[:256, 256:512] = normals[6][1::3, 1::3]  # bilinear to a third: every middle pixel
    return {name: np.ascontiguousarray(picture) for name, picture in made.items()}


# --- masks: twelve maps -> maps.png, colours above normals, cut out -------------------------------


def load_cutter():
    require(Path(os.environ["U2NET_HOME"], "u2net.onnx"))
    from rembg import new_session

    return new_session("u2net", providers=["CPUExecutionProvider"])


def masks(session, job) -> None:
    """The alpha of the normals is the silhouette to carve; that of the colours weighs them."""
    from rembg import remove

    sheet = Image.new("RGBA", (len(SIDES) * SIDE, 2 * SIDE))
    for number, name in enumerate(MAPS):
        job.progress(number / len(MAPS), f"Cutting out view {number + 1} of {len(MAPS)}")
        cut = remove(Image.open(job.inputs[name]), session=session)
        sheet.paste(cut, (number % len(SIDES) * SIDE, number // len(SIDES) * SIDE))
    sheet.save(job.outputs / "maps.png", compress_level=1)


def cut_maps(path: Path) -> tuple[list, list]:
    """Six colours and six normals of the sheet, RGBA."""
    sheet = Image.open(path)
    boxes = [(x * SIDE, y * SIDE, (x + 1) * SIDE, (y + 1) * SIDE) for y in (0, 1) for x in range(6)]
    tiles = [sheet.crop(box) for box in boxes]
    return tiles[:6], tiles[6:]


# --- body: input.png -> pose.npz, the body model's parameters -------------------------------------


def load_body(device: str) -> SimpleNamespace:
    import econdataset
    from lib.pymaf.utils import imutils

    options = {"image_dir": "configs", "seg_dir": None, "colab": False, "has_det": True}
    data = econdataset.SMPLDataset({**options, "hps_type": "pixie"}, device=device)
    estimate_only(imutils, data.detector)
    return SimpleNamespace(data=data, module=econdataset, look=econdataset.econ_process_image)


def body(state, job) -> None:
    unseen = {"hands_visibility": [[False, False]]}  # econdataset.py:209 looks for hands always
    look = state.look if job.params.replace_hand else lambda *given: unseen
    state.module.econ_process_image = look
    state.data.subject_list = [str(as_png(job))]
    job.progress(0.1, "Estimating the body")
    pose = state.data[0]
    arrays = {name: pose[name].detach().cpu().numpy() for name in POSE}
    np.savez(job.outputs / "pose.npz", **arrays, hands=np.array(pose["hands_visibility"]))


# --- mesh: maps.png, pose.npz -> mesh.obj, remeshed.obj, turntable.mp4 ----------------------------


def load_mesh(device: str) -> SimpleNamespace:
    """The body model alone, without PIXIE's networks: ReMesh reads nothing else of the dataset."""
    import open3d
    import reconstruct
    import torch
    from lib.dataset import mesh_util
    from lib.pixielib.models.SMPLX import SMPLX
    from lib.pixielib.utils.config import cfg
    from tqdm import tqdm
    from utils.misc import load_config

    poisson_within(open3d.geometry.TriangleMesh, len(os.sched_getaffinity(0)))
    write_unmirrored(reconstruct)
    read_tables_once(reconstruct, mesh_util)
    faces = np.load("smpl_related/models/smplx/SMPLX_NEUTRAL.npz", allow_pickle=True)["f"]
    return SimpleNamespace(
        torch=torch,
        device=device,
        reconstruct=reconstruct,
        body=SimpleNamespace(faces=faces, smpl_model=SMPLX(cfg.model).to(device)),
        options=load_config(CONFIG, cli_args=[]).recon_opt,
        poisson=reconstruct.poisson,
        tqdm=tqdm,
    )


def mesh(state, job) -> None:
    params, folder = job.params, job.scratch()
    options = {name: params[name] for name in ("iters", "resolution", "replace_hand")}
    options["res_path"] = os.path.relpath(folder)  # reconstruct.py:399 puts `./` before it
    carving = state.reconstruct.ReMesh(
        SimpleNamespace(**{**state.options, **options}), econ_dataset=state.body
    )
    if not params.with_video:
        carving.evaluate = lambda *given, **more: None
    follow(state, job)
    colors, normals = cut_maps(job.inputs["maps.png"])
    carving.optimize_case(CASE, read_pose(state, job.inputs["pose.npz"]), colors, normals)
    made = folder / CASE
    result = f"result_clr_scale{state.options['scale']}_{CASE}"
    kept = {f"{result}.obj": "mesh.obj", f"{CASE}_remeshed.obj": "remeshed.obj"}
    kept.update({f"{result}.mp4": "turntable.mp4"} if params.with_video else {})
    for name, ours in kept.items():
        shutil.move(str(made / name), str(job.outputs / ours))


def follow(state, job) -> None:
    """Upstream's bars, by what each takes: the body's fit (100 steps), then the carving."""
    ranges = iter(((0.01, "Fitting the body", 0.1), (0.1, "Carving the surface", 0.75)))

    def bar(steps):
        job.progress(*next(ranges))
        return state.tqdm(steps)

    state.reconstruct.tqdm = bar
    state.reconstruct.poisson = job.count(state.poisson, 1, 0.75, 0.9, "Closing and colouring")


def read_pose(state, path: Path) -> dict:
    with np.load(path) as kept:
        pose = {name: state.torch.from_numpy(kept[name]).to(state.device) for name in POSE}
        return {**pose, "hands_visibility": kept["hands"].tolist()}


# --- files ----------------------------------------------------------------------------------------


def as_png(job) -> Path:
    """The picture by a plain name, alone in a folder: upstream takes all that lie there."""
    folder = job.scratch() / "picture"
    folder.mkdir()
    return Path(shutil.copyfile(str(job.inputs["input.png"]), str(folder / f"{CASE}.png")))


def require(*files: Path) -> None:
    for file in files:
        if not file.is_file():
            raise NotInstalled(f"{file.parent.name}/{file.name} is not there.")
