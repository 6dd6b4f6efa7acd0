"""Colours of a surface: textures decoded and looked up, all in linear light."""

# pyright: basic
from __future__ import annotations

import contextlib
import os
from typing import Any

import numpy as np

from polypod.assets.mesh import Part, Texture, f32
from polypod.errors import BadInput

MAX_TEXTURE_PIXELS = 8192 * 8192
os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(MAX_TEXTURE_PIXELS)
"""OpenCV reads it when it is imported, and looks at the size before it decodes."""
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF")


def encode(linear: np.ndarray) -> np.ndarray:
    """Linear 0..1 floats to sRGB bytes."""
    places = (np.clip(linear, 0, 1) * (len(_ENCODED) - 1) + 0.5).astype(np.uint16)
    return _ENCODED[places]


def decode(srgb: np.ndarray) -> np.ndarray:
    """sRGB bytes to linear 0..1 float32."""
    return _DECODED[srgb]


def decoded(texture: Texture, max_side: int = 2048) -> np.ndarray:
    """(H, W, 3) uint16, linear; reduced to `max_side` pixels at most."""
    import cv2

    pixels: Any = None
    if texture.data.startswith(SIGNATURES):
        with contextlib.suppress(cv2.error):
            pixels = cv2.imdecode(np.frombuffer(texture.data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        raise BadInput(
            "A texture of the mesh cannot be read.",
            f"PNG, JPEG and WebP of up to {MAX_TEXTURE_PIXELS:,} pixels are.",
        )
    scale = max_side / max(pixels.shape[:2])
    if scale < 1:
        pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return (_DECODED * 65535 + 0.5).astype(np.uint16)[pixels]


def sample(image: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """(N, 3) float32, linear: `image` of `decoded` at (N, 2) places; the texture repeats."""
    import cv2

    height, width = image.shape[:2]
    rows = -(-len(uv) // 1024) or 1  # OpenCV takes pictures, not lists: sides from 1 to 32767
    places = np.zeros((rows * 1024, 2), np.float32)
    places[: len(uv)] = np.nan_to_num(uv - np.floor(uv))
    x = (places[:, 0] * width - 0.5).reshape(rows, 1024)
    y = ((1 - places[:, 1]) * height - 0.5).reshape(rows, 1024)
    found = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return found.reshape(-1, 3)[: len(uv)].astype(np.float32) / 65535


def has_colors(part: Part) -> bool:
    textured = part.material.texture is not None and part.uv is not None
    return textured or part.colors is not None or part.material.color[:3] != (1, 1, 1)


def vertex_colors(part: Part) -> np.ndarray:
    """(V, 4) float32, linear: what the surface looks like at each vertex."""
    colors = np.tile(f32(part.material.color), (len(part.vertices), 1))
    if part.material.texture is not None and part.uv is not None:
        colors[:, :3] *= sample(decoded(part.material.texture), part.uv)
    if part.colors is not None:
        colors *= part.colors
    return colors


def _srgb_to_linear(value: np.ndarray) -> np.ndarray:
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _linear_to_srgb(value: np.ndarray) -> np.ndarray:
    return np.where(value <= 0.0031308, value * 12.92, 1.055 * value ** (1 / 2.4) - 0.055)


_DECODED = _srgb_to_linear(np.arange(256) / 255).astype(np.float32)
_ENCODED = (_linear_to_srgb(np.arange(16384) / 16383) * 255 + 0.5).astype(np.uint8)
