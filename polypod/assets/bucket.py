"""One S3 bucket, as this package uses it: typed, retried, with errors in words.

Only what AWS, Cloudflare R2, MinIO and Google's interoperability interface all understand is sent:
signature version 4, Content-MD5 with every upload, ListObjectsV2, multipart uploads in equal parts.
boto3 comes with the first `Bucket`: it costs half a second and 35 MB. All methods block.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import logging
import math
import os
import random
import time
from base64 import b64encode
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from polypod.assets.blobs import CHUNK
from polypod.assets.bucket_errors import CHANGED, error_code, explain

log = logging.getLogger("polypod.assets")

PART = 8 << 20
"""Bytes of a part, and of the largest file that is sent in one request."""
MOST_PARTS = 10_000
SENDERS = 4
"""Parts of one file that are under way at once."""
CONNECTIONS = 64
LONGEST_PAUSE_S = 10.0
ONCE_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class BucketSpec:
    """Where a bucket is. Credentials come from boto3's own chain (`AWS_ACCESS_KEY_ID`, ...)."""

    name: str
    prefix: str = ""
    """Begins every key; empty, or ends with `/`."""
    endpoint: str = ""
    """Empty: AWS."""
    public_endpoint: str = ""
    """The same storage as clients reach it, for presigned URLs; empty: `endpoint`."""
    region: str = ""
    path_style: bool = False
    attempts: int = 5
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 30.0

    @property
    def where(self) -> str:
        """For messages."""
        return urlsplit(self.endpoint).hostname or "AWS"


@dataclass(frozen=True)
class Stat:
    """An object: `modified` in Unix seconds, `age_s` by the storage's own clock."""

    key: str
    size: int
    modified: float
    age_s: float


@dataclass(frozen=True)
class Unfinished:
    """A multipart upload that was begun and neither completed nor aborted."""

    key: str
    upload: str
    begun: float


class Body(Protocol):
    """What a GET answers."""

    def read(self, amt: int) -> bytes: ...
    def close(self) -> None: ...


class Client(Protocol):
    """The calls of boto3's S3 client that are made here; it has no types of its own."""

    def head_object(self, **request: Any) -> dict[str, Any]: ...
    def get_object(self, **request: Any) -> dict[str, Any]: ...
    def put_object(self, **request: Any) -> dict[str, Any]: ...
    def delete_object(self, **request: Any) -> dict[str, Any]: ...
    def list_objects_v2(self, **request: Any) -> dict[str, Any]: ...
    def create_multipart_upload(self, **request: Any) -> dict[str, Any]: ...
    def upload_part(self, **request: Any) -> dict[str, Any]: ...
    def complete_multipart_upload(self, **request: Any) -> dict[str, Any]: ...
    def abort_multipart_upload(self, **request: Any) -> dict[str, Any]: ...
    def list_multipart_uploads(self, **request: Any) -> dict[str, Any]: ...
    def generate_presigned_url(
        self, ClientMethod: str, *, Params: Mapping[str, Any], ExpiresIn: int
    ) -> str: ...


class Bucket:
    """Keys are given without the prefix.

    Every method raises `Unavailable` when the storage refuses, or still fails after
    `spec.attempts`; reading a key that is not there raises `KeyError`.
    """

    def __init__(self, spec: BucketSpec) -> None:
        self.spec = spec
        self._session = importlib.import_module("boto3").Session()
        self._client = self._connect(spec.endpoint)
        public = spec.public_endpoint
        self._signer = self._connect(public) if public else self._client

    def stat(self, key: str) -> Stat | None:
        with self._explained():
            try:
                answer = self._client.head_object(**self._at(key))
            except _errors() as error:
                if error_code(error) in ("404", "NoSuchKey"):
                    return None
                raise
        modified = answer["LastModified"].timestamp()
        return Stat(key, int(answer["ContentLength"]), modified, _clock(answer) - modified)

    def put(self, key: str, data: bytes) -> None:
        with self._explained():
            self._client.put_object(**self._at(key), Body=data, ContentMD5=_md5(data))

    def put_file(self, key: str, path: Path, media_type: str) -> None:
        """Constant memory; there is nothing under the key until it is there whole."""
        with path.open("rb", buffering=0) as file, self._explained():
            size = os.fstat(file.fileno()).st_size
            if size > PART:
                self._put_parts(key, file.fileno(), size, media_type)
                return
            section = _Section(file.fileno(), 0, size)
            self._send(
                lambda: self._client.put_object(
                    **self._at(key), Body=section, ContentType=media_type, ContentMD5=section.md5()
                )
            )

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Generator[bytes]:
        """The bytes from `start` up to `stop` (None: the end), in chunks of at most 1 MiB.

        A connection that breaks or falls silent is replaced by one that goes on at the same byte.
        """
        at = broke_at = start
        failures = 0
        while stop is None or at < stop:
            try:
                with self._explained():
                    body, stop = self._open(key, at, stop)
                with contextlib.closing(body):
                    while at < stop and (chunk := body.read(min(CHUNK, stop - at))):
                        at += len(chunk)
                        yield chunk
            except _errors() as error:
                failures = 1 if at - broke_at >= CHUNK else failures + 1
                broke_at = at
                if failures >= self.spec.attempts:
                    raise explain(error, self.spec.name, self.spec.where) from error
                log.warning("reading %s broke off at byte %d: %s", key, at, type(error).__name__)
                time.sleep(min(2**failures * random.random() / 2, LONGEST_PAUSE_S))  # noqa: S311

    def delete(self, key: str) -> None:
        with self._explained():
            self._client.delete_object(**self._at(key))

    def delete_at_once(self, key: str) -> None:
        """In one attempt: has happened or not happened within two times `ONCE_TIMEOUT_S`."""
        with self._explained():
            self._once.delete_object(**self._at(key))

    def list(self, prefix: str = "", limit: int = 0) -> Iterator[Stat]:
        """The objects whose keys begin so, in the order of their keys; up to `limit`, or all.

        One request for each thousand.
        """
        request: dict[str, Any] = {"Bucket": self.spec.name, "Prefix": self.spec.prefix + prefix}
        if limit:
            request["MaxKeys"] = limit
        while True:
            with self._explained():
                answer = self._client.list_objects_v2(**request)
            now = _clock(answer)
            for entry in answer.get("Contents", ()):
                key = entry["Key"].removeprefix(self.spec.prefix)
                modified = entry["LastModified"].timestamp()
                yield Stat(key, int(entry["Size"]), modified, now - modified)
            if limit or not answer.get("IsTruncated"):
                return
            request["ContinuationToken"] = answer["NextContinuationToken"]

    def unfinished(self) -> list[Unfinished]:
        """Up to a thousand."""
        with self._explained():
            answer = self._client.list_multipart_uploads(
                Bucket=self.spec.name, Prefix=self.spec.prefix
            )
        return [
            Unfinished(
                entry["Key"].removeprefix(self.spec.prefix),
                entry["UploadId"],
                entry["Initiated"].timestamp(),
            )
            for entry in answer.get("Uploads", ())
        ]

    def abort(self, upload: Unfinished) -> None:
        with self._explained():
            self._client.abort_multipart_upload(**self._at(upload.key), UploadId=upload.upload)

    def presigned(self, key: str, seconds: int, disposition: str, media_type: str) -> str:
        """A URL that anyone can GET, also in ranges, for so many seconds.

        Nobody is asked for it, except for new credentials where they are temporary.
        """
        named = {"ResponseContentDisposition": disposition, "ResponseContentType": media_type}
        with self._explained():
            return self._signer.generate_presigned_url(
                "get_object", Params={**self._at(key), **named}, ExpiresIn=seconds
            )

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.spec.name, "Key": self.spec.prefix + key}

    def _open(self, key: str, start: int, stop: int | None) -> tuple[Body, int]:
        """The body of a GET, and where it ends."""
        request = self._at(key)
        if start or stop is not None:
            request["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        try:
            answer = self._client.get_object(**request)
        except _errors() as error:
            if error_code(error) == "NoSuchKey":
                raise KeyError(key) from None
            raise
        told = str(answer.get("ContentRange", "bytes 0-"))
        if not told.startswith(f"bytes {start}-"):
            raise OSError(f"asked for bytes from {start}, got {told}")
        return cast(Body, answer["Body"]), start + int(answer["ContentLength"])

    def _put_parts(self, key: str, file: int, size: int, media_type: str) -> None:
        begun = self._client.create_multipart_upload(**self._at(key), ContentType=media_type)
        upload = {**self._at(key), "UploadId": begun["UploadId"]}
        length = PART * math.ceil(size / (PART * MOST_PARTS))

        def send(number: int) -> dict[str, Any]:
            begin = (number - 1) * length
            section = _Section(file, begin, min(begin + length, size))
            answer = self._send(
                lambda: self._client.upload_part(
                    **upload, PartNumber=number, Body=section, ContentMD5=section.md5()
                )
            )
            return {"PartNumber": number, "ETag": answer["ETag"]}

        try:
            with ThreadPoolExecutor(SENDERS) as senders:
                sent = [senders.submit(send, n + 1) for n in range(math.ceil(size / length))]
                wait(sent, return_when=FIRST_EXCEPTION)
                senders.shutdown(wait=False, cancel_futures=True)
            parts = [future.result() for future in sent if not future.cancelled()]
            self._complete(upload, parts, size)
        except BaseException:
            with contextlib.suppress(Exception):  # else it is found among the unfinished
                self._client.abort_multipart_upload(**upload)
            raise

    def _send(self, request: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Once more if the bytes changed on the way, which the client does not do by itself."""
        for _ in range(self.spec.attempts - 1):
            try:
                return request()
            except _errors() as error:
                if error_code(error) not in CHANGED:
                    raise
        return request()

    def _complete(self, upload: dict[str, Any], parts: list[dict[str, Any]], size: int) -> None:
        try:
            self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        except _errors() as error:
            if error_code(error) != "NoSuchUpload":
                raise
            there = self._client.head_object(Bucket=upload["Bucket"], Key=upload["Key"])
            if there["ContentLength"] != size:  # else it was done, and only the answer was lost
                raise

    @contextlib.contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except _errors() as error:
            raise explain(error, self.spec.name, self.spec.where) from error

    @cached_property
    def _once(self) -> Client:
        return self._connect(
            self.spec.endpoint,
            retries={"mode": "standard", "total_max_attempts": 1},
            connect_timeout=ONCE_TIMEOUT_S,
            read_timeout=ONCE_TIMEOUT_S,
        )

    def _connect(self, endpoint: str, **other: Any) -> Client:
        logging.getLogger("botocore").setLevel(logging.WARNING)  # below, it logs signed requests
        spec = self.spec
        options: dict[str, Any] = {
            "signature_version": "s3v4",
            "s3": {"addressing_style": "path" if spec.path_style else "auto"},
            "retries": {"mode": "standard", "total_max_attempts": spec.attempts},
            "connect_timeout": spec.connect_timeout_s,
            "read_timeout": spec.read_timeout_s,
            "max_pool_connections": CONNECTIONS,
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
        try:
            client = self._session.client(
                "s3",
                endpoint_url=endpoint or None,
                region_name=spec.region or self._session.region_name or "us-east-1",
                config=importlib.import_module("botocore.config").Config(**{**options, **other}),
            )
        except (*_errors(), ValueError) as error:  # ValueError: the endpoint is no URL
            raise explain(error, spec.name, spec.where) from error
        return cast(Client, client)


class _Section(io.RawIOBase):
    """The bytes from `begin` up to `end` of an open file; several may be read at once."""

    def __init__(self, file: int, begin: int, end: int) -> None:
        self._file, self._begin, self._size, self._at = file, begin, end - begin, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(origin + offset, 0)
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        rest = max(self._size - self._at, 0)
        size = rest if size < 0 else min(size, rest)
        chunk = os.pread(self._file, size, self._begin + self._at)
        self._at += len(chunk)
        return chunk

    def md5(self) -> str:
        digest = hashlib.md5(usedforsecurity=False)
        self.seek(0)
        while chunk := self.read(CHUNK):
            digest.update(chunk)
        self.seek(0)
        return b64encode(digest.digest()).decode()


def _errors() -> tuple[type[Exception], ...]:
    """What the client raises when the storage refuses, fails or is gone, also within a body."""
    told = importlib.import_module("botocore.exceptions")
    below = importlib.import_module("urllib3.exceptions")
    return (told.ClientError, told.BotoCoreError, below.HTTPError, OSError)


def _clock(answer: Mapping[str, Any]) -> float:
    """The storage's time when it answered, Unix seconds; ours where it does not say."""
    told = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
    try:
        return parsedate_to_datetime(told).timestamp()
    except ValueError:
        return time.time()


def _md5(data: bytes) -> str:
    return b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
