from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.api.serving import Server, make_picture, until

PNG = make_picture()


def test_a_completed_job_as_clients_know_it(server: Server) -> None:
    job = server.done(PNG)
    assert job["position"] == 0
    assert job["progress"] == 100
    assert job["download_url"] == f"/job/{job['job_id']}/download"
    assert isinstance(job["processing_time"], float)
    assert [a["name"] for a in job["assets"][:3]] == ["image", "prepared.json", "model.glb"]
    assert job["error"] is None


@pytest.mark.parametrize("job_id", ["0" * 32, "x", "a%00b", "é", "x" * 500])
def test_an_unknown_job_is_404(server: Server, job_id: str) -> None:
    for method, path in [
        ("GET", f"/job/{job_id}"),
        ("DELETE", f"/job/{job_id}"),
        ("POST", f"/job/{job_id}/cancel"),
        ("GET", f"/job/{job_id}/download"),
        ("GET", f"/job/{job_id}/result/model.glb"),
        ("GET", f"/job/{job_id}/events"),
    ]:
        answer = server.client.request(method, server.url + path)
        assert answer.status_code == 404, answer.text
        assert answer.headers["content-type"] == "application/problem+json"


def test_history_page_by_page(serve: Any, tmp_path: Path) -> None:
    with serve(tmp_path, max_queue_size=50) as server:
        ids = [server.submit(PNG)["job_id"] for _ in range(7)]
        for job_id in ids:
            server.ended(job_id)
        failed = server.ended(server.submit(PNG, fail="error")["job_id"])
        found: list[str] = []
        query: dict[str, Any] = {"limit": 3}
        while True:
            page = server.client.get("/jobs", params=query).json()
            found += [job["job_id"] for job in page["jobs"]]
            if page["next"] is None:
                break
            query["cursor"] = page["next"]
        assert found == [failed["job_id"], *reversed(ids)]
        by_status = server.client.get("/jobs", params={"status": "failed"}).json()
        assert [job["job_id"] for job in by_status["jobs"]] == [failed["job_id"]]
        assert by_status["jobs"][0]["error"]["message"]
        assert server.client.get("/jobs", params={"model": "other"}).json()["jobs"] == []
        assert len(server.client.get("/jobs", params={"model": "stub"}).json()["jobs"]) == 8


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": "201"},
        {"limit": "x"},
        {"limit": "٣"},
        {"limit": "9" * 40},
        {"status": "done"},
        {"cursor": "!!!"},
        {"cursor": "é"},
        {"cursor": ""},
        {"model": "a\0b"},
        {"model": ""},
    ],
)
def test_what_history_cannot_look_for(server: Server, query: dict[str, str]) -> None:
    answer = server.client.get("/jobs", params=query)
    assert answer.status_code == 422, answer.text


def test_the_queue_tells_its_figures(server: Server) -> None:
    queue = server.client.get("/queue").json()
    assert set(queue) == {"queued", "processing", "max_queue_size", "max_concurrent"}


def test_cancel_never_deletes_and_the_first_end_stays(server: Server) -> None:
    job_id = server.submit(PNG, seconds=60)["job_id"]
    until(lambda: server.job(job_id)["status"] == "processing")
    answer = server.client.post(f"/job/{job_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert server.client.post(f"/job/{job_id}/cancel").json()["status"] == "cancelled"
    done = server.done(PNG)
    answer = server.client.post(f"/job/{done['job_id']}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "completed")
    assert server.client.get(done["download_url"]).status_code == 200


def test_delete_removes_what_ended_and_cancels_what_has_not(server: Server) -> None:
    running = server.submit(PNG, seconds=60)["job_id"]
    answer = server.client.delete(f"/job/{running}")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert server.job(running)["status"] == "cancelled"
    done = server.done(PNG)["job_id"]
    answer = server.client.delete(f"/job/{done}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert server.client.get(f"/job/{done}").status_code == 404
    assert server.client.delete(f"/job/{done}").status_code == 404


def test_jobs_of_another_key_are_not_there(serve: Any, tmp_path: Path) -> None:
    with serve(tmp_path, api_keys=("alpha", "beta")) as server:
        server.client.headers["X-API-Key"] = "alpha"
        job = server.done(PNG)
        image = server.client.post("/images", files={"image": PNG}).json()["image_id"]
        server.client.headers["X-API-Key"] = "beta"
        path = f"/job/{job['job_id']}"
        for method, url in [
            ("GET", path),
            ("DELETE", path),
            ("POST", f"{path}/cancel"),
            ("POST", f"{path}/continue"),
            ("GET", f"{path}/download"),
            ("GET", f"{path}/result/model.glb"),
            ("GET", f"{path}/events"),
            ("GET", f"/events?jobs={job['job_id']}"),
        ]:
            assert server.client.request(method, url).status_code == 404, url
        assert server.client.get("/jobs").json()["jobs"] == []
        assert server.client.post("/generate", json={"image_id": image}).status_code == 404
        server.client.headers["X-API-Key"] = "alpha"
        assert server.client.get(path).status_code == 200
        assert server.client.post("/generate", json={"image_id": image}).status_code == 202
        del server.client.headers["X-API-Key"]
        assert server.client.get(path).status_code == 401
