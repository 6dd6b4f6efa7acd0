"""Where files are kept, as `POLYPOD_STORAGE` says: in a local folder or in an S3 bucket."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from copy import copy
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from polypod.assets.blobs import OWNER, Blobs
from polypod.assets.cache import read_open
from polypod.errors import Unavailable
from polypod.jobs.job import FileRef
from polypod.settings import GIB, Settings

log = logging.getLogger("polypod.assets")

LEFT_OVER_S = 86400.0
"""What lies half-written in a folder that others share is nobody's after this."""
PATIENCE_S = 600.0
"""How long what a job has made waits for a storage that fails."""
MOST_PAUSE_S = 30.0

T = TypeVar("T")


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
    def restart(self) -> None:
        """Forget what was written."""
        ...

    def commit(self, media_type: str = ..., filename: str = ...) -> FileRef:
        """Keeps it. After an error it can be tried again."""
        ...

    def __exit__(self, *error: object) -> None: ...


class BlobStore(Protocol):
    """Every kept file, by the SHA-256 of its content. What is put is durable.

    Methods block, but for `here` and `unsynced`. `LocalBlobs` and `S3Blobs` say more on each.
    """

    @property
    def remote(self) -> bool:
        """Whether the files are on another machine: even whether there is one takes a while."""
        ...

    @property
    def sweep_every_s(self) -> float:
        """How often all that is kept may be listed."""
        ...

    @property
    def budget_bytes(self) -> int:
        """The disk budget where none is set; 0: no limit."""
        ...

    def check(self, owner: str) -> None:
        """At the start: `Unavailable` says what is wrong with the storage, if anything."""
        ...

    def recover(self) -> bool:
        """At the start: whether something of what was `relayed` may be gone."""
        ...

    @property
    def relayed(self) -> BlobStore:
        """The same, for jobs that a router keeps durably: a loss of power may undo puts."""
        ...

    def unsynced(self, digests: Collection[str]) -> bool:
        """Whether one of them was put so."""
        ...

    def sync(self, digests: Collection[str]) -> None:
        """They are durable, too."""
        ...

    def put_bytes(self, data: bytes, media_type: str = ..., filename: str = "") -> FileRef: ...
    def put_file(self, path: Path, media_type: str = "", filename: str = "") -> FileRef: ...
    def writer(self) -> BlobWriter: ...

    def renew(self, digest: str) -> bool:
        """Whether it is kept; it then counts as put now."""
        ...

    def here(self, digest: str) -> Path | None:
        """As `path`, where that need not be fetched or waited for."""
        ...

    def path(self, digest: str) -> Path:
        """A local file, fetched if need be, good for an hour. KeyError: there is none."""
        ...

    def stream(self, digest: str, start: int = 0, stop: int | None = None) -> Generator[bytes]:
        """Chunks, without a local copy; KeyError instead of the first one: there is none."""
        ...

    def url(self, digest: str, disposition: str, media_type: str) -> str | None:
        """Where to GET it directly for a while; None: only from here. KeyError: there is none."""
        ...

    def delete(self, digest: str, unused_since: float | None = None) -> bool: ...
    def digests(self) -> Iterator[tuple[str, int, float]]: ...
    def clear_tmp(self) -> int: ...


class LocalBlobs(Blobs):
    """A local folder. One that is `shared` has other servers of the same database at it."""

    remote = False
    sweep_every_s = 300.0
    budget_bytes = 20 * GIB

    def __init__(self, root: Path, *, shared: bool = False) -> None:
        super().__init__(root)
        self._shared = shared
        if shared:
            self._naming = _FolderLock(root / ".lock")
        self.relayed = self  # those who share it do not know what is not synced
        if not shared:
            self.relayed = copy(self)
            self.relayed._durable = False

    def check(self, owner: str) -> None:
        """Makes a shared folder that database's own: another's sweeps would empty it."""
        if not self._shared:
            return
        new, kept = self._tmp / uuid.uuid4().hex, self.root / OWNER
        new.write_text(owner)
        with contextlib.suppress(FileExistsError):
            os.link(new, kept)
        new.unlink()
        if kept.read_text() != owner:
            raise Unavailable(
                f"The folder {self.root} belongs to the database of another polypod.",
                "Use another folder in POLYPOD_STORAGE; or, if that database is gone for good,"
                f" remove the file {OWNER} in it.",
            )

    def here(self, digest: str) -> Path | None:
        try:
            return self.path(digest)
        except KeyError:
            return None

    def clear_tmp(self) -> int:
        """As `Blobs.clear_tmp`; in a shared folder only what is old."""
        if not self._shared:
            return super().clear_tmp()
        count = 0
        for path in self._tmp.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - LEFT_OVER_S:
                    path.unlink()
                    count += 1
        return count

    def digests(self) -> Iterator[tuple[str, int, float]]:
        """As `Blobs.digests`; from a shared folder, what is left half-written goes on the way."""
        if self._shared:  # who died is started again before that is old
            self.clear_tmp()
        yield from super().digests()

    def stream(self, digest: str, start: int = 0, stop: int | None = None) -> Generator[bytes]:
        yield from read_open(os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC), start, stop)

    def url(self, digest: str, disposition: str, media_type: str) -> str | None:
        return None


class _FolderLock:
    """Between the processes that have the folder, and the threads of each."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")
        self._threads = threading.Lock()

    def __enter__(self) -> None:
        self._threads.acquire()
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._threads.release()


def open_blobs(settings: Settings) -> BlobStore:
    """The storage of the settings. Blocks; asks an S3 bucket nothing yet (see `check`)."""
    place = urlsplit(settings.storage)
    if place.scheme != "s3":
        if settings.storage:
            return LocalBlobs(Path(unquote(place.path)), shared=True)
        return LocalBlobs(settings.data)
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
        read_timeout_s=settings.storage_timeout_s,
    )
    return S3Blobs(
        Bucket(spec),
        settings.data / "cache",
        settings.storage_cache_bytes,
        settings.storage_presign_s,
    )


async def path_of(blobs: BlobStore, digest: str) -> Path:
    """`BlobStore.path`, in a thread where it may take a while. KeyError: there is none."""
    return blobs.here(digest) or await asyncio.to_thread(blobs.path, digest)


async def content_of(blobs: BlobStore, digest: str) -> bytes:
    """A small file's bytes. KeyError: there is none.

    Without a thread: what was written a moment ago is in memory, and where threads are busy the
    way there and back takes longer than a millisecond.
    """
    return (await path_of(blobs, digest)).read_bytes()


async def renew_all(blobs: BlobStore, digests: Iterable[str]) -> bool:
    """Whether all are kept; those that were looked at then count as put now."""

    def work() -> bool:
        return all(blobs.renew(digest) for digest in digests)

    return await asyncio.to_thread(work) if blobs.remote else work()


async def make_durable(blobs: BlobStore, digests: Collection[str]) -> None:
    """Also what was put for a router's job."""
    if blobs.unsynced(digests):
        await asyncio.to_thread(blobs.sync, digests)


async def patiently(
    work: Callable[[], T],
    patience_s: float = PATIENCE_S,
    told: Callable[[Unavailable], object] = lambda _: None,
) -> T:
    """What `work` gives in a thread; again while the storage fails in a way that may pass.

    `told` hears of each failure. With `patience_s` infinite also what does not pass by itself
    (a refusal, a full disk) is waited for: until somebody has seen to it.
    """
    began, pause_s = time.monotonic(), 1.0
    while True:
        try:
            return await asyncio.to_thread(work)
        except Unavailable as problem:
            may_pass = "retry_after_s" in problem.extra or patience_s == math.inf
            if not may_pass or time.monotonic() - began + pause_s > patience_s:
                raise
            log.warning("tried again in %.0f s: %s", pause_s, problem)
            told(problem)
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, MOST_PAUSE_S)
