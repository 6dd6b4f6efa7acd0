from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.api import bigjson
from polypod.errors import BadRequest, TooLarge

LONG = "x" * bigjson.LONG


def test_long_strings_are_cut_out_wherever_they_are() -> None:
    document = {"image": LONG, "a": [1, {"b": LONG + "y"}], "c": "short"}
    found = bigjson.loads(json.dumps(document).encode())
    assert isinstance(found["image"], bigjson.Long)
    assert found["c"] == "short"
    assert str(found["image"]) == "x" * 100  # in messages
    assert bigjson.plain(found) == document


@pytest.mark.parametrize("tail", ['"', "\\", '\\"', "é", "\n", "\ud83d\ude00", "\\\\"])
def test_escapes_in_long_strings_come_back(tail: str) -> None:
    document = {"a": LONG + tail, tail: tail + LONG}
    body = json.dumps(document).encode()
    assert bigjson.plain(bigjson.loads(body)) == json.loads(body)


@given(
    st.recursive(
        st.one_of(st.none(), st.integers(), st.text(), st.text('"\\a').map(lambda t: t + LONG)),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    )
)
def test_it_reads_what_json_reads(document: object) -> None:
    body = json.dumps(document).encode()
    assert bigjson.plain(bigjson.loads(body)) == json.loads(body)


def test_both_halves_are_a_character() -> None:
    assert bigjson.loads(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_raw_line_breaks_in_strings_are_accepted() -> None:
    assert bigjson.loads(b'{"image": "ab\ncd"}') == {"image": "ab\ncd"}
    long = bigjson.loads(b'{"image": "' + LONG.encode() + b'\nab"}')["image"]
    assert bytes(long.raw).endswith(b"\nab")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff\xfe",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b"[" * 100_000,
        b"[" * 500 + b"]" * 500,
        b'{"a": "\\ud83d"}',
        b'{"a": "\xed\xa0\xbd"}',
        b'{"image": "' + LONG.encode() + b'", "a": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"image": "' + LONG.encode(),
        b'{"image": "' + LONG.encode() + b'\\"}',
    ],
)
def test_what_is_not_json_is_refused_with_words(body: bytes) -> None:
    with pytest.raises(BadRequest, match="not JSON"):
        bigjson.loads(body)


@pytest.mark.parametrize("body", [b"[" + b"1," * bigjson.MAX_REST + b"1]", b'""' * 100_000])
def test_what_would_take_long_to_read_is_refused(body: bytes) -> None:
    with pytest.raises(TooLarge):
        bigjson.loads(body)
