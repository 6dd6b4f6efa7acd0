"""The body of a request: JSON or a multipart form, as fields and files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from polypod.api import bigjson
from polypod.errors import BadRequest, UnsupportedMedia

SMALL = 32 * 1024
"""Bodies up to this size are parsed where they are; larger ones in a thread."""
MAX_PARTS = 200


@dataclass(frozen=True)
class Body:
    """What a request brought.

    `fields` are JSON values, or text where they came in a form (`typed` is False). `files` are the
    parts of a form that have a file name.
    """

    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    files: Mapping[str, UploadFile] = field(default_factory=dict[str, UploadFile])
    typed: bool = True


@asynccontextmanager
async def read_body(request: Request, max_text: int) -> AsyncGenerator[Body]:
    """The body; its files are there until the block is left. `max_text` limits form fields.

    Raises:
        BadRequest, TooLarge, UnsupportedMedia: with words.
    """
    kind = media_type(request)
    if kind == "multipart/form-data":
        try:
            form = await request.form(
                max_files=MAX_PARTS, max_fields=MAX_PARTS, max_part_size=max_text
            )
        except HTTPException as error:
            raise BadRequest(
                f"The multipart form cannot be read: {error.detail}",
                "Send a file as a part with a file name."
                if "exceeded" in error.detail
                else "Let your HTTP library set the Content-Type, which names the boundary.",
            ) from None
        try:
            yield _form_body(form.multi_items())
        finally:
            await form.close()
    else:
        yield Body(await read_json(request, " or multipart/form-data"))


async def read_json(request: Request, or_else: str = "") -> dict[str, Any]:
    """A JSON object; `{}` for an empty body. `or_else`: what is read there too, for the message."""
    kind = media_type(request)
    body = await read_bytes(request)
    start = bytes(body[:64]).lstrip()
    # curl -d says that JSON is a form; a script that sets no type means JSON too.
    untold = kind in ("", "application/x-www-form-urlencoded") and start[:1] in (b"{", b"")
    if not untold and kind != "application/json" and not kind.endswith("+json"):
        raise UnsupportedMedia(
            f"Content-Type {kind[:100]!r} is not accepted here.", f"Send application/json{or_else}."
        )
    if not body:
        return {}
    if len(body) <= SMALL:
        document = bigjson.loads(body)
    else:
        document = await asyncio.to_thread(bigjson.loads, body)
    if not isinstance(document, dict):
        raise BadRequest("The body is not a JSON object.", 'Send one, such as {"image": "..."}.')
    return cast(dict[str, Any], document)


async def read_bytes(request: Request) -> bytearray:
    """The whole body. Its size is limited by `middleware.BodyLimit`."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
    return body


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _form_body(items: list[tuple[str, UploadFile | str]]) -> Body:
    fields, files = dict[str, Any](), dict[str, UploadFile]()
    for name, value in items:
        if name in fields or name in files:
            raise BadRequest(f"{name[:100]!r} is in the form twice.", "Send each part once.")
        if isinstance(value, str):
            fields[name] = value
        elif value.filename or value.size:  # a browser sends an empty part for no file chosen
            files[name] = value
    return Body(fields, files, typed=False)
