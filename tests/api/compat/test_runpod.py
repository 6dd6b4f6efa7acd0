"""Every call and field of RunPod's serverless protocol, over plain HTTP."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import http.server
import itertools
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.serving import Server, make_picture, until

V2 = "/v2/stub"
PICTURE = base64.b64encode(make_picture()).decode()
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
SEEDS = itertools.count(50_000)

BLOCK: dict[str, Any] = {"prepare_seconds": 30, "steps": 300}
"""A job that holds the slot of the first stage, so that others wait, until it is cancelled."""

Serve = Callable[..., contextlib.AbstractContextManager[Server]]


def order(**params: Any) -> dict[str, Any]:
    return {"image": PICTURE, "seed": next(SEEDS), **params}


def post(server: Server, call: str, body: Any = None, **options: Any) -> httpx.Response:
    return server.client.post(f"{V2}/{call}", json=body, **options)


def run(server: Server, policy: Any = None, **params: Any) -> str:
    answer = post(server, "run", {"input": order(**params), "policy": policy})
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "IN_QUEUE"
    return answer.json()["id"]


def status(server: Server, job_id: str) -> dict[str, Any]:
    answer = server.client.get(f"{V2}/status/{job_id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def stream(server: Server, job_id: str) -> dict[str, Any]:
    return server.client.get(f"{V2}/stream/{job_id}").json()


def health(server: Server) -> dict[str, Any]:
    return server.client.get(f"{V2}/health").json()


def at(server: Server, job_id: str, *states: str) -> dict[str, Any]:
    def there() -> dict[str, Any] | None:
        told = status(server, job_id)
        return told if told["status"] in states else None

    return until(there)


def test_run_answers_id_and_state_and_nothing_else(server: Server) -> None:
    answer = post(server, "run", {"input": order()})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"id", "status"}
    assert re.fullmatch(f"{UUID}-u1", answer.json()["id"])


def test_a_completed_job_has_output_and_times(server: Server) -> None:
    job_id = run(server, seconds=0.3)
    told = at(server, job_id, "COMPLETED")
    assert told.keys() == {"id", "status", "delayTime", "executionTime", "output"}
    assert told["id"] == job_id
    assert 300 <= told["executionTime"] < 20_000
    assert isinstance(told["executionTime"], int) and isinstance(told["delayTime"], int)
    output = told["output"]
    assert output["name"] == "model.glb" and output["media_type"] == "model/gltf-binary"
    file = server.client.get(output["url"]).content
    assert base64.b64decode(output["data"]) == file
    assert len(file) == output["size"]
    assert {"model.glb", "prepared.json", "manifest.json"} <= {a["name"] for a in output["assets"]}
    assert all(server.client.get(a["url"]).status_code == 200 for a in output["assets"])
    assert output["params"]["seconds"] == 0.3 and output["seed"] == output["params"]["seed"]


def test_a_large_result_is_told_by_its_address_only(server: Server) -> None:
    told = at(server, run(server, size_bytes=1_100_000), "COMPLETED")
    assert "data" not in told["output"]
    assert len(server.client.get(told["output"]["url"]).content) >= 1_100_000


def test_states_and_times_on_the_way(server: Server) -> None:
    first = run(server, **BLOCK)
    told = at(server, first, "IN_PROGRESS")
    assert told.keys() == {"id", "status", "delayTime"}
    second = run(server)
    assert status(server, second) == {"id": second, "status": "IN_QUEUE"}
    for job_id in (second, first):
        answer = post(server, f"cancel/{job_id}")
        assert answer.json() == {"id": job_id, "status": "CANCELLED"}
        assert at(server, job_id, "CANCELLED").keys() >= {"delayTime", "executionTime"}


def test_a_failed_job_tells_why(server: Server) -> None:
    told = at(server, run(server, fail="error"), "FAILED")
    assert told.keys() == {"id", "status", "error", "delayTime", "executionTime"}
    assert isinstance(told["error"], str) and told["error"]


def test_jobs_from_elsewhere_are_known_too(server: Server) -> None:
    job = server.done(make_picture())
    assert status(server, job["job_id"])["status"] == "COMPLETED"
    shown = run(server)
    ours = shown.removesuffix("-u1").replace("-", "")
    assert server.ended(ours)["status"] == "completed"
    assert server.client.get(f"{V2}/status/{shown}?ttl=60000").status_code == 200


def test_runsync_answers_with_the_output(server: Server) -> None:
    answer = post(server, "runsync", {"input": order()})
    told = answer.json()
    assert answer.status_code == 200 and told["status"] == "COMPLETED"
    assert re.fullmatch(f"sync-{UUID}", told["id"])
    assert told.keys() == {"id", "status", "delayTime", "executionTime", "output"}
    assert {**status(server, told["id"]), "output": None} == {**told, "output": None}
    failed = post(server, "runsync", {"input": order(fail="bad_input")}).json()
    assert failed["status"] == "FAILED" and failed["error"]


def test_runsync_falls_back_to_the_state_when_its_wait_is_over(server: Server) -> None:
    first = post(server, "runsync?wait=1000", {"input": order(**BLOCK)}).json()
    assert first["status"] == "IN_PROGRESS" and "output" not in first
    second = post(server, "runsync?wait=1000", {"input": order()}).json()
    assert second == {"id": second["id"], "status": "IN_QUEUE"}
    post(server, f"cancel/{first['id']}")
    assert at(server, second["id"], "COMPLETED")["output"]


def test_runsync_waits_no_longer_than_the_server_can(serve: Serve, tmp_path: Path) -> None:
    with serve(tmp_path, sync_timeout_s=0.2) as server:
        told = post(server, "runsync", {"input": order(**BLOCK)}).json()
        assert told["status"] in ("IN_QUEUE", "IN_PROGRESS")


@pytest.mark.parametrize("wait", ["", "999", "300001", "soon"])
def test_waits_outside_of_the_range_are_refused(server: Server, wait: str) -> None:
    answer = post(server, f"runsync?wait={wait}", {"input": order()})
    assert answer.status_code == 400 and "wait" in answer.json()["error"]


def test_a_stream_has_each_file_once(server: Server) -> None:
    job_id = run(server, seconds=0.3)
    at(server, job_id, "COMPLETED")
    head = server.client.head(f"{V2}/stream/{job_id}")
    assert head.status_code == 200
    told = stream(server, job_id)
    assert told["status"] == "COMPLETED"
    chunks = [chunk["output"] for chunk in told["stream"]]
    assert [chunk["name"] for chunk in chunks] == ["prepared.json", "model.glb"]
    assert all(server.client.get(chunk["url"]).status_code == 200 for chunk in chunks)
    for _ in range(2):
        assert stream(server, job_id) == {"status": "COMPLETED", "stream": []}


def test_files_are_in_the_stream_while_the_job_runs(server: Server) -> None:
    job_id = run(server, seconds=30, steps=300)
    first = until(lambda: stream(server, job_id)["stream"])
    assert [chunk["output"]["name"] for chunk in first] == ["prepared.json"]
    assert stream(server, job_id)["stream"] == []
    assert stream(server, job_id)["status"] in ("IN_QUEUE", "IN_PROGRESS")
    post(server, f"cancel/{job_id}")
    assert stream(server, job_id) == {"status": "FAILED", "stream": []}
    assert status(server, job_id)["status"] == "CANCELLED"


def test_the_stream_of_a_cancelled_job_ends_when_it_is_empty(server: Server) -> None:
    job_id = run(server, seconds=30, steps=300)
    until(lambda: server.job(job_id.removesuffix("-u1").replace("-", ""))["assets"][1:])
    post(server, f"cancel/{job_id}")
    told = stream(server, job_id)
    assert told["status"] == "CANCELLED" and len(told["stream"]) == 1
    assert stream(server, job_id) == {"status": "FAILED", "stream": []}


def test_a_cancel_changes_no_end(server: Server) -> None:
    job_id = run(server)
    at(server, job_id, "COMPLETED")
    assert post(server, f"cancel/{job_id}").json() == {"id": job_id, "status": "COMPLETED"}


def test_a_retry_runs_again_under_its_id(server: Server) -> None:
    retried = health(server)["jobs"]["retried"]
    job_id = run(server, fail="error", prepare_seconds=0.2)
    at(server, job_id, "FAILED")
    answer = post(server, f"retry/{job_id}")
    assert answer.status_code == 200
    assert answer.json() == {"id": job_id, "status": "IN_QUEUE"}
    assert "error" not in status(server, job_id) or status(server, job_id)["status"] == "FAILED"
    assert at(server, job_id, "FAILED")["id"] == job_id
    assert post(server, f"retry/{job_id}").status_code == 200  # the second one fails in its turn
    at(server, job_id, "FAILED")
    assert health(server)["jobs"]["retried"] == retried + 2
    tries = [j for j in server.client.get("/jobs").json()["jobs"] if j["parent"]]
    assert len({job["job_id"] for job in tries[:2]}) == 2


def test_two_retries_at_once_are_one(server: Server) -> None:
    job_id = run(server, fail="error", fail_in="prepare")  # no stage of it is kept
    at(server, job_id, "FAILED")
    blocker = run(server, **BLOCK)
    at(server, blocker, "IN_PROGRESS")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: post(server, f"retry/{job_id}"), range(2)))
    assert {a.status_code for a in answers} <= {200, 400}  # 400: it is in the queue by then
    assert health(server)["jobs"]["inQueue"] == 1
    post(server, f"cancel/{blocker}")
    at(server, job_id, "FAILED")


def test_only_failed_jobs_are_tried_again(server: Server) -> None:
    done = run(server)
    at(server, done, "COMPLETED")
    answer = post(server, f"retry/{done}")
    assert answer.status_code == 400 and "COMPLETED" in answer.json()["error"]
    assert post(server, "retry/nothing").status_code == 404


def test_purge_queue_leaves_what_runs(serve: Serve, tmp_path: Path) -> None:
    with serve(tmp_path, max_queue_size=50) as server:
        running = run(server, prepare_seconds=2)
        at(server, running, "IN_PROGRESS")
        queued = [run(server) for _ in range(20)]
        assert post(server, "purge-queue").json() == {"removed": 20, "status": "completed"}
        assert {status(server, job_id)["status"] for job_id in queued} == {"CANCELLED"}
        assert post(server, "purge-queue").json() == {"removed": 0, "status": "completed"}
        at(server, running, "COMPLETED")


def test_a_key_sees_and_purges_its_own_jobs(serve: Serve, tmp_path: Path) -> None:
    with serve(tmp_path, api_keys=("first", "second")) as server:
        mine = {"headers": {"authorization": "Bearer first"}}
        other = {"headers": {"authorization": "Bearer second"}}
        running = post(server, "run", {"input": order(**BLOCK)}, **mine).json()["id"]
        url = f"{V2}/status/{running}"
        until(lambda: server.client.get(url, **mine).json()["status"] == "IN_PROGRESS")
        job_id = post(server, "run", {"input": order()}, **mine).json()["id"]
        assert post(server, "purge-queue", **other).json()["removed"] == 0
        answer = server.client.get(f"{V2}/status/{job_id}", **other)
        assert answer.status_code == 404 and answer.json().keys() == {"error", "hint", "code"}
        assert post(server, "run", {"input": order()}).status_code == 401
        assert post(server, "purge-queue", **mine).json()["removed"] == 1


def test_health_counts(server: Server) -> None:
    before = health(server)
    assert before.keys() == {"jobs", "workers"}
    assert before["jobs"].keys() == {"completed", "failed", "inProgress", "inQueue", "retried"}
    until(lambda: health(server)["workers"] == {"idle": 1, "running": 0})
    running = run(server, **BLOCK)
    at(server, running, "IN_PROGRESS")
    waiting = run(server, fail="error")
    now = health(server)
    assert now["workers"] == {"idle": 0, "running": 1}
    assert (now["jobs"]["inProgress"], now["jobs"]["inQueue"]) == (1, 1)
    post(server, f"cancel/{running}")
    at(server, waiting, "FAILED")
    at(server, run(server), "COMPLETED")
    after = health(server)["jobs"]
    assert after["failed"] == before["jobs"]["failed"] + 1
    assert after["completed"] == before["jobs"]["completed"] + 1


def test_policies_end_jobs(serve: Serve, tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        slow = run(server, {"executionTimeout": 5000}, **BLOCK)
        blocker = run(server, **BLOCK)
        expiring = run(server, {"ttl": 10_000})
        told = at(server, slow, "TIMED_OUT")
        assert 5000 <= told["executionTime"] < 8000
        assert "5000 ms" in told["error"]
        assert stream(server, slow)["status"] == "TIMED_OUT"
        assert status(server, blocker)["status"] in ("IN_QUEUE", "IN_PROGRESS")
        assert status(server, expiring)["status"] == "IN_QUEUE"
        until(lambda: server.client.get(f"{V2}/status/{expiring}").status_code == 404)
        again = post(server, f"retry/{slow}")
        assert again.json() == {"id": slow, "status": "IN_QUEUE"}
        post(server, "purge-queue")


def test_low_priority_waits_for_all_others(server: Server) -> None:
    blocker = run(server, **BLOCK)
    at(server, blocker, "IN_PROGRESS")
    run(server, seconds=0.1)  # is with the worker already when the others come
    low = run(server, {"lowPriority": True}, seconds=1)
    high = run(server, seconds=0.1)
    post(server, f"cancel/{blocker}")
    at(server, high, "COMPLETED")
    assert status(server, low)["status"] != "COMPLETED"
    at(server, low, "COMPLETED")


def test_a_webhook_is_called_at_the_end(serve: Serve, tmp_path: Path) -> None:
    called: list[dict[str, Any]] = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            called.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with (
        http.server.HTTPServer(("127.0.0.1", 0), Listener) as listener,
        serve(tmp_path, allow_private_urls=True) as server,
    ):
        threading.Thread(target=listener.serve_forever).start()
        try:
            body = {"input": order(), "webhook": f"http://127.0.0.1:{listener.server_port}/done"}
            job_id = post(server, "run", body).json()["id"]
            until(lambda: called)
        finally:
            listener.shutdown()
    assert job_id.removesuffix("-u1").replace("-", "") in json.dumps(called[0])


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "input"),
        ({"input": {}}, "image"),
        ({"input": {"image": "!"}}, "image"),
        ({"input": {"image": PICTURE, "nothing": 1}}, "nothing"),
        ({"input": {"image": PICTURE, "seconds": -1}}, "seconds"),
        ({"input": {"image": PICTURE, "model": "other"}}, "other"),
        ({"input": {"image": PICTURE, "until": "never"}}, "never"),
        ({"input": {"image": PICTURE}, "policy": {"ttl": 1}}, "ttl"),
        ({"input": {"image": PICTURE}, "s3Config": {}}, "s3Config"),
        ({"input": {"image": PICTURE}, "webhook": 5}, "webhook"),
        ({"input": {"image": PICTURE}, "webhook": "http://127.0.0.1/"}, "webhook"),
        ([], "object"),
    ],
)
def test_bad_requests_are_400_with_words(server: Server, body: Any, word: str) -> None:
    for call in ("run", "runsync"):
        answer = post(server, call, body)
        assert answer.status_code == 400, answer.text
        assert word in answer.json()["error"] + answer.json()["hint"]
        assert not answer.json().keys() & {"id", "status"}  # no client takes it for a job


def test_what_is_not_there_is_404(server: Server) -> None:
    for call in ("status/abc", "stream/abc", "status/sync-" + "0" * 32):
        assert server.client.get(f"{V2}/{call}").status_code == 404
    for call in ("cancel/abc", "retry/abc"):
        assert post(server, call).status_code == 404
    assert server.client.get("/v2/other/health").status_code == 404
    assert server.client.post("/v2/other/run", json={"input": order()}).status_code == 404


def test_bodies_have_limits(server: Server) -> None:
    image = "A" * (10 << 20)
    answer = post(server, "run", {"input": {"image": image}})
    assert answer.status_code == 400 and "10 MB" in answer.json()["error"]
    answer = post(server, "runsync", {"input": {"image": image}})
    assert answer.status_code == 400 and "10 MB" not in answer.json()["error"]
    answer = post(server, "runsync", {"input": {"image": image + image}})
    assert answer.status_code == 400 and "20 MB" in answer.json()["error"]


def test_a_full_queue_is_429(serve: Serve, tmp_path: Path) -> None:
    with serve(tmp_path, max_queue_size=1) as server:
        at(server, run(server, **BLOCK), "IN_PROGRESS")
        run(server)
        answer = post(server, "run", {"input": order()})
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 0
        assert answer.json()["code"] == "queue_full"


def test_an_idempotency_key_makes_no_second_job(server: Server) -> None:
    body, headers = {"input": order()}, {"idempotency-key": f"runpod-{next(SEEDS)}"}
    first = post(server, "run", body, headers=headers).json()["id"]
    assert post(server, "run", body, headers=headers).json()["id"] == first
    other = post(server, "run", {"input": order()}, headers=headers)
    assert other.status_code == 400
