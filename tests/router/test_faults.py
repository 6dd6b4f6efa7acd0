"""The fault matrix of docs/router.md: real pods, a real network between, and what goes wrong.

The first of two pods, which is the one that gets a job when both are idle, is behind a network that
fails. In every case the job is to be done in the end, once, after the stages that were done.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx
import pytest

from polypod.assets.blobs import BOOT_ID
from polypod.router import dispatch, endpoint, errand, handover
from polypod.router.app import create_router, make_engine
from polypod.router.endpoint import Known
from polypod.settings import Settings
from tests.api.serving import Server, make_picture, until
from tests.bento import ROOT, environment, free_port
from tests.router.network import Network, answer

PICTURE = make_picture()
LIMIT_S = 60


class Pod:
    """A pod as a process, with its data in `folder`. Started again, it is at the same port."""

    def __init__(self, folder: Path, runs: Path) -> None:
        self.folder, self.runs, self.port = folder, runs, free_port()
        self.start()

    def start(self, version: str = "1") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.router.pod", str(self.port), str(self.folder), version],
            cwd=ROOT,
            env=environment(self.folder.parent, STUB_RUNS=str(self.runs)),
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            url = f"http://127.0.0.1:{self.port}/readyz"
            return httpx.get(url, timeout=2).status_code != 503
        return False

    def is_idle(self) -> bool:
        """It has no job, not even one that has ended."""
        with contextlib.suppress(httpx.TransportError):
            url = f"http://127.0.0.1:{self.port}/jobs"
            return not httpx.get(url, timeout=2).json()["jobs"]
        return False


class Router(Server):
    def __init__(self, settings: Settings, endpoints) -> None:
        self.engine = make_engine(endpoints, settings)
        self.app = create_router(self.engine, settings)
        self._serve()

    def endpoint(self, name):
        found = self.client.get("/endpoints").json()["endpoints"]
        return next(e for e in found if e["id"] == name)

    def state(self, name):
        return self.endpoint(name)["state"]

    def live(self, job_id):
        return self.engine.queue.lives[job_id]


class Scene:
    """Router, network, two pods. `runs` holds a line for each stage that a model ran."""

    def __init__(self, folder: Path) -> None:
        self.runs = folder / "runs"
        self.pods = [Pod(folder / name, self.runs) for name in ("first", "second")]
        self.network = Network(self.pods[0].port)

    def begin(self, folder: Path) -> None:
        known = [Known("first", self.network.url), Known("second", f"http://127.0.0.1:{self.port}")]
        self.router = Router(Settings(data=folder / "router"), known)

    @property
    def port(self) -> int:
        return self.pods[1].port

    def job_on_first(self, **params) -> str:
        """A job in its second stage there, with the outputs of the first at home already."""
        until(lambda: self.router.state("first") == self.router.state("second") == "ready", LIMIT_S)
        job_id = self.router.submit(PICTURE, steps=20, **params)["job_id"]
        until(lambda: self.router.job(job_id)["stage"] == "work", LIMIT_S)
        until(lambda: "prepare" in self.router.live(job_id).finished, LIMIT_S)
        assert self.router.endpoint("first")["jobs"] == [job_id]
        return job_id

    def done_once(self, job_id: str) -> list[bool]:
        """Waits for the end; of each stage whether it was kept from an earlier pod."""
        with self.router.client.stream("GET", f"/job/{job_id}/events", timeout=LIMIT_S) as stream:
            events = "".join(stream.iter_text())
        job = self.router.job(job_id)
        assert job["status"] == "completed", job
        # told once: by the last status event, or by the snapshot of one that had ended before
        assert events.count('"status":"completed"') == 1, events
        outputs = Counter(a["name"] for a in job["assets"] if a["kind"] in ("output", "manifest"))
        assert outputs == {"prepared.json": 1, "model.glb": 1, "manifest.json": 1}
        assert self.router.history().count(job_id) == 1
        assert self.router.client.get(job["download_url"]).content.startswith(b"glTF")
        manifest = self.router.client.get(f"/job/{job_id}/result/manifest.json").json()
        assert manifest["job_id"] == job_id
        return [stage["kept"] for stage in manifest["stages"]]

    def ran(self, job_id: str) -> Counter[str]:
        """How often a model ran each stage of the job, on whichever pod."""
        seed = str(self.router.job(job_id)["seed"])
        lines = [line.split() for line in self.runs.read_text().splitlines()]
        return Counter(stage for stage, of in lines if of == seed)

    def first_is_back(self) -> None:
        """It takes jobs again, and nothing of what it had is left there."""
        until(self.pods[0].answers, LIMIT_S)
        until(lambda: self.router.state("first") == "ready", LIMIT_S)
        until(lambda: self.pods[0].is_idle() and self.pods[1].is_idle(), LIMIT_S)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(endpoint, "SILENT_FOR_S", 2.0)
        patch.setattr(endpoint, "REFUSED_FOR_S", 1.0)
        patch.setattr(endpoint, "UNWELL_FOR_S", 0.5)
        patch.setattr(endpoint, "HEALTH_S", 1.0)
        patch.setattr(endpoint, "EVERY_S", 0.2)
        patch.setattr(endpoint, "FIRST_BACKOFF_S", 0.5)
        patch.setattr(endpoint, "MOST_BACKOFF_S", 1.0)
        patch.setattr(dispatch, "RETRY_S", 0.2)
        patch.setattr(dispatch, "TIDY_S", 0.5)
        patch.setattr(errand, "AGAIN_S", (0.1,))
        patch.setattr(handover, "ANSWER_S", 1.0)
        made = Scene(folder)
        for pod in made.pods:
            stack.callback(lambda pod=pod: pod.kill())
        stack.enter_context(made.network)
        for pod in made.pods:
            until(pod.answers, LIMIT_S)
        made.begin(folder)
        stack.callback(made.router.stop)
        yield made


@pytest.fixture(autouse=True)
def healed(scene):
    """Whatever a test has done to the network does not last."""
    yield
    scene.network.heal()


# --- processes ------------------------------------------------------------------------------------


def test_a_pod_is_killed(scene):
    job = scene.job_on_first(seconds=2)
    scene.pods[0].kill()
    assert scene.done_once(job) == [True, False]
    assert scene.ran(job) == {"prepare": 1, "work": 2}
    until(lambda: scene.router.state("first") == "lost", LIMIT_S)
    scene.pods[0].start()
    scene.first_is_back()


@pytest.mark.parametrize("number, losses", [(signal.SIGTERM, 0), (signal.SIGKILL, 1)])
def test_only_a_pod_that_was_not_told_to_stop_counts_as_lost(scene, number, losses):
    job = scene.job_on_first(seconds=2)
    live = scene.router.live(job)
    scene.pods[0].process.send_signal(number)
    assert scene.done_once(job) == [True, False]
    assert live.losses == losses
    scene.pods[0].process.wait()
    scene.pods[0].start()
    scene.first_is_back()


def test_a_pod_hangs_and_wakes_again(scene):
    job = scene.job_on_first(seconds=2)
    os.kill(scene.pods[0].process.pid, signal.SIGSTOP)
    assert scene.done_once(job) == [True, False]
    assert scene.router.endpoint("first")["reason"] == "It does not answer."
    os.kill(scene.pods[0].process.pid, signal.SIGCONT)
    scene.first_is_back()


def test_a_pod_comes_back_with_an_empty_store(scene):
    job = scene.job_on_first(seconds=2)
    scene.pods[0].kill()
    shutil.rmtree(scene.pods[0].folder)
    scene.pods[0].start()
    assert scene.done_once(job) == [True, False]
    scene.first_is_back()


def test_a_pod_loses_power(scene):
    """What it had not yet synced of its database is undone; the job is handed over again."""
    database = [scene.pods[0].folder / f"polypod.db{end}" for end in ("", "-wal")]
    synced = {path: path.read_bytes() for path in database}
    job = scene.job_on_first(seconds=2)
    scene.pods[0].kill()
    (scene.pods[0].folder / "polypod.db-shm").unlink()
    for path, content in synced.items():
        path.write_bytes(content)
    scene.pods[0].start()
    assert scene.done_once(job) == [True, False]
    assert scene.ran(job) == {"prepare": 1, "work": 2}
    scene.first_is_back()


def test_a_pod_loses_power_and_its_files(scene):
    """Its database has the job still, but of the files only the names are left."""
    folder = scene.pods[0].folder
    job = scene.job_on_first(seconds=2)
    scene.pods[0].kill()
    assert (folder / "unsynced").read_text() == BOOT_ID.read_text()
    (folder / "unsynced").write_text("the boot before")
    for blob in (folder / "blobs").glob("*/*"):
        blob.chmod(0o600)
        blob.write_bytes(b"")
    scene.pods[0].start()
    assert scene.done_once(job) == [True, False]
    assert scene.ran(job) == {"prepare": 1, "work": 2}
    scene.first_is_back()


def test_a_pod_is_replaced_by_a_newer_version(scene):
    """Within seconds of its own start: the two are of nearly the same age."""
    scene.pods[0].kill()
    scene.pods[0].start()
    scene.first_is_back()
    job = scene.job_on_first(seconds=2)
    scene.pods[0].kill()
    scene.pods[0].start("1.10")
    try:
        assert scene.done_once(job) == [True, False], "on the pod of the version it was checked for"
        until(lambda: scene.router.client.get("/models/stub").json()["version"] == "1.10", LIMIT_S)
        until(lambda: scene.router.state("first") == "ready", LIMIT_S)
        new = scene.router.submit(PICTURE, seconds=0.3)["job_id"]
        assert scene.router.ended(new)["status"] == "completed"
        manifest = scene.router.client.get(f"/job/{new}/result/manifest.json").json()
        assert manifest["model"]["version"] == "1.10", "a new job goes to the newest"
    finally:
        scene.pods[0].kill()
        scene.pods[0].start()
    scene.first_is_back()


# --- the network ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["cut", "silent"])
def test_the_network_is_gone(scene, mode):
    job = scene.job_on_first(seconds=2)
    scene.network.set(mode)
    assert scene.done_once(job) == [True, False]
    assert scene.ran(job) == {"prepare": 1, "work": 2}
    until(lambda: scene.router.state("first") == "lost", LIMIT_S)
    scene.network.heal()
    scene.first_is_back()


def test_the_network_is_slow(scene):
    job = scene.job_on_first(seconds=0.5, size_bytes=60_000)
    scene.network.rate = 30_000
    assert scene.done_once(job) == [False, False]
    assert scene.ran(job) == {"prepare": 1, "work": 1}
    scene.network.heal()
    scene.first_is_back()


# --- answers --------------------------------------------------------------------------------------

HTML = answer(b"<html>Bad gateway</html>", 502, "text/html")
ENDLESS = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"
EVERYWHERE = {
    "5xx": (HTML, b"", "HTTP 502"),
    "not JSON": (answer(b"hello"), b"", "not that of a polypod service"),
    "JSON of another shape": (answer(b'{"jobs": 7, "status": [1]}'), b"", "not that of a polypod"),
    "a list": (answer(b"[]"), b"", "not that of a polypod"),
    "no HTTP": (b"220 smtp ready\r\n\r\n", b"", "The connection broke"),
    "without end": (ENDLESS, b" " * 65536, ""),
    "another protocol": (answer(b'{"status": "healthy", "api": 2}'), b"", "speaks protocol 2"),
}


@pytest.mark.parametrize("fault", EVERYWHERE)
def test_all_that_it_says_is_wrong(scene, fault):
    whole, endless, why = EVERYWHERE[fault]
    job = scene.job_on_first(seconds=1.5)
    scene.network.lie("", whole, endless=endless)
    scene.network.set("cut")
    scene.network.set("open")
    assert scene.done_once(job) == [True, False]
    until(lambda: why in (scene.router.endpoint("first")["reason"] or ""), LIMIT_S)
    scene.network.heal()
    scene.first_is_back()


def degraded(body: bytes) -> bytes:
    return json.dumps(json.loads(body) | {"status": "degraded", "reasons": ["No GPU."]}).encode()


def test_it_says_itself_that_it_cannot_work(scene):
    """As where its model, once ended, does not load again."""
    job = scene.job_on_first(seconds=2)
    scene.network.lie("/health", change=degraded)
    assert scene.done_once(job) == [True, False]
    until(lambda: scene.router.endpoint("first")["reason"] == "No GPU.", LIMIT_S)
    scene.network.heal()
    scene.first_is_back()


def test_what_is_to_be_removed_stays_so_whatever_it_says_of_itself(scene):
    job = scene.job_on_first(seconds=2)
    assert scene.router.client.delete("/endpoints/first").status_code == 202
    told = scene.network.told
    scene.network.lie("/health", change=degraded)
    until(lambda: scene.network.told > told, LIMIT_S)
    scene.network.heal()
    scene.done_once(job)
    until(lambda: "first" not in scene.router.client.get("/endpoints").text, LIMIT_S)
    scene.router.client.post("/endpoints", json={"id": "first", "url": scene.network.url})
    scene.first_is_back()


def without_assets(stream: bytes) -> bytes:
    return re.sub(rb'"assets":\[.*?\]', b'"assets":[]', stream)


def with_other_files(stream: bytes) -> bytes:
    return re.sub(rb'"content":"....', b'"content":"AAAA', stream)


def with_other_sizes(stream: bytes) -> bytes:
    return re.sub(rb'"size":(?!9)\d', b'"size":9', stream)


def with_no_times(stream: bytes) -> bytes:
    """Of the same length, since it comes in chunks."""
    quoted = rb'(?<="eta_seconds":)[^,}]{3,}'
    return re.sub(quoted, lambda found: b'"%s"' % (b"?" * (len(found[0]) - 2)), stream)


def damaged(body: bytes) -> bytes:
    return body[:-1] + bytes([body[-1] ^ 1]) if body else body


FILES = {
    "a wrong digest": {"path": "/blobs/", "change": damaged},
    "a file cut short": {"path": "/blobs/", "missing": 9},
    "a file without end": {
        "path": "/blobs/",
        "answer": b"HTTP/1.1 200 OK\r\n\r\n",
        "endless": b"x" * 65536,
    },
    "no file": {"path": "/blobs/", "answer": answer(b"{}", 500)},
    "other files in its events": {"path": "/events", "change": with_other_files},
    "a job of another shape": {"path": "/job/", "answer": answer(b'{"status": "fine"}')},
    "no job": {"path": "/job/", "answer": answer(b'{"error": "no such job"}', 404)},
    "done without a result": {"path": "/events", "change": without_assets},
    "files of another size": {"path": "/events", "change": with_other_sizes},
    "times that are none": {"path": "/events", "change": with_no_times},
}


@pytest.mark.parametrize("fault", FILES)
def test_it_seems_well_but_what_a_job_made_cannot_be_had(scene, fault):
    """Jobs go elsewhere, and the pod is left alone for longer and longer."""
    job = scene.job_on_first(seconds=1.5, size_bytes=200_000)
    scene.network.lie(**FILES[fault])
    scene.network.set("cut")  # what it asks it asks anew, also for events
    scene.network.set("open")
    assert scene.done_once(job) == [True, False]
    assert scene.network.told
    scene.network.heal()
    scene.first_is_back()
