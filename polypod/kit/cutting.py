"""Cuts the object out of a picture: its transparency, a mask, or a background remover says where.

Alpha here: uint8 (height, width), 255 where the object is.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

LEAST = 16  # pixels of the object, each way
MOST = 4096  # pixels of the picture, each way
FAINT = 10  # alpha below this is the remover's haze
OPAQUE = 250  # a picture whose least alpha is above this has no transparency
Remove = Callable[[Image.Image], Image.Image]
WHOLE = "Send a picture of one whole object, one with a transparent background, or a `mask`."


class BadInput(Exception):
    """The picture cannot be used; `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class NotInstalled(Exception):
    """The background remover, or its weights, are not here."""

    hint = (
        "Send a PNG with a transparent background or a `mask`, which need none; or have it put "
        "there: `polypod doctor` says what is missing."
    )


class Remover:
    """rembg; its network is read when a picture first needs it, and never downloaded."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._chosen = str(settings.get("rembg_model") or "")
        homes = os.getenv("U2NET_HOME"), f"{settings.get('weights', '')}/u2net", "~/.u2net"
        self._homes = [Path(home).expanduser() for home in homes if home]
        self._sessions: dict[str, Any] = {}

    def __call__(
        self, picture: Image.Image, name: str = "u2net", matting: bool = False
    ) -> Image.Image:
        """RGBA, of an RGB picture.

        Raises:
            NotInstalled: rembg, or the weights of that model.
        """
        name = self._chosen or name
        home = next((home for home in self._homes if (home / f"{name}.onnx").is_file()), None)
        if home is None or importlib.util.find_spec("rembg") is None:
            lacking = f"its weights ({name}.onnx) are" if home is None else "rembg is"
            raise NotInstalled(f"No background can be removed here: {lacking} not installed.")
        os.environ["U2NET_HOME"] = str(home)  # where it looks before it would download
        rembg: Any = importlib.import_module("rembg")
        if name not in self._sessions:
            self._sessions[name] = rembg.new_session(name, providers=["CPUExecutionProvider"])
        return rembg.remove(picture, session=self._sessions[name], alpha_matting=matting)


def cut(
    image: Path,
    mask: Path | None,
    remover: Remove,
    *,
    mode: str = "auto",
    keep_background: bool = False,
    specks: float = 0.01,
    square: float = 0.0,
    side: int = 0,
    check: Callable[[np.ndarray], None] | None = None,
) -> Image.Image:
    """The picture as RGBA, with the object's alpha; `kit.cutout` tells of the arguments.

    Args:
        mode: `mask_mode`, or `keep`: its transparency, or the whole picture where it has none.
        specks: parts smaller than this share of the largest one are dropped.
        check: refuses an alpha by raising.

    Raises:
        BadInput: no object is there, or `check` refuses it.
        what `remover`, which is asked only where nothing else says where the object is, raises.
    """
    picture = Image.open(image).convert("RGBA")
    picture.thumbnail((MOST, MOST))
    found = find(picture, mask, remover, mode)
    alpha = np.asarray(found.getchannel("A"))
    alpha = 255 * (alpha > 127).astype(np.uint8) if keep_background else clean(alpha, specks)
    left, top, right, bottom = box(alpha)
    if check:
        check(alpha)
    if keep_background:
        picture.putalpha(Image.fromarray(alpha))
        return picture
    pixels = np.array(found)
    pixels[..., 3] = alpha
    pixels[alpha == 0, :3] = 255
    made = Image.fromarray(pixels, "RGBA")
    return centred(made.crop((left, top, right, bottom)), square, side) if square else made


def find(
    picture: Image.Image,
    mask: Path | None,
    remover: Remove,
    mode: str,
) -> Image.Image:
    """The picture (RGBA) with an alpha that says where the object is."""
    found = picture.copy()
    transparent = has_transparency(picture)
    if mask is not None:
        found.putalpha(read_mask(mask, picture.size))
    elif mode in ("center", "full"):
        left, top = (int(n / 10) if mode == "center" else 0 for n in picture.size)
        alpha = Image.new("L", picture.size)
        alpha.paste(255, (left, top, picture.width - left, picture.height - top))
        found.putalpha(alpha)
    elif mode == "alpha" and not transparent:
        raise BadInput(
            "mask_mode is alpha, but the picture has no transparent part.",
            "Send a PNG whose background is transparent, or a `mask`, or mask_mode auto.",
        )
    elif mode == "auto" and not transparent:
        found = remover(picture.convert("RGB"))
    return found


def read_mask(path: Path, size: tuple[int, int]) -> Image.Image:
    """Greyscale, of this size: white or opaque is the object."""
    mask = Image.open(path).convert("RGBA")
    if abs(mask.width * size[1] / (mask.height * size[0]) - 1) > 0.02:
        raise BadInput(
            "The mask and the picture differ in shape.",
            f"Send a mask of {size[0]} x {size[1]} pixels, white where the object is.",
        )
    chosen = mask.getchannel("A") if has_transparency(mask) else mask.convert("L")
    return chosen.resize(size)


def has_transparency(picture: Image.Image) -> bool:
    return int(np.asarray(picture.getchannel("A")).min()) < OPAQUE


def clean(alpha: np.ndarray, specks: float) -> np.ndarray:
    """Without haze, and without parts smaller than this share of the largest one."""
    kept = np.where(alpha < FAINT, 0, alpha)
    count, parts, stats, _ = cv2.connectedComponentsWithStats((kept > 0).astype(np.uint8))
    if count > 2:
        areas = stats[:, cv2.CC_STAT_AREA].copy()
        areas[0] = 0
        kept = np.where((areas >= specks * areas.max())[parts], kept, 0)
    return kept.astype(np.uint8)


def box(alpha: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the object; the last two are the first pixels outside."""
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    width, height = (int(np.ptp(at)) + 1 if len(at) else 0 for at in (columns, rows))
    if min(width, height) < LEAST:
        raise BadInput(
            f"The object is {width} x {height} pixels: too small, or none was found.",
            f"At least {LEAST} pixels each way are needed; 500 or more look good. {WHOLE}",
        )
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def centred(picture: Image.Image, share: float, side: int) -> Image.Image:
    """In the middle of a transparent square, filling this share of it."""
    natural = round(max(picture.size) / share)
    if side:
        scale = side * share / max(picture.size)
        size = [max(round(n * scale), 1) for n in picture.size]
        picture = picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    made = Image.new("RGBA", (side or natural, side or natural), (255, 255, 255, 0))
    at = [(made.width - n) // 2 for n in picture.size]
    made.paste(picture, (at[0], at[1]))
    return made
