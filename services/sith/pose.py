"""Keypoints of one person, as OpenPose has them: found (of COCO-WholeBody's 133), read, checked.

A pose is a dict of `body` (25, 3), `left` and `right` (21, 3) and `face` (70, 3): x and y in pixels
of the canvas, y down, and confidence, 0 to 1; a point that is missing is 0, 0, 0.
"""

from __future__ import annotations

import json
import math

import numpy as np
from PIL import Image, ImageDraw

from .files import BadInput

LISTS = {"body": "pose", "left": "hand_left", "right": "hand_right", "face": "face"}
POINTS = {"body": 25, "left": 21, "right": 21, "face": 70}
FACE_WITHOUT_PUPILS = 68

# BODY_25's points (nose, neck, right arm, left arm, mid hip, right leg, left leg, eyes, ears, feet)
# of COCO-WholeBody's; a pair: their middle.
BODY_25 = [0, (5, 6), 6, 8, 10, 5, 7, 9, (11, 12), 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
BODY_25 += [17, 18, 19, 20, 21, 22]
FACE, LEFT, RIGHT = slice(23, 91), slice(91, 112), slice(112, 133)

TRUNK = {2: "right shoulder", 5: "left shoulder", 9: "right hip", 12: "left hip"}
LIMBS = [(0, 1), (1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (10, 11)]
LIMBS += [(8, 12), (12, 13), (13, 14), (0, 15), (15, 17), (0, 16), (16, 18)]
LIMBS += [(14, 19), (19, 20), (14, 21), (11, 22), (22, 23), (11, 24)]
FINGERS = [(0 if n % 4 == 1 else n - 1, n) for n in range(1, 21)]
OUTSIDE = 40  # pixels of the canvas by which a point may miss the person's outline
FITTING = 0.6  # of the body's points that must not


def body_25(points: np.ndarray, sure: np.ndarray, least: float) -> dict[str, np.ndarray]:
    """Of COCO-WholeBody's points (133, 2) and confidences (133,); those below `least` are missing.

    A middle is as sure as the less sure of its two.
    """
    found = np.concatenate([points, np.clip(sure, 0, 1)[:, None]], axis=1).astype(float)
    body = np.zeros((25, 3))
    for to, of in enumerate(BODY_25):
        pair = found[list(of) if isinstance(of, tuple) else [of]]
        body[to] = [*pair[:, :2].mean(0), pair[:, 2].min()]
    face = np.zeros((70, 3))
    face[:FACE_WITHOUT_PUPILS] = found[FACE]
    made = {"body": body, "left": found[LEFT], "right": found[RIGHT], "face": face}
    return {part: np.where(rows[:, 2:] < least, 0.0, rows) for part, rows in made.items()}


def read(text: str, size: list[int], scale: list[float], offset: list[float]) -> dict:
    """Of OpenPose's JSON in pixels of the picture that was sent, which has this size.

    Raises:
        BadInput: it is no such file, holds nobody, or another skeleton.
    """
    try:
        people = json.loads(text)["people"]
        people = [{part: rows_of(one, part) for part in LISTS} for one in people]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInput(f"`keypoints` is not OpenPose's JSON: {error!r}.", WRITE) from error
    if not people:
        raise BadInput("`keypoints` holds no person.", WRITE)
    person = max(people, key=lambda one: one["body"][:, 2].sum())
    seen = person["body"][person["body"][:, 2] > 0]
    if len(seen) and seen[:, :2].max() <= 1.5:
        raise BadInput("The `keypoints` are parts of the picture's size, not pixels.", WRITE)
    if (seen[:, :2] < -1).any() or (seen[:, :2] > np.add(size, 1)).any():
        raise BadInput(
            f"Some `keypoints` lie outside the picture, which has {size[0]} x {size[1]} pixels.",
            WRITE,
        )
    for rows in person.values():
        there = rows[:, 2] > 0
        rows[there, :2] = rows[there, :2] * scale + offset
    return person


WRITE = (
    "Write them with OpenPose (`--model_pose BODY_25 --hand --face --write_json`), in pixels of "
    "the picture that you send; or leave `keypoints` out."
)


def rows_of(person: dict, part: str) -> np.ndarray:
    """(points, 3); hands and face may be missing, the body not."""
    given = person.get(f"{LISTS[part]}_keypoints_2d") or []
    rows = np.zeros((POINTS[part], 3))
    sizes = {rows.size, *([3 * FACE_WITHOUT_PUPILS] if part == "face" else [])}
    sizes |= {0} if part != "body" else set()
    if len(given) not in sizes:
        raise ValueError(f"{LISTS[part]}_keypoints_2d has {len(given)} numbers, not {rows.size}")
    rows.reshape(-1)[: len(given)] = given
    if not np.isfinite(rows).all():
        raise ValueError(f"{LISTS[part]}_keypoints_2d holds what is no number")
    rows[:, 2] = rows[:, 2].clip(0, 1)
    rows[rows[:, 2] == 0] = 0
    return rows


def check(found: dict[str, np.ndarray], alpha: np.ndarray) -> None:
    """Raises BadInput unless it is a person's pose, and that of the person here.

    Alpha: uint8 (height, width), of the canvas.
    """
    body = found["body"]
    lacking = [name for point, name in TRUNK.items() if not body[point, 2]]
    if lacking:
        raise BadInput(
            f"No whole person was found: {', '.join(lacking)} cannot be seen.",
            "Send a picture of one person from the front, or `keypoints` of your own.",
        )
    near = np.asarray(Image.fromarray(alpha).reduce(8).getchannel(0)) > 0
    rows, columns = np.nonzero(near)
    outline = np.stack([columns, rows], axis=1) * 8 + 4
    seen = body[body[:, 2] > 0, :2]
    apart = np.linalg.norm(seen[:, None] - outline[None], axis=2).min(1)
    if (apart < OUTSIDE).mean() < FITTING:
        raise BadInput(
            f"The keypoints are not those of this person: {(apart >= OUTSIDE).sum()} of {len(seen)}"
            " lie beside the outline.",
            "Send `keypoints` of this very picture, in its pixels, or leave them out.",
        )


def as_openpose(found: dict[str, np.ndarray]) -> dict:
    lists = {f"{LISTS[part]}_keypoints_2d": rows.ravel().tolist() for part, rows in found.items()}
    return {"version": 1.3, "people": [{"person_id": [-1], **lists}]}


def opaque(picture: Image.Image) -> Image.Image:
    """On white: under transparency lies anything."""
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def draw(picture: Image.Image, found: dict[str, np.ndarray]) -> Image.Image:
    """The picture with bones and points: the person's right is red, the left blue."""
    shown = Image.blend(opaque(picture), Image.new("RGB", picture.size, "white"), 0.4)
    pen, body = ImageDraw.Draw(shown), found["body"]
    right = {2, 3, 4, 9, 10, 11, 15, 17, 22, 23, 24}
    for start, end in LIMBS:
        colour = "#d03020" if {start, end} & right else "#2060d0"
        colour = "#30a040" if {start, end} <= {0, 1, 8} else colour
        line(pen, body[start], body[end], colour, 5)
    for part, colour in (("left", "#2060d0"), ("right", "#d03020")):
        for start, end in FINGERS:
            line(pen, found[part][start], found[part][end], colour, 2)
    for part, radius in (("body", 5), ("left", 2), ("right", 2), ("face", 2)):
        for x, y, sure in found[part]:
            if sure:
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), "#202020")
    return shown


def line(pen: ImageDraw.ImageDraw, start, end, colour: str, width: int) -> None:
    if start[2] and end[2] and math.dist(start[:2], end[:2]) > 0:
        pen.line([tuple(start[:2]), tuple(end[:2])], colour, width)
