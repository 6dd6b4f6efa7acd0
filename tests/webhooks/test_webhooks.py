"""From a submit over HTTP to the webhook, with a real engine and a real worker between."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polypod.settings import Settings
from polypod.webhooks import verify
from tests.api.serving import Server, make_picture
from tests.models.stub.model import MODEL
from tests.webhooks.receiver import Receiver

PICTURE = make_picture()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("served") / "data"
    public = {"public_url": "https://api.example.com/"}
    server = Server(Settings(data=data, allow_private_urls=True, **public), MODEL)
    yield server
    server.stop()


def submit(server: Server, **fields: Any) -> Any:
    image = base64.b64encode(PICTURE).decode()
    return server.client.post("/generate", json={"image": image, "seed": None, **fields})


def test_the_end_of_a_job_is_told_signed_and_as_the_api_shows_it(
    server: Server, receiver: Receiver
) -> None:
    answer = submit(server, say="hello", webhook_url=receiver.url("/json"))
    assert answer.status_code == 202, answer.text
    (got,) = receiver.wait(1, "/json")
    shown = server.job(answer.json()["job_id"])
    told = got.json["job"]
    assert got.json["event"] == "job.completed"
    assert set(told) == set(shown)
    changing = {"assets", "facts"}  # previews may have been made in between
    assert {k: v for k, v in told.items() if k not in changing} == {
        k: v for k, v in shown.items() if k not in changing
    }
    assert told["download_url"].startswith("https://api.example.com/job/")
    assert {a["name"] for a in told["assets"]} >= {"model.glb", "manifest.json"}

    secret = server.on_loop(server.engine.store.webhook_secret)
    header = got.headers["x-polypod-signature"]
    assert verify(got.body, header, secret)
    fields = dict(part.split("=") for part in header.split(","))
    signed = fields["t"].encode() + b"." + got.body
    assert fields["v1"] == hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


def test_as_a_form_and_failed(server: Server, receiver: Receiver) -> None:
    server.submit(PICTURE, fail="error", webhook_url=receiver.url("/form"))
    (got,) = receiver.wait(1, "/form")
    assert got.json["event"] == "job.failed"
    assert got.json["job"]["error"]["message"]


def test_continued_jobs_have_their_own(server: Server, receiver: Receiver) -> None:
    parent = server.done(PICTURE, until="prepare")
    url = f"/job/{parent['job_id']}/continue"
    answer = server.client.post(url, json={"webhook_url": receiver.url("/child")})
    assert answer.status_code == 202, answer.text
    (got,) = receiver.wait(1, "/child")
    assert got.json["job"]["job_id"] == answer.json()["job_id"]
    assert got.json["job"]["parent"] == parent["job_id"]


def test_cancelled_jobs_are_told_too(server: Server, receiver: Receiver) -> None:
    job = server.submit(PICTURE, seconds=30, webhook_url=receiver.url("/cancel"))
    server.client.post(f"/job/{job['job_id']}/cancel")
    (got,) = receiver.wait(1, "/cancel")
    assert got.json["event"] == "job.cancelled"


def test_a_key_is_for_one_request_and_its_webhook(server: Server, receiver: Receiver) -> None:
    def ask(path: str) -> int:
        form = {"seed": "1", "webhook_url": receiver.url(path)}
        files = {"image": ("a.png", PICTURE)}
        key = {"Idempotency-Key": "one"}
        return server.client.post("/generate", files=files, data=form, headers=key).status_code

    assert [ask("/key"), ask("/key"), ask("/other")] == [202, 202, 409]
    assert len(receiver.wait(1, "/key")) == 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://example.com/", "must begin with http:// or https://"),
        ("example.com/hook", "must begin with http:// or https://"),
        ("http://", "must begin with http:// or https://"),
        ("https://me:secret@example.com/", "holds a user name or password"),
        ("https://example.com:25/", "port 25 is refused"),
        ("http://2130706433/", "is not an accepted host name"),
        ("http://127.0.0.1:9000/", "is not on the public internet"),
        ("http://[::1]/", "is not on the public internet"),
        ("http://localhost:8000/", "is not on the public internet"),
        ("http://10.1.2.3/", "is not on the public internet"),
        ("http://169.254.169.254/latest", "is not on the public internet"),
        ("https://example.com/" + "x" * 2000, "more than 2000 characters"),
    ],
)
def test_addresses_that_are_refused(strict: Server, url: str, words: str) -> None:
    answer = submit(strict, webhook_url=url)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"].startswith("`webhook_url`")
    assert words in answer.json()["error"]
    assert answer.json()["hint"].endswith(".")


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(Settings(data=tmp_path_factory.mktemp("strict") / "data"), MODEL)
    yield server
    server.stop()


def test_what_is_no_text_is_refused_and_an_empty_one_is_none(strict: Server) -> None:
    assert submit(strict, webhook_url=5).status_code == 400
    assert submit(strict, webhook_url="").status_code == 202


def command(data: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("POLYPOD_")}
    return subprocess.run(
        [sys.executable, "-m", "polypod.cli", "webhooks", *arguments, "--data", str(data)],
        env={**clean, **env},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_command_line_sends_a_signed_sample(server: Server, receiver: Receiver) -> None:
    data = server.engine.settings.data
    private = {"POLYPOD_ALLOW_PRIVATE_URLS": "true"}
    secret = command(data, "secret").stdout.strip()
    done = command(data, "test", receiver.url("/sample"), "--json", **private)
    assert done.returncode == 0, done.stderr
    assert (json.loads(done.stdout)["status"], json.loads(done.stdout)["body"]) == (200, "thanks")
    (got,) = receiver.at("/sample")
    assert got.json["event"] == "webhook.test"
    assert verify(got.body, got.headers["x-polypod-signature"], secret)

    receiver.answers["/bad"] = lambda h: h.say(500, b"no")
    failed = command(data, "test", receiver.url("/bad"), **private)
    assert failed.returncode == 1
    assert "500" in failed.stdout and "2xx" in failed.stderr
    refused = command(data, "test", receiver.url("/sample"))
    assert refused.returncode == 1
    assert "POLYPOD_ALLOW_PRIVATE_URLS" in refused.stderr


def test_the_secret_that_is_set_is_the_one(tmp_path: Path) -> None:
    assert command(tmp_path, "secret", POLYPOD_WEBHOOK_SECRET="s3cret").stdout == "s3cret\n"
    none = command(tmp_path, "secret")
    assert none.returncode == 1
    assert "no database" in none.stderr
    assert not list(tmp_path.iterdir())
