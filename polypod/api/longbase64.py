"""Long base64 strings of JSON bodies, decoded piece by piece.

Decoding 27 MB in one call holds the interpreter for 60 ms and more, and with it the event loop,
also from a thread. Pieces hold it for less than a millisecond each.
"""

from __future__ import annotations

import binascii
import time

from polypod.api.bigjson import Long
from polypod.errors import TooLarge
from polypod.pictures.encoding import decode_base64

PIECE = 128 * 1024
HEAD = 1024
"""A data-URL head ends within so many bytes."""

_URLSAFE = bytes.maketrans(b"-_", b"+/")


def decode_long(long: Long, max_bytes: int, name: str) -> bytes:
    """What `decode_base64` makes of it.

    Raises:
        BadRequest, TooLarge: with words.
    """
    raw = long.raw
    if len(raw) * 3 // 4 > 2 * max_bytes:  # even if every second byte were a line break
        raise TooLarge(f"`{name}` holds more than {max_bytes:,} bytes.", "Send a smaller file.")
    data = _decode(raw)
    if not data or len(data) > max_bytes:
        return decode_base64(long.text(), max_bytes, name)  # which says what is wrong
    return bytes(data)


def _decode(raw: memoryview) -> bytearray | None:
    """None: it is not plainly base64."""
    head = bytes(raw[:HEAD]).find(b",") + 1
    if head and not bytes(raw[:head]).lstrip().lower().startswith(b"data:"):
        return None
    data, rest = bytearray(), b""
    for start in range(head, len(raw), PIECE):
        piece = rest + bytes(raw[start : start + PIECE])
        last = start + PIECE >= len(raw)
        cut = len(piece) if last else len(piece) - _unfinished(piece)
        text = _clean(piece[:cut])
        whole = len(text) if last else len(text) // 4 * 4
        rest = text[whole:] + piece[cut:]
        decoded = _decode_piece(text[:whole], last)
        if decoded is None:
            return None
        data += decoded
        time.sleep(0)  # whoever waits for the interpreter gets it now, not in 5 ms
    return data


def _unfinished(piece: bytes) -> int:
    """Bytes at the end that may be half of an escape."""
    return 1 if piece.endswith(b"\\") else 0


def _clean(piece: bytes) -> bytes:
    """Without escaped slashes and line breaks, raw white space, and the URL-safe alphabet."""
    if b"\\" in piece:
        piece = piece.replace(b"\\/", b"/").replace(b"\\n", b"").replace(b"\\r", b"")
    if b"\n" in piece or b" " in piece or b"\r" in piece or b"\t" in piece:
        piece = piece.translate(None, b" \r\n\t")
    if b"-" in piece or b"_" in piece:
        piece = piece.translate(_URLSAFE)
    return piece


def _decode_piece(text: bytes, last: bool) -> bytes | None:
    """None if a character is not of the alphabet: those are skipped, so bytes are missing."""
    if last:
        padded, text = len(text), text.rstrip(b"=")
        if padded - len(text) > 2 or len(text) % 4 == 1:
            return None
    try:
        decoded = binascii.a2b_base64(text + b"=" * (-len(text) % 4))
    except binascii.Error:
        return None
    return decoded if len(decoded) == len(text) * 3 // 4 else None
