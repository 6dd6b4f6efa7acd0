"""Input pictures: what is accepted, and how it reaches the models.

Strangers send these bytes. So the file is recognised by its signature, its header is read and
held against the limits, and only then are pixels decoded. What leaves here is upright, in sRGB,
8 bits per channel, gray, RGB or RGBA, in a PNG, JPEG or WebP file that decodes completely.
Pillow is loaded with the first picture, not with this module.
"""

from __future__ import annotations

import functools
import io
import os
import re
import struct
import time
import zlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from polypod.errors import BadInput, Problem, TooLarge, UnsupportedMedia
from polypod.pictures import colour

if TYPE_CHECKING:
    from PIL import Image, ImageFile

MIN_SIDE = 16
"""Pixels; a smaller picture shows no object."""
MAX_SIDE = 32_768
"""Pixels; so that any program further on can open it."""

_KEPT = ("PNG", "JPEG", "WebP")
"""The formats that go on as they are, if nothing has to change."""
_COSTLY_JPEG = re.compile(
    rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)|\xff\xe1(?s:..)Exif"
)
"""Scans, by their fixed beginning: each is a pass over all pixels; encoders write 1 to 12. And EXIF
blocks, which Pillow appends to each other; one is normal."""
_INFLATED = (b"iCCP", b"iTXt", b"zTXt")
"""Chunks of PNG that are inflated, to at most 1 MiB each; encoders write a few."""
_MAX_COSTLY = 64
_STEP = 1024 * 1024
"""Bytes that are searched in one go, in about a millisecond."""
_MAX_VALUES = 200_000
"""Values of one TIFF tag, such as the offsets of strips."""
_MAX_TILE_PIXELS = 4096 * 4096
_MAX_READS = 500_000
_ORIENTATION = 0x0112
_BIG, _BIG_WEBP = 3_000_000, 1_500_000
"""Pixels. Freeing any picture, and decoding WebP, keep the interpreter: 1.6 and 3 ms per million.
"""


class Big(Exception):
    """More pixels than the server's own process should decode; see `apart`."""


@dataclass(frozen=True)
class Picture:
    """A checked picture: an encoded file, and its size in pixels as one sees it (upright)."""

    data: bytes
    media_type: str
    width: int
    height: int
    changed: bool
    """Whether `data` was encoded anew; else these are the uploaded bytes."""
    upload_type: str
    """Media type of the uploaded bytes."""


def check_picture(
    data: bytes, max_pixels: int, max_bytes: int, only_small: bool = False
) -> Picture:
    """The picture in `data`, fit for models; `max_pixels` limits width x height.

    Turned upright by EXIF, converted to sRGB by its ICC profile, and to 8-bit gray, RGB or RGBA
    (16-bit and float values are scaled, not clipped). Where something changes, the result is PNG,
    or JPEG (quality 95, 4:4:4) if it came as one with 8-bit gray or RGB.

    Blocking (5 to 80 ms per megapixel), so callers use a thread; takes up to 20 bytes of memory per
    pixel, so they bound how many run at once.

    Raises:
        UnsupportedMedia: not a picture, or not in a format that is read here.
        TooLarge: too many bytes, pixels or frames, or made to take too much work to read.
        BadInput: empty, damaged, truncated, or too small.
        Big: with `only_small`, one that is neither small nor refused already.
    """
    if not data:
        raise BadInput("The picture is empty (0 bytes).", "Check the file and send it again.")
    if len(data) > max_bytes:
        raise TooLarge(
            f"The picture has {len(data):,} bytes; the limit is {max_bytes:,}.",
            "Scale it down, or save it as JPEG.",
        )
    kind = _recognise(data)
    with _plain_words(kind, data):
        _check_structure(kind, data, max_pixels)
        with _reader(kind)(_Source(data)) as image:
            _check_size(*image.size, max_pixels)
            _check_kind(kind, image)
            if only_small and image.width * image.height > (_BIG_WEBP if kind == "WebP" else _BIG):
                raise Big
            image.load()
            return _finish(kind, data, image)


# What kind of file it is ---------------------------------------------------------------------

_SIGNATURES = {
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "WebP": re.compile(rb"RIFF(?s:....)WEBP"),
    "GIF": re.compile(rb"GIF8[79]a"),
    "BMP": re.compile(rb"BM(?s:.{12})[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\x00{3}"),
    "TIFF": re.compile(rb"II\x2a\x00|MM\x00\x2a"),
}
_CONVERT = "Convert it to PNG or JPEG first."
_ONE_FRAME = "Send a single frame as PNG or JPEG."
_FOREIGN = [
    (re.compile(signature, re.DOTALL), what, hint)
    for signature, what, hint in (
        (rb"....ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)", "a HEIC (HEIF) picture", _CONVERT),
        (rb"....ftypavi[fs]", "an AVIF picture", _CONVERT),
        (rb"....ftypcrx|FUJIFILM|IIRO|IIU\x00", "a camera's raw file", _CONVERT),
        (rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI ", "a video", _ONE_FRAME),
        (rb"%PDF-", "a PDF document", "Export the picture in it as PNG or JPEG."),
        (
            rb"[^<]{0,16}(<[?!](?!(?i:doctype html)).{0,900})?<svg",
            "an SVG drawing",
            "Export it as PNG.",
        ),
        (
            rb"(?i)[^<]{0,16}<(!doctype html|html|head|body|!--)",
            "a web page (HTML)",
            "Use the address of the picture itself, not of the page that shows it.",
        ),
        (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!", "an archive", "Unpack it and send one picture."),
        (rb"II\x2b\x00|MM\x00\x2b", "a BigTIFF file", _CONVERT),
        (rb"8BPS", "a Photoshop file", _CONVERT),
        (rb"\x00{3}\x0cJXL |\xff\x0a", "a JPEG XL picture", _CONVERT),
        (rb"\x00{3}\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 picture", _CONVERT),
        (rb"\x00\x00\x01\x00", "an icon (ICO)", _CONVERT),
        (
            rb"data:|iVBORw0KGgo|/9j/",
            "base64 text",
            "Decode it first, or send it in JSON as `image`.",
        ),
    )
]


def _recognise(data: bytes) -> str:
    """The name of the format, by its first bytes; file names and content types may lie."""
    for kind, signature in _SIGNATURES.items():
        if signature.match(data):
            return kind
    for signature, what, hint in _FOREIGN:
        if signature.match(data, 0, 1024):
            raise UnsupportedMedia(f"This is {what}, not a picture that can be read here.", hint)
    raise UnsupportedMedia(
        "This is not a picture in a known format.",
        "Send PNG, JPEG or WebP (also read: GIF, BMP and TIFF with a single picture).",
    )


@functools.cache
def _reader(kind: str) -> type[ImageFile.ImageFile]:
    """Pillow's class for `kind`. Asked for by name, so no other decoder ever sees the bytes."""
    from PIL import (
        BmpImagePlugin,
        GifImagePlugin,
        Image,
        JpegImagePlugin,
        PngImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    class Jpeg(JpegImagePlugin.JpegImageFile):
        def getexif(self) -> Image.Exif:
            """Nothing: Pillow asks for the resolution, and a forged EXIF block is a bomb."""
            return Image.Exif()

    return {
        "PNG": PngImagePlugin.PngImageFile,
        "JPEG": Jpeg,
        "WebP": WebPImagePlugin.WebPImageFile,
        "GIF": GifImagePlugin.GifImageFile,
        "BMP": BmpImagePlugin.BmpImageFile,
        "TIFF": TiffImagePlugin.TiffImageFile,
    }[kind]


# Limits, before any pixel is decoded -----------------------------------------------------------


class _Source(io.BytesIO):
    """The file as Pillow reads it, up to a budget.

    Pillow's parsers are loops in Python. Millions of empty chunks would keep them busy for
    minutes, and tags that all point to the same bytes would fill the memory.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._reads_left = _MAX_READS
        self._bytes_left = 3 * len(data) + 1024 * 1024

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self._reads_left -= 1
        self._bytes_left -= len(found)
        if self._reads_left < 0 or self._bytes_left < 0:
            raise too_much_work()
        return found


def _check_structure(kind: str, data: bytes, max_pixels: int) -> None:
    """Refuses what would cost much before, or beside, decoding the pixels."""
    if kind == "WebP" and data[12:16] == b"VP8X":  # libwebp reserves the canvas to read a header
        sides = [int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27)]
        _check_size(sides[0], sides[1], max_pixels)
    if kind == "JPEG" and _costly_parts(data) > _MAX_COSTLY:
        raise too_much_work()
    if kind == "PNG" and _inflated_chunks(data) > _MAX_COSTLY:
        raise too_much_work()
    if kind == "TIFF":
        for _, type_, count, _ in _tags(data):
            if count > _MAX_VALUES and type_ not in (1, 2, 6, 7):  # bytes and text
                raise too_much_work()


def _costly_parts(data: bytes) -> int:
    return sum(
        found.start() < at + _STEP
        for at in _steps(data)
        for found in _COSTLY_JPEG.finditer(data, at, at + _STEP + 7)
    )


def _inflated_chunks(data: bytes) -> int:
    return sum(data.count(name, at, at + _STEP + 3) for at in _steps(data) for name in _INFLATED)


def _steps(data: bytes) -> Iterator[int]:
    """Where each step of a search begins; other threads go on between them."""
    for at in range(0, len(data), _STEP):
        if at:
            time.sleep(0)
        yield at


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise TooLarge(
            f"The picture is {width} x {height} pixels; the limit is {max_pixels:,} in all "
            f"and {MAX_SIDE:,} on a side.",
            "Scale it down; models work on 1,000 to 2,000 pixels anyway.",
        )
    if min(width, height) < MIN_SIDE:
        raise BadInput(
            f"The picture is {width} x {height} pixels, too small to show an object.",
            f"Send one of at least {MIN_SIDE} x {MIN_SIDE}; 512 or more is good.",
        )


def _check_kind(kind: str, image: ImageFile.ImageFile) -> None:
    """One still picture, and nothing that only looks like one or is costly to decode."""
    if getattr(image, "is_animated", False):
        what = "has several pages" if kind == "TIFF" else "is animated"
        raise TooLarge(
            f"The {kind} file {what}; one still picture is needed.",
            "Save the page or frame that you mean as PNG or JPEG.",
        )
    if kind == "BMP" and image.tile[0].codec_name == "bmp_rle":
        raise UnsupportedMedia("This BMP file is compressed (RLE), which is not read.", _CONVERT)
    if kind == "TIFF":
        _check_tiff(image.tag_v2)  # pyright: ignore


def _check_tiff(tags: Mapping[int, object]) -> None:
    sub_file, tile_width, tile_height = (tags.get(tag, 0) for tag in (254, 322, 323))
    if sub_file == 1:
        raise UnsupportedMedia("This TIFF file holds a preview only (camera raw?).", _CONVERT)
    sides = [side if isinstance(side, int) else MAX_SIDE for side in (tile_width, tile_height)]
    if sides[0] * sides[1] > _MAX_TILE_PIXELS:
        raise too_much_work()


def too_much_work() -> TooLarge:
    return TooLarge(
        "The picture's file is built so that reading it takes far too much time or memory.",
        "Open it in a picture editor and save it as a new PNG or JPEG.",
    )


@contextmanager
def _plain_words(kind: str, data: bytes) -> Generator[None, None, None]:
    """Whatever Pillow's parsers raise, the user learns what it means."""
    from PIL import Image

    try:
        yield
    except (Problem, Big):
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        raise too_much_work() from error
    except Exception as error:
        if isinstance(error, ValueError) and "MAX_TEXT" in str(error):  # a bomb in iTXt or iCCP
            raise too_much_work() from error
        if "truncated" in str(error).lower() or (kind == "WebP" and _riff_size(data) > len(data)):
            raise BadInput(
                f"The {kind} file is cut off: its end is missing.",
                "The upload or the copy was probably interrupted; send the whole file.",
            ) from error
        raise BadInput(
            f"The {kind} file is damaged, or of a kind that is not supported.",
            "Open it in a picture editor and save it as a new PNG or JPEG.",
        ) from error


def _riff_size(data: bytes) -> int:
    return int.from_bytes(data[4:8], "little") + 8


# From pixels to the result ---------------------------------------------------------------------


def _finish(kind: str, data: bytes, image: ImageFile.ImageFile) -> Picture:
    plain = colour.to_plain(image)
    upright = _turned(plain, 1 if kind == "TIFF" else _orientation(image.info.get("exif")))
    media_type = f"image/{kind.lower()}"
    # Of these, other libraries see something else or nothing: write what Pillow saw.
    odd = kind == "PNG" and (data[24] == 16 or not _is_whole_png(data))
    if upright is image and kind in _KEPT and not odd:
        return Picture(data, media_type, *image.size, changed=False, upload_type=media_type)
    as_jpeg = kind == "JPEG" and image.mode in ("L", "RGB")
    return _encoded(upright, "JPEG" if as_jpeg else "PNG", media_type)


def _is_whole_png(data: bytes) -> bool:
    """Whether all checksums up to the last chunk are right; Pillow reads the pixels without."""
    at, view = 8, memoryview(data)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        if data[at + 4 : at + 8] == b"IEND":
            return True
        at = end + 4
    return False


def _encoded(image: Image.Image, kind: str, upload_type: str) -> Picture:
    image.info = {}  # profile, EXIF and transparency are in the pixels now
    with _memory_file() as file:
        if kind == "JPEG":
            image.save(file, "JPEG", quality=95, subsampling=0)
        else:
            image.save(file, "PNG", compress_level=2)
        file.seek(0)
        media_type = f"image/{kind.lower()}"
        return Picture(file.read(), media_type, *image.size, changed=True, upload_type=upload_type)


def _memory_file() -> BinaryIO:
    """With a descriptor where there can be: Pillow then writes JPEG without the interpreter."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("picture"), "w+b")
    return io.BytesIO()


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    """`image` as EXIF says it is to be seen; `image` itself if it is upright."""
    from PIL.Image import Transpose

    method = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(orientation)
    return image if method is None else image.transpose(method)


def _orientation(exif: object) -> int:
    """The orientation (1 to 8) that an EXIF block names; 1 where it names none."""
    if not isinstance(exif, bytes):
        return 1
    for tag, _, _, value in _tags(exif.removeprefix(b"Exif\0\0")):
        if tag == _ORIENTATION and 1 <= value <= 8:
            return value
    return 1


def _tags(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Tag, type, count and first short of each entry of a TIFF file's first directory.

    Read here because Pillow, asked for one tag, loads what all of them point to.
    """
    order = "<" if data[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(order + "I", data, 4)
        (entries,) = struct.unpack_from(order + "H", data, start)
        for at in range(start + 2, start + 2 + 12 * entries, 12):
            yield struct.unpack_from(order + "HHIH", data, at)
    except struct.error:
        return  # cut off here; what was read stands
