"""What is sent: addresses and keys, one HTTP call as data, and the bodies of requests."""

from __future__ import annotations

import base64
import io
import json
import mimetypes
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from urllib.parse import quote, urljoin, urlsplit

import polypod
from polypod.client.errors import ApiError, without_login
from polypod.client.views import JobView, UploadedImage

DEFAULT_URL = "http://127.0.0.1:8000"
LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")

Headers = Mapping[str, str]


class SavesAsPicture(Protocol):
    """A picture object such as `PIL.Image.Image`."""

    def save(self, fp: Any, format: str) -> Any: ...


PictureSource: TypeAlias = str | os.PathLike[str] | bytes | UploadedImage | JobView | SavesAsPicture
"""A path, the bytes of a file, an http(s) URL (which the service fetches), a picture that is
already at the service, an earlier job (the same picture again) or a PIL image."""


def _no_headers() -> Headers:
    return {}


@dataclass(frozen=True)
class Part:
    """A file to send."""

    filename: str
    data: bytes = field(repr=False)
    media_type: str


@dataclass(frozen=True)
class Call:
    """One HTTP request. `parts` and `form` make it multipart, `json` a JSON body."""

    method: str
    url: str
    headers: Headers = field(default_factory=_no_headers)
    json: Any = None
    parts: Mapping[str, Part] = field(default_factory=dict[str, Part])
    form: Mapping[str, str] = field(default_factory=dict[str, str])
    read_timeout_s: float | None = None

    def with_headers(self, headers: Headers) -> Call:
        return replace(self, headers={**self.headers, **headers})

    def redirected(self, status: int, location: str) -> Call:
        """The call that a redirect asks for.

        Pictures go to no other host than the one they were meant for, and nothing leaves TLS.
        """
        there = replace(self, url=urljoin(self.url, location))
        if there.url.startswith("http:") and self.url.startswith("https:"):
            raise _bad_redirect(there.url, "which is not encrypted")
        if status == 303:
            return Call("GET", there.url, self.headers)
        if self.method != "GET" and origin(there.url) != origin(self.url):
            raise _bad_redirect(there.url, "another host")
        return there


@dataclass(frozen=True)
class Server:
    """Where the service is, and the key that it knows us by. `url` may end in a path prefix."""

    url: str
    api_key: str = field(default="", repr=False)

    def resolve(self, url: str) -> str:
        """An address from the service's answer, relative or absolute, as an absolute one."""
        if not url.startswith("/") or url.startswith("//"):
            return urljoin(self.url + "/", url)
        prefix = urlsplit(self.url).path
        behind_prefix = prefix and url.startswith(prefix + "/")
        return self.url.removesuffix(prefix) + url if behind_prefix else self.url + url

    def path(self, *parts: str) -> str:
        return "/".join([self.url, *(quote(part, safe="") for part in parts)])

    def is_ours(self, url: str) -> bool:
        return origin(url) == origin(self.url)

    def sign(self, call: Call) -> Call:
        """With the key, if the call goes to the service itself; without it anywhere else."""
        kept = {k: v for k, v in call.headers.items() if k.lower() != "authorization"}
        if self.api_key and self.is_ours(call.url):
            kept["Authorization"] = f"Bearer {self.api_key}"
        return replace(call, headers=kept)

    @classmethod
    def of(cls, url: str, api_key: str | None) -> Server:
        url = url.strip() if "://" in url else f"http://{url.strip()}"
        if not _is_address(url):
            raise ValueError(
                f"{without_login(url)!r} is not the address of a service; "
                f"it looks like {DEFAULT_URL}."
            )
        key = os.environ.get("POLYPOD_API_KEY", "") if api_key is None else api_key
        key = key.strip()  # read from a file, it ends with a line break
        if not (key.isascii() and key.isprintable()):
            raise ValueError("The API key holds characters that no key has.")
        return cls(url.rstrip("/"), key)


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # such as a port that is no number
        return False
    return bool(known) and url.isprintable() and not (parts.query or parts.fragment)


def origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return (
        parts.scheme,
        parts.hostname or "",
        parts.port or (443 if parts.scheme == "https" else 80),
    )


def default_headers() -> Headers:
    return {"User-Agent": f"polypod/{polypod.__version__}", "Accept": "application/json"}


@dataclass(frozen=True)
class Submission:
    """A request for a model, its files already read."""

    files: Mapping[str, Part | str | UploadedImage]
    """By input name: a file, or the URL that the service fetches, or an uploaded picture."""
    params: Mapping[str, Any]
    until: str = ""

    def call(self, url: str, idempotency_key: str) -> Call:
        """Multipart; JSON where a parameter is no scalar (a form has no null, lists or objects)."""
        headers = {"Idempotency-Key": idempotency_key}
        fields: dict[str, Any] = dict(self.params)
        if self.until:
            fields["until"] = self.until
        parts = {name: file for name, file in self.files.items() if isinstance(file, Part)}
        for name, file in self.files.items():
            if isinstance(file, UploadedImage):
                fields[f"{name}_id"] = file.id
            elif isinstance(file, str):
                fields[f"{name}_url"] = file
        if parts and all(isinstance(v, str | int | float) for v in fields.values()):
            return Call("POST", url, headers, parts=parts, form=_form(fields))
        encoded = {name: base64.b64encode(part.data).decode() for name, part in parts.items()}
        return Call("POST", url, headers, json=fields | encoded)


def read_source(source: PictureSource) -> Part | str | UploadedImage:
    """What to send for a picture or file; reads from disk.

    Raises:
        OSError: if the file cannot be read.
    """
    if isinstance(source, UploadedImage):
        return source
    if isinstance(source, JobView):
        return UploadedImage(source.id, {})
    if isinstance(source, bytes | bytearray | memoryview):
        return Part("image", bytes(source), "application/octet-stream")
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        if text.startswith(("http://", "https://")):
            return text
        path = Path(text)
        media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        name = path.name.encode(errors="replace").decode()  # it need not be text on this machine
        return Part(name, path.read_bytes(), media_type)
    buffer = io.BytesIO()
    source.save(buffer, format="PNG")
    return Part("image.png", buffer.getvalue(), "image/png")


def _form(fields: Mapping[str, Any]) -> dict[str, str]:
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in fields.items()}


def _bad_redirect(url: str, why: str) -> ApiError:
    return ApiError(
        310, "bad_redirect", f"The service sends us on to {url}, {why}.", "Use that address itself."
    )
