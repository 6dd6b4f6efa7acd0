"""JSON bodies that carry files as base64: the long strings are cut out before parsing.

`json.loads` holds the interpreter for as long as it runs, 30 ms and more for a 20 MB picture, and
copies it twice. Cutting the picture out first takes a few memory searches; what is left is small.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn, cast

from polypod.errors import BadRequest, TooLarge

LONG = 32 * 1024
"""Strings of at least this many bytes are cut out."""
MAX_REST = 1 << 20
"""What may be left when they are cut out."""
MAX_QUOTES = 100_000
MAX_DEPTH = 100
"""Of lists and objects in each other: what walks through them calls itself."""


_HALF = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
"""What may be half a character: one of a surrogate pair."""


class Long:
    """A long string of the document: the bytes between its quotes, escapes as they were."""

    __slots__ = ("raw",)

    def __init__(self, raw: memoryview) -> None:
        self.raw = raw

    def __str__(self) -> str:
        """How it begins, for messages."""
        return bytes(self.raw[:100]).decode(errors="replace")

    def text(self) -> str:
        """What it says. BadRequest for what is no text."""
        return _parse(b'"' + bytes(self.raw) + b'"')


def loads(body: bytes | bytearray) -> Any:
    """The document in `body`; long strings in it are `Long`, views on `body`.

    Raw line breaks inside strings are accepted, as shell scripts with `base64 photo.png` make them.

    Raises:
        BadRequest: not JSON.
        TooLarge: more than `MAX_REST` bytes beside the long strings.
    """
    rest, cut = _cut(body)
    if len(rest) > MAX_REST:
        raise TooLarge(
            f"The JSON has more than {MAX_REST} bytes beside the files in it.",
            "Send large JSON as a file of a multipart form.",
        )
    document = _parse(rest)
    return _restore(document, cut) if cut else document


def plain(value: Any) -> Any:
    """The value with every long string in it as text."""
    if isinstance(value, Long):
        return value.text()
    if isinstance(value, list):
        return [plain(item) for item in cast(list[Any], value)]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in cast(dict[str, Any], value).items()}
    return value


def _of_whole_characters(document: Any, body: bytes | bytearray) -> Any:
    """Half of one could neither be kept nor told."""
    if _HALF.search(body):
        try:
            json.dumps(document, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("there is half a surrogate pair in it") from None
    return document


def not_too_deep(value: Any) -> Any:
    """`value`, if all that walk through it reach its ground. Raises ValueError."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [item for outer in level for item in _items(outer)]
        if not level:
            return value
    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return cast(dict[str, Any], value).values()
    return cast(list[Any], value) if isinstance(value, list) else ()


def _parse(body: bytes | bytearray) -> Any:
    try:
        document = json.loads(body, strict=False, parse_constant=_no_constant)
        return _of_whole_characters(not_too_deep(document), body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(
            f"The body is not JSON: {error}.", "Check quotes and commas; encoding is UTF-8."
        ) from None


def _cut(body: bytes | bytearray) -> tuple[bytes | bytearray, dict[str, Long]]:
    """The body with a random name in place of each long string, and the strings by name."""
    if len(body) < LONG:
        return body, {}
    view = memoryview(body)
    mark = secrets.token_hex(8)
    rest, cut, kept_to = bytearray(), dict[str, Long](), 0
    for begin, end in _strings(body):
        if end - begin >= LONG:
            rest += view[kept_to:begin]
            cut[name := f"{mark}{len(cut)}"] = Long(view[begin:end])
            rest += name.encode()
            kept_to = end
    rest += view[kept_to:]
    return rest, cut


def _strings(body: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Begin and end of what stands between quotes."""
    begin, quote = 0, body.find(b'"')
    for _ in range(MAX_QUOTES):
        if quote < 0:
            return
        if not begin:
            begin = quote + 1
        elif not _escaped(body, quote):
            yield begin, quote
            begin = 0
        quote = body.find(b'"', quote + 1)
    raise TooLarge(f"The JSON has more than {MAX_QUOTES} quotes.")


def _escaped(body: bytes | bytearray, quote: int) -> bool:
    before = body[max(quote - 64, 0) : quote]
    return (len(before) - len(before.rstrip(b"\\"))) % 2 == 1


def _restore(value: Any, cut: dict[str, Long]) -> Any:
    if isinstance(value, str):
        return cut.get(value, value)
    if isinstance(value, list):
        return [_restore(item, cut) for item in cast(list[Any], value)]
    if isinstance(value, dict):
        items = cast(dict[str, Any], value).items()
        return {name: _restore(item, cut) for name, item in items}
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
