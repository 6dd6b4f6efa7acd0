"""An S3 server for tests, in a process of its own: moto's, made as strict as a real one.

moto believes every request; here signatures, dates, the life of presigned URLs, Content-MD5 and
x-amz-content-sha256 are checked first. Two requests of our own prepare what is stored.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import io
import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Generator, Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode
from urllib.request import Request, urlopen

ROOT = Path(__file__).parents[1]
BUCKET = "kept"
ACCESS_KEY, SECRET_KEY = "access-key-of-tests", "secret-key-of-tests"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_CONFIG_FILE": "/nowhere",
    "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
}
"""For a client of this server, whatever the machine is set up for."""
MOST_SKEW = timedelta(minutes=15)


class S3Server:
    """A running server; `client` is boto3's, with all rights."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def client(self) -> Any:
        import boto3
        from botocore.config import Config

        return boto3.Session().client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(s3={"addressing_style": "path"}),
        )

    def age(self, bucket: str, key: str, seconds: float) -> None:
        """As if the object had been written so much earlier."""
        self._prepare("age", b"", bucket=bucket, key=key, s=seconds)

    def fill(self, bucket: str, keys: Iterable[str]) -> None:
        """Empty objects, many at once."""
        self._prepare("fill", "\n".join(keys).encode(), bucket=bucket)

    def _prepare(self, what: str, body: bytes, **how: Any) -> None:
        request = Request(f"{self.url}/+{what}?{urlencode(how)}", body, method="POST")
        with urlopen(request) as answer:
            assert answer.status == 204


@contextlib.contextmanager
def s3_server() -> Generator[S3Server]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.s3server"],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,  # it ends when this is closed, so also when the tests are killed
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin and process.stdout
    try:
        yield S3Server(int(process.stdout.readline()))
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


# --- in the child process

StartResponse = Callable[[str, list[tuple[str, str]]], Any]
App = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


class Refused(Exception):
    """Status and S3's code of it."""


class Strict:
    """Refuses what a real S3 would refuse, before `app` sees it."""

    def __init__(self, app: App) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        query = dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True))
        if environ["PATH_INFO"] in ("/+age", "/+fill"):
            _prepare(environ["PATH_INFO"], query, body)
            start("204 No Content", [])
            return []
        try:
            _check_signature(environ, query)
            _check_body(environ, body)
        except Refused as refused:
            status, code = refused.args
            text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
            headers = [("content-type", "application/xml"), ("content-length", str(len(text)))]
            start(status, headers)
            return [b"" if environ["REQUEST_METHOD"] == "HEAD" else text]
        return self._app(environ, start)


def _check_body(environ: dict[str, Any], body: bytes) -> None:
    told = environ.get("HTTP_CONTENT_MD5")
    if told and told != b64encode(hashlib.md5(body).digest()).decode():
        raise Refused("400 Bad Request", "BadDigest")
    signed = environ.get("HTTP_X_AMZ_CONTENT_SHA256", "UNSIGNED-PAYLOAD")
    if signed not in ("UNSIGNED-PAYLOAD", hashlib.sha256(body).hexdigest()):
        raise Refused("400 Bad Request", "XAmzContentSHA256Mismatch")


def _check_signature(environ: dict[str, Any], query: dict[str, str]) -> None:
    """Signature version 4, in the header or (presigned) in the URL."""
    if "X-Amz-Signature" in query and "HTTP_AUTHORIZATION" in environ:
        raise Refused("400 Bad Request", "InvalidArgument")  # one of the two, not both
    if "X-Amz-Signature" in query:
        scope, signed = query["X-Amz-Credential"], query["X-Amz-SignedHeaders"]
        signature = query.pop("X-Amz-Signature")
        date, payload = query["X-Amz-Date"], "UNSIGNED-PAYLOAD"
        lives = timedelta(seconds=int(query["X-Amz-Expires"]))
    elif environ.get("HTTP_AUTHORIZATION", "").startswith("AWS4-HMAC-SHA256 "):
        fields = environ["HTTP_AUTHORIZATION"].partition(" ")[2].split(",")
        scope, signed, signature = (field.strip().partition("=")[2] for field in fields)
        date, payload = environ["HTTP_X_AMZ_DATE"], environ["HTTP_X_AMZ_CONTENT_SHA256"]
        lives = MOST_SKEW
    else:
        raise Refused("403 Forbidden", "AccessDenied")
    now = datetime.now(timezone.utc)
    made = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
    if now > made + lives or now < made - MOST_SKEW:
        raise Refused(
            "403 Forbidden", "AccessDenied" if lives is not MOST_SKEW else "RequestTimeTooSkewed"
        )
    access_key, *parts = scope.split("/")
    if access_key != ACCESS_KEY:
        raise Refused("403 Forbidden", "InvalidAccessKeyId")
    pairs = sorted((quote(k, "-_.~"), quote(v, "-_.~")) for k, v in query.items())
    request = "\n".join(
        [
            environ["REQUEST_METHOD"],
            quote(environ["PATH_INFO"], "/-_.~"),
            "&".join(f"{k}={v}" for k, v in pairs),
            *(f"{name}:{_header(environ, name)}" for name in signed.split(";")),
            "",
            signed,
            payload,
        ]
    )
    digest = hashlib.sha256(request.encode()).hexdigest()
    key = f"AWS4{SECRET_KEY}".encode()
    for part in parts:
        key = hmac.digest(key, part.encode(), "sha256")
    text = "\n".join(["AWS4-HMAC-SHA256", date, "/".join(parts), digest])
    if not hmac.compare_digest(hmac.digest(key, text.encode(), "sha256").hex(), signature):
        raise Refused("403 Forbidden", "SignatureDoesNotMatch")


def _header(environ: dict[str, Any], name: str) -> str:
    name = name.upper().replace("-", "_")
    value = environ.get(name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}", "")
    return " ".join(value.split())


def _prepare(what: str, query: dict[str, str], body: bytes) -> None:
    from moto.s3.models import s3_backends

    backend = s3_backends["123456789012"]["aws"]
    for key in body.decode().split():
        backend.put_object(query["bucket"], key, b"")
    if what == "/+age":
        found = backend.buckets[query["bucket"]].keys[query["key"]]
        found.last_modified -= timedelta(seconds=float(query["s"]))


def _serve() -> None:
    import threading

    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: Any) -> None: ...

    app = Strict(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Handler)
    print(server.port, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    _serve()
