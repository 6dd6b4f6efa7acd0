"""Keys with scopes and limits at a real server, tried as an attacker would."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from polypod.access.keys import ADMIN, ANY, DISPATCH, GENERATE, READ, SCOPES, new_key
from polypod.api.app import ROUTES
from polypod.api.endpoint import needed_scope
from polypod.cli import app as command
from tests.api.serving import Server, make_picture, until

PNG = make_picture()
_SEEDS = itertools.count(1)
NOBODYS = "0" * 32

TABLE = {
    ("GET", "/"): ANY,
    ("GET", "/health"): ANY,
    ("GET", "/models"): ANY,
    ("GET", "/models/{model}"): ANY,
    ("GET", "/job/{job_id}"): READ,
    ("GET", "/job/{job_id}/download"): READ,
    ("GET", "/job/{job_id}/result/{asset}"): READ,
    ("GET", "/job/{job_id}/events"): READ,
    ("GET", "/events"): READ,
    ("GET", "/jobs"): READ,
    ("GET", "/queue"): READ,
    ("POST", "/generate"): GENERATE,
    ("POST", "/generate/sync"): GENERATE,
    ("POST", "/models/{model}/generate"): GENERATE,
    ("POST", "/models/{model}/generate/sync"): GENERATE,
    ("POST", "/images"): GENERATE,
    ("POST", "/job/{job_id}/continue"): GENERATE,
    ("POST", "/job/{job_id}/cancel"): GENERATE,
    ("DELETE", "/job/{job_id}"): GENERATE,
    ("PUT", "/job/{job_id}"): DISPATCH,
    ("GET", "/job/{job_id}/stages"): DISPATCH,
    ("POST", "/job/{job_id}/withdraw"): DISPATCH,
    ("GET", "/blobs/{sha256}"): DISPATCH,
    ("PUT", "/blobs/{sha256}"): DISPATCH,
    ("GET", "/audit"): ADMIN,
}
VALUES = {"job_id": NOBODYS, "asset": "model.glb", "model": "stub", "sha256": "0" * 64}


def key_for(server: Server, *scopes: str, **limits: int) -> dict[str, str]:
    """The header of a new key that the server knows."""
    secret, key = new_key("test", scopes, at=time.time(), **limits)
    server.on_loop(lambda: server.engine.store.access.add(key, "test"))
    until(lambda: server.app.keyring.find(secret.encode()))
    return {"X-API-Key": secret}


@pytest.fixture(scope="module")
def keyed(serve: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("keyed"), max_queue_size=100) as server:
        yield server


@pytest.fixture(scope="module")
def keys(keyed: Server) -> dict[str, dict[str, str]]:
    return {scope: key_for(keyed, scope) for scope in SCOPES}


@contextlib.contextmanager
def caller(server: Server, key: dict[str, str]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers=key, timeout=30) as client:
        yield client


def submit(client: httpx.Client, **params: Any) -> str:
    form = {"seed": str(next(_SEEDS)), **{k: str(v) for k, v in params.items()}}
    answer = client.post("/generate", files={"image": PNG}, data=form)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


def test_every_route_has_the_scope_of_the_table() -> None:
    ours = {(m, p): needed_scope(h) for m, p, h in ROUTES if not p.startswith("/v2/")}
    assert ours == TABLE


@pytest.mark.parametrize(("method", "path"), TABLE)
def test_no_scope_opens_anothers_routes(
    keyed: Server, keys: dict[str, dict[str, str]], method: str, path: str
) -> None:
    needed = TABLE[(method, path)]
    url = path.format(**VALUES)
    methods = ("GET", "HEAD") if method == "GET" else (method,)
    for each in methods:
        for scope, key in keys.items():
            status = keyed.client.request(each, url, headers=key).status_code
            allowed = scope in (needed, ADMIN) or needed == ANY
            assert (status == 403) == (not allowed), (each, url, scope, status)
            assert status != 401
        without = keyed.client.request(each, url).status_code
        assert without == (200 if path == "/health" else 401), (each, url)


def test_a_handler_of_which_nothing_is_said_takes_admin() -> None:
    async def forgotten(api: Any, request: Any) -> Any: ...

    assert needed_scope(forgotten) == ADMIN


def test_a_refusal_says_which_scope_is_missing(
    keyed: Server, keys: dict[str, dict[str, str]]
) -> None:
    problem = keyed.client.get("/jobs", headers=keys[GENERATE]).json()
    assert problem["code"] == "forbidden"
    assert "'read'" in problem["error"]


def test_jobs_of_others_are_not_there_but_for_admin(
    keyed: Server, keys: dict[str, dict[str, str]]
) -> None:
    ann, eve = (key_for(keyed, GENERATE, READ, DISPATCH) for _ in range(2))
    with caller(keyed, ann) as client:
        job = submit(client, seconds=30)
        image = client.post("/images", files={"image": PNG}).json()["image_id"]
        until(lambda: job in client.get("/health").text)
    with caller(keyed, eve) as client:
        for method, path in TABLE:
            if "{job_id}" in path and method != "PUT":
                url = path.format(**VALUES | {"job_id": job})
                answer = client.request(method, url, json=None if method == "GET" else {})
                assert answer.status_code == 404, (method, url, answer.text)
        ref = {"digest": sha256(PNG).hexdigest(), "size": len(PNG), "media_type": "image/png"}
        given = {"image": ref | {"content": b64encode(PNG).decode()}}
        answer = client.put(f"/job/{job}", json={"model": "stub", "inputs": given, "params": {}})
        assert answer.status_code == 404
        assert client.get("/events", params={"jobs": job}).status_code == 404
        assert client.get("/jobs").json()["jobs"] == []
        for theirs in (image, job):
            assert client.post("/generate", json={"image_id": theirs}).status_code == 404
        assert job not in client.get("/health").text
    assert job not in keyed.client.get("/health").text
    with caller(keyed, keys[ADMIN]) as client:
        assert client.get(f"/job/{job}").json()["status"] == "processing"
        assert job in [each["job_id"] for each in client.get("/jobs").json()["jobs"]]
        assert job in client.get("/health").text
        assert client.post(f"/job/{job}/cancel").json()["status"] == "cancelled"
        assert client.delete(f"/job/{job}").status_code == 204
        acts = client.get("/audit").json()["acts"]
        mine = [a for a in acts if job in a["object"]]
        assert [a["act"] for a in mine] == ["job deleted", "job cancelled"]
        assert {a["who"] for a in mine} == {_id_of(keyed, keys[ADMIN])}
    with caller(keyed, ann) as client:
        own = submit(client)
        assert client.post(f"/job/{own}/cancel").status_code == 200
        assert client.delete(f"/job/{own}").status_code == 204
    acts = keyed.client.get("/audit", headers=keys[ADMIN]).json()["acts"]
    assert not any(own in act["object"] for act in acts), "one's own jobs are no administration"


def _id_of(server: Server, key: dict[str, str]) -> str:
    found = server.app.keyring.find(key["X-API-Key"].encode())
    assert found
    return found.id


def test_a_key_in_the_address_or_in_a_cookie_is_no_key(
    keyed: Server, keys: dict[str, dict[str, str]]
) -> None:
    secret = keys[READ]["X-API-Key"]
    for name in ("api_key", "key", "token", "access_token", "X-API-Key", "authorization"):
        assert keyed.client.get("/jobs", params={name: secret}).status_code == 401
    for header in ({"Cookie": f"api_key={secret}"}, {"Authorization": f"Basic {secret}"}):
        assert keyed.client.get("/jobs", headers=header).status_code == 401
    bearer = {"Authorization": f"bearer {secret}"}
    assert keyed.client.get("/jobs", headers=bearer).status_code == 200


def test_keys_are_in_no_log_and_no_answer(
    keyed: Server, keys: dict[str, dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    secrets = [key["X-API-Key"] for key in keys.values()] + ["pp_" + "wrong" * 8]
    hashes = [key.hash for key in keyed.on_loop(keyed.engine.store.access.keys)]
    said = ""
    with caplog.at_level(logging.DEBUG):
        for secret in secrets:
            for url in ("/jobs", "/audit", f"/job/{NOBODYS}", "/nothing", "/health"):
                said += keyed.client.get(url, headers={"X-API-Key": secret}).text
            said += keyed.client.post("/generate", headers={"X-API-Key": secret}, json=[]).text
    for hidden in (*secrets, *hashes):
        assert hidden not in said
        # the client that asks, in this process, logs what it sends
        ours = [r.getMessage() for r in caplog.records if not r.name.startswith("http")]
        assert not any(hidden in line for line in ours)


def test_keys_of_the_command_line_count_within_two_seconds(serve: Any, tmp_path: Path) -> None:
    def keys_command(*args: str) -> str:
        done = CliRunner().invoke(command, ["keys", *args, "--data", str(tmp_path)])
        assert done.exit_code == 0, done.output
        return done.stdout

    with serve(tmp_path) as server:
        assert server.client.get("/jobs").status_code == 200, "open on loopback without keys"
        secret = keys_command("create", "web").strip()
        with caller(server, {"X-API-Key": secret}) as client:
            until(lambda: server.client.get("/jobs").status_code == 401, 2)
            assert client.get("/jobs").status_code == 200
            keys_command("revoke", "web")
            until(lambda: client.get("/jobs").status_code == 401, 2)
        assert server.client.get("/jobs").status_code == 401, "the door stays shut"
        assert "web" in keys_command("list")
        assert "key revoked" in keys_command("audit")


def test_submits_are_limited_by_rate_and_nothing_else_is(keyed: Server) -> None:
    with caller(keyed, key_for(keyed, GENERATE, READ, submits_per_minute=2)) as client:
        jobs = [submit(client), submit(client)]
        for url in ("/generate", "/models/stub/generate", "/generate/sync"):
            answer = client.post(url, files={"image": PNG})
            assert answer.status_code == 429, url
            assert 1 <= int(answer.headers["retry-after"]) <= 30
            assert answer.json()["code"] == "too_many_requests"
            assert "2 jobs a minute" in answer.json()["error"]
        assert client.post(f"/job/{jobs[0]}/continue", json={}).status_code == 429
        assert client.post("/images", files={"image": PNG}).status_code == 201
        for _ in range(5):
            assert client.get(f"/job/{jobs[0]}").status_code == 200
        for job in jobs:
            client.delete(f"/job/{job}")
    with caller(keyed, key_for(keyed, GENERATE, READ)) as client:
        client.delete(f"/job/{submit(client)}")


def test_a_key_has_only_so_many_jobs_in_line(keyed: Server) -> None:
    with (
        caller(keyed, key_for(keyed, GENERATE, READ)) as other,
        caller(keyed, key_for(keyed, GENERATE, READ, most_queued=2)) as client,
    ):
        for _ in range(2):  # one runs, and the next one's first stage is done ahead
            ahead = submit(other, seconds=30)
            until(lambda: other.get(f"/job/{ahead}").json()["status"] == "processing")  # noqa: B023
        waiting = [submit(client), submit(client)]
        refused = client.post("/generate", files={"image": PNG})
        assert refused.status_code == 429
        assert refused.headers["retry-after"]
        assert "2 jobs waiting; it may have 2" in refused.json()["error"]
        submit(other)
        client.post(f"/job/{waiting[0]}/cancel")
        submit(client)
        for each in (client, other):
            for job in each.get("/jobs").json()["jobs"]:
                each.delete(f"/job/{job['job_id']}")
