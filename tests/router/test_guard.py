"""A router believes nothing that a pod says which would stop the router itself."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from polypod.client import ClientError
from polypod.client.views import JobView
from polypod.jobs.finished import file_of, run_of
from polypod.jobs.job import Job
from polypod.router.endpoint import Endpoint, Known, health_of
from polypod.router.errand import checked, stage_runs
from polypod.router.routed import RoutedLive
from tests.bento import free_port
from tests.models.stub.model import MODEL
from tests.router.network import Network, answer

HEALTH = {"status": "healthy", "api": 1, "slots": [{"slots": ["gpu"], "vram_gb": 24.0}]}
FILE = {"digest": "0" * 64, "size": 1, "media_type": "model/gltf-binary", "filename": "a.glb"}
RUN = {"stage": "work", "seconds": 0.5, "device": "cuda:0", "kept": False}


def told(health) -> httpx.Response:
    return httpx.Response(200, content=json.dumps(HEALTH | health))


@pytest.mark.parametrize(
    "health",
    [
        {"slots": 5},
        {"slots": [5]},
        {"slots": [{"slots": ["gpu"], "vram_gb": "much"}]},
        {"slots": [{"slots": 5, "vram_gb": 1}]},
        {"uptime_s": float("nan")},
        {"gpu": {"vram_gb": float("inf")}},
        {"reasons": 5},
        {"store_id": {}},
        {"api": "1"},
    ],
    ids=str,
)
def test_a_health_that_would_stop_the_router_is_none(health):
    assert health_of(told({}))["slots"] == HEALTH["slots"]
    with pytest.raises(ValueError, match="not that of a polypod service"):
        health_of(told(health))


@pytest.mark.parametrize(
    "file",
    [
        {"digest": "../../x"},
        {"size": -1},
        {"size": 2**70},
        {"media_type": "text/html\r\nSet-Cookie: a=b"},
        {"media_type": "image/\ud800"},
        {"filename": 5},
    ],
    ids=str,
)
def test_a_file_that_cannot_be_is_refused(file):
    assert file_of(FILE).size == 1
    with pytest.raises(ValueError):
        file_of(FILE | file)


@pytest.mark.parametrize(
    "run",
    [{"stage": []}, {"seconds": "x"}, {"device": {}}, {"peak_memory": 2**70}, {"kept": "maybe"}],
    ids=str,
)
def test_a_run_that_cannot_be_is_refused(run):
    assert run_of(RUN).seconds == 0.5
    with pytest.raises(ValueError):
        run_of(RUN | run)


def test_what_a_pod_says_of_itself_is_one_short_line():
    endpoint = Endpoint(Known("pod", ""))
    endpoint.set_state("lost", "\x1b[2J\n" + "x" * 10**6)
    assert endpoint.reason.isprintable() and len(endpoint.reason) < 1000


def test_a_pod_that_makes_files_for_ever_is_refused():
    job = Job("1" * 32, "stub", "", {}, {}, 0.0)
    live = RoutedLive(job, MODEL, ())
    files = [{"name": f"{n}.png", "kind": "output"} for n in range(2000)]
    told = {"job_id": job.id, "status": "processing"}
    assert checked(JobView.parse(told | {"assets": files[:10]}), live)
    for wrong in ({"assets": files}, {"status": "fine"}, {"job_id": "2"}, {"eta_seconds": "soon"}):
        with pytest.raises(ValueError):
            checked(JobView.parse(told | wrong), live)


@pytest.mark.parametrize(
    "stages",
    [5, [5], [RUN] * 1000, [RUN | {"seconds": float("nan")}], [RUN | {"peak_memory_bytes": "x"}]],
    ids=["number", "numbers", "endless", "nan", "text"],
)
def test_a_manifest_that_cannot_be_is_refused(stages):
    good = {"stages": [RUN | {"peak_memory_bytes": 7}]}
    assert [run.peak_memory for run in stage_runs(json.dumps(good).encode())] == [7]
    with pytest.raises((ValueError, TypeError, AttributeError)):
        stage_runs(json.dumps({"stages": stages}).encode())


def test_a_pod_cannot_send_the_router_to_another_server():
    with Network(free_port()) as pod, Network(free_port()) as other:
        other.lie("", answer(b"{}"))
        where = f"HTTP/1.1 307 So\r\nLocation: {other.url}/secret\r\nContent-Length: 0\r\n\r\n"
        pod.lie("", where.encode())

        async def ask() -> None:
            endpoint = Endpoint(Known("pod", pod.url))
            try:
                await endpoint.client.models()
            finally:
                await endpoint.close()

        with pytest.raises(ClientError, match="another server"):
            asyncio.run(ask())
        assert pod.told == 1
        assert not other.told


def test_a_list_of_jobs_may_have_no_end():
    with Network(free_port()) as pod:
        pod.lie("", answer(b'{"jobs": [], "next": "again"}'))

        async def ask() -> list[object]:
            endpoint = Endpoint(Known("pod", pod.url))
            try:
                return [job async for job in endpoint.client.jobs(limit=200)]
            finally:
                await endpoint.close()

        assert asyncio.run(asyncio.wait_for(ask(), 30)) == []
        assert pod.told == 1
