"""Pictures in and out: BGRA, uint8, y down."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

PICTURE_SIZE = 2048  # most pixels on the longer side


class BadInput(Exception):
    """The picture cannot be used; `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def read_picture(path: Path, least: int = 1) -> np.ndarray:
    """BGRA, uint8, at most `PICTURE_SIZE` pixels on the longer side; `least` is for the file's."""
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if picture is None or picture.dtype != np.uint8:
        raise BadInput("The picture cannot be read.", "Send a PNG, JPEG or WebP picture.")
    if min(picture.shape[:2]) < least:
        raise BadInput(
            f"The picture has only {picture.shape[1]} x {picture.shape[0]} pixels.",
            f"Send one of at least {least} x {least} pixels; 512 or more on the longer side look "
            "good.",
        )
    channels = 1 if picture.ndim == 2 else picture.shape[2]
    convert = {1: cv2.COLOR_GRAY2BGRA, 3: cv2.COLOR_BGR2BGRA}.get(channels)
    return shrink(picture if convert is None else cv2.cvtColor(picture, convert), PICTURE_SIZE)


def read_mask(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """The user's mask as the alpha of a picture of this shape; white or opaque is the object."""
    mask = read_picture(path)
    alpha = mask[..., 3] if mask[..., 3].min() < 250 else cv2.cvtColor(mask, cv2.COLOR_BGRA2GRAY)
    if abs(alpha.shape[0] * shape[1] / (alpha.shape[1] * shape[0]) - 1) > 0.02:
        raise BadInput(
            "The mask and the picture differ in shape.",
            f"Send a mask of {shape[1]} x {shape[0]} pixels, white where the object is.",
        )
    return cv2.resize(alpha, shape[::-1])


def write_picture(path: Path, picture: np.ndarray, options: list[int]) -> None:
    # not imwrite, which leaves half a file on a full disk and calls it written
    path.write_bytes(cv2.imencode(path.suffix, picture, options)[1].tobytes())


def shrink(picture: np.ndarray, longest: int) -> np.ndarray:
    """`picture` with at most `longest` pixels on its longer side."""
    scale = longest / max(picture.shape[:2])
    size = [max(round(n * scale), 1) for n in picture.shape[1::-1]]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA) if scale < 1 else picture


def blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(picture, (0, 0), sigma)
