"""A disk budget that is used up, over HTTP: who is refused, and what goes on."""

from __future__ import annotations

import hashlib
import time
import uuid

import pytest

from polypod.jobs.budget import KEEP_NEW_S
from polypod.settings import Settings
from tests.api.serving import Server, make_picture, until
from tests.models.stub.model import MODEL

PICTURE, OTHER = make_picture(), make_picture((50, 20))
LATER_S = KEEP_NEW_S + 60
PNG = {"Content-Type": "image/png"}


@pytest.fixture
def server(tmp_path):
    """Whatever it keeps is too much."""
    server = Server(Settings(data=tmp_path, disk_budget_bytes=1), MODEL)
    yield server
    server.stop()


def look(server, after_s=0.0):
    server.on_loop(lambda: server.engine.budget.look(time.time() + after_s))


def post(server, picture=OTHER, seconds=0, **headers):
    files, form = {"image": ("a.png", picture)}, {"seconds": str(seconds), "steps": "100"}
    return server.client.post("/generate", files=files, data=form, headers=headers)


def put_job(server, picture=PICTURE, job_id=""):
    """As a router hands it over."""
    ref = server.engine.blobs.put_bytes(picture, "image/png")
    inputs = {"image": {"digest": ref.digest, "size": ref.size, "media_type": "image/png"}}
    asked = {"model": "stub", "inputs": inputs, "params": {}}
    return server.client.put(f"/job/{job_id or uuid.uuid4().hex}", json=asked)


def assert_refused(answer):
    assert (answer.status_code, answer.json()["code"]) == (503, "budget_full")
    assert int(answer.headers["retry-after"]) >= 10
    assert answer.json()["disk_budget_bytes"] == 1 < answer.json()["used_bytes"]
    assert "delete or cancel jobs" in answer.json()["hint"]
    assert "POLYPOD_DISK_BUDGET_BYTES" in answer.json()["hint"]


def test_new_jobs_are_refused_while_unfinished_ones_need_the_room(server):
    key = {"Idempotency-Key": "k"}
    running = post(server, PICTURE, seconds=600, **key).json()["job_id"]
    look(server, LATER_S)
    assert_refused(post(server))
    assert_refused(post(server, **{"Idempotency-Key": "another"}))
    assert_refused(server.client.post("/images", content=OTHER, headers=PNG))
    assert_refused(put_job(server))
    kept = server.engine.blobs.here(hashlib.sha256(OTHER).hexdigest())
    assert kept is None, "what is refused takes no room"
    again = post(server, PICTURE, seconds=600, **key)
    assert (again.status_code, again.json()["job_id"]) == (202, running)

    until(lambda: server.job(running)["stage"] == "work")
    health = server.client.get("/health").json()
    assert health["status"] == "healthy" and "disk budget" in health["refuses"]
    assert server.engine.ready

    assert server.client.post(f"/job/{running}/cancel").status_code == 200
    look(server)
    assert_refused(post(server))  # what has just ended stays for a while
    look(server, LATER_S)
    assert server.client.get("/health").json()["refuses"] is None
    assert post(server).status_code == 202


def test_all_that_may_go_goes_before_anybody_is_refused(server):
    image = server.client.post("/images", content=OTHER, headers=PNG).json()["image_id"]
    old = server.done(PICTURE)
    look(server, LATER_S)
    assert server.client.get(old["download_url"]).status_code == 410
    assert server.client.post("/generate", json={"image_id": image}).status_code == 404
    assert server.job(old["job_id"])["status"] == "completed"
    assert post(server).status_code == 202


def test_results_that_a_router_has_not_fetched_stay_and_fill_the_budget(server):
    job_id = uuid.uuid4().hex
    assert put_job(server, job_id=job_id).status_code == 202
    done = server.ended(job_id)
    until(lambda: not server.engine.queue.lives)
    look(server, 86400)
    assert server.client.get(done["download_url"]).status_code == 200
    assert_refused(put_job(server, OTHER))
    assert put_job(server, job_id=job_id).json()["status"] == "completed"
    assert server.client.delete(f"/job/{job_id}").status_code < 300
    look(server, 86400)
    assert put_job(server, OTHER).status_code == 202


def test_where_another_server_makes_room_its_turn_is_waited_for(server):
    """A router that does not lead removes nothing; it refuses once that one has found no more."""
    server.engine.budget._leads = lambda: False
    old = server.done(PICTURE)
    look(server, LATER_S)
    assert post(server).status_code == 202
    look(server, LATER_S)
    assert_refused(post(server))
    assert server.client.get(old["download_url"]).status_code == 200


def test_without_a_limit_nobody_is_refused(tmp_path):
    server = Server(Settings(data=tmp_path, disk_budget_bytes=0), MODEL)
    try:
        done = server.done(PICTURE)
        look(server, LATER_S)
        assert server.client.get(done["download_url"]).status_code == 200
        assert post(server).status_code == 202
    finally:
        server.stop()
