"""The input files of a request: found in its body, checked, and kept.

Each input NAME comes as `NAME` (base64, or a file part), `NAME_url` or `NAME_id` (of a picture that
was stored before, or of a job that was given it); a single file part called `file` stands for
`image`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import UploadFile

from polypod.api.bigjson import Long, plain
from polypod.api.body import Body
from polypod.api.endpoint import Api
from polypod.api.longbase64 import decode_long
from polypod.api.problems import Gone
from polypod.assets.storage import renew_all
from polypod.errors import BadInput, BadRequest, NotFound, TooLarge
from polypod.jobs.job import FileRef, Job
from polypod.model import Input, nearest
from polypod.pictures.encoding import decode_base64
from polypod.pictures.picture import Big, Picture, check_picture

FETCH_TIMEOUT_S = 15
CHECKED, UPLOADED = "checked", "uploaded"
"""Names of the two files of a stored image."""


@dataclass(frozen=True)
class Kept:
    """An input in the blob store: as the model sees it, and as it was uploaded."""

    file: FileRef
    upload: FileRef
    picture: Picture | None = None


@dataclass(frozen=True)
class Source:
    """Where an input comes from: `how` is `file`, `value`, `url` or `id`."""

    name: str
    how: str
    value: Any


def find_sources(
    inputs: Mapping[str, Input], body: Body
) -> tuple[dict[str, Source], dict[str, Any]]:
    """The sources of these inputs in `body`, and the fields that are left.

    Raises:
        BadRequest: an input given twice, a file part that is no input.
        BadInput: a required input that is missing.
    """
    fields = {name: value for name, value in body.fields.items() if not _absent(value, body)}
    rest = dict(body.fields)
    files = _name_single_file(inputs, body.files)
    sources: dict[str, Source] = {}
    for name, declared in inputs.items():
        found = [Source(name, "file", files.pop(name))] if name in files else []
        for key, how in _keys(name, declared):
            rest.pop(key, None)
            if key in fields:
                found.append(Source(name, how, fields[key]))
        if len(found) > 1:
            raise BadRequest(
                f"`{name}` is given more than once.",
                f"Send one of {_ways(name, declared)}.",
                parameter=name,
            )
        if found:
            sources[name] = found[0]
        elif declared.required:
            raise BadInput(
                f"There is no `{name}`.",
                f"Send one of {_ways(name, declared)}.",
                parameter=name,
            )
    if files:
        name = next(iter(files))[:100]
        raise BadInput(
            f"There is no input {name!r}.{nearest(name, inputs)}",
            f"Inputs: {', '.join(inputs)}.",
        )
    return sources, rest


async def keep_input(api: Api, owner: str | None, declared: Input, source: Source) -> Kept:
    """Fetch or decode the input, check it, and keep it. Durable on return."""
    if source.how == "id":
        return await _stored_image(api, owner, source)
    limit = api.settings.max_upload_bytes
    if source.how == "url":
        if isinstance(source.value, Long):
            raise BadRequest(
                f"`{source.name}_url` is longer than any address.",
                f"Send files and data URLs as `{source.name}`.",
            )
        if not isinstance(source.value, str):
            raise BadRequest(f"`{source.name}_url` is not text.", "Send an http(s) URL.")
        from polypod.pictures.fetch import fetch  # brings httpx, which few requests need

        data, _ = await fetch(
            source.value,
            max_bytes=limit,
            timeout_s=FETCH_TIMEOUT_S,
            allow_private=api.settings.allow_private_urls,
            name=f"{source.name}_url",
        )
        return await _or_apart(api, asyncio.to_thread(_keep, api, declared, source.name, data, ""))
    return await _or_apart(api, asyncio.to_thread(_decode_and_keep, api, declared, source))


async def keep_picture(api: Api, data: bytes) -> Kept:
    """Check a picture and keep it, as uploaded and as models see it. Durable on return."""
    return await _or_apart(api, asyncio.to_thread(_keep_small, api, data, ""))


async def _or_apart(api: Api, keeping: Awaitable[Kept]) -> Kept:
    """What `keeping` gives; a picture that is too big for it is checked in a child process."""
    try:
        return await keeping
    except _BigPicture as big:
        from polypod.pictures.apart import check_apart

        settings = api.settings
        picture = await check_apart(big.data, settings.max_pixels, settings.max_upload_bytes)
        return await asyncio.to_thread(_put_picture, api, big.data, big.filename, picture)


class _BigPicture(Exception):
    """On its way from a thread to `check_apart`."""

    def __init__(self, data: bytes, filename: str) -> None:
        super().__init__()
        self.data, self.filename = data, filename


def _decode_and_keep(api: Api, declared: Input, source: Source) -> Kept:
    limit = api.settings.max_upload_bytes
    value, filename = source.value, ""
    if isinstance(value, UploadFile):
        if (value.size or 0) > limit:
            raise too_large(source.name, limit)
        data, filename = value.file.read(), _safe_name(value.filename)
    elif declared.kind == "json" and not isinstance(value, str | Long):
        data = json.dumps(plain(value), separators=(",", ":")).encode()
    elif declared.kind == "json" and isinstance(value, str) and value.lstrip()[:1] in "{[":
        data = value.encode()
    elif isinstance(value, str):
        data = decode_base64(value, limit, source.name)
    elif isinstance(value, Long):
        data = decode_long(value, limit, source.name)
    else:
        raise BadRequest(f"`{source.name}` is not text.", "Send the file as base64.")
    return _keep(api, declared, source.name, data, filename)


def _keep(api: Api, declared: Input, name: str, data: bytes, filename: str) -> Kept:
    if declared.kind == "image":
        return _keep_small(api, data, filename)
    if len(data) > api.settings.max_upload_bytes:
        raise too_large(name, api.settings.max_upload_bytes)
    media_type = "application/octet-stream"
    if declared.kind == "json":
        _check_json(name, data)
        media_type = "application/json"
    ref = api.engine.blobs.put_bytes(data, media_type, filename)
    return Kept(ref, ref)


def _keep_small(api: Api, data: bytes, filename: str) -> Kept:
    settings = api.settings
    try:
        picture = check_picture(
            data, settings.max_pixels, settings.max_upload_bytes, only_small=True
        )
    except Big:
        raise _BigPicture(data, filename) from None
    return _put_picture(api, data, filename, picture)


def _put_picture(api: Api, data: bytes, filename: str, picture: Picture) -> Kept:
    blobs = api.engine.blobs
    file = blobs.put_bytes(picture.data, picture.media_type, filename)
    if not picture.changed:
        return Kept(file, file, picture)
    upload = blobs.put_bytes(data, picture.upload_type, filename)
    return Kept(file, upload, picture)


def too_large(name: str, limit: int) -> TooLarge:
    return TooLarge(f"`{name}` is larger than {limit / 2**20:g} MiB.", "Send a smaller file.")


async def _stored_image(api: Api, owner: str | None, source: Source) -> Kept:
    if not isinstance(source.value, str) or not source.value.isalnum():
        raise BadRequest(
            f"`{source.name}_id` is not the id of an image.", "POST /images answers `image_id`."
        )
    kept_id = source.value[:64]
    try:
        files = await api.engine.store.image(kept_id, owner)
    except NotFound as unknown:
        try:
            job = await api.engine.job(kept_id, owner)
        except NotFound:
            raise unknown from None
        return await _image_of_job(api, job, source.name)
    return Kept(files[CHECKED], files[UPLOADED])


async def _image_of_job(api: Api, job: Job, name: str) -> Kept:
    """What an earlier job was given, whatever its model."""
    file, asset = job.inputs.get(name), job.asset(name)
    if file is None or not await renew_all(api.engine.blobs, [file.digest]):
        raise Gone(
            f"Job {job.id} has no `{name}`, or it was removed when its time was over.",
            "Send the picture.",
        )
    if not file.media_type.startswith("image/"):
        raise BadInput(f"`{name}` of job {job.id} is no picture.", parameter=name)
    return Kept(file, asset.file if asset and asset.kind == "input" else file)


def _check_json(name: str, data: bytes) -> None:
    try:
        json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"`{name}` is not JSON: {error}.", parameter=name) from None


def _name_single_file(
    inputs: Mapping[str, Input], files: Mapping[str, UploadFile]
) -> dict[str, UploadFile]:
    named = dict(files)
    if "file" in named and "file" not in inputs:
        if "image" in named:
            raise BadRequest("Both `image` and `file` are given.", "Send one of them.")
        named["image"] = named.pop("file")
    return named


def _absent(value: Any, body: Body) -> bool:
    return value is None or (value == "" and not body.typed)


def _keys(name: str, declared: Input) -> list[tuple[str, str]]:
    """The fields that can bring the input, and how."""
    keys = [(name, "value"), (f"{name}_url", "url")]
    return [*keys, (f"{name}_id", "id")] if declared.kind == "image" else keys


def _ways(name: str, declared: Input) -> str:
    first = f"`{name}` (base64, or a file part of a form)"
    return ", ".join([first, *(f"`{key}`" for key, _ in _keys(name, declared)[1:])])


def _safe_name(filename: str | None) -> str:
    """The last part of a client's file name, without what could disturb a header or a terminal."""
    last = (filename or "").replace("\\", "/").rpartition("/")[2]
    return "".join(c for c in last if c.isprintable())[-120:]
