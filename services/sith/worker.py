"""SiTH, stage by stage: framing, keypoints, SMPL-X fit, back view, reconstruction.

Upstream's code is called where it lies, from a folder per job that holds one person named `mesh`;
files and lines are of the commit in `model.py`. README.md says where each fact comes from.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from . import back, pose, reconstruction
from .files import BadInput, require, subject

SIZE = 1024  # pixels along each side of the canvas, which is 2 units high (fit.py:107)
LEAST_OVERLAP = 0.3  # of body and outline; a fit below it is upside down or beside the person


def load(worker: str, settings: dict):
    os.chdir(os.environ["SITH_PATH"])  # upstream opens its templates relative to it
    weights = Path(os.environ["SITH_WEIGHTS"])
    loaders = {"cpu": load_detector, "fit": load_fit, "back": back.load}
    return (loaders | {"reconstruct": reconstruction.load})[worker](weights)


def run(stage: str, state, job) -> None:
    stages = {"frame": frame, "keypoints": keypoints, "fit": fit_body, "back": back.hallucinate}
    (stages | {"reconstruct": reconstruction.reconstruct})[stage](state, job)


# --- frame: cutout.png -> input.png, frame.json ---------------------------------------------------


def frame(_, job) -> None:
    """Upstream's canvas; `frame.json` maps pixels of the picture that was sent to it."""
    sent, picture = Image.open(job.inputs["image"]).size, Image.open(job.inputs["cutout.png"])
    if job.params.framed:
        if picture.size != (SIZE, SIZE):
            raise BadInput(
                f"framed says that the picture is the canvas, but it has {sent[0]} x {sent[1]}.",
                f"Send {SIZE} x {SIZE} pixels, or leave framed out.",
            )
        picture.save(job.outputs / "input.png")
        placed = {"scale": [1, 1], "offset": [0, 0]}
    else:
        placed = centralize(picture, sent, job)
    (job.outputs / "frame.json").write_text(json.dumps({"size": sent, **placed}))


def centralize(picture: Image.Image, sent: tuple[int, int], job) -> dict:
    """By upstream's own tool, which scales a picture's height: so it gets the person alone."""
    from tools.centralize_rgba import main

    left, top, right, bottom = box = picture.getchannel("A").getbbox()
    height = int(SIZE * job.params.ratio)
    width = int((right - left) * (height / (bottom - top)))
    if width > SIZE:
        raise BadInput(
            f"The person is {width / height:.1f} times as wide as tall and leaves the canvas.",
            "Send a picture with lowered arms, or lower `ratio`.",
        )
    folder = job.scratch()
    (folder / "rgba").mkdir()
    picture.crop(box).save(folder / "rgba" / "input.png")
    main(
        SimpleNamespace(
            input_path=str(folder / "rgba"),
            output_path=str(job.outputs),
            ratio=job.params.ratio,
            size=SIZE,
        )
    )
    scale = np.array([width, height]) / [right - left, bottom - top]
    offset = (SIZE - np.array([width, height])) // 2 - scale * [left, top]
    shrunk = np.divide(picture.size, sent)  # the cut-out is never larger than 4096
    return {"scale": (scale * shrunk).tolist(), "offset": offset.tolist()}


# --- keypoints: input.png -> keypoints.json, keypoints.png ----------------------------------------


def load_detector(weights: Path):
    from rtmlib import RTMPose

    network = require(weights / "dwpose" / "dw-ll_ucoco_384.onnx")
    return RTMPose(str(network), model_input_size=(288, 384), backend="onnxruntime", device="cpu")


def keypoints(detect, job) -> None:
    """DWPose's, or those that were sent, checked against the person and drawn over the picture."""
    picture = Image.open(job.inputs["input.png"])
    if "keypoints" in job.inputs:
        where = json.loads(job.inputs["frame.json"].read_text())
        found = pose.read(job.inputs["keypoints"].read_text(), **where)
    else:
        job.progress(0.2, "Finding the keypoints")
        box = picture.getchannel("A").getbbox()
        seen = np.asarray(pose.opaque(picture))  # RGB, as the network was trained
        points, sure = detect(seen, bboxes=[list(box)])
        found = pose.body_25(points[0], sure[0], job.params.keypoint_confidence)
    pose.check(found, np.asarray(picture.getchannel("A")))
    (job.outputs / "keypoints.json").write_text(json.dumps(pose.as_openpose(found)))
    pose.draw(picture, found).save(job.outputs / "keypoints.png")


# --- fit: input.png, keypoints.json -> smplx.obj, smplx.json, fit.png -----------------------------


def load_fit(weights: Path):
    import nvdiffrast.torch  # noqa: F401  kaolin hides it if this fails
    from fitting.models.smpler_x_model import Model
    from smplx import SMPLX

    body_models = weights / "body_models"
    require(body_models / "smplx" / "SMPLX_MALE.npz")
    import fit

    network = Model(str(require(weights / "checkpoints" / "save_smplerx.pth")))
    fit.SMPL_PATH = str(body_models)
    keep_loaded(fit, network, SMPLX)
    return fit


def keep_loaded(fit, network, smplx) -> None:
    """Mends fit.py:84 and fit.py:181, which read 3 GB for every job.

    It can go when `fit.main` takes a loaded network and body model.
    """
    fit.Model = lambda checkpoint: network
    fit.SMPLX = functools.lru_cache(maxsize=1)(smplx)


def fit_body(fit, job) -> None:
    """`fit.main` holds the optimisation itself; its debug files are what users see of it."""
    folder, params = subject(job), job.params
    fit.OPT_ITER = params.fit_iterations
    job.progress(0.05, "Fitting the body", until=0.95)  # its bar: one step per iteration
    fit.main(
        SimpleNamespace(
            input_path=str(folder / "images"),
            output_path=str(folder / "smplx"),
            size=SIZE,
            debug=True,
            opt_orient=params.opt_orient,
            opt_betas=params.opt_betas,
            opt_pose=params.opt_pose,
        )
    )
    debug = folder / "smplx" / "debug"
    body, person = (
        np.asarray(Image.open(debug / f"mesh_{name}.png").convert("L")) > 127
        for name in ("mask", "gt_mask")
    )
    overlap = float((body & person).sum() / max((body | person).sum(), 1))
    if not overlap > LEAST_OVERLAP:
        raise BadInput(
            f"The body model does not fit the person: they overlap by {overlap:.0%} only.",
            "Look at keypoints.png: send `keypoints` of your own if it is wrong, or a picture of "
            "someone who stands upright with arms apart from the body.",
        )
    fitted = json.loads((debug / "mesh.json").read_text())
    (job.outputs / "smplx.json").write_text(json.dumps({**fitted, "overlap": round(overlap, 4)}))
    shutil.move(str(folder / "smplx" / "mesh_smplx.obj"), job.outputs / "smplx.obj")
    plain, drawn = (
        np.array(Image.open(path).convert("RGB"))
        for path in (folder / "images" / "mesh.png", debug / "mesh_fit.png")
    )
    drawn[(drawn == plain).all(-1) & ~person] = 255  # upstream draws over what transparency hides
    Image.fromarray(drawn).save(job.outputs / "fit.png")
