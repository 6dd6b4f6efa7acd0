"""From the settings to a storage: the data folder, another folder, a bucket."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from polypod.assets.storage import LocalBlobs, open_blobs
from polypod.settings import Settings
from tests.s3server import ENVIRONMENT, ROOT, s3_server


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYPOD_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


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
