"""Files inside JSON: base64 in all the forms in which clients send it."""

from __future__ import annotations

import base64
import re

from polypod.errors import BadRequest, TooLarge

_DATA_URL_HEAD = re.compile(r"data:[^,]{0,1000},", re.IGNORECASE)
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_STANDARD = bytes.maketrans(b"-_", b"+/")
_WHITE_SPACE = b" \t\r\n\v\f"
_PERCENT = {"%2B": "+", "%2F": "/", "%3D": "=", "%0D": "", "%0A": "", "%20": ""}
"""What base64 in a data URL is percent-encoded for."""
_STEP = 256 * 1024
"""Characters decoded at a time (about 1 ms), since decoding stops all other threads."""
_HEX_PICTURE = re.compile(
    r"(?:0x)?(?:89504e47|ffd8ff|52494646|47494638|424d|49492a00|4d4d002a)[0-9a-f]{16,}\Z", re.I
)
"""How PNG, JPEG, WebP, GIF, BMP and TIFF files begin in hexadecimal."""


def decode_base64(text: str, max_bytes: int, name: str = "image") -> bytes:
    """The bytes of a file that came as base64 in the field `name`.

    Accepted: the standard and the URL-safe alphabet, with or without padding, with white space
    anywhere, with or without a data-URL head (with or without its `;base64`). Takes about 5 ms per
    MB: from 1 MB on callers use a thread.

    Raises:
        BadRequest: not base64; says what it looks like instead.
        TooLarge: more than `max_bytes` bytes; never decodes more than that.
    """
    text = text.lstrip("\ufeff \t\r\n")
    if head := _DATA_URL_HEAD.match(text):
        text = _without_percent(text[head.end() :])
    end = len(text.rstrip("= \t\r\n"))
    if end == 0:
        raise BadRequest(f"`{name}` is empty.", _hint(name))
    if _HEX_PICTURE.match(text, 0, min(end, 72)):
        raise BadRequest(f"`{name}` looks like hexadecimal digits, not base64.", _hint(name))
    parts: list[bytes] = []
    size, digits = 0, b""
    for at in range(0, end, _STEP):
        digits += _digits(text, at, min(at + _STEP, end), name)
        size += len(digits) * 3 // 4
        if size > max_bytes:
            raise TooLarge(
                f"`{name}` holds more than {max_bytes:,} bytes.",
                "Send a smaller file, for example a picture scaled down or saved as JPEG.",
            )
        whole = len(digits) // 4 * 4
        parts.append(base64.b64decode(digits[:whole]))
        digits = digits[whole:]
        size -= len(digits) * 3 // 4
    if len(digits) == 1:
        raise BadRequest(f"`{name}` is not complete base64: its end is missing.", _hint(name))
    if digits:
        parts.append(base64.b64decode(digits.ljust(4, b"=")))
    return b"".join(parts)


def _without_percent(text: str) -> str:
    if "%" in text:
        for code, character in _PERCENT.items():
            text = text.replace(code, character).replace(code.lower(), character)
    return text


def _digits(text: str, start: int, end: int, name: str) -> bytes:
    """The base64 digits of a part of `text`, in the standard alphabet, without white space."""
    part = text[start:end].encode("ascii", "replace").translate(_STANDARD, _WHITE_SPACE)
    if part.translate(None, _ALPHABET):
        raise _refusal(text, start, end, name)
    return part


def _refusal(text: str, start: int, end: int, name: str) -> BadRequest:
    """Why `text`, wrong somewhere from `start` to `end`, is not base64."""
    head = text[:12].lower()
    if head.startswith(("http://", "https://")):
        return BadRequest(f"`{name}` looks like a URL.", f"Give a URL as `{name}_url`.")
    if head.startswith("file:") or _looks_like_path(text):
        return BadRequest(
            f"`{name}` looks like the name of a file; files on your computer cannot be read here.",
            _hint(name),
        )
    if head.startswith(("b'", 'b"')):
        return BadRequest(
            f"`{name}` is how Python prints bytes, not base64 text.",
            "Add `.decode()`: `base64.b64encode(data).decode()`.",
        )
    foreign = re.compile(r"[^A-Za-z0-9+/_ \t\r\n\v\f-]").search(text, start, end)
    character = repr(foreign.group()) if foreign else "one of its characters"
    return BadRequest(f"`{name}` is not base64: {character} cannot be part of it.", _hint(name))


def _looks_like_path(text: str) -> bool:
    return len(text) < 4096 and bool(re.search(r"^[A-Za-z]:\\|^~?\.{0,2}/|\.\w{2,5}\s*$", text))


def _hint(name: str) -> str:
    return (
        f"Send the content of the file as base64 in `{name}`, its address as `{name}_url`, "
        "or the file itself as multipart form data."
    )
