"""Every kept file, by the SHA-256 of its content: written once, durable, never changed.

`Blobs` is the local folder. Its methods block (hashing, fsync): async callers use a thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import uuid
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from io import FileIO
from pathlib import Path

from polypod.errors import DiskFull, is_disk_full
from polypod.jobs.job import FileRef

MEDIA_TYPES = {
    "glb": "model/gltf-binary",
    "gltf": "model/gltf+json",
    "obj": "model/obj",
    "ply": "model/ply",
    "stl": "model/stl",
    "usdz": "model/vnd.usdz+zip",
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "bmp": "image/bmp",
    "tif": "image/tiff",
    "tiff": "image/tiff",
    "gif": "image/gif",
    "mp4": "video/mp4",
    "json": "application/json",
    "txt": "text/plain; charset=utf-8",
    "log": "text/plain; charset=utf-8",
    "zip": "application/zip",
}

CHUNK = 1 << 20
OWNER = "polypod-owner"
"""Name of what says which database the files belong to, where others could come at them."""
UNSYNCED = "unsynced"
"""Name of what says in which boot files were put without a wait for the disk."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def media_type_of(name: str) -> str:
    """The media type that goes with the ending of `name`; bytes of no known kind otherwise."""
    _, _, ending = name.rpartition(".")
    return MEDIA_TYPES.get(ending.lower(), "application/octet-stream")


class Blobs:
    """Files under `root/blobs/ab/abcdef...`; what is being written lies under `root/tmp`.

    What a method has returned survives a loss of power: content is fsynced before it gets its
    name, and the folder of the name afterwards. What is put while it is not `_durable` survives
    the end of the process only: `recover` takes away what a loss of power has left of it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = root / "blobs"
        self._tmp = root / "tmp"
        self._naming: AbstractContextManager[object] = threading.Lock()
        """Held while a name is given, renewed or taken away, and for no other I/O."""
        self._durable = True
        self._unsynced: set[str] = set()
        """What was named without a wait for the disk."""
        self._make_folders()

    def put_bytes(
        self, data: bytes, media_type: str = "application/octet-stream", filename: str = ""
    ) -> FileRef:
        digest = hashlib.sha256(data).hexdigest()
        if not self._renew(digest):
            with self.writer() as writer:
                writer.write(data)
                return writer.commit(media_type, filename)
        return FileRef(digest, len(data), media_type, filename)

    def put_file(self, path: Path, media_type: str = "", filename: str = "") -> FileRef:
        """Keeps the file at `path` by giving it a second name, so it becomes read-only.

        `path` can still be read and removed, but must not be written to any more. Where it cannot
        be linked (another file system, a symbolic link, someone else's file) it is copied.
        """
        filename = filename or path.name
        media_type = media_type or media_type_of(filename)
        with path.open("rb", buffering=0) as file:
            with _disk_full_explained():
                digest, size = _synced_digest(file) if self._durable else _digest(file)
            if not self._renew(digest) and not self._link(path, digest):
                file.seek(0)
                return self._copy(file, media_type, filename)
        return FileRef(digest, size, media_type, filename)

    def writer(self) -> BlobWriter:
        """For streamed uploads: `with blobs.writer() as w: w.write(chunk); w.commit(type, name)`.

        Without a `commit` nothing is kept.
        """
        return BlobWriter(self, self._tmp / uuid.uuid4().hex, self._durable)

    def path(self, digest: str) -> Path:
        """Where the content lies, for reading. KeyError when there is none."""
        path = self._place(digest)
        if not path.exists():
            raise KeyError(digest)
        return path

    def renew(self, digest: str) -> bool:
        """Whether the content is kept; it then counts as put now. Takes microseconds."""
        with self._naming:
            try:
                os.utime(self._place(digest))
            except FileNotFoundError:
                return False
        return True

    def sync(self, digests: Iterable[str]) -> None:
        """These survive a loss of power, too, where they are kept."""
        for digest in self._unsynced.intersection(digests):
            with contextlib.suppress(FileNotFoundError), _disk_full_explained():
                with self._place(digest).open("rb") as file:
                    os.fsync(file.fileno())
                _sync_folder(self._place(digest).parent)
            self._unsynced.discard(digest)

    def unsynced(self, digests: Iterable[str]) -> bool:
        """Whether `sync` would have anything to do. Takes microseconds."""
        return not self._unsynced.isdisjoint(digests)

    def recover(self) -> bool:
        """At the start: whether a loss of power may have undone some of what was not synced.

        Then every file is read, and removed if it is not whole.
        """
        mark = self.root / UNSYNCED
        if not mark.exists():
            return False
        if mark.read_text() == _boot_id() != "":
            self._unsynced.update(digest for digest, _, _ in self.digests())
            return False
        for digest, _, _ in self.digests():
            path = self._place(digest)
            with path.open("rb", buffering=0) as file:
                whole = _digest(file)[0] == digest
            if not whole:
                path.unlink()
        mark.unlink()
        _sync_folder(self.root)
        return True

    def delete(self, digest: str, unused_since: float | None = None) -> bool:
        """Removes it, and says whether it did.

        With `unused_since` (Unix seconds) it stays if someone put the same content later than
        that: a sweep that decided on old knowledge cannot take away what was just handed out.
        """
        path = self._place(digest)
        with self._naming, contextlib.suppress(FileNotFoundError):
            if unused_since is None or path.stat().st_mtime <= unused_since:
                path.unlink()
                self._unsynced.discard(digest)
                return True
        return False

    def digests(self) -> Iterator[tuple[str, int, float]]:
        """Digest, size in bytes and time of the last put (Unix seconds) of all that is kept."""
        for folder in sorted(self._blobs.iterdir()):
            with os.scandir(folder) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        stat = entry.stat()
                        yield entry.name, stat.st_size, stat.st_mtime

    def clear_tmp(self) -> int:
        """Removes what a dead server left half-written; only for the holder of the data lock."""
        leftovers = list(self._tmp.iterdir())
        for path in leftovers:
            path.unlink(missing_ok=True)
        return len(leftovers)

    def _make_folders(self) -> None:
        """All 256 at once, so that no put ever has to make a folder durable."""
        new = [folder for folder in self.root.absolute().parents if not folder.exists()]
        self.root.mkdir(parents=True, exist_ok=True)
        self._tmp.mkdir(exist_ok=True)
        self._blobs.mkdir(exist_ok=True)
        for folder in {self._blobs / f"{i:02x}" for i in range(256)}.difference(
            self._blobs.iterdir()
        ):
            folder.mkdir(exist_ok=True)
        for folder in (self._blobs, self.root, self.root.parent, *(f.parent for f in new)):
            _sync_folder(folder)

    def _place(self, digest: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise KeyError(digest)
        return self._blobs / digest[:2] / digest

    def _renew(self, digest: str) -> bool:
        """`renew`, durable."""
        if not self.renew(digest):
            return False
        if self._durable:
            self.sync([digest])
            _sync_folder(self._place(digest).parent)  # whoever put it may still be about to
        return True

    def _link(self, path: Path, digest: str) -> bool:
        if path.is_symlink():
            return False
        place = self._place(digest)
        try:
            path.chmod(0o444)
            with self._naming, contextlib.suppress(FileExistsError), _disk_full_explained():
                self._note_unsynced(digest)
                os.link(path, place)
                os.utime(place)
        except OSError:
            return False
        if self._durable:
            self.sync([digest])  # it may have had its name from elsewhere meanwhile
            _sync_folder(place.parent)
        return True

    def _copy(self, file: FileIO, media_type: str, filename: str) -> FileRef:
        with self.writer() as writer:
            while chunk := file.read(CHUNK):
                writer.write(chunk)
            return writer.commit(media_type, filename)

    def _name(self, tmp: Path, digest: str) -> None:
        """Moves a finished, fsynced file to its name, unless equal content has it already."""
        if not self._renew(digest):
            place = self._place(digest)
            with _disk_full_explained():
                with self._naming:
                    self._note_unsynced(digest)
                    if self._durable or not place.exists():
                        tmp.replace(place)
                if self._durable:
                    _sync_folder(place.parent)

    def _note_unsynced(self, digest: str) -> None:
        """Before its name is there for others, who take what they find for durable."""
        if self._durable:
            return
        mark = self.root / UNSYNCED
        if not (self._unsynced or mark.exists()):
            with mark.open("x") as file:
                file.write(_boot_id())
                file.flush()
                os.fsync(file.fileno())
            _sync_folder(self.root)
        self._unsynced.add(digest)


class BlobWriter:
    """Content that arrives in chunks; made by `Blobs.writer`."""

    def __init__(self, blobs: Blobs, tmp: Path, durable: bool) -> None:
        self._blobs = blobs
        self._tmp = tmp
        self._durable = durable
        self._hash = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> BlobWriter:
        with _disk_full_explained():
            self._file = self._tmp.open("xb", buffering=0)
        return self

    def write(self, chunk: bytes | memoryview) -> None:
        self._hash.update(chunk)
        self.size += len(chunk)
        rest = memoryview(chunk)
        with _disk_full_explained():
            while rest:
                rest = rest[self._file.write(rest) :]

    def restart(self) -> None:
        """Forget what was written."""
        self._file.seek(0)
        self._file.truncate()
        self._hash, self.size = hashlib.sha256(), 0

    @property
    def digest(self) -> str:
        """Of what was written so far."""
        return self._hash.hexdigest()

    def commit(self, media_type: str = "application/octet-stream", filename: str = "") -> FileRef:
        """Keeps it, durably. After an error it can be tried again."""
        digest = self._hash.hexdigest()
        with _disk_full_explained():
            os.fchmod(self._file.fileno(), 0o444)
            if self._durable:
                os.fsync(self._file.fileno())
        self._blobs._name(self._tmp, digest)  # pyright: ignore[reportPrivateUsage]
        return FileRef(digest, self.size, media_type, filename)

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._tmp.unlink(missing_ok=True)


def _synced_digest(file: FileIO) -> tuple[str, int]:
    """SHA-256 and size of a file that is fsynced meanwhile: both leave the interpreter free."""
    if os.fstat(file.fileno()).st_size <= CHUNK:  # a thread would take longer than it gains
        os.fsync(file.fileno())
        return _digest(file)
    with ThreadPoolExecutor(1) as beside:
        synced = beside.submit(os.fsync, file.fileno())
        told = _digest(file)
        synced.result()
    return told


def _digest(file: FileIO) -> tuple[str, int]:
    digest, buffer, size = hashlib.sha256(), bytearray(CHUNK), 0
    view = memoryview(buffer)
    while count := file.readinto(view):
        digest.update(view[:count])
        size += count
    return digest.hexdigest(), size


def _boot_id() -> str:
    """It changes when the machine starts anew; empty: not known."""
    try:
        return BOOT_ID.read_text()
    except OSError:
        return ""


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _disk_full_explained() -> Generator[None]:
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(
            "The disk is full, so the file could not be kept.",
            "Try again later. Who runs this server: free some space in the data folder's disk or"
            " lower POLYPOD_DISK_BUDGET_BYTES.",
        ) from error
