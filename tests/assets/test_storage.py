"""From the settings to a storage: the data folder, another folder, a bucket."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from polypod.assets.storage import LocalBlobs, open_blobs, patiently
from polypod.errors import Unavailable
from polypod.jobs.job import FileRef
from polypod.settings import Settings
from tests.api.serving import until
from tests.s3server import ENVIRONMENT, ROOT, s3_server


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYPOD_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def put(tmp_path):
    """How to put 99 new bytes, in each way: what gives the reference."""
    numbers = itertools.count()

    def fresh() -> bytes:
        return f"{next(numbers):099}".encode()

    def file(blobs: LocalBlobs) -> FileRef:
        path = tmp_path / "made"
        path.write_bytes(fresh())
        try:
            return blobs.put_file(path)
        finally:
            path.unlink()

    def streamed(blobs: LocalBlobs) -> FileRef:
        with blobs.writer() as writer:
            writer.write(fresh())
            return writer.commit()

    return {"bytes": lambda blobs: blobs.put_bytes(fresh()), "file": file, "stream": streamed}


WAYS = ("bytes", "file", "stream")


@pytest.fixture
def synced(monkeypatch):
    """Names of the files and folders that are synced."""
    names, fsync = [], os.fsync

    def seen(fd):
        names.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", seen)
    return names


@pytest.mark.parametrize("way", WAYS)
def test_a_routers_files_do_not_wait_for_the_disk_until_others_need_them(
    tmp_path, put, synced, way
):
    blobs = LocalBlobs(tmp_path / "data")
    put[way](blobs.relayed)  # the first of all says that there are such
    synced.clear()
    ref = put[way](blobs.relayed)
    assert synced == [] and blobs.path(ref.digest).stat().st_size == 99
    assert blobs.unsynced([ref.digest])
    blobs.put_bytes(blobs.path(ref.digest).read_bytes())  # somebody uploads the same
    assert {ref.digest, ref.digest[:2]} <= set(synced)
    assert not blobs.unsynced([ref.digest])
    other = put[way](blobs)
    assert not blobs.unsynced([other.digest])
    blobs.relayed.put_bytes(blobs.path(other.digest).read_bytes())
    assert not blobs.unsynced([other.digest]), "it was durable before"


@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_synced_is_known_after_a_kill_and_checked_after_a_loss_of_power(
    tmp_path, put, way
):
    blobs = LocalBlobs(tmp_path / "data")
    assert not blobs.recover()
    kept, broken, empty = (put[way](blobs.relayed).digest for _ in range(3))
    killed = LocalBlobs(tmp_path / "data")
    assert not killed.recover() and killed.unsynced([kept])

    for digest, left in ((broken, b"x" * 99), (empty, b"")):
        blobs.path(digest).chmod(0o600)
        blobs.path(digest).write_bytes(left)
    (tmp_path / "data" / "unsynced").write_text("the boot before")
    started = LocalBlobs(tmp_path / "data")
    assert started.recover()
    assert [digest for digest, _, _ in started.digests()] == [kept]
    assert not started.unsynced([kept]) and not LocalBlobs(tmp_path / "data").recover()


def test_a_folder_that_others_share_is_synced_at_once(tmp_path, put):
    blobs = LocalBlobs(tmp_path / "data", shared=True)
    assert not blobs.unsynced([put["bytes"](blobs.relayed).digest])


def test_files_lie_in_the_data_folder(data: Path) -> None:
    ref = open_blobs(Settings()).put_bytes(b"here")
    assert (data / "blobs" / ref.digest[:2] / ref.digest).read_bytes() == b"here"


def test_files_can_lie_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYPOD_STORAGE", f"file://{tmp_path}/else%20where")
    ref = open_blobs(Settings()).put_bytes(b"there")
    assert (tmp_path / "else where/blobs" / ref.digest[:2] / ref.digest).is_file()


def test_a_folder_does_what_a_bucket_does(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    blobs.check("me")
    ref = blobs.put_bytes(b"0123456789")
    assert b"".join(blobs.stream(ref.digest)) == b"0123456789"
    assert b"".join(blobs.stream(ref.digest, 2, 5)) == b"234"
    assert blobs.url(ref.digest, "inline", "text/plain") is None
    assert blobs.renew(ref.digest) and not blobs.renew("ab" * 32)
    with pytest.raises(KeyError):
        next(blobs.stream("ab" * 32))


def test_a_shared_folder_belongs_to_one_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYPOD_STORAGE", f"file://{tmp_path}/shared")
    for _ in range(2):
        open_blobs(Settings()).check("one")
    with pytest.raises(Unavailable, match="belongs to the database of another polypod"):
        open_blobs(Settings()).check("two")
    assert (tmp_path / "shared/polypod-owner").read_text() == "one"


def test_what_another_server_is_writing_stays(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYPOD_STORAGE", f"file://{tmp_path}/shared")
    mine, other = open_blobs(Settings()), open_blobs(Settings())
    leftover = tmp_path / "shared/tmp/of-a-dead-server"
    leftover.write_bytes(b"half")
    os.utime(leftover, (0, 0))
    with other.writer() as writer:
        writer.write(b"content")
        assert mine.clear_tmp() == 1
        assert mine.path(writer.commit().digest).read_bytes() == b"content"
    (data / "tmp").mkdir(parents=True)
    (data / "tmp/of-a-dead-server").write_bytes(b"half")
    monkeypatch.delenv("POLYPOD_STORAGE")
    assert open_blobs(Settings()).clear_tmp() == 1


def test_what_a_dead_server_left_goes_while_others_run(tmp_path: Path) -> None:
    """Who died was started again before it was old."""
    blobs = LocalBlobs(tmp_path, shared=True)
    (leftover := tmp_path / "tmp/of-a-dead-server").write_bytes(b"half")
    with blobs.writer() as writer:
        assert list(blobs.digests()) == [] and leftover.exists()
        os.utime(leftover, (0, 0))
        assert list(blobs.digests()) == [] and not leftover.exists()
        writer.write(b"content")
        assert blobs.path(writer.commit().digest).read_bytes() == b"content"


def test_what_one_process_puts_while_another_sweeps_is_never_lost(tmp_path: Path) -> None:
    """Two stores on one folder, as two processes have them: no lock is between them."""
    ours, theirs = LocalBlobs(tmp_path, shared=True), LocalBlobs(tmp_path, shared=True)
    done = threading.Event()

    def sweep() -> None:
        while not done.is_set():
            for digest, _, _ in theirs.digests():
                theirs.delete(digest, time.time() - 1000)

    with ThreadPoolExecutor(1) as sweeping:
        sweeper = sweeping.submit(sweep)
        try:
            for number in range(2000):
                ref = ours.put_bytes(b"wanted")
                path = ours.path(ref.digest)
                assert path.read_bytes() == b"wanted"
                os.utime(path, (0, 0))  # old at once
                if number % 200 == 0:  # it does sweep
                    until(lambda path=path: not path.exists())
        finally:
            done.set()
        sweeper.result()


def test_patience_is_for_what_may_pass() -> None:
    failures = [Unavailable("slow", retry_after_s=1), Unavailable("full")]
    told: list[Unavailable] = []

    def work() -> str:
        if failures:
            raise failures.pop(0)
        return "done"

    with pytest.raises(Unavailable, match="full"):
        asyncio.run(patiently(work, told=told.append))
    assert [problem.message for problem in told] == ["slow"]
    failures[:] = [Unavailable("full")]
    assert asyncio.run(patiently(work, math.inf)) == "done"
    failures[:] = [Unavailable("slow", retry_after_s=1)] * 2
    with pytest.raises(Unavailable, match="slow"):
        asyncio.run(patiently(work, 2.5))


def test_files_can_lie_in_a_bucket(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with s3_server() as server:
        server.client().create_bucket(Bucket="my-bucket")
        monkeypatch.setenv("POLYPOD_STORAGE", "s3://my-bucket/some/prefix/")
        monkeypatch.setenv("POLYPOD_STORAGE_ENDPOINT", server.url)
        monkeypatch.setenv("POLYPOD_STORAGE_PATH_STYLE", "true")
        blobs = open_blobs(Settings())
        blobs.check("me")
        ref = blobs.put_bytes(b"there")
        key = f"some/prefix/blobs/{ref.digest[:2]}/{ref.digest}"
        assert server.client().head_object(Bucket="my-bucket", Key=key)["ContentLength"] == 5
        assert (data / "cache/blobs" / ref.digest[:2] / ref.digest).is_file()
        url = blobs.url(ref.digest, "inline", "text/plain")
        assert url and httpx.get(url, trust_env=False).content == b"there"


@pytest.mark.parametrize("storage", ["gs://bucket", "s3://", "/folder", "file://folder"])
def test_a_storage_that_is_none_is_refused(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYPOD_STORAGE", storage)
    with pytest.raises(ValueError, match="s3://bucket/prefix"):
        Settings()


def test_boto3_is_imported_only_for_a_bucket(data: Path) -> None:
    code = (
        "import sys, polypod.assets.s3; from polypod.settings import Settings;"
        "from polypod.assets.storage import open_blobs; open_blobs(Settings());"
        "assert not {'boto3', 'botocore', 'urllib3'} & set(sys.modules)"
    )
    env = {**os.environ, "POLYPOD_STORAGE": "", "POLYPOD_DATA": str(data)}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True)
