from __future__ import annotations

import os
from pathlib import Path

import pytest

from polypod.assets.blobs import Blobs
from polypod.assets.cache import Cache, read_open


@pytest.fixture
def folder(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path)


def put(folder: Blobs, cache: Cache, data: bytes) -> str:
    digest = folder.put_bytes(data).digest
    with cache.pinned(digest):
        pass
    return digest


def held(folder: Blobs) -> set[str]:
    return {digest for digest, _, _ in folder.digests()}


def test_the_longest_unused_goes_first(folder: Blobs) -> None:
    cache = Cache(folder, 30)
    a, _, c = (put(folder, cache, data * 10) for data in (b"a", b"b", b"c"))
    os.close(cache.open(a) or -1)
    d = put(folder, cache, b"d" * 10)
    assert held(folder) == {a, c, d} and cache.bytes == 30
    cache.make_room(15)
    assert held(folder) == {d} and cache.bytes == 10


def test_what_was_there_at_the_start_counts(folder: Blobs) -> None:
    first = Cache(folder, 30)
    a, b = put(folder, first, b"a" * 10), put(folder, first, b"b" * 10)
    os.utime(folder.path(b), (1, 1))
    again = Cache(folder, 15)
    assert held(folder) == {a} and again.bytes == 10


def test_what_is_pinned_or_leased_stays(folder: Blobs) -> None:
    cache = Cache(folder, 0)
    digest = folder.put_bytes(b"pinned").digest
    with cache.pinned(digest), cache.pinned(digest):
        cache.make_room(100)
        assert held(folder) == {digest}
    assert held(folder) == set()
    leased = folder.put_bytes(b"leased").digest
    path = cache.lease(leased)
    cache.make_room(100)
    assert path and path.read_bytes() == b"leased"


def test_what_was_put_again_stays(folder: Blobs) -> None:
    """Its put is about to pin it."""
    cache = Cache(folder, 100)
    digest = put(folder, cache, b"again")
    later = folder.path(digest).stat().st_mtime + 10
    os.utime(folder.path(digest), (later, later))
    cache.make_room(200)
    assert held(folder) == {digest}


def test_a_copy_that_someone_removed_is_no_copy(folder: Blobs) -> None:
    cache = Cache(folder, 100)
    digest = put(folder, cache, b"removed")
    folder.path(digest).unlink()
    assert cache.lease(digest) is None and cache.open(digest) is None and cache.bytes == 0
    cache.drop(digest)


def test_an_open_file_is_read_in_part_and_closed(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    for start, stop, expected in ((0, None, b"0123456789"), (3, 5, b"34"), (8, 99, b"89")):
        file = os.open(tmp_path / "f", os.O_RDONLY)
        assert b"".join(read_open(file, start, stop)) == expected
        with pytest.raises(OSError):
            os.fstat(file)
