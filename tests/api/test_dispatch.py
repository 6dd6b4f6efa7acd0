"""What a router asks of a pod."""

from __future__ import annotations

import base64
import hashlib
import uuid

import pytest

from polypod.jobs.store.writer import Writer
from tests.api.serving import make_picture, until


def reference(data, name="a.png"):
    digest = hashlib.sha256(data).hexdigest()
    return {"digest": digest, "size": len(data), "media_type": "image/png", "filename": name}


def body(picture, **params):
    return {"model": "stub", "inputs": {"image": reference(picture)}, "params": params}


_RUN = {"stage": {}, "seconds": 1, "device": "cpu", "kept": False}


def _input(picture, **changed):
    return {"inputs": {"image": reference(picture) | changed}}


def test_a_blob_is_kept_by_its_digest(server, picture):
    path = f"/blobs/{hashlib.sha256(picture).hexdigest()}"
    assert server.client.put(path, content=picture).status_code == 204
    assert server.client.head(path).status_code == 200
    assert server.client.get(path).content == picture
    assert server.client.get(path, headers={"Range": "bytes=0-3"}).content == picture[:4]


def test_a_blob_of_another_digest_is_refused(server, picture):
    path = f"/blobs/{'0' * 64}"
    assert server.client.head(path).status_code == 404
    assert server.client.put(path, content=picture).status_code == 422
    assert server.client.head(path).status_code == 404
    assert server.client.put("/blobs/../polypod.db", content=picture).status_code in (400, 404)


def test_a_job_runs_under_the_routers_id_however_often_it_is_put(server, picture):
    job_id = uuid.uuid4().hex
    server.client.put(f"/blobs/{hashlib.sha256(picture).hexdigest()}", content=picture)
    for _ in range(3):
        answer = server.client.put(f"/job/{job_id}", json=body(picture, seed=5151))
        assert (answer.status_code, answer.json()["job_id"]) == (202, job_id)
    done = server.ended(job_id)
    assert (done["status"], done["seed"]) == ("completed", 5151)
    again = server.client.put(f"/job/{job_id}", json=body(picture, seed=5151)).json()
    assert again["status"] == "completed"
    assert until(lambda: server.client.get("/queue").json()["processing"] == 0)


def test_what_was_accepted_once_is_accepted_again_by_a_server_that_remembers_nothing(
    serve, tmp_path, picture
):
    """Not even where its files are gone meanwhile, or the model is another."""
    job_id, asked = uuid.uuid4().hex, body(picture, seed=5154)
    with serve(tmp_path) as first:
        first.client.put(f"/blobs/{hashlib.sha256(picture).hexdigest()}", content=picture)
        first.client.put(f"/job/{job_id}", json=asked)
        assert first.ended(job_id)["status"] == "completed"
    for repeated in (asked, body(b"never sent"), asked | {"model": "other"}):
        with serve(tmp_path) as second:
            answer = second.client.put(f"/job/{job_id}", json=repeated)
            assert (answer.status_code, answer.json()["status"]) == (202, "completed")


@pytest.mark.parametrize("more", [0, 40_000], ids=["tiny", "as large as a router sends"])
def test_a_small_input_may_come_with_the_job(server, more):
    picture = make_picture((41, 31)) + bytes(more)
    asked = body(picture, seed=5152)
    asked["inputs"]["image"]["content"] = base64.b64encode(picture).decode()
    job_id = uuid.uuid4().hex
    assert server.client.put(f"/job/{job_id}", json=asked).status_code == 202
    assert server.ended(job_id)["status"] == "completed"
    assert server.client.get(f"/job/{job_id}/result/image").content == picture
    for content, status in (
        (base64.b64encode(b"other").decode(), 422),
        ("no base64", 400),
        (7, 400),
    ):
        asked["inputs"]["image"]["content"] = content
        answer = server.client.put(f"/job/{uuid.uuid4().hex}", json=asked)
        assert answer.status_code == status, content


def test_only_the_routers_jobs_need_not_be_durable(server, picture, monkeypatch):
    """The router keeps them durably, and gives them again to a pod that has lost them."""
    asked, hand_over = [], Writer.hand_over

    def seen(writer, work, durable=True):
        asked.append(durable)
        return hand_over(writer, work, durable)

    monkeypatch.setattr(Writer, "hand_over", seen)
    server.done(picture)
    writes = len(asked)
    assert writes >= 4 and all(asked), "accepted, begun, stages kept, ended"
    job_id = uuid.uuid4().hex
    server.client.put(f"/job/{job_id}", json=body(picture, seed=5153))
    assert server.ended(job_id)["status"] == "completed"
    assert len(asked) == 2 * writes and not any(asked[writes:])


def test_what_others_take_over_from_a_routers_job_is_durable(server):
    picture, blobs = make_picture((43, 31)), server.engine.blobs
    job_id = uuid.uuid4().hex
    asked = body(picture, seed=5155)
    asked["inputs"]["image"]["content"] = base64.b64encode(picture).decode()
    server.client.put(f"/job/{job_id}", json=asked)
    relayed = [asset["sha256"] for asset in server.ended(job_id)["assets"]]
    assert all(blobs.unsynced([digest]) for digest in relayed)
    job = server.done(picture, seed=5155)
    stages = server.client.get(f"/job/{job['job_id']}/result/manifest.json").json()["stages"]
    assert all(stage["kept"] for stage in stages)
    assert not blobs.unsynced([asset["sha256"] for asset in job["assets"]])


def test_missing_inputs_are_named(server):
    answer = server.client.put(f"/job/{uuid.uuid4().hex}", json=body(b"never sent"))
    assert answer.status_code == 409
    assert answer.json()["missing"] == [hashlib.sha256(b"never sent").hexdigest()]


def test_what_this_version_does_not_take_is_refused_in_words(server, picture):
    server.client.put(f"/blobs/{hashlib.sha256(picture).hexdigest()}", content=picture)
    bad = {
        "an unknown parameter": (body(picture, depth=1), 422),
        "a value out of range": (body(picture, steps=0), 422),
        "an unknown model": (body(picture) | {"model": "other"}, 404),
        "an unknown input": (body(picture) | {"inputs": {"picture": reference(picture)}}, 422),
        "no required input": (body(picture) | {"inputs": {}}, 422),
        "no file reference": (body(picture) | {"inputs": {"image": {"digest": "x"}}}, 400),
        "an unknown stage": (body(picture) | {"until": "nowhere"}, 422),
        "no parameters": (body(picture) | {"params": None}, 400),
        "no number": (body(picture) | {"priority": "high"}, 400),
        "too large a number": (body(picture) | {"priority": 10**40}, 400),
        "a size that none has": (body(picture) | _input(picture, size=10**40), 400),
        "a size below nothing": (body(picture) | _input(picture, size=-1), 400),
        "two headers": (body(picture) | _input(picture, media_type="image/png\r\nX: y"), 400),
        "no stage": (body(picture) | {"stages": [{"key": "", "files": {}, "run": _RUN}]}, 400),
    }
    for case, (request, status) in bad.items():
        answer = server.client.put(f"/job/{uuid.uuid4().hex}", json=request)
        assert answer.status_code == status, case
        assert answer.json()["error"], case
    assert server.client.put("/job/short", json=body(picture)).status_code == 400


def test_a_stage_that_another_pod_has_done_is_not_done_again(server, picture):
    server.client.put(f"/blobs/{hashlib.sha256(picture).hexdigest()}", content=picture)
    first = uuid.uuid4().hex
    server.client.put(f"/job/{first}", json=body(picture, seed=77, seconds=600, steps=1000))
    (done,) = until(lambda: server.client.get(f"/job/{first}/stages").json()["stages"])
    assert done["run"]["stage"] == "prepare"
    server.client.post(f"/job/{first}/cancel")

    # the same outputs, as they would come from a pod that has them under no key of this one
    other = body(picture, seed=77, steps=1000) | {"stages": [done]}
    lacking = {**done, "files": {"prepared.json": reference(b"not here") | {"size": 8}}}
    answer = server.client.put(f"/job/{uuid.uuid4().hex}", json=other | {"stages": [lacking]})
    assert (answer.status_code, len(answer.json()["missing"])) == (409, 1)
    second = uuid.uuid4().hex
    assert server.client.put(f"/job/{second}", json=other).status_code == 202
    assert server.ended(second)["status"] == "completed"
    stages = server.client.get(f"/job/{second}/result/manifest.json").json()["stages"]
    assert [stage["kept"] for stage in stages] == [True, False]
    assert server.client.get(f"/job/{second}/stages").json() == {"stages": []}


def test_a_job_checked_for_another_version_is_checked_again(server, picture):
    server.client.put(f"/blobs/{hashlib.sha256(picture).hexdigest()}", content=picture)
    mine, other = server.client.get("/models/stub").json()["digest"], "0" * 64
    for card, told in ((mine, False), (other, True)):
        asked = body(picture, steps=0) | {"card": card}
        answer = server.client.put(f"/job/{uuid.uuid4().hex}", json=asked)
        assert answer.status_code == 422
        assert ("another version of stub" in answer.json()["error"]) is told
    fits = body(picture, seed=8) | {"card": other}
    assert server.client.put(f"/job/{uuid.uuid4().hex}", json=fits).status_code == 202
