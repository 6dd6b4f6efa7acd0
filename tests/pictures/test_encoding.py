"""Base64 as clients really send it, and what they send instead of it."""

from __future__ import annotations

import base64
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypod.errors import BadRequest, Problem, TooLarge
from polypod.pictures.encoding import decode_base64

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(255))
TEXT = base64.b64encode(PNG).decode()
URLSAFE = base64.urlsafe_b64encode(PNG).decode()
LIMIT = 10_000


def decoded(text: str) -> bytes:
    return decode_base64(text, LIMIT)


def refused(text: str, error: type[Problem] = BadRequest, limit: int = LIMIT) -> Problem:
    with pytest.raises(error) as caught:
        decode_base64(text, limit)
    assert caught.value.message.startswith("`image`")
    assert caught.value.hint.endswith(".")
    return caught.value


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        URLSAFE,
        TEXT.rstrip("="),
        TEXT.rstrip("=") + "== \n=",
        f"\n  {TEXT}\r\n",
        "\n".join(textwrap.wrap(TEXT, 76)),
        "\r\n".join(textwrap.wrap(TEXT, 60)) + "\r\n",
        " ".join(TEXT),
        f"data:image/png;base64,{TEXT}",
        f"DATA:image/png;BASE64,{URLSAFE}",
        f"data:image/png,{TEXT}",
        f"data:,{TEXT}",
        f"data:;base64,{TEXT}",
        f"data:image/png;name=a b.png;charset=utf-8;base64,{TEXT}",
        f"\ufeff data:image/png;base64,\n{TEXT}",
        "data:image/png;base64," + TEXT.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
    ],
)
def test_every_usual_form(text: str) -> None:
    assert "+" in TEXT and "/" in TEXT and "-" in URLSAFE and "_" in URLSAFE and "=" in TEXT
    assert decoded(text) == PNG


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=300), st.booleans(), st.booleans())
def test_whatever_is_encoded_comes_back(data: bytes, urlsafe: bool, padded: bool) -> None:
    encode = base64.urlsafe_b64encode if urlsafe else base64.b64encode
    text = encode(data).decode()
    try:
        assert decoded(text if padded else text.rstrip("=")) == data
    except BadRequest as problem:  # what looks like a picture in hexadecimal is taken for it
        assert "hexadecimal" in problem.message


@settings(deadline=None)
@given(st.text(max_size=100) | st.from_regex(r"data:.*", fullmatch=True))
def test_any_text(text: str) -> None:
    try:
        decoded(text)
    except Problem as problem:
        assert problem.status == 400


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("data:image/png;base64,", "is empty"),
        ("https://example.com/a.png", "looks like a URL"),
        (" HTTP://example.com/a.png", "looks like a URL"),
        ("file:///home/me/a.png", "name of a file"),
        ("/home/me/a.png", "name of a file"),
        ("./a.jpeg", "name of a file"),
        ("photo.png", "name of a file"),
        (r"C:\Users\me\a.png", "name of a file"),
        (PNG.hex(), "hexadecimal"),
        ("0x" + PNG.hex().upper(), "hexadecimal"),
        (repr(TEXT.encode()), "Python"),
        (TEXT[:9], "its end is missing"),
        ("====", "is empty"),
        (TEXT[:20] + "*" + TEXT[20:], "'*' cannot be"),
        (TEXT + TEXT, "'=' cannot be"),
        ("\u00e4" + TEXT, "'\u00e4' cannot be"),
        ("\ud800" * 8, "cannot be"),
        ("data:no comma", "':' cannot be"),
    ],
)
def test_what_it_is_instead(text: str, words: str) -> None:
    problem = refused(text)
    assert problem.status == 400
    assert words in problem.message


def test_a_url_is_sent_where_it_belongs() -> None:
    assert "`image_url`" in refused("https://example.com/a.png").hint


def test_the_limit_holds_before_decoding() -> None:
    assert decode_base64(TEXT, len(PNG)) == PNG
    assert decode_base64(TEXT.rstrip("="), len(PNG)) == PNG
    problem = refused(TEXT, TooLarge, len(PNG) - 1)
    assert problem.status == 413
    assert f"{len(PNG) - 1} bytes" in problem.message


def test_large_files_in_every_form() -> None:
    """Larger than what is decoded at a time, cut where white space and digits fall badly."""
    data = bytes(range(256)) * 4000
    text = base64.b64encode(data).decode()
    for form in (text, "\n".join(textwrap.wrap(text, 77)), f"data:,{text}", " " * 300_000 + text):
        assert decode_base64(form, len(data)) == data
        refused(form, TooLarge, len(data) - 1)
    assert "'*' cannot be" in refused(text[:-9] + "*" + text[-9:], limit=len(data) + 9).message


def test_other_inputs_are_called_by_their_name() -> None:
    with pytest.raises(BadRequest, match="`mask` is not base64") as caught:
        decode_base64("***", LIMIT, name="mask")
    assert "`mask_url`" in caught.value.hint
