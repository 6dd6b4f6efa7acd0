"""IDOL: frame, reconstruction, and from then on poses and motions of the kept Gaussians.

Upstream's code is called where it lies; files and lines are of the commit that model.py pins.
`run_demo` is never imported: it moves every process to GPU 0.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from .loading import enter, load_body, load_model
from .motions import BadInput, read_motion, read_smplx, vector_of
from .splats import write_mesh, write_splats

WIDTH, HEIGHT = 640, 896  # of the network's picture, and of upstream's A-pose video
POINTS = ("sigma", "rgbs", "radius", "rot", "offset")  # as `_sample_feature` orders them


def load(worker: str, settings: dict):
    if worker == "cpu":
        return None
    enter(Path(settings["src"]) / "IDOL")
    return (load_model if worker == "reconstruct" else load_body)(settings)


def run(stage: str, state, job) -> None:
    if stage in ("frame", "body"):
        {"frame": frame, "body": body}[stage](job)
        return
    stages = {"reconstruct": reconstruct, "pose": pose, "turntable": turntable, "animate": animate}
    with state.torch.no_grad():
        stages[stage](state, job)


# --- on the CPU: cutout.png -> input.png; smplx, motion -> body.npz, motion.npz -------------------


def frame(job) -> None:
    """The person in upstream's frame, on white, as infer_util.py:158-187 makes it, without `lib`.

    Upstream cuts off at both sides what is wider than the frame, and says nothing.
    """
    cut = np.array(Image.open(job.inputs["cutout.png"]).convert("RGBA"))
    rows, columns = (np.flatnonzero((cut[..., 3] > 0).any(axis)) for axis in (1, 0))
    person = cut[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    high, wide = person.shape[:2]
    side = int(max(high, wide) / job.params.frame_ratio)
    if wide * HEIGHT / side > WIDTH:
        fits = int(WIDTH / HEIGHT * max(high, wide) / wide * 100) / 100
        raise BadInput(
            f"The frame would cut off the arms: the person is {wide / high:.2f} times as wide as "
            f"tall, too wide at frame_ratio {job.params.frame_ratio:g}.",
            f"Send frame_ratio {fits:.2f} or less, or a picture with lowered arms.",
        )
    square = np.zeros((side, side, 4), np.uint8)
    top, left = side // 2 - high // 2, side // 2 - wide // 2
    square[top : top + high, left : left + wide] = person
    scaled = Image.fromarray(square).resize((HEIGHT, HEIGHT), Image.LANCZOS)
    rgba = np.array(scaled.crop((128, 0, 128 + WIDTH, HEIGHT))) / 255.0
    on_white = rgba[..., :3] * rgba[..., 3:] + (1 - rgba[..., 3:])
    Image.fromarray((on_white * 255).astype(np.uint8)).save(job.outputs / "input.png")


def body(job) -> None:
    """All that users may send, checked before a GPU is touched."""
    person = read_smplx(job.inputs.get("smplx"), need_pose=job.params.pose == "given")
    np.savez(job.outputs / "body.npz", **person)
    if "motion" in job.inputs:
        job.progress(0.2, "Reading the motion")
        path, limit = job.inputs["motion"], job.params.motion_frames
        motion = read_motion(path, limit, own_cameras=job.params.motion_camera == "file")
        np.savez(job.outputs / "motion.npz", **motion)


# --- reconstruct: input.png -> gaussians.npz, uv.png ----------------------------------------------


def reconstruct(idol, job) -> None:
    """One forward pass, decoded once; the demo decodes five equal copies."""
    picture = np.array(Image.open(job.inputs["input.png"]), np.float32) / 255
    picture = idol.torch.from_numpy(picture).permute(2, 0, 1).unsqueeze(0).to(idol.device)
    job.progress(0.02, "Reading the picture")
    with counted(idol.model.neck.decoder_blocks_depart, job):
        code = idol.model.forward_image_to_uv(picture, is_training=False)  # (1, 32, 1536, 1536)
    job.progress(0.9, "Decoding the Gaussians")
    maps = idol.model.decoder._decode_feature(code)
    del code
    points = idol.model.decoder._sample_feature(maps)
    arrays = [part.cpu().numpy() for part in points]
    np.savez(job.outputs / "gaussians.npz", **dict(zip(POINTS, arrays, strict=True)))
    colours = maps["rgbs"][0].permute(1, 2, 0).cpu().numpy()
    Image.fromarray(as_bytes(colours)).save(job.outputs / "uv.png")


@contextmanager
def counted(blocks, job):
    """Progress after each block of the neck; the encoder runs before them."""
    done = []

    def told(*_) -> None:
        done.append(1)
        job.progress(0.4 + 0.4 * len(done) / len(blocks), f"Block {len(done)} of {len(blocks)}")

    hooks = [block.register_forward_hook(told) for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# --- pose: gaussians.npz, body.npz -> model.ply, pose.json, mesh.ply ------------------------------


def pose(person, job) -> None:
    vector = chosen_pose(person, job)
    job.progress(0.1, "Posing")
    made = posed(person, gaussians(person, job), vector, job)
    xyz, colours, axes = (part.cpu().numpy() for part in (made.xyz, made.rgbs, made.axes))
    spacing = np.sqrt(np.maximum(person.nearest(made.xyz).cpu().numpy(), 1e-7))
    scales = (made.radius.cpu().numpy() + 1) * spacing[:, None]  # uvmaps_decoder_gender.py:384-387
    job.progress(0.4, "Writing model.ply")
    shapes = axes * (scales * job.params.splat_scale)[:, None]
    write_splats(job.outputs / "model.ply", xyz, colours, shapes)
    faces = person.decoder.deformer.init_faces.reshape(-1, 3).cpu().numpy()
    write_mesh(job.outputs / "mesh.ply", xyz, colours, faces)
    (job.outputs / "pose.json").write_text(json.dumps([round(float(n), 6) for n in vector]))


def chosen_pose(person, job) -> np.ndarray:
    """(189,), upright, facing +Z and at the origin."""
    with np.load(job.inputs["body.npz"]) as given:
        return vector_of(job.params.pose, person.a_pose, given)


def gaussians(person, job) -> tuple:
    with np.load(job.inputs["gaussians.npz"]) as kept:
        return tuple(person.torch.from_numpy(kept[name]).to(person.device) for name in POINTS)


def posed(person, points: tuple, vector: np.ndarray, job) -> SimpleNamespace:
    """The N Gaussians in one pose, as uvmaps_decoder_gender.py:547-559: xyz (N, 3), axes (N, 3, 3),
    which are not orthonormal, sigma (N, 1), rgbs (N, 3), radius (N, 3)."""
    smplx = person.torch.from_numpy(vector.astype(np.float32)[None]).to(person.device)
    xyz, sigma, rgbs, _, radius, moved, rot = person.decoder.deform_pcd(
        points, smplx, zeros_hands_off=True, value=job.params.hand_offset_limit
    )
    turned = person.decoder.init_rot @ person.rotations(rot.reshape(-1, 3))
    axes = moved.reshape(-1, 4, 4)[:, :3, :3] @ turned
    return SimpleNamespace(
        xyz=xyz.reshape(-1, 3), axes=axes, sigma=sigma[0], rgbs=rgbs[0], radius=radius[0]
    )


# --- turntable, animate: gaussians.npz, body.npz, motion.npz -> videos ----------------------------


def turntable(person, job) -> None:
    """The person turns, the camera stays, as in upstream's A-pose video."""
    frames, vector = job.params.turntable_frames, person.torch.from_numpy(chosen_pose(person, job))
    turned = person.util.add_root_rotate_to_smplx(vector, frames, device="cpu").numpy()
    stills = {frames * quarter // 4: f"turn_{quarter * 90}.png" for quarter in range(4)}
    drawn = draw(person, job, turned, [front_camera(person)] * frames, (WIDTH, HEIGHT), stills)
    write_video(job.outputs / "turntable.mp4", drawn, job.params.fps)


def animate(person, job) -> None:
    with np.load(job.inputs["motion.npz"]) as motion, np.load(job.inputs["body.npz"]) as given:
        vectors, cameras = motion["frames"].copy(), motion["cameras"]
        vectors[:, 70:80] = given["betas"]
    vectors[:, 80:170] -= np.asarray(person.util.get_hand_pose_mean()).reshape(-1)
    if len(cameras):
        size = [int(2 * middle) for middle in cameras[0, 2:4]]
        views = [person.torch.from_numpy(camera[None]).to(person.device) for camera in cameras]
    else:
        size = [int(n) for n in job.params.motion_size.split("x")]
        views = [front_camera(person)] * len(vectors)
    drawn = draw(person, job, vectors, views, size, {})
    write_video(job.outputs / "motion.mp4", drawn, job.params.fps)


def front_camera(person):
    """(1, 20) of upstream's A-pose video: from 20 m, nearly parallel, 300 pixels a metre."""
    intrinsics, places = person.util.prepare_camera(
        resolution_x=HEIGHT, resolution_y=WIDTH, num_views=1, stides=1
    )
    return person.util.construct_camera(intrinsics, places, device=person.device)


def draw(person, job, vectors: np.ndarray, cameras: list, size, stills: dict):
    """Yields the frames, bytes (height, width, 3), one at a time; some also become pictures.

    `gaussian_render` and not `forward_render`, which also looks for neighbours of every pixel.
    """
    points = gaussians(person, job)
    person.decoder.renderer.image_size = list(size)
    for number, (vector, camera) in enumerate(zip(vectors, cameras, strict=True)):
        job.progress(number / len(vectors), f"Frame {number + 1} of {len(vectors)}")
        made = posed(person, points, vector, job)
        attributes = (made.xyz, made.sigma, made.rgbs, made.axes[:, :, 2], made.axes)
        images, *_ = person.decoder.gaussian_render(
            *attributes, 1, 1, camera, use_scale=True, radius=made.radius
        )
        image = as_bytes(images[0, 0].cpu().numpy())  # upstream lets bytes overflow
        if number in stills:
            Image.fromarray(image).save(job.outputs / stills[number])
        yield image


def write_video(path: Path, frames, fps: int) -> None:
    """As upstream's `save_video` (infer_util.py:461-471), which holds all frames in memory (5 GB
    for 900 of 1920 x 1080) and puts the index last, so that players wait for the whole file."""
    import imageio

    with imageio.get_writer(path, fps=fps, output_params=["-movflags", "+faststart"]) as writer:
        for frame in frames:
            writer.append_data(frame)


def as_bytes(colours: np.ndarray) -> np.ndarray:
    return (colours.clip(0, 1) * 255).astype(np.uint8)
