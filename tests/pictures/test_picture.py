"""Pictures of every kind, made here with Pillow or byte by byte, through `check_picture`."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageCms

from polypod.errors import BadInput, Problem, TooLarge, UnsupportedMedia
from polypod.pictures.picture import MIN_SIDE, Picture, check_picture

MAX_PIXELS = 64_000_000
MIB = 1024**2
GIB = 1024**3
MAX_BYTES = 32 * MIB
EXIF_ORIENTATION = 0x0112


def check(data: bytes, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Picture:
    return check_picture(data, max_pixels, max_bytes)


def refused(error: type[Problem], data: bytes, **limits: int) -> Problem:
    """The error that `data` gets; its words are for people and tell nothing of the inside."""
    with pytest.raises(error) as caught:
        check(data, **limits)
    problem = caught.value
    words = f"{problem.message} {problem.hint}"
    assert problem.message.endswith(".") and problem.hint.endswith(".")
    for inside in ("PIL", "Plugin", "MAX_TEXT", "Traceback", "/", "object at", "decoder"):
        assert inside not in words.replace("/9j/", "")
    return problem


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def opened(picture: Picture) -> Image.Image:
    image = Image.open(io.BytesIO(picture.data))
    image.load()
    assert image.size == (picture.width, picture.height)
    assert image.get_format_mimetype() == picture.media_type
    return image


def corners(width: int = 48, height: int = 32) -> Image.Image:
    """Red, green, blue and white quarters: any turn or flip shows."""
    image = Image.new("RGB", (width, height))
    for x, y, colour in ((0, 0, "red"), (1, 0, "lime"), (0, 1, "blue"), (1, 1, "white")):
        box = (x * width // 2, y * height // 2, (x + 1) * width // 2, (y + 1) * height // 2)
        image.paste(colour, box)
    return image


def ramp() -> Image.Image:
    return Image.linear_gradient("L").resize((64, 64))


def difference(one: Image.Image, two: Image.Image) -> int:
    assert one.size == two.size
    extrema = ImageChops.difference(one.convert("RGB"), two.convert("RGB")).getextrema()
    return max(high for _, high in extrema)


NO_ALPHA = ("JPEG", "RGBA")


# What is accepted ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "mode"),
    [(k, m) for k in ("PNG", "JPEG", "WEBP") for m in ("L", "RGB", "RGBA") if (k, m) != NO_ALPHA],
)
def test_what_needs_no_change_keeps_its_bytes(kind: str, mode: str) -> None:
    data = encode(corners().convert(mode), kind)
    media_type = f"image/{kind.lower()}"
    assert check(data) == Picture(data, media_type, 48, 32, changed=False, upload_type=media_type)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_other_formats_become_png(kind: str) -> None:
    picture = check(encode(corners(), kind))
    assert (picture.media_type, picture.changed) == ("image/png", True)
    assert picture.upload_type == f"image/{kind.lower()}"
    assert difference(opened(picture), corners()) == 0


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_compressed_tiff_is_read(compression: str) -> None:
    picture = check(encode(ramp().convert("RGB"), "TIFF", compression=compression))
    assert difference(opened(picture), ramp()) < 16


@pytest.mark.parametrize("mode", ["1", "P", "LA", "CMYK", "I;16", "I", "F", "LAB"])
def test_every_mode_becomes_gray_rgb_or_rgba_that_looks_the_same(mode: str) -> None:
    whole = ramp().point(lambda v: 255 * (v > 127)) if mode == "1" else ramp()
    image = whole if mode in ("1", "P", "LA", "I;16", "I", "F") else whole.convert("RGB")
    kind = "PNG" if mode in ("1", "P", "LA", "I;16") else "TIFF"
    deep = image.convert("I").point(lambda v: v * 257).convert(mode) if mode == "I;16" else None
    picture = check(encode(deep or image.convert(mode), kind))
    result = opened(picture)
    assert picture.changed
    assert result.mode in ("L", "RGB", "RGBA")
    assert difference(result, whole) <= (6 if mode == "LAB" else 0)


def test_16_bit_gray_is_scaled_not_clipped() -> None:
    image = Image.new("I;16", (32, 32), 0x8000)
    image.putpixel((0, 0), 0)
    image.putpixel((1, 0), 255)
    image.putpixel((2, 0), 65535)
    result = opened(check(encode(image, "PNG")))
    assert result.mode == "L"
    assert [result.getpixel((x, 0)) for x in range(4)] == [0, 1, 255, 128]


def test_16_bit_gray_with_a_transparent_value_gets_alpha() -> None:
    image = Image.new("I;16", (32, 32), 40000)
    image.putpixel((5, 5), 40001)
    data = with_chunk(encode(image, "PNG"), b"tRNS", struct.pack(">H", 40000))
    result = opened(check(data)).convert("RGBA")
    assert result.getchannel("A").getextrema() == (0, 255)
    assert result.getpixel((5, 5))[3] == 255
    assert result.getpixel((0, 0))[3] == 0


def test_big_endian_16_bit_tiff_is_scaled() -> None:
    pixels = struct.pack(">1024H", *([65535, 32896] * 512))
    result = opened(check(tiff(32, 32, pixels, {258: 16}, order=">")))
    assert [result.getpixel((x, 0)) for x in (0, 1)] == [255, 128]


def test_16_bit_colour_png_is_written_anew_with_8_bits() -> None:
    rows = b"".join(b"\0" + b"\xff\xff\x80\x00\x00\x00" * 32 for _ in range(32))
    data = png((32, 32), depth=16, colour=2, body=zlib.compress(rows))
    picture = check(data)
    assert picture.changed
    assert picture.data[24] == 8
    assert opened(picture).getpixel((3, 3)) == (255, 128, 0)


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_float_tiff_is_scaled_from_its_usual_white(white: float) -> None:
    image = ramp().convert("F").point(lambda v: v * (white / 255.0) + 0.0)
    assert difference(opened(check(encode(image, "TIFF"))), ramp()) == 0


def test_float_tiff_with_other_values_is_stretched() -> None:
    image = ramp().convert("F").point(lambda v: v * 1000.0 + -100_000.0)
    low, high = opened(check(encode(image, "TIFF"))).getextrema()
    assert (low, high) == (0, 255)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_float_tiff_with_infinite_values_is_refused(value: float) -> None:
    image = Image.new("F", (32, 32), value)
    assert "not numbers" in refused(BadInput, encode(image, "TIFF")).message


def test_cmyk_jpeg_keeps_its_colours() -> None:
    """Photoshop stores CMYK inverted, and says so in the Adobe marker that Pillow writes too."""
    data = encode(corners().convert("CMYK"), "JPEG", quality=100)
    assert b"Adobe" in data
    picture = check(data)
    assert picture.media_type == "image/png"
    assert difference(opened(picture), corners()) <= 6


def test_palette_transparency_becomes_alpha() -> None:
    image = corners().quantize(8)
    clear = image.getpixel((0, 0))
    result = opened(check(encode(image, "PNG", transparency=clear)))
    assert result.mode == "RGBA"
    assert result.getpixel((0, 0))[3] == 0
    assert result.getpixel((47, 0)) == (0, 255, 0, 255)


def test_a_transparent_colour_becomes_alpha() -> None:
    result = opened(check(encode(corners(), "PNG", transparency=(255, 0, 0))))
    assert result.getpixel((0, 0))[3] == 0
    assert result.getpixel((47, 0)) == (0, 255, 0, 255)


def test_half_transparent_gray_keeps_its_alpha() -> None:
    image = ramp().convert("LA")
    image.putalpha(77)
    result = opened(check(encode(image, "PNG")))
    assert result.mode == "RGBA"
    assert result.getchannel("A").getextrema() == (77, 77)


# Upright and in sRGB ---------------------------------------------------------------------------

AS_STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(kind: str, orientation: int) -> None:
    turn = AS_STORED[orientation]
    stored = corners() if turn is None else corners().transpose(turn)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    lossless = {"lossless": True} if kind == "WEBP" else {}
    picture = check(encode(stored, kind, exif=exif, quality=100, subsampling=0, **lossless))
    assert (picture.width, picture.height) == (48, 32)
    assert picture.changed == (orientation > 1 or kind == "TIFF")
    result = opened(picture)
    assert result.getexif().get(EXIF_ORIENTATION, 1) == 1
    assert difference(result, corners()) <= 8


def test_a_turned_jpeg_stays_jpeg() -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    assert check(encode(corners(), "JPEG", exif=exif)).media_type == "image/jpeg"


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0",
        b"nonsense",
    ],
)
def test_damaged_exif_is_ignored(exif: bytes) -> None:
    assert not check(encode(corners(), "JPEG", exif=exif)).changed


def wide_gamut() -> bytes:
    """An RGB profile with red and green swapped: its effect cannot be missed."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.find(b"rXYZ", 128), profile.find(b"gXYZ", 128)
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_other_colour_profiles_are_converted_to_srgb(kind: str) -> None:
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encode(corners(), kind, icc_profile=wide_gamut(), quality=100, subsampling=0, **lossless)
    picture = check(data)
    assert picture.changed
    result = opened(picture)
    assert "icc_profile" not in result.info
    red, green, _ = result.getpixel((2, 2))
    assert green > 200 > red


def test_a_profile_keeps_alpha() -> None:
    image = corners()
    image.putalpha(99)
    result = opened(check(encode(image, "PNG", icc_profile=wide_gamut())))
    assert result.getpixel((2, 2))[3] == 99
    assert result.getpixel((2, 2))[1] > 200


def test_srgb_under_any_name_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encode(corners(), "JPEG", icc_profile=profile.replace(b"s\0R\0G\0B", b"t\0e\0s\0t"))
    assert check(data).data == data


@pytest.mark.parametrize("profile", [b"", b"nonsense", wide_gamut()[:200]])
def test_damaged_profiles_are_ignored(profile: bytes) -> None:
    assert not check(encode(corners(), "PNG", icc_profile=profile)).changed
    assert not check(encode(corners().convert("L"), "PNG", icc_profile=wide_gamut())).changed


# What is refused -------------------------------------------------------------------------------


def test_empty_file() -> None:
    assert "0 bytes" in refused(BadInput, b"").message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_truncated_files(kind: str, share: float) -> None:
    data = encode(Image.effect_noise((256, 256), 90).convert("RGB"), kind)
    problem = refused(BadInput, data[: int(len(data) * share)])
    assert problem.status == 422
    assert "cut off" in problem.message or "damaged" in problem.message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_truncation_is_named(kind: str) -> None:
    data = encode(Image.effect_noise((256, 256), 90).convert("RGB"), kind)
    assert "cut off" in refused(BadInput, data[: len(data) // 2]).message


@pytest.mark.parametrize("wrong", ["no last chunk", "half of it", "checksum of the pixels"])
def test_a_png_that_only_pillow_reads_is_written_anew(wrong: str) -> None:
    whole = encode(corners(), "PNG")
    at = whole.index(b"IEND") - 8  # the checksum before the last chunk
    data = {
        "no last chunk": whole[:-12],
        "half of it": whole[:-6],
        "checksum of the pixels": whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :],
    }[wrong]
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) is None
    picture = check(data)
    assert picture.changed
    assert cv2.imdecode(np.frombuffer(picture.data, np.uint8), cv2.IMREAD_UNCHANGED) is not None
    assert difference(opened(picture), corners()) == 0


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_and_pages(kind: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "lime")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    problem = refused(TooLarge, data)
    assert problem.status == 413
    assert "several pages" in problem.message or "animated" in problem.message


@pytest.mark.parametrize("size", [(1, 1), (MIN_SIDE - 1, 400), (400, 2)])
def test_tiny_pictures(size: tuple[int, int]) -> None:
    problem = refused(BadInput, encode(Image.new("RGB", size), "PNG"))
    assert f"{size[0]} x {size[1]}" in problem.message
    assert str(MIN_SIDE) in problem.hint
    assert check(encode(Image.new("RGB", (MIN_SIDE, MIN_SIDE)), "PNG")).width == MIN_SIDE


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_limits_of_pixels_and_bytes(kind: str) -> None:
    data = encode(corners(100, 50), kind)
    assert check(data, max_pixels=5000, max_bytes=len(data)).width == 100
    assert "100 x 50" in refused(TooLarge, data, max_pixels=4999).message
    assert f"{len(data):,} bytes" in refused(TooLarge, data, max_bytes=len(data) - 1).message


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"hello", "known format"),
        (bytes(1000), "known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- x -->\n<svg/>", "SVG"),
        (b"<!DOCTYPE svg PUBLIC '-//W3C//DTD SVG 1.1//EN'>\n<svg/>", "SVG"),
        (b"<!DOCTYPE html><html><body><svg/></body></html>", "HTML"),
        (b"\n <!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"<html>", "web page"),
        (b"%PDF-1.7\n%", "PDF"),
        (b"PK\x03\x04" + bytes(30), "archive"),
        (b"8BPS\0\x01", "Photoshop"),
        (HEIC, "HEIC"),
        (HEIC.replace(b"heic", b"avif"), "AVIF"),
        (HEIC.replace(b"heic", b"isom"), "video"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\0\0\x01\0\x01\0", "icon"),
        (b"II+\0\x08\0\0\0", "BigTIFF"),
        (b"data:image/png;base64,iVBORw0KGgo=", "base64"),
        (b"/9j/4AAQSkZJRg", "base64"),
    ],
)
def test_other_files_are_named(data: bytes, word: str) -> None:
    problem = refused(UnsupportedMedia, data)
    assert problem.status == 415
    assert word in problem.message


def test_heic_tells_to_convert() -> None:
    assert "Convert it to PNG or JPEG" in refused(UnsupportedMedia, HEIC).hint


def test_the_content_decides_not_what_comes_later() -> None:
    html = b"<html>" + encode(corners(), "PNG")
    assert "web page" in refused(UnsupportedMedia, html).message


def test_run_length_bmp_is_refused() -> None:
    """Pillow decodes it in Python, which would hold up everything else."""
    data = bytearray(encode(corners().convert("L"), "BMP"))
    data[30:34] = struct.pack("<I", 1)
    assert "RLE" in refused(UnsupportedMedia, bytes(data)).message


def test_camera_previews_in_tiff_are_refused() -> None:
    data = tiff(32, 32, bytes(1024), {254: 1})
    assert "preview" in refused(UnsupportedMedia, data).message


# Bombs -----------------------------------------------------------------------------------------


def png_chunk(name: bytes, body: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + body))
    return struct.pack(">I", len(body)) + name + body + checksum


def png(
    size: tuple[int, int],
    depth: int = 8,
    colour: int = 0,
    body: bytes = b"",
    extra: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A PNG file; without a body its pixels are missing."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    end = png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + extra + png_chunk(b"IDAT", body) + after + end


def with_chunk(data: bytes, name: bytes, body: bytes) -> bytes:
    """`data` (PNG) with another chunk after its header."""
    return data[:33] + png_chunk(name, body) + data[33:]


def zeros(size: int) -> bytes:
    """`size` zeros, deflated to about a thousandth (the checksum at the end is wrong)."""
    packer = zlib.compressobj(9)
    head = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * (size // MIB - 1) + packer.flush()


def tiff(
    width: int,
    height: int,
    pixels: bytes,
    tags: dict[int, int | tuple[int, list[int]]],
    order: str = "<",
    tiled: bool = False,
) -> bytes:
    """A gray TIFF file; `tags` maps a tag to a value, or to a type and many values."""
    strip: dict[int, int | tuple[int, list[int]]]
    strip = {256: width, 257: height, 258: 8, 262: 1, 273: 8, 278: height, 279: len(pixels)}
    if tiled:
        strip = {tag: value for tag, value in strip.items() if tag < 273}
    entries, body = b"", pixels
    for tag, value in sorted((strip | tags).items()):
        if isinstance(value, int):
            entries += struct.pack(order + "HHII", tag, 4, 1, value)
        else:
            type_, values = value
            entries += struct.pack(order + "HHII", tag, type_, len(values), 8 + len(body))
            body += struct.pack(f"{order}{len(values)}{'?BBHI'[type_]}", *values)
    count = len(strip | tags)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    head = magic + struct.pack(order + "I", 8 + len(body))
    directory = struct.pack(order + "H", count) + entries + bytes(4)
    return head + body + directory


def jpeg_with(segments: bytes) -> bytes:
    data = encode(corners(), "JPEG")
    return data[:2] + segments + data[2:]


def exif_bomb() -> bytes:
    """A JPEG whose 5 000 EXIF tags all point to the same 60 kB."""
    entries = [struct.pack("<HHII", 0x8000 + i, 7, 60_000, 8) for i in range(5000)]
    block = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries)
    return jpeg_with(b"\xff\xe1\xff\xff" + b"Exif\0\0" + block.ljust(65527, b"\0"))


def scan_bomb() -> bytes:
    """A progressive JPEG of 64 megapixels with 20 000 scans, each a pass over all of them."""
    data = encode(Image.new("L", (8000, 8000), 128), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * 20_000 + data[-2:]


def huge_tile() -> bytes:
    side, body = 40_000, zeros(1600 * MIB)
    return tiff(32, 32, body, {259: 8, 322: side, 323: side, 324: 8, 325: len(body)}, tiled=True)


BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG of 30 000 x 30 000": lambda: png((30_000, 30_000), body=zeros(900 * MIB)),
    "1-bit PNG of 30 000 x 30 000": lambda: png((30_000, 30_000), 1, body=zeros(113 * MIB)),
    "JPEG of 30 000 x 30 000": lambda: jpeg_of(30_000, 30_000),
    "WebP of 16 383 x 16 383": lambda: webp_of(16_383, 16_383),
    "WebP of 16 777 216 x 200": lambda: webp_of(16_777_216, 200),
    "GIF of 65 535 x 65 535": lambda: b"GIF89a\xff\xff\xff\xff" + encode(corners(), "GIF")[10:],
    "BMP of 30 000 x 30 000": lambda: bmp_of(30_000, 30_000),
    "TIFF of 30 000 x 30 000": lambda: tiff(30_000, 30_000, zeros(900 * MIB), {259: 8}),
    "TIFF with huge tiles": huge_tile,
    "TIFF with two million strips": lambda: tiff(
        32, 32, bytes(1024), {273: (4, [8] * 2_000_000), 278: 1}
    ),
    "PNG with a text": lambda: png((32, 32), extra=png_chunk(b"zTXt", b"a\0\0" + zeros(GIB))),
    "PNG with an international text": lambda: png(
        (32, 32), extra=png_chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(GIB))
    ),
    "PNG with a text after the pixels": lambda: png(
        (32, 32),
        body=zlib.compress(bytes(33 * 32)),
        after=png_chunk(b"zTXt", b"a\0\0" + zeros(GIB)),
    ),
    "PNG with a profile": lambda: png((32, 32), extra=png_chunk(b"iCCP", b"a\0\0" + zeros(GIB))),
    "PNG with many texts": lambda: png(
        (32, 32), extra=png_chunk(b"zTXt", b"a\0\0" + zeros(MIB)) * 2000
    ),
    "PNG with many profiles": lambda: png(
        (32, 32), extra=png_chunk(b"iCCP", b"a\0\0" + zeros(MIB)) * 20_000
    ),
    "PNG with a million empty chunks": lambda: png((32, 32), extra=png_chunk(b"prIv", b"") * 10**6),
    "JPEG with 20 000 passes": scan_bomb,
    "JPEG with 450 EXIF blocks": lambda: jpeg_with(
        (b"\xff\xe1\xff\xff" + b"Exif\0\0" + bytes(65527)) * 450
    ),
}


def jpeg_of(width: int, height: int) -> bytes:
    data = bytearray(encode(corners(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_of(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    inner = encode(corners(), "WEBP")[12:]
    body = b"WEBPVP8X\x0a\0\0\0\0\0\0\0" + size + inner
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp_of(width: int, height: int) -> bytes:
    data = bytearray(encode(corners(), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def tiff_sharing(size: int, tags: int) -> bytes:
    """A TIFF file whose extra tags all point to the same `size` bytes."""
    body = bytes(size)
    plain = {256: 32, 257: 32, 258: 8, 262: 1, 273: 8, 278: 32, 279: 1024}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in plain.items()]
    entries += [struct.pack("<HHII", 0x9000 + i, 7, len(body), 8) for i in range(tags)]
    head = b"II*\0" + struct.pack("<I", 8 + len(body)) + body
    return head + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


MEASURE = """
import io, json, re, sys, time
from pathlib import Path
from PIL import Image
from polypod.errors import Problem
from polypod.pictures.picture import check_picture

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, kind)
    check_picture(file.getvalue(), 10**6, 10**6)
data = Path(sys.argv[1]).read_bytes()
before, cpu = peak(), time.process_time()
try:
    answer = check_picture(data, 64_000_000, 32 * 1024**2).media_type
except Problem as problem:
    answer = problem.status
print(json.dumps({"answer": answer, "mib": peak() - before, "s": time.process_time() - cpu}))
"""


def measured(data: bytes, folder: Path) -> dict[str, float]:
    """Status, growth of peak memory (MiB) and CPU seconds of `check_picture` in its own process."""
    path = folder / "picture"
    path.write_bytes(data)
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory from /proc")


@needs_proc
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_without_going_off(name: str, tmp_path: Path) -> None:
    data = BOMBS[name]()
    assert len(data) <= MAX_BYTES
    result = measured(data, tmp_path)
    assert result["answer"] == 413
    # What Pillow copies or keeps of the file itself, nowhere near what it expands to.
    assert result["mib"] < 8 + 3 * len(data) / MIB
    assert result["s"] < 5  # seen: below 0.2, and 0.9 for the million chunks


@needs_proc
def test_tags_that_share_their_bytes(tmp_path: Path) -> None:
    """2 000 tags of a TIFF file say that they are the same 10 MB: 20 GB for who believes it."""
    result = measured(tiff_sharing(10 * MIB, 2000), tmp_path)
    assert result["answer"] in (413, "image/png")
    assert result["mib"] < 60


@needs_proc
def test_forged_exif_is_not_followed(tmp_path: Path) -> None:
    result = measured(exif_bomb(), tmp_path)
    assert result["answer"] == "image/jpeg"
    assert result["mib"] < 20


@needs_proc
def test_the_measure_sees_what_decoding_takes(tmp_path: Path) -> None:
    result = measured(encode(Image.new("L", (6000, 6000)), "PNG"), tmp_path)
    assert result["answer"] == "image/png"
    assert result["mib"] > 30


@needs_proc
def test_pixels_beyond_the_header_are_not_decoded(tmp_path: Path) -> None:
    result = measured(png((32, 32), body=zeros(GIB)), tmp_path)
    assert result["mib"] < 20


def test_30000_square_is_refused_by_its_header() -> None:
    problem = refused(TooLarge, png((30_000, 30_000)))
    assert "30000 x 30000" in problem.message


# Anything at all -------------------------------------------------------------------------------

VALID = [
    encode(corners(), "PNG"),
    encode(corners(), "JPEG"),
    encode(corners(), "JPEG", progressive=True, icc_profile=wide_gamut()),
    encode(corners().convert("CMYK"), "JPEG"),
    encode(corners(), "WEBP"),
    encode(corners().convert("RGBA"), "WEBP", lossless=True, exif=Image.Exif()),
    encode(corners(), "GIF"),
    encode(corners(), "BMP"),
    encode(corners(), "TIFF"),
    encode(corners(), "TIFF", compression="tiff_lzw"),
    encode(ramp().convert("F"), "TIFF"),
    encode(ramp().convert("I").convert("I;16"), "PNG"),
    encode(corners().quantize(8), "PNG", transparency=1),
]


def accepted_or_told(data: bytes) -> None:
    try:
        picture = check(data, max_pixels=10**6, max_bytes=10**6)
    except Problem as problem:
        assert 400 <= problem.status < 500
    else:
        assert opened(picture).mode in ("L", "RGB", "RGBA", "P", "LA")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_arbitrary_bytes(data: bytes) -> None:
    accepted_or_told(data)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=6)), max_size=5),
    st.floats(0.05, 1),
)
@example(VALID[0], [], 1.0)
def test_mutated_files(data: bytes, patches: list[tuple[float, bytes]], share: float) -> None:
    changed = bytearray(data)
    for where, patch in patches:
        at = int(where * (len(changed) - 1))
        changed[at : at + len(patch)] = patch
    accepted_or_told(bytes(changed[: int(len(changed) * share)]))


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=600, deadline=None)
@given(st.sampled_from(VALID), st.integers(8, 200), st.binary(min_size=1, max_size=4))
def test_mutated_headers(data: bytes, at: int, patch: bytes) -> None:
    accepted_or_told(data[:at] + patch + data[at + len(patch) :])


def test_many_threads_at_once() -> None:
    """One has a wide profile, one is turned, one is broken: none disturbs another."""
    barrier = threading.Barrier(8)

    def work(number: int) -> tuple[object, ...]:
        barrier.wait(10)
        results: list[object] = []
        for data in [*VALID, VALID[number % len(VALID)][:60]]:
            try:
                results.append(check(data))
            except Problem as problem:
                results.append(problem.message)
        return tuple(results[: len(VALID)])

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(work, range(8)))) == 1


def test_pillow_is_not_loaded_with_the_module() -> None:
    code = "import sys, polypod.pictures.picture; print('PIL' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
