"""What users send about bodies: proportions, a pose, a motion. Checked, and put into arrays.

A body is a vector of 189 numbers (smplx_deformer_gender.py:179): scale 1, transl 3, global_orient
3, body_pose 63, betas 10, left and right hand 45 each, jaw 3, eyes 6, expression 10; axis-angle.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

LARGEST = 2048  # pixels of a frame, each way
NPY = b"\x93NUMPY"
WHAT_MOTION = "Send Motion-X's .json (annotations) or its .npy (frames x 322 numbers)."
WHAT_SMPLX = "Send JSON with `betas` and, for pose given, `body_pose` (63 numbers, axis-angle)."


class BadInput(Exception):
    """What was sent cannot be used; `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def read_smplx(path: Path | None, *, need_pose: bool) -> dict:
    """`betas` (10,) and, if there is one, `pose` (156,): body, left and right hand, jaw."""
    sent = json.loads(path.read_bytes()) if path else {}
    if not isinstance(sent, dict):
        raise BadInput("`smplx` is not an object of JSON.", WHAT_SMPLX)
    if need_pose and "body_pose" not in sent:
        raise BadInput(
            "pose is given, but no `smplx` with a `body_pose` was sent."
            if path is None
            else "pose is given, but `smplx` has no `body_pose`.",
            f"{WHAT_SMPLX} Or use pose a_pose or t_pose.",
        )
    betas = next((sent[name] for name in ("betas", "shapes", "betas_save") if name in sent), None)
    person = {"betas": np.zeros(10, np.float32)}
    if betas is not None:
        person["betas"] = numbers(betas, "`betas` of `smplx`", 10, WHAT_SMPLX, more=True)
    if "body_pose" in sent:
        parts = [("body_pose", 63), ("lhand_pose", 45), ("rhand_pose", 45), ("jaw_pose", 3)]
        person["pose"] = np.concatenate(
            [
                numbers(sent.get(name, [0] * count), f"`{name}` of `smplx`", count, WHAT_SMPLX)
                for name, count in parts
            ]
        )
    return person


def vector_of(pose: str, a_pose: np.ndarray, person) -> np.ndarray:
    """(189,) of one of the three poses; where a camera saw the given one from is left out."""
    vector = a_pose.copy()
    if pose == "t_pose":
        vector[7:70] = 0  # the hands stay flat
    if pose == "given":
        given = person["pose"]
        vector[7:70], vector[80:173] = given[:63], given[63:]
    vector[70:80] = person["betas"]
    return vector


def read_motion(path: Path, limit: int, *, own_cameras: bool) -> dict:
    """`frames` (T, 189), with hands as they are sent, not relative to the mean hand, and `cameras`
    (T, 20): fx, fy, cx, cy and 4 x 4 world to camera; (0, 20) where it is seen from the front."""
    with path.open("rb") as file:
        columns = file.read(len(NPY)) == NPY
    frames, cameras = (from_npy if columns else from_json)(path, limit)
    if not len(frames):
        raise BadInput("`motion` has no frames.", WHAT_MOTION)
    if not (own_cameras and len(cameras)):
        cameras = np.zeros((0, 20), np.float32)
        facing_us(frames)
    return {"frames": frames.astype(np.float32), "cameras": cameras.astype(np.float32)}


def from_npy(path: Path, limit: int) -> tuple:
    """Motion-X's table: root 3, body 63, hands 90, jaw 3, expression 50, face shape 100, trans 3,
    betas. Upstream asks for 1800 frames, and would unpickle what it is sent."""
    try:
        table = np.load(path, allow_pickle=False)[:limit].astype(np.float64)
    except (ValueError, EOFError, IndexError, TypeError) as error:
        raise BadInput(f"`motion` cannot be read: {error}", WHAT_MOTION) from None
    if table.ndim != 2 or table.shape[1] < 312 or not np.isfinite(table).all():
        raise BadInput(
            f"`motion` has the shape {table.shape}, or numbers that are not finite.", WHAT_MOTION
        )
    frames = empty(len(table))
    frames[:, 1:4], frames[:, 4:70] = table[:, 309:312], table[:, :66]
    frames[:, 80:173] = table[:, 66:159]
    frames[:, 179:189] = table[:, 159:169]
    return frames, np.zeros((0, 20))


def from_json(path: Path, limit: int) -> tuple:
    """Motion-X's `annotations`; their faces are left as they are, as upstream does."""
    try:
        sent = json.loads(path.read_bytes())
        annotations = [dict(one) for one in sent["annotations"][:limit]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadInput(f"`motion` is no such JSON: {error!r:.200}", WHAT_MOTION) from None
    frames, cameras = empty(len(annotations)), []
    for number, one in enumerate(annotations):
        read = Record(one.get("smplx_params"), f"frame {number} of `motion`")
        frames[number, 1:4], frames[number, 4:7] = read("trans", 3), read("root_orient", 3)
        frames[number, 7:70], frames[number, 80:170] = read("pose_body", 63), read("pose_hand", 90)
        frames[number, 170:173] = read("pose_jaw", 3)
        if "cam_params" in one:
            read = Record(one["cam_params"], f"the camera of frame {number} of `motion`")
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = read("cam_R", 9).reshape(3, 3), read("cam_T", 3)
            cameras.append(np.concatenate([read("intrins", 4), pose.reshape(-1)]))
    if cameras and len(cameras) != len(frames):
        raise BadInput("Some frames of `motion` have a camera and some have none.", WHAT_MOTION)
    seen = np.array(cameras).reshape(-1, 20)
    if len(seen) and (seen[0, 2:4].min() < 8 or seen[0, 2:4].max() > LARGEST / 2):
        raise BadInput(
            f"The cameras of `motion` make pictures of {2 * seen[0, 2]:.0f} x {2 * seen[0, 3]:.0f} "
            f"pixels; 16 to {LARGEST} each way can be drawn.",
            "Send motion_camera front, or scale `intrins`.",
        )
    return frames, seen


def facing_us(frames: np.ndarray) -> None:
    """Turns and moves the whole so that the first frame stands at the origin and looks at +Z."""
    from scipy.spatial.transform import Rotation

    back = Rotation.from_rotvec(frames[0, 4:7]).inv()
    frames[:, 1:4] = back.apply(frames[:, 1:4] - frames[0, 1:4])
    frames[:, 4:7] = (back * Rotation.from_rotvec(frames[:, 4:7])).as_rotvec()


class Record:
    """Lists of numbers by name, of one part of a user's JSON."""

    def __init__(self, sent, what: str) -> None:
        if not isinstance(sent, dict):
            raise BadInput(f"There is no {what}.", WHAT_MOTION)
        self.sent, self.what = sent, what

    def __call__(self, name: str, count: int) -> np.ndarray:
        if name not in self.sent:
            raise BadInput(f"There is no `{name}` in {self.what}.", WHAT_MOTION)
        return numbers(self.sent[name], f"`{name}` in {self.what}", count, WHAT_MOTION)


def numbers(sent, what: str, count: int, hint: str, *, more: bool = False) -> np.ndarray:
    """(count,) float32; `more`: there may be more of them, which are left out."""
    try:
        found = np.asarray(sent, np.float32).reshape(-1)
    except (ValueError, TypeError):
        found = np.zeros(0, np.float32)
    if len(found) < count or (len(found) > count and not more) or not np.isfinite(found).all():
        raise BadInput(f"There are not {count} numbers in {what}.", hint)
    return found[:count]


def empty(count: int) -> np.ndarray:
    frames = np.zeros((count, 189))
    frames[:, 0] = 1
    return frames
