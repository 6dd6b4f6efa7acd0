"""Routers and pods that are killed while jobs run; runs are counted at the model."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections import Counter

import httpx
import pytest

from tests.api.serving import make_picture, until
from tests.bento import ROOT, environment, free_port
from tests.router.test_faults import LIMIT_S, Pod

PICTURE = make_picture()


class Router:
    """`polypod up` with endpoints that run elsewhere."""

    def __init__(self, folder, pods) -> None:
        self.folder = folder
        models = "\n".join(
            f"  p{i}: {{provider: fixed, url: 'http://127.0.0.1:{pod.port}'}}"
            for i, pod in enumerate(pods)
        )
        (folder / "fleet.yaml").write_text(f"models:\n{models}\n")
        self.port = free_port()
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=LIMIT_S)

    def start(self) -> None:
        up = ["up", "--port", str(self.port), "--fleet", str(self.folder / "fleet.yaml")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "polypod.cli", *up],
            cwd=ROOT,
            env=environment(self.folder),
            stderr=subprocess.DEVNULL,
        )
        until(lambda: all(e["state"] in ("ready", "busy") for e in self.endpoints()), LIMIT_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def endpoints(self):
        with contextlib.suppress(httpx.TransportError):
            return self.http.get("/endpoints").json()["endpoints"]
        return [{"state": "not there"}]

    def submit(self, **params) -> str:
        form = {name: str(value) for name, value in params.items()}
        answer = self.http.post("/generate", files={"image": ("a.png", PICTURE)}, data=form)
        assert answer.status_code == 202, answer.text
        return answer.json()["job_id"]

    def job(self, job_id: str):
        return self.http.get(f"/job/{job_id}").json()

    def ended(self, job_id: str):
        ended = ("completed", "failed", "cancelled")
        until(lambda: self.job(job_id)["status"] in ended, LIMIT_S)
        return self.job(job_id)


@pytest.fixture
def fleet(tmp_path):
    """A router and two pods, and how often a model ran each stage."""
    runs = tmp_path / "runs"
    pods = [Pod(tmp_path / f"pod{i}", runs) for i in range(2)]
    router = Router(tmp_path, pods)
    try:
        for pod in pods:
            until(pod.answers, LIMIT_S)
        router.start()
        yield router, pods, lambda: Counter(runs.read_text().split("\n")[:-1])
    finally:
        router.kill()
        router.http.close()
        for pod in pods:
            pod.kill()


def pod_job(pod: Pod, job_id: str) -> str:
    """The job's status there; empty where there is none."""
    with contextlib.suppress(httpx.TransportError):
        url = f"http://127.0.0.1:{pod.port}/job/{job_id}"
        return httpx.get(url).json().get("status", "")
    return ""


def test_a_killed_router_finds_its_jobs_again(fleet):
    router, pods, runs = fleet
    short = router.submit(seed=1, seconds=2, steps=20)
    long = router.submit(seed=2, seconds=6, steps=60)
    until(lambda: [router.job(j)["stage"] for j in (short, long)] == ["work", "work"], LIMIT_S)
    router.kill()
    until(lambda: "completed" in [pod_job(pod, short) for pod in pods], LIMIT_S)
    router.start()
    assert router.ended(short)["status"] == "completed", "it was done while no router was there"
    assert router.ended(long)["status"] == "completed", "it ran all the time"
    assert runs() == {f"{stage} {seed}": 1 for stage in ("prepare", "work") for seed in (1, 2)}


def test_a_job_that_ends_every_pod_is_given_up_and_the_others_go_on(fleet):
    router, pods, runs = fleet
    poison, others = router.submit(seed=3, seconds=600, steps=1000), []
    for _ in range(3):
        until(lambda: router.job(poison)["stage"] == "work", LIMIT_S)
        there = until(lambda: next((e for e in router.endpoints() if e.get("job") == poison), None))
        pod = next(pod for pod in pods if there["url"].endswith(f":{pod.port}"))
        others.append(router.submit(seconds=0.2))
        pod.kill()
        until(lambda url=there["url"]: state(router, url) == "lost", LIMIT_S)
        pod.start()
    failed = router.ended(poison)
    assert (failed["status"], failed["error"]["code"]) == ("failed", "pods_lost")
    assert {router.ended(job)["status"] for job in others} == {"completed"}
    assert failed["error"]["message"].startswith("3 pods")
    assert runs()["prepare 3"] == 1, "its first stage was at home already"


def state(router: Router, url: str) -> str:
    return next((e["state"] for e in router.endpoints() if e.get("url") == url), "")
