"""The same protocol on a router, whose jobs run on a pod."""

from __future__ import annotations

import base64
from pathlib import Path

import runpod

from tests.api.serving import make_picture, until
from tests.router.test_dispatch import fleet

PICTURE = base64.b64encode(make_picture()).decode()


def test_the_official_client_needs_only_the_routers_address(tmp_path: Path) -> None:
    known = runpod.api_key, runpod.endpoint_url_base
    with fleet(tmp_path) as (router, _):
        runpod.api_key, runpod.endpoint_url_base = "any", f"{router.url}/v2"
        try:
            endpoint = runpod.Endpoint("stub")
            job = endpoint.run({"image": PICTURE, "seed": 1})
            assert {chunk["name"] for chunk in job.stream()} == {"prepared.json", "model.glb"}
            output = job.output(timeout=30)
            data = base64.b64decode(output["data"])
            assert data[:4] == b"glTF" and router.client.get(output["url"]).content == data

            policy = {"executionTimeout": 5000}
            params = {"image": PICTURE, "prepare_seconds": 60, "steps": 600}
            slow = endpoint.run({"input": params, "policy": policy})
            until(lambda: slow.status() == "IN_PROGRESS")
            jobs = [endpoint.run({"image": PICTURE, "seed": 2 + i}) for i in range(3)]
            assert endpoint.health()["workers"] == {"idle": 0, "running": 1}
            assert endpoint.purge_queue() == {"removed": 3, "status": "completed"}
            assert {job.status() for job in jobs} == {"CANCELLED"}
            until(lambda: slow.status() == "TIMED_OUT")

            failing = endpoint.run({"image": PICTURE, "fail": "error"})
            until(lambda: failing.status() == "FAILED")
            url = f"/v2/stub/{{}}/{failing.job_id}"
            assert router.client.post(url.format("retry")).json()["status"] == "IN_QUEUE"
            until(lambda: router.client.get(url.format("status")).json()["status"] == "FAILED")
            tries = [j for j in router.client.get("/jobs").json()["jobs"] if j["parent"]]
            assert len(tries) == 1
        finally:
            runpod.api_key, runpod.endpoint_url_base = known
