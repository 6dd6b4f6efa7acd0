"""Where files are kept, as `POLYPOD_STORAGE` says: in a local folder or in an S3 bucket."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from polypod.assets.blobs import Blobs
from polypod.assets.cache import read_open
from polypod.jobs.job import FileRef
from polypod.settings import Settings


class BlobWriter(Protocol):
    """Content that arrives in chunks; nothing is kept without `commit`."""

    @property
    def size(self) -> int: ...
    @property
    def digest(self) -> str:
        """Of what has come so far."""
        ...

    def __enter__(self) -> BlobWriter: ...
    def write(self, chunk: bytes | memoryview) -> None: ...
    def commit(self, media_type: str = ..., filename: str = ...) -> FileRef: ...
    def __exit__(self, *error: object) -> None: ...


class BlobStore(Protocol):
    """Every kept file, by the SHA-256 of its content. Methods block; what is put is durable.

    `LocalBlobs` and `S3Blobs` say more on each.
    """

    @property
    def sweep_every_s(self) -> float:
        """How often all that is kept may be listed."""
        ...

    def check(self, owner: str) -> None:
        """At the start: `Unavailable` says what is wrong with the storage, if anything."""
        ...

    def put_bytes(self, data: bytes, media_type: str = ..., filename: str = "") -> FileRef: ...
    def put_file(self, path: Path, media_type: str = "", filename: str = "") -> FileRef: ...
    def writer(self) -> BlobWriter: ...

    def renew(self, digest: str) -> bool:
        """Whether it is kept; it then counts as put now."""
        ...

    def path(self, digest: str) -> Path:
        """A local file, fetched if need be, good for an hour. KeyError: there is none."""
        ...

    def stream(self, digest: str, start: int = 0, stop: int | None = None) -> Generator[bytes]:
        """Chunks, without a local copy; KeyError instead of the first one: there is none."""
        ...

    def url(self, digest: str, disposition: str, media_type: str) -> str | None:
        """Where to GET it directly for a while; None: only from here."""
        ...

    def delete(self, digest: str, unused_since: float | None = None) -> bool: ...
    def digests(self) -> Iterator[tuple[str, int, float]]: ...
    def clear_tmp(self) -> int: ...


class LocalBlobs(Blobs):
    """A local folder."""

    sweep_every_s = 300.0

    def check(self, owner: str) -> None:
        """Its folders are there, else it had not been made."""

    def renew(self, digest: str) -> bool:
        return self._renew(digest)

    def stream(self, digest: str, start: int = 0, stop: int | None = None) -> Generator[bytes]:
        yield from read_open(os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC), start, stop)

    def url(self, digest: str, disposition: str, media_type: str) -> str | None:
        return None


def open_blobs(settings: Settings) -> BlobStore:
    """The storage of the settings. Blocks; asks an S3 bucket nothing yet (see `check`)."""
    place = urlsplit(settings.storage)
    if place.scheme != "s3":
        return LocalBlobs(Path(unquote(place.path)) if settings.storage else settings.data)
    from polypod.assets.bucket import Bucket, BucketSpec
    from polypod.assets.s3 import S3Blobs

    prefix = place.path.strip("/")
    spec = BucketSpec(
        name=place.netloc,
        prefix=f"{prefix}/" if prefix else "",
        endpoint=settings.storage_endpoint,
        public_endpoint=settings.storage_public_endpoint,
        region=settings.storage_region,
        path_style=settings.storage_path_style,
    )
    return S3Blobs(
        Bucket(spec),
        settings.data / "cache",
        settings.storage_cache_bytes,
        settings.storage_presign_s,
    )
