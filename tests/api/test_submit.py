from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.api.serving import Server, make_picture, until

PNG = make_picture()
IMAGE = base64.b64encode(PNG).decode()


def submit(server: Server, path: str = "/generate", key: str = "", **body: Any) -> Any:
    headers = {"Idempotency-Key": key} if key else {}
    content = json.dumps({"image": IMAGE, **body})
    return server.client.post(path, content=content, headers=headers)


def test_the_answer_that_clients_know(server: Server) -> None:
    jobs = [submit(server, seconds=60, seed=None) for _ in range(4)]
    body = jobs[0].json()
    assert jobs[0].status_code == 202
    assert set(body) == {"job_id", "status", "position", "status_url", "message"}
    assert body["status_url"] == f"/job/{body['job_id']}" == jobs[0].headers["location"]
    last = jobs[3].json()  # one runs, one may be prepared meanwhile
    assert last["status"] == "queued"
    assert last["message"] == (
        f"Job queued at position {last['position']}. Poll status_url for updates."
    )
    waiting = server.job(last["job_id"])
    assert waiting["position"] >= 1
    assert waiting["message"] == f"Waiting in queue, position {waiting['position']}"
    for job in jobs:
        server.client.post(f"{job.json()['status_url']}/cancel")


def test_urls_carry_the_public_prefix(serve: Any, tmp_path: Path) -> None:
    with serve(tmp_path, public_url="https://pods.example/a/") as server:
        job = server.done(PNG)
        base = f"https://pods.example/a/job/{job['job_id']}"
        assert job["download_url"] == f"{base}/download"
        assert all(asset["url"].startswith(f"{base}/result/") for asset in job["assets"])
        assert submit(server).json()["status_url"].startswith("https://pods.example/a/job/")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"stepz": 3}, "Did you mean 'steps'?"),
        ({"webhook_uri": "http://x"}, "Unknown parameter 'webhook_uri'"),
        ({"steps": 0}, "Parameter 'steps'"),
        ({"steps": "many"}, "Parameter 'steps'"),
        ({"steps": None}, "Parameter 'steps'"),
        ({"seed": -1}, "Parameter 'seed'"),
        ({"seed": 2**32}, "Parameter 'seed'"),
        ({"seconds": {}}, "Parameter 'seconds'"),
        ({"say": "x" * 40_000}, "Parameter 'say'"),
        ({"output_format": "exe"}, "output_format"),
        ({"preset": "plane"}, "Did you mean 'plain'?"),
        ({"preset": ["plain"]}, "preset"),
        ({"until": "wrok"}, "Did you mean 'work'?"),
        ({"x" * 5000: 1}, "Unknown parameter"),
    ],
)
def test_parameters_are_checked_before_anything_else(
    server: Server, body: dict[str, Any], words: str
) -> None:
    answer = submit(server, **body)
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["error"] + answer.json()["hint"]
    assert len(answer.text) < 4000


def test_parameters_of_a_form_are_text(server: Server) -> None:
    form = {"steps": "3", "with_texture": "false", "seed": "", "preset": "large", "say": "5"}
    answer = server.client.post("/generate", files={"image": PNG}, data=form)
    params = server.job(answer.json()["job_id"])["params"]
    assert (params["steps"], params["with_texture"], params["say"]) == (3, False, "5")
    assert isinstance(params["seed"], int)
    assert params["size_bytes"] == 2_000_000
    wrong = server.client.post("/generate", files={"image": PNG}, data={"steps": "three"})
    assert wrong.status_code == 422
    assert "'three'" in wrong.json()["error"]


def test_the_model_may_be_named_or_left_out(server: Server) -> None:
    assert submit(server, "/models/stub/generate").status_code == 202
    assert submit(server, model="stub").status_code == 202
    unknown = submit(server, "/models/stab/generate")
    assert (unknown.status_code, "Did you mean 'stub'?" in unknown.text) == (404, True)
    assert submit(server, model="other").status_code == 404
    assert submit(server, "/models/stub/generate", model="other").status_code == 400
    assert submit(server, model=5).status_code == 400


def test_a_repeated_key_gives_the_same_job(server: Server) -> None:
    first = submit(server, key="once", steps=3, seed=None).json()
    as_form = server.client.post(
        "/generate",
        files={"image": PNG},
        data={"steps": "3", "seed": "null"},
        headers={"Idempotency-Key": "once"},
    )
    assert as_form.json()["job_id"] == first["job_id"]
    assert submit(server, key="twice", steps=3, seed=None).json()["job_id"] != first["job_id"]


def test_a_key_for_another_request_is_refused(server: Server) -> None:
    assert submit(server, key="mine", steps=3).status_code == 202
    for change in ({"steps": 4}, {"steps": 3, "until": "prepare"}):
        answer = submit(server, key="mine", **change)
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert submit(server, key="x" * 256).status_code == 400
    raw = server.client.post("/generate", headers={"Idempotency-Key": "é".encode()}, content=b"")
    assert raw.status_code == 400


def test_a_refused_request_does_not_use_up_its_key(server: Server) -> None:
    assert submit(server, key="again", steps=0).status_code == 422
    assert submit(server, key="again", steps=2).status_code == 202


def test_a_null_seed_is_drawn_and_told(server: Server) -> None:
    seeds = {server.job(submit(server, seed=None).json()["job_id"])["seed"] for _ in range(3)}
    assert len(seeds) == 3
    assert server.job(submit(server).json()["job_id"])["seed"] == 42


def test_a_full_queue_refuses_with_its_figures(serve: Any, tmp_path: Path) -> None:
    with serve(tmp_path, max_queue_size=1) as server:
        for seconds in (60, 61):  # one at work, and one that is prepared meanwhile
            running = server.submit(PNG, seconds=seconds)["job_id"]
            until(lambda job=running: server.job(job)["status"] == "processing")
        answers = [submit(server, seed=None, seconds=60, key=f"k{n}") for n in range(4)]
        full = answers[-1]
        assert full.status_code == 503
        assert int(full.headers["retry-after"]) >= 1
        body = full.json()
        assert (body["queue_length"], body["max_queue_size"]) == (1, 1)
        assert body["error"]
        again = submit(server, seed=None, seconds=60, key="k0")
        assert again.json()["job_id"] == answers[0].json()["job_id"]
        assert server.client.get(f"/job/{running}").status_code == 200


def test_sync_answers_with_the_file(server: Server) -> None:
    answer = submit(server, "/generate/sync", seed=None, size_bytes=50_000)
    assert answer.status_code == 200
    assert answer.content[:4] == b"glTF"
    assert len(answer.content) == 50_000
    assert answer.headers["content-type"] == "model/gltf-binary"
    job = server.client.get(answer.headers["location"]).json()
    assert job["status"] == "completed"
    assert answer.headers["etag"] in [f'"{asset["sha256"]}"' for asset in job["assets"]]
    other = submit(server, "/models/stub/generate/sync", seed=None, output_format="ply")
    assert other.content[:3] == b"ply"


def test_sync_gives_up_but_the_job_goes_on(serve: Any, tmp_path: Path) -> None:
    with serve(tmp_path, sync_timeout_s=0.3) as server:
        answer = submit(server, "/generate/sync", seconds=1)
        body = answer.json()
        assert answer.status_code == 504
        assert body["status_url"] == f"/job/{body['job_id']}"
        assert server.ended(body["job_id"])["status"] == "completed"


@pytest.mark.parametrize(("how", "status"), [("bad_input", 422), ("error", 500)])
def test_sync_tells_why_the_job_failed(server: Server, how: str, status: int) -> None:
    answer = submit(server, "/generate/sync", seed=None, fail=how)
    body = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (
        status,
        "application/problem+json",
    )
    assert server.job(body["job_id"])["error"]["message"] == body["error"]
    assert server.job(body["job_id"])["error"]["code"] == body["code"]


def test_sync_of_a_cancelled_job_is_a_conflict(server: Server) -> None:
    found: list[Any] = []
    thread = threading.Thread(
        target=lambda: found.append(submit(server, "/generate/sync", seed=77, seconds=60))
    )
    thread.start()

    def mine() -> Any:
        jobs = server.client.get("/jobs").json()["jobs"]
        return [j for j in jobs if j["seed"] == 77 and j["status"] == "processing"]

    server.client.post(f"/job/{until(mine)[0]['job_id']}/cancel")
    thread.join(30)
    assert found[0].status_code == 409


def test_a_client_that_leaves_sync_leaves_the_job(server: Server) -> None:
    body = f'{{"image": "{IMAGE}", "seed": 78, "seconds": 1}}'.encode()
    with contextlib.closing(socket.create_connection(("127.0.0.1", server.port))) as raw:
        head = f"POST /generate/sync HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
        raw.sendall(head.encode() + b"\r\n\r\n" + body)

        def mine() -> Any:
            return [j for j in server.client.get("/jobs").json()["jobs"] if j["seed"] == 78]

        job = until(mine)[0]
    assert server.ended(job["job_id"])["status"] == "completed"
    until(lambda: not server.engine.events._rings[job["job_id"]].listeners)


def test_continue_goes_on_from_where_the_job_stopped(server: Server) -> None:
    first = server.done(PNG, until="prepare", prepare_seconds=0.2)
    assert first["remaining_stages"] == ["work"]
    answer = server.client.post(f"/job/{first['job_id']}/continue")
    assert answer.status_code == 202
    assert answer.json()["parent"] == first["job_id"]
    second = server.ended(answer.json()["job_id"])
    assert (second["status"], second["seed"]) == ("completed", first["seed"])
    manifest = server.client.get(f"/job/{second['job_id']}/result/manifest.json").json()
    assert [s["kept"] for s in manifest["stages"]] == [True, False]


def test_continue_takes_changes_and_checks_them(server: Server) -> None:
    first = server.done(PNG, steps=2)
    url = f"/job/{first['job_id']}/continue"
    answer = server.client.post(url, json={"output_format": "ply", "until": "work"})
    second = server.ended(answer.json()["job_id"])
    assert second["params"] == {**first["params"], "output_format": "ply"}
    assert server.client.post(url, json={"stepz": 1}).status_code == 422
    assert server.client.post(url, json={"until": "nowhere"}).status_code == 422
    assert server.client.post(url, json={"image": IMAGE}).status_code == 422
    assert server.client.post("/job/0000/continue").status_code == 404


def test_continue_with_a_key(server: Server) -> None:
    first = server.done(PNG)

    def go_on(**changes: Any) -> Any:
        headers = {"Idempotency-Key": f"go-on-{first['job_id']}"}
        return server.client.post(f"/job/{first['job_id']}/continue", json=changes, headers=headers)

    same = {go_on(seed=None, steps=2).json()["job_id"] for _ in range(2)}
    assert len(same) == 1
    assert go_on(seed=None, steps=3).status_code == 409


def test_continue_without_the_inputs_is_410(server: Server) -> None:
    first = server.done(make_picture((41, 41)))
    inputs = next(a for a in first["assets"] if a["kind"] == "input")
    server.engine.blobs.delete(inputs["sha256"])
    assert server.client.post(f"/job/{first['job_id']}/continue").status_code == 410


@pytest.mark.parametrize("how", ["json", "form", "body", "octets"])
def test_a_picture_stored_once_stands_for_an_upload(server: Server, how: str) -> None:
    send: dict[str, dict[str, Any]] = {
        "json": {"json": {"image": IMAGE}},
        "form": {"files": {"file": PNG}},
        "body": {"content": PNG, "headers": {"content-type": "image/png"}},
        "octets": {"content": PNG, "headers": {"content-type": "application/octet-stream"}},
    }
    answer = server.client.post("/images", **send[how])
    stored = answer.json()
    assert answer.status_code == 201
    image_id = stored.pop("image_id")
    assert stored == {"width": 40, "height": 30, "media_type": "image/png", "size": len(PNG)}
    job = server.client.post("/generate", json={"image_id": image_id})
    assert job.status_code == 202, job.text
    kept = server.client.get(f"/job/{job.json()['job_id']}/result/image")
    assert kept.content == PNG
    form = server.client.post("/generate", files={"mask": PNG}, data={"image_id": image_id})
    assert form.status_code == 202, form.text


def test_the_picture_of_an_earlier_job_can_be_used_again(server: Server) -> None:
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held on its side: models see another file than was uploaded
    Image.new("RGB", (40, 30), (9, 80, 200)).save(turned, "JPEG", exif=exif)
    first = server.done(turned.getvalue())
    answer = server.client.post("/generate", json={"image_id": first["job_id"], "seed": 91})
    again = server.ended(answer.json()["job_id"])
    assert again["status"] == "completed"
    kept = server.client.get(f"/job/{again['job_id']}/result/image")
    assert kept.content == turned.getvalue()
    seen = [
        server.client.get(f"/job/{job['job_id']}/result/prepared.json").json()
        for job in (first, again)
    ]
    assert seen[0] == seen[1]
    without = server.client.post("/generate", json={"image": IMAGE, "mask_id": first["job_id"]})
    assert (without.status_code, without.json()["hint"]) == (410, "Send the picture.")


@pytest.mark.parametrize(
    ("send", "status"),
    [
        ({"json": {"image": IMAGE, "seed": 1}}, 400),
        ({"json": {"image_id": "ab"}}, 400),
        ({"json": {}}, 422),
        ({"content": b"nothing", "headers": {"content-type": "image/png"}}, 415),
        ({"content": b"nothing", "headers": {"content-type": "text/plain"}}, 415),
    ],
)
def test_images_takes_one_picture_and_nothing_else(
    server: Server, send: dict[str, Any], status: int
) -> None:
    answer = server.client.post("/images", **send)
    assert answer.status_code in {status, 422 if status == 415 else status}, answer.text


def test_other_requests_are_answered_while_a_large_body_is_read(server: Server) -> None:
    raw = b'{"image": "' + base64.b64encode(bytes(20_000_000)) + b'"}'
    slowest = 0.0
    done: list[int] = []

    def upload() -> None:
        done.append(server.client.post("/generate", content=raw).status_code)

    thread = threading.Thread(target=upload)
    thread.start()
    while thread.is_alive():
        begin = time.monotonic()
        assert server.client.get("/health").status_code == 200
        slowest = max(slowest, time.monotonic() - begin)
    assert done[0] in (415, 422)
    assert slowest < 5
