"""Brings any picture that Pillow reads to 8-bit gray, RGB or RGBA in sRGB."""

from __future__ import annotations

import functools
import io
import math
from typing import TYPE_CHECKING, Any

from polypod.errors import BadInput

if TYPE_CHECKING:
    from PIL import Image
    from PIL.ImageCms import ImageCmsTransform

_SAME = 3
"""Largest difference of a profile from sRGB, of 255, that nobody sees."""


def to_plain(image: Image.Image) -> Image.Image:
    """`image` in mode L, RGB or RGBA and in sRGB; `image` itself if it is so already.

    Raises:
        BadInput: float values that are not numbers.
    """
    pixels = _in_8_bits(image)
    conversion = _conversion(image.info.get("icc_profile"), pixels)
    if conversion is not None:
        pixels = _converted(pixels, conversion)
    if pixels.mode in ("L", "RGB", "RGBA"):
        return pixels
    return pixels.convert("RGBA" if pixels.mode == "LA" else "RGB")


# Depth and transparency ------------------------------------------------------------------------


def _in_8_bits(image: Image.Image) -> Image.Image:
    """As L, LA, RGB, RGBA or CMYK with 8 bits per channel; what is transparent gets alpha."""
    if image.mode.startswith("I") or image.mode == "F":
        return _scaled(image)
    if image.mode in ("LA", "RGBA", "CMYK"):
        return image
    if image.mode in ("1", "L", "La"):
        gray = "LA" if image.has_transparency_data else "L"
        return image if image.mode == gray else image.convert(gray)
    rgb = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == rgb else image.convert(rgb)


def _scaled(image: Image.Image) -> Image.Image:
    """16 and 32-bit integers and floats as 8-bit gray: scaled from black to white, not clipped."""
    deep = image.convert("F")
    black, white = _black_and_white(image, deep)
    scale = 255 / (white - black) if white > black else 1.0
    shift = 0.5 - black * scale  # 0.5: going to L cuts the fraction off
    gray = deep.point(lambda value: value * scale + shift).convert("L")
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # a 16-bit gray PNG names the one value that is transparent
        gray.putalpha(_differs(deep, clear))
    return gray


def _black_and_white(image: Image.Image, deep: Image.Image) -> tuple[float, float]:
    """The values that mean black and white.

    16-bit files say it. Floats and 32-bit integers do not: white is usually 1, 255 or 65 535;
    values beyond that, and negative ones, are taken as measurements and stretched.
    """
    if image.mode.startswith("I;16"):
        bits: Any = getattr(image, "tag_v2", {}).get(258, (16,))  # TIFF: BitsPerSample
        return 0.0, 2.0 ** bits[0] - 1
    extrema: Any = deep.getextrema()
    low, high = extrema
    if not (math.isfinite(low) and math.isfinite(high)):
        raise BadInput(
            "The picture holds values that are not numbers (NaN or infinite).",
            "Save it as an 8-bit or 16-bit picture.",
        )
    for white in (1.0, 255.0, 65535.0):
        if low >= 0 and high <= white:
            return 0.0, white
    return low, high


def _differs(deep: Image.Image, value: int) -> Image.Image:
    """255 where the pixels are not `value`, else 0 (mode L)."""
    from PIL import ImageChops

    above = deep.point(lambda pixel: pixel * 255.0 + -255.0 * value).convert("L")
    below = deep.point(lambda pixel: pixel * -255.0 + 255.0 * value).convert("L")
    return ImageChops.lighter(above, below)


# Colour profiles -------------------------------------------------------------------------------


def _conversion(profile: object, pixels: Image.Image) -> ImageCmsTransform | None:
    """From the embedded ICC profile to sRGB (RGB); None where nothing is to convert.

    That is: no profile, a damaged one, one for another kind of pixels, or one that means the same
    as sRGB. Names tell little (there are dozens of sRGB), so a few colours are converted to see.
    """
    from PIL import ImageCms

    if not isinstance(profile, bytes):
        return None
    mode = pixels.mode.removesuffix("A")
    try:
        conversion = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),  # pyright: ignore
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        return conversion if mode == "CMYK" or _changes(conversion, mode) else None
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _changes(conversion: ImageCmsTransform, mode: str) -> bool:
    from PIL import ImageChops

    sample = _sample(mode)
    difference = ImageChops.difference(conversion.apply(sample), sample.convert("RGB"))
    extrema: Any = difference.getextrema()
    return max(high for _, high in extrema) > _SAME


@functools.cache
def _sample(mode: str) -> Image.Image:
    """Every gray, or RGB on a grid of 6 x 6 x 6."""
    from PIL import Image

    if mode == "L":
        return Image.frombytes("L", (256, 1), bytes(range(256)))
    grid = range(0, 256, 51)
    return Image.frombytes(
        "RGB", (216, 1), bytes(v for r in grid for g in grid for b in grid for v in (r, g, b))
    )


def _converted(pixels: Image.Image, conversion: ImageCmsTransform) -> Image.Image:
    alpha = pixels.getchannel("A") if pixels.mode in ("LA", "RGBA") else None
    mode = pixels.mode.removesuffix("A")
    plain = conversion.apply(pixels if alpha is None else pixels.convert(mode))
    if mode == "L":
        plain = plain.convert("L")
    if alpha is not None:
        plain.putalpha(alpha)
    return plain
