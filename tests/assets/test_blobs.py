from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from polypod.assets.blobs import Blobs, media_type_of
from polypod.errors import Unavailable


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "data")


def kept(blobs: Blobs) -> list[str]:
    return [digest for digest, _, _ in blobs.digests()]


def test_bytes_come_back_under_their_digest(blobs: Blobs) -> None:
    ref = blobs.put_bytes(b"solid", "model/stl", "a.stl")
    assert ref.digest == hashlib.sha256(b"solid").hexdigest()
    assert (ref.size, ref.media_type, ref.filename) == (5, "model/stl", "a.stl")
    assert blobs.path(ref.digest).read_bytes() == b"solid"
    assert blobs.path(ref.digest).stat().st_mode & 0o777 == 0o444


def test_a_writer_can_begin_again(blobs: Blobs) -> None:
    with blobs.writer() as writer:
        writer.write(b"what was first thought")
        writer.restart()
        writer.write(b"glTF")
        ref = writer.commit()
    assert (ref.size, blobs.path(ref.digest).read_bytes()) == (4, b"glTF")
    assert ref.digest == blobs.put_bytes(b"glTF").digest


def test_a_file_is_linked_and_stays_usable(blobs: Blobs, tmp_path: Path) -> None:
    path = tmp_path / "model.glb"
    path.write_bytes(b"x" * 3_000_000)
    ref = blobs.put_file(path)
    assert (ref.media_type, ref.filename) == ("model/gltf-binary", "model.glb")
    assert blobs.path(ref.digest).samefile(path)
    path.unlink()
    assert blobs.path(ref.digest).stat().st_size == ref.size == 3_000_000


def test_what_a_symbolic_link_names_is_copied_and_left_alone(blobs: Blobs, tmp_path: Path) -> None:
    real, link = tmp_path / "weights", tmp_path / "model.ply"
    real.write_bytes(b"kept elsewhere")
    real.chmod(0o644)
    link.symlink_to(real)
    ref = blobs.put_file(link)
    assert blobs.path(ref.digest).read_bytes() == b"kept elsewhere"
    assert not blobs.path(ref.digest).samefile(real)
    assert real.stat().st_mode & 0o777 == 0o644


def test_a_file_of_another_file_system_is_copied(blobs: Blobs) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == blobs.root.stat().st_dev:
        pytest.skip("one file system only")
    path = shm / f"polypod-test-{os.getpid()}"
    try:
        path.write_bytes(b"far away")
        assert blobs.path(blobs.put_file(path).digest).read_bytes() == b"far away"
    finally:
        path.unlink()


def test_a_stream_is_kept_only_when_committed(blobs: Blobs) -> None:
    with blobs.writer() as writer:
        writer.write(b"half")
    assert kept(blobs) == [] and list((blobs.root / "tmp").iterdir()) == []
    with blobs.writer() as writer:
        writer.write(b"one ")
        writer.write(memoryview(b"two"))
        ref = writer.commit("text/plain", "a.txt")
    assert blobs.path(ref.digest).read_bytes() == b"one two"
    assert list((blobs.root / "tmp").iterdir()) == []


def test_equal_content_is_stored_once_however_it_comes(blobs: Blobs, tmp_path: Path) -> None:
    first = blobs.put_bytes(b"same")
    inode = blobs.path(first.digest).stat().st_ino
    (tmp_path / "same").write_bytes(b"same")
    assert blobs.put_bytes(b"same").digest == first.digest
    assert blobs.put_file(tmp_path / "same").digest == first.digest
    assert kept(blobs) == [first.digest]
    assert blobs.path(first.digest).stat().st_ino == inode


def test_many_threads_put_the_same_and_delete_it(blobs: Blobs, tmp_path: Path) -> None:
    """Whoever was told that content is kept finds it, whatever sweeps ran meanwhile."""
    problems: list[BaseException] = []

    def put(n: int) -> None:
        try:
            for i in range(30):
                data = f"content {i % 5}".encode() * 1000
                if n % 2:
                    ref = blobs.put_bytes(data)
                else:
                    (path := tmp_path / f"{n}.{i}").write_bytes(data)
                    ref = blobs.put_file(path)
                assert blobs.path(ref.digest).read_bytes() == data
        except BaseException as error:
            problems.append(error)

    def sweep() -> None:
        while any(thread.is_alive() for thread in threads):
            for digest in kept(blobs):
                blobs.delete(digest, unused_since=time.time() - 60)

    threads = [threading.Thread(target=put, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    sweep()
    assert problems == []
    assert len(kept(blobs)) == 5


def test_putting_again_renews_what_a_sweep_would_take(blobs: Blobs) -> None:
    ref = blobs.put_bytes(b"old")
    os.utime(blobs.path(ref.digest), (1, 1))
    seen = [mtime for _, _, mtime in blobs.digests()]
    assert seen == [1]
    blobs.put_bytes(b"old")
    assert not blobs.delete(ref.digest, unused_since=1)
    assert blobs.delete(ref.digest)
    assert not blobs.delete(ref.digest)
    with pytest.raises(KeyError):
        blobs.path(ref.digest)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "AB" * 32, "ab" * 31, "ab" * 32 + "\n"])
def test_what_is_no_digest_is_no_path(blobs: Blobs, digest: str) -> None:
    with pytest.raises(KeyError):
        blobs.path(digest)


def test_leftovers_are_cleared_on_request_only(blobs: Blobs) -> None:
    (blobs.root / "tmp" / "upload").write_bytes(b"half")
    again = Blobs(blobs.root)
    assert (blobs.root / "tmp" / "upload").exists()
    assert again.clear_tmp() == 1
    assert list((blobs.root / "tmp").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB; where mounting is not allowed the test is skipped."""
    folder = tmp_path / "small"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, b"size=2m"):
        pytest.skip(f"cannot mount: {os.strerror(ctypes.get_errno())}")
    try:
        yield folder
    finally:
        libc.umount2(bytes(folder), 2)


def test_a_full_disk_is_told_and_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    blobs = Blobs(small_disk)
    (tmp_path / "big").write_bytes(os.urandom(3_000_000))
    with pytest.raises(Unavailable, match="disk is full"):
        blobs.put_bytes(os.urandom(3_000_000))
    with pytest.raises(Unavailable, match="disk is full"):
        blobs.put_file(tmp_path / "big")
    assert list((small_disk / "tmp").iterdir()) == [] and kept(blobs) == []
    blobs.put_bytes(b"there is room again")
    assert len(kept(blobs)) == 1


def test_file_is_synced_before_it_is_named_and_its_folder_after(tmp_path: Path) -> None:
    """The order of the system calls, as the kernel saw them."""
    code = (
        "import sys; from pathlib import Path; from polypod.assets.blobs import Blobs;"
        "b = Blobs(Path(sys.argv[1])); Path(sys.argv[2]).write_bytes(b'y' * 99);"
        "b.put_bytes(b'x' * 99); b.put_file(Path(sys.argv[2])); print('answered', flush=True)"
    )
    trace = tmp_path / "trace"
    calls = "trace=fsync,rename,renameat,renameat2,link,linkat,write"
    command = ["strace", "-f", "-y", "-o", str(trace), "-e", calls, sys.executable, "-c", code]
    try:
        subprocess.run([*command, str(tmp_path / "d"), str(tmp_path / "f")], check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("strace cannot run here")
    lines = trace.read_text().splitlines()
    for content, naming in ((b"x" * 99, "rename"), (b"y" * 99, "link")):
        digest = hashlib.sha256(content).hexdigest()
        named = next(i for i, s in enumerate(lines) if naming in s and digest in s)
        source = lines[named].split('"')[1]
        file_synced = next(i for i, s in enumerate(lines) if "fsync" in s and source in s)
        folder = f"blobs/{digest[:2]}>"
        folder_synced = next(
            i for i, s in enumerate(lines) if i > named and "fsync" in s and folder in s
        )
        answered = next(i for i, s in enumerate(lines) if '"answered' in s)
        assert file_synced < named < folder_synced < answered


def test_media_types() -> None:
    assert media_type_of("a.b.GLB") == "model/gltf-binary"
    assert media_type_of("noending") == media_type_of("x.unknown") == "application/octet-stream"
