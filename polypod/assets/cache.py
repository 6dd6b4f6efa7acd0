"""Copies of a bucket's files on the local disk: as many as fit, the longest unused go first."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Generator
from pathlib import Path

from polypod.assets.blobs import CHUNK, Blobs

LEASE_S = 3600.0
"""How long a path that was given out stays good: longer than a stage or a conversion may take."""


class Cache:
    """At most `max_bytes` of `folder`, but for what is pinned or leased.

    Whatever is in the folder at the start counts as a copy.
    """

    def __init__(self, folder: Blobs, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._used: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """Size and time of the last use (the file's mtime), the least recent first."""
        self._bytes = 0
        self._pins: Counter[str] = Counter()
        self._leases: dict[str, float] = {}
        for digest, size, used_at in sorted(folder.digests(), key=lambda entry: entry[2]):
            self._used[digest] = (size, used_at)
            self._bytes += size
        self.make_room()

    @property
    def bytes(self) -> int:
        return self._bytes

    def lease(self, digest: str) -> Path | None:
        """Where the copy is, which stays there for `LEASE_S`; None: there is none."""
        with self._lock:
            return self._lease(digest)

    def lease_at_once(self, digest: str) -> Path | None:
        """`lease`, but None also where that would have to wait for the disk."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            return self._lease(digest)
        finally:
            self._lock.release()

    def open(self, digest: str) -> int | None:
        """A descriptor for reading the copy, which stays good when the copy goes."""
        with self._lock:
            path = self._touch(digest)
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC) if path else None

    @contextlib.contextmanager
    def pinned(self, digest: str) -> Generator[None]:
        """Meanwhile the file stays; it counts as a copy from now on."""
        with self._lock:
            self._pins[digest] += 1
            self._touch(digest)
        try:
            yield
        finally:
            with self._lock:
                self._pins[digest] -= 1
                self._pins += Counter[str]()  # those without a pin go
            self.make_room()

    def make_room(self, coming: int = 0) -> None:
        """Removes copies until there is room for `coming` bytes."""
        with self._lock:
            too_much = self._bytes + coming - self._max_bytes
            if too_much <= 0:
                return
            now = time.monotonic()
            self._leases = {d: until for d, until in self._leases.items() if until > now}
            for digest, (size, used_at) in list(self._used.items()):
                if too_much <= 0:
                    return
                if digest in self._pins or digest in self._leases:
                    continue
                # one that was put again since then stays: who put it is about to pin it
                if self._folder.delete(digest, unused_since=used_at):
                    self._forget(digest)
                    too_much -= size

    def drop(self, digest: str) -> None:
        with self._lock:
            self._folder.delete(digest)
            self._forget(digest)

    def _lease(self, digest: str) -> Path | None:
        path = self._touch(digest)
        if path:
            self._leases[digest] = time.monotonic() + LEASE_S
        return path

    def _touch(self, digest: str) -> Path | None:
        """Counts the copy as used now."""
        self._forget(digest)
        try:
            path = self._folder.path(digest)
            os.utime(path)
            stat = path.stat()
        except (KeyError, FileNotFoundError):
            return None
        self._used[digest] = (stat.st_size, stat.st_mtime)
        self._bytes += stat.st_size
        return path

    def _forget(self, digest: str) -> None:
        size, _ = self._used.pop(digest, (0, 0.0))
        self._bytes -= size


def read_open(file: int, start: int, stop: int | None) -> Generator[bytes]:
    """The bytes from `start` up to `stop` (None: the end) of an open file, which is closed then."""
    try:
        stop = os.fstat(file).st_size if stop is None else stop
        while start < stop and (chunk := os.pread(file, min(CHUNK, stop - start), start)):
            start += len(chunk)
            yield chunk
    finally:
        os.close(file)
