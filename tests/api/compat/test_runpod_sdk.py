"""The official `runpod` package, unchanged, with its base URL pointed at the server."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import runpod
from runpod.http_client import AsyncClientSession

from tests.api.serving import Server, make_picture, until

PICTURE = base64.b64encode(make_picture()).decode()
SEEDS = itertools.count(70_000)


BLOCK: dict[str, Any] = {"prepare_seconds": 30, "steps": 300}
"""A job that holds the slot of the first stage, so that others wait, until it is cancelled."""


def order(**params: Any) -> dict[str, Any]:
    return {"image": PICTURE, "seed": next(SEEDS), **params}


@pytest.fixture(autouse=True)
def base_url(server: Server) -> Iterator[None]:
    """As its users set it."""
    known = runpod.api_key, runpod.endpoint_url_base
    runpod.api_key, runpod.endpoint_url_base = "any", f"{server.url}/v2"
    yield
    runpod.api_key, runpod.endpoint_url_base = known


@pytest.fixture
def endpoint(base_url: None) -> runpod.Endpoint:
    return runpod.Endpoint("stub")


def glb_in(output: dict[str, Any], server: Server) -> bytes:
    data = base64.b64decode(output["data"])
    assert data[:4] == b"glTF" and server.client.get(output["url"]).content == data
    return data


def test_run(endpoint: runpod.Endpoint, server: Server) -> None:
    job = endpoint.run(order(seconds=0.2))
    assert job.status() in ("IN_QUEUE", "IN_PROGRESS", "COMPLETED")
    assert glb_in(job.output(timeout=30), server)
    assert job.status() == "COMPLETED"


def test_run_with_policy(endpoint: runpod.Endpoint, server: Server) -> None:
    policy = {"executionTimeout": 60_000, "ttl": 60_000, "lowPriority": True}
    job = endpoint.run({"input": order(), "policy": policy})
    assert glb_in(job.output(timeout=30), server)


def test_run_sync(endpoint: runpod.Endpoint, server: Server) -> None:
    assert glb_in(endpoint.run_sync(order(seconds=0.2), timeout=30), server)
    assert endpoint.run_sync(order(fail="error"), timeout=30) is None


def test_stream(endpoint: runpod.Endpoint) -> None:
    job = endpoint.run(order(seconds=0.2))
    assert [chunk["name"] for chunk in job.stream()] == ["prepared.json", "model.glb"]
    assert job.output()["name"] == "model.glb"


def test_cancel_and_the_stream_after_it(endpoint: runpod.Endpoint) -> None:
    job = endpoint.run(order(**BLOCK))
    until(lambda: job.status() == "IN_PROGRESS")
    assert job.cancel() == {"id": job.job_id, "status": "CANCELLED"}
    assert job.status() == "CANCELLED"
    assert len(list(job.stream())) <= 1  # it ends
    assert job.output() is None


def test_purge_queue_and_health(endpoint: runpod.Endpoint) -> None:
    running = endpoint.run(order(**BLOCK))
    until(lambda: running.status() == "IN_PROGRESS")
    waiting = endpoint.run(order())
    health = endpoint.health()
    assert (health["jobs"]["inProgress"], health["jobs"]["inQueue"]) == (1, 1)
    assert endpoint.purge_queue() == {"removed": 1, "status": "completed"}
    assert waiting.status() == "CANCELLED"
    running.cancel()


def test_refusals_are_its_errors(endpoint: runpod.Endpoint) -> None:
    with pytest.raises(requests.HTTPError, match="400"):
        endpoint.run({"input": {}})
    with pytest.raises(requests.HTTPError, match="404"):
        runpod.Endpoint("nothing").run(order())


@pytest.mark.anyio
async def test_asyncio(server: Server) -> None:
    async with AsyncClientSession() as session:
        endpoint = runpod.AsyncioEndpoint("stub", session)
        job = await endpoint.run(order(seconds=0.2))
        assert await job.status() in ("IN_QUEUE", "IN_PROGRESS", "COMPLETED")
        assert glb_in(await job.output(timeout=30), server)
        streamed = await endpoint.run(order())
        names = [chunk["name"] async for chunk in streamed.stream()]
        assert names == ["prepared.json", "model.glb"]

        running = await endpoint.run(order(**BLOCK))
        waiting = await endpoint.run(order())
        until(lambda: server.client.get("/queue").json()["processing"] == 1)
        assert (await endpoint.health())["jobs"]["inQueue"] == 1
        assert await endpoint.purge_queue() == {"removed": 1, "status": "completed"}
        assert await waiting.status() == "CANCELLED"
        assert (await running.cancel())["status"] == "CANCELLED"
        assert len([chunk async for chunk in running.stream()]) <= 1
        with pytest.raises(KeyError):  # what it does with every error
            await endpoint.run({})
