"""Every kept file in an S3 bucket, by the SHA-256 of its content; a local folder is the cache.

Keys are `blobs/ab/abcdef...`, as in the folder of `Blobs`, so that a plain copy moves either into
the other. A file is removed in two steps: a mark under `marks/`, and after a grace the file itself.

Why no file goes that somebody relies on, with any number of routers and no lock between them:

- A put first looks for a mark, takes it away, and only then looks whether the content is there.
- A sweep removes content only `grace_s` after its mark, if nothing in the database names it then,
  and within seconds of seeing that the mark is still there. Then it leaves a mark of doubt.
- A put that finds a mark about so old leaves a mark of doubt too. Whoever finds one that is younger
  than `settle_s` waits until no removal can be under way, looks, and uploads what is gone.

So what a put has returned stays for an hour (`grace_s - CONFIRMED_S`) at least: a job can name it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Generator, Iterator
from pathlib import Path

from polypod.assets.blobs import OWNER, Blobs, BlobWriter
from polypod.assets.bucket import Bucket, Stat
from polypod.assets.cache import Cache, read_open
from polypod.errors import Unavailable
from polypod.jobs.job import FileRef

log = logging.getLogger("polypod.assets")

CONFIRMED_S = 1800.0
"""So long a put takes for granted what it last saw in the bucket."""
GRACE_S = 5400.0
"""From a mark to the removal, besides the life of a presigned URL."""
NEARLY_S = 300.0
"""More than it may take to remove a mark, all attempts counted."""
AT_ONCE_S = 5.0
"""A sweep that saw a mark longer ago than this does not act on it."""
SETTLE_S = 30.0
"""More than `AT_ONCE_S` and the time-outs of the request that follows."""
STALE_S = 86400.0
"""A mark that no sweep has heeded for so long counts no more."""
DOUBT_S = 3600.0
"""After this a mark of doubt has done its duty."""
UNFINISHED_S = 86400.0
MOST_CONFIRMED = 10_000

PROBE = "polypod-probe"
DOUBT = b"may just have been removed"
"""The content of such a mark; that of others is empty."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


class S3Blobs:
    """Like `Blobs`: what a put has returned is in the bucket. Its methods block.

    The cache is under `root`; `presign_s` is how long the URLs live that `url` gives (0: none).
    All raise `Unavailable` when the storage cannot be used.
    """

    remote = True
    sweep_every_s = 3600.0
    """A listing costs one request for each thousand files."""
    budget_bytes = 0

    def __init__(
        self,
        bucket: Bucket,
        root: Path,
        cache_bytes: int,
        presign_s: int = 0,
        settle_s: float = SETTLE_S,
    ) -> None:
        self.bucket = bucket
        self.grace_s = GRACE_S + presign_s
        self._folder = Blobs(root)
        self.cache = Cache(self._folder, cache_bytes)
        self._presign_s = presign_s
        self._settle_s = settle_s
        self._lock = threading.Lock()
        self._busy: dict[str, tuple[threading.Lock, int]] = {}
        """A lock for each digest under way, and how many hold or want it."""
        self._confirmed: OrderedDict[str, float] = OrderedDict()
        self._damaged: set[str] = set()

    def check(self, owner: str) -> None:
        """Tries out what will be needed, and makes the bucket (or prefix) that database's own.

        `owner` identifies the database: another one's sweeps would remove files that it does not
        know.
        """
        bucket, spec = self.bucket, self.bucket.spec
        bucket.put(PROBE, b"polypod")
        list(bucket.list(limit=1))
        try:
            found = b"".join(bucket.read(OWNER)).decode(errors="replace")
        except KeyError:
            found = owner
            bucket.put(OWNER, owner.encode())
        bucket.delete(PROBE)
        if found != owner:
            raise Unavailable(
                f"The storage (bucket {spec.name!r}, prefix {spec.prefix!r}) belongs to the"
                " database of another polypod.",
                "Use another prefix in POLYPOD_STORAGE; or, if that database is gone for good,"
                f" remove the object {spec.prefix + OWNER!r}.",
            )

    def recover(self) -> bool:
        return False

    # Putting

    @property
    def relayed(self) -> S3Blobs:
        """A bucket has nothing to wait less for."""
        return self

    def unsynced(self, digests: Collection[str]) -> bool:
        return False

    def sync(self, digests: Collection[str]) -> None:
        """All is durable as it is put."""

    def put_bytes(
        self, data: bytes, media_type: str = "application/octet-stream", filename: str = ""
    ) -> FileRef:
        return self._keep(self._folder.put_bytes(data, media_type, filename))

    def put_file(self, path: Path, media_type: str = "", filename: str = "") -> FileRef:
        """As `Blobs.put_file`: `path` becomes read-only."""
        return self._keep(self._folder.put_file(path, media_type, filename))

    def writer(self) -> S3Writer:
        """For streamed uploads; nothing is kept without `commit`."""
        return S3Writer(self._folder.writer(), self._keep)

    def renew(self, digest: str) -> bool:
        """Whether the content is kept; it then counts as put now."""
        _check(digest)
        with self._alone(digest):
            kept = self._is_kept(digest)
            if kept:
                self._confirm(digest)
            return kept

    def _keep(self, ref: FileRef) -> FileRef:
        with self.cache.pinned(ref.digest), self._alone(ref.digest):
            if not self._is_kept(ref.digest, ref.size):
                try:
                    local = self._folder.path(ref.digest)
                    self.bucket.put_file(_key(ref.digest), local, ref.media_type)
                except (KeyError, FileNotFoundError) as error:
                    raise Unavailable(
                        "The file was removed while it was being kept.", "Send it again."
                    ) from error
                with self._lock:
                    self._damaged.discard(ref.digest)
            self._confirm(ref.digest)
        return ref

    def _is_kept(self, digest: str, size: int | None = None) -> bool:
        """Whether the bucket has it, and no removal is under way or will be for `grace_s`."""
        if self._confirmed_lately(digest):
            return True
        mark = self.bucket.stat(_mark(digest))
        if mark:
            self._settle(mark)
        stat = self.bucket.stat(_key(digest))
        return stat is not None and size in (None, stat.size) and digest not in self._damaged

    def _settle(self, mark: Stat) -> None:
        """No sweep acts on this mark any more when it returns."""
        if not mark.size and mark.age_s < self.grace_s - NEARLY_S:
            self.bucket.delete(mark.key)
            return
        if not mark.size:
            self.bucket.put(mark.key, DOUBT)
        if not mark.size or mark.age_s < self._settle_s:
            time.sleep(self._settle_s)

    def _confirmed_lately(self, digest: str) -> bool:
        with self._lock:
            confirmed = self._confirmed.get(digest, 0.0)
        # by the wall clock: the other one stands still while a machine sleeps
        return 0 <= time.time() - confirmed < CONFIRMED_S

    def _confirm(self, digest: str) -> None:
        with self._lock:
            self._confirmed[digest] = time.time()
            self._confirmed.move_to_end(digest)
            if len(self._confirmed) > MOST_CONFIRMED:
                self._confirmed.popitem(last=False)

    # Reading

    def here(self, digest: str) -> Path | None:
        """The copy in the cache, as from `path`; None also where one would have to wait for it."""
        _check(digest)
        return self.cache.lease_at_once(digest)

    def path(self, digest: str) -> Path:
        """Where a copy lies, for reading within the next hour; fetched first if need be.

        KeyError when there is none, also when what is there is damaged (which is logged).
        """
        _check(digest)
        copy = self.cache.lease(digest)
        if copy:
            return copy
        with self._alone(digest), self.cache.pinned(digest):
            if not self.cache.lease(digest):
                self._fetch(digest)
            copy = self.cache.lease(digest)
        if not copy:
            raise KeyError(digest)
        return copy

    def stream(self, digest: str, start: int = 0, stop: int | None = None) -> Generator[bytes]:
        """The bytes from `start` up to `stop` in chunks, in constant memory; leaves no copy.

        Instead of the first chunk comes KeyError when there is none. When the whole is damaged,
        `Unavailable` comes instead of the last one.
        """
        _check(digest)
        file = self.cache.open(digest)
        if file is not None:
            yield from read_open(file, start, stop)
            return
        chunks = self.bucket.read(_key(digest), start, stop)
        whole = start == 0 and stop is None
        yield from self._verified(digest, chunks) if whole else chunks

    def url(self, digest: str, disposition: str, media_type: str) -> str | None:
        """Where anyone can GET it for a while, with these headers; None: presigning is off.

        KeyError when there is none.
        """
        _check(digest)
        if not self._presign_s:
            return None
        if not self._confirmed_lately(digest) and self.bucket.stat(_key(digest)) is None:
            raise KeyError(digest)
        return self.bucket.presigned(_key(digest), self._presign_s, disposition, media_type)

    def _fetch(self, digest: str) -> None:
        """Twice, if what came was not the content: it may have changed on the way."""
        stat = self.bucket.stat(_key(digest))
        if stat is None:
            raise KeyError(digest)
        self.cache.make_room(stat.size)
        for _ in range(2):
            with self._folder.writer() as writer:
                for chunk in self.bucket.read(_key(digest)):
                    writer.write(chunk)
                if writer.digest == digest:
                    writer.commit()
                    return
        self._found_damaged(digest)

    def _verified(self, digest: str, chunks: Iterator[bytes]) -> Generator[bytes]:
        hashed, held = hashlib.sha256(), b""
        for chunk in chunks:
            hashed.update(chunk)
            if held:
                yield held
            held = chunk
        if hashed.hexdigest() != digest:
            self._found_damaged(digest)
            raise Unavailable(
                "The file is damaged in the storage.", "Submit the job again to make it anew."
            )
        if held:
            yield held

    def _found_damaged(self, digest: str) -> None:
        log.error("%s is damaged in the storage; the next put of it replaces it", _key(digest))
        with self._lock:
            self._damaged.add(digest)
            self._confirmed.pop(digest, None)

    # Sweeping

    def delete(self, digest: str, unused_since: float | None = None) -> bool:
        """Removes it, and says whether it did: at once, or with `unused_since` in two steps.

        Then the first call only marks it, and one that comes `grace_s` later removes it, unless
        it was put meanwhile. To be called only for what nothing names, each time.
        """
        _check(digest)
        with self._alone(digest):
            with self._lock:
                self._confirmed.pop(digest, None)
            if unused_since is None:
                self.bucket.delete(_key(digest))
            elif not self._delete_marked(digest, unused_since):
                return False
            self.cache.drop(digest)
            return True

    def _delete_marked(self, digest: str, unused_since: float) -> bool:
        stat = self.bucket.stat(_key(digest))
        if stat is None or stat.modified > unused_since:
            return False
        asked = time.time()
        mark = self.bucket.stat(_mark(digest))
        if mark and mark.age_s < (DOUBT_S if mark.size else self.grace_s):
            return False
        if mark is None or mark.size or mark.age_s > self.grace_s + STALE_S - NEARLY_S:
            self.bucket.put(_mark(digest), b"")
            return False
        if not 0 <= time.time() - asked < AT_ONCE_S:
            return False
        self.bucket.delete_at_once(_key(digest))
        self.bucket.put(_mark(digest), DOUBT)
        return True

    def digests(self) -> Iterator[tuple[str, int, float]]:
        """Digest, size in bytes and time of the upload (Unix seconds) of all that is kept.

        One request for each thousand; on the way go marks that have done their duty, and what
        servers left half-written that died less than a day before they were started again.
        """
        self._abort_left_over()
        for mark in self.bucket.list("marks/"):
            if mark.age_s > (DOUBT_S if mark.size else self.grace_s + STALE_S):
                self.bucket.delete(mark.key)
        for stat in self.bucket.list("blobs/"):
            digest = stat.key.rpartition("/")[2]
            if _DIGEST.fullmatch(digest):
                yield digest, stat.size, stat.modified

    def clear_tmp(self) -> int:
        """Removes what dead servers left half-written, here and (after a day) in the bucket."""
        return self._folder.clear_tmp() + self._abort_left_over()

    def _abort_left_over(self) -> int:
        count = 0
        try:
            for upload in self.bucket.unfinished():
                if upload.begun < time.time() - UNFINISHED_S:
                    self.bucket.abort(upload)
                    count += 1
        except Unavailable as problem:
            log.warning("unfinished uploads stay in the bucket: %s", problem)
        return count

    @contextlib.contextmanager
    def _alone(self, digest: str) -> Generator[None]:
        """One thread at a time for each digest."""
        with self._lock:
            lock, holders = self._busy.get(digest, (threading.Lock(), 0))
            self._busy[digest] = (lock, holders + 1)
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, holders = self._busy[digest]
                if holders == 1:
                    del self._busy[digest]
                else:
                    self._busy[digest] = (lock, holders - 1)


class S3Writer:
    """Content that arrives in chunks; made by `S3Blobs.writer`."""

    def __init__(self, local: BlobWriter, keep: Callable[[FileRef], FileRef]) -> None:
        self._local = local
        self._keep = keep

    @property
    def size(self) -> int:
        return self._local.size

    @property
    def digest(self) -> str:
        return self._local.digest

    def __enter__(self) -> S3Writer:
        self._local.__enter__()
        return self

    def write(self, chunk: bytes | memoryview) -> None:
        self._local.write(chunk)

    def restart(self) -> None:
        self._local.restart()

    def commit(self, media_type: str = "application/octet-stream", filename: str = "") -> FileRef:
        return self._keep(self._local.commit(media_type, filename))

    def __exit__(self, *error: object) -> None:
        self._local.__exit__(*error)


def _check(digest: str) -> None:
    if not _DIGEST.fullmatch(digest):
        raise KeyError(digest)


def _key(digest: str) -> str:
    return f"blobs/{digest[:2]}/{digest}"


def _mark(digest: str) -> str:
    return f"marks/{digest}"
