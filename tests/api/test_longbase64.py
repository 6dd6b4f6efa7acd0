from __future__ import annotations

import base64
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.api.bigjson import Long
from polypod.api.longbase64 import PIECE, decode_long
from polypod.errors import BadRequest, TooLarge
from polypod.pictures.encoding import decode_base64

LIMIT = 10_000_000


def decode(text: bytes, limit: int = LIMIT) -> bytes:
    return decode_long(Long(memoryview(text)), limit, "image")


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4], ids=lambda n: f"{PIECE}+{n}")
@pytest.mark.parametrize(
    "written",
    [
        base64.b64encode,
        base64.encodebytes,
        base64.urlsafe_b64encode,
        lambda d: b"data:image/png;base64," + base64.b64encode(d),
        lambda d: base64.b64encode(d).rstrip(b"="),
        lambda d: b"\n  " + base64.b64encode(d) + b" \r\n",
        lambda d: base64.encodebytes(d).replace(b"\n", b"\\r\\n"),
        lambda d: base64.b64encode(d).replace(b"/", b"\\/"),
        lambda d: base64.b64encode(d).replace(b"+", b"\\u002b"),
    ],
)
def test_every_way_to_write_base64_is_read(written, size: int) -> None:
    data = os.urandom(PIECE + size)
    assert decode(written(data)) == data


@given(
    st.binary(max_size=300), st.integers(0, 400), st.sampled_from([b"!", b"=", b"\\\\", b"\xff"])
)
def test_it_refuses_what_the_thorough_reader_refuses(data: bytes, at: int, bad: bytes) -> None:
    text = bytearray(base64.b64encode(data))
    text[at:at] = bad
    try:
        wanted: object = decode_base64(Long(memoryview(bytes(text))).text(), LIMIT)
    except BadRequest as error:
        wanted = type(error)
    try:
        found: object = decode(bytes(text))
    except BadRequest as error:
        found = type(error)
    assert found == wanted


def test_more_than_the_limit_is_refused() -> None:
    with pytest.raises(TooLarge):
        decode(base64.b64encode(bytes(1001)), 1000)
    with pytest.raises(TooLarge):
        decode(base64.b64encode(bytes(10_000)), 1000)
