"""`polypod up` as people run it: a command, its pods, Ctrl-C, and `kill -9`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
from typer.testing import CliRunner

from polypod import Client
from polypod.cli import app
from tests.bento import ROOT, all_gone, environment, free_port, is_free, wait_until

PHOTO = next((ROOT / "examples").glob("*.jpg"))
LIMIT_S = 120


class Up:
    """A running `polypod up`."""

    def __init__(self, folder: Path, *arguments: str, **env: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.data = folder / "data"
        self._log = folder / f"up-{self.port}.log"
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "polypod.cli", "up", "--port", str(self.port), *arguments],
                cwd=ROOT,
                env=environment(folder, **env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.client = Client(self.url, patience_s=30)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_serving(self) -> Up:
        wait_until(lambda: "The router is at" in self.log or self.process.poll(), LIMIT_S)
        assert self.process.poll() is None, self.log
        return self

    def wait_ready(self) -> Up:
        self.wait_serving()
        wait_until(lambda: self.endpoint()["state"] == "ready", LIMIT_S)
        return self

    def wait_ready_or_busy(self) -> Up:
        self.wait_serving()
        wait_until(lambda: self.endpoint()["state"] in ("ready", "busy"), LIMIT_S)
        return self

    def endpoint(self):
        return self.client.endpoints()[0]

    def status(self, job) -> str:
        return self.client.job(job).view.status

    def pod(self):
        return json.loads((self.data / "pods/inflate-1.json").read_text())

    def family(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def stop(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        assert self.process.wait(60) == 0, self.log
        self.client.close()


@pytest.fixture
def up(tmp_path):
    """Starts them one after another; whatever is left at the end is ended."""
    started = []

    def start(*arguments: str, **env: str) -> Up:
        started.append(Up(tmp_path, *arguments, **env))
        return started[-1]

    yield start
    for one in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in one.family():
                process.kill()
        one.process.kill()
        one.process.wait()
    for note in tmp_path.glob("data/pods/*.json"):
        with contextlib.suppress(psutil.NoSuchProcess):
            pod = psutil.Process(json.loads(note.read_text())["pid"])
            for process in [pod, *pod.children(recursive=True)]:
                process.kill()


def test_from_an_empty_folder_to_a_model_and_to_sleep(up, tmp_path):
    first = up().wait_serving()
    second = up()  # on the same data: it waits a while for the first to end
    first.wait_ready()

    saved = first.client.generate(PHOTO, params={"preset": "draft"})
    assert first.client.wait(saved).status == "completed"
    first.client.download(saved, tmp_path / "duck.glb")
    assert (tmp_path / "duck.glb").read_bytes()[:4] == b"glTF"

    told = first.endpoint()
    assert told["id"] == "inflate-1"
    assert told["models"] == ["inflate"]
    assert told["provider"] == "local"
    assert told["cost_usd"] == 0
    assert told["uptime_s"] > 0
    shown = CliRunner().invoke(app, ["endpoints", "--url", first.url])
    assert shown.exit_code == 0, shown.output
    assert "inflate-1" in shown.output and "ready" in shown.output
    assert "$0.00" in shown.output
    with httpx.Client(base_url=first.url, trust_env=False) as http:
        assert http.get("/queue").json()["max_queue_size"] == 10_000
        paths = http.get("/docs.json").json()["paths"]
        assert {"/endpoints", "/models/{model}/generate", "/job/{job_id}"} <= paths.keys()
        assert "docs.json" in http.get("/docs").text
        assert http.get("/static_content/swagger-ui.css").status_code == 200
    assert "inflate-1: ready" in first.log
    assert first.pod()["key"] not in first.log

    assert second.process.wait(60) == 1
    assert "Another polypod server already works on this data folder" in second.log
    assert "Traceback" not in second.log

    family = first.family()
    assert len(family) >= 4, "the router, BentoML's parent, the API process, the worker"
    first.stop(signal.SIGINT)
    assert all_gone(family)
    assert is_free(first.port)
    assert "Traceback" not in first.log
    assert not list(first.data.glob("pods/*.json"))

    asleep = tmp_path / "asleep.yaml"
    asleep.write_text("models:\n  inflate: {min: 0, idle_s: 2}\n")
    third = up("--fleet", str(asleep)).wait_serving()
    assert third.endpoint()["state"] == "stopped"
    assert [card.name for card in third.client.models()] == ["inflate"]
    waits = third.client.generate(PHOTO, params={"preset": "draft", "texture_size": 256})
    wait_until(lambda: third.endpoint()["state"] == "starting", LIMIT_S)
    assert third.client.wait(waits).status == "completed"
    wait_until(lambda: third.endpoint()["state"] == "stopped", LIMIT_S)
    wait_until(lambda: not list(third.data.glob("pods/*.json")), LIMIT_S)
    third.stop(signal.SIGTERM)


def test_kill_9_of_the_router_and_of_the_pod(up):
    first = up().wait_ready()
    pod = first.pod()
    jobs = [first.client.generate(PHOTO, params={"preset": preset}) for preset in ("high", "draft")]
    wait_until(lambda: first.status(jobs[0]) != "queued", LIMIT_S)
    first.process.kill()
    first.process.wait()
    assert psutil.pid_exists(pod["pid"]), "it goes on with its work"

    second = up().wait_ready_or_busy()
    for job in jobs:
        assert second.client.wait(job.id).status == "completed"
    assert (second.pod()["pid"], second.pod()["birth"]) == (pod["pid"], pod["birth"])
    manifest = second.client.download(jobs[0].id, second.data / "m.json", asset="manifest.json")
    stages = json.loads(Path(manifest.path).read_text())["stages"]
    kept = {stage["stage"] for stage in stages if stage["kept"]}
    assert kept <= {"cutout"}, "it ran once; the other job may have cut the picture out first"

    last = second.client.generate(PHOTO, params={"preset": "high", "texture_size": 512})
    wait_until(lambda: second.endpoint()["state"] == "busy", LIMIT_S)
    os.kill(pod["pid"], signal.SIGKILL)
    assert second.client.wait(last).status == "completed"
    wait_until(lambda: second.pod()["pid"] != pod["pid"], LIMIT_S)

    gone = second.client.remove_endpoint("inflate-1")
    assert gone["state"] == "draining"
    wait_until(lambda: not list(second.data.glob("pods/*.json")), LIMIT_S)
    assert second.client.endpoints() == []
    second.stop(signal.SIGTERM)


def test_a_closed_terminal_does_not_end_what_was_started_with_nohup(up, tmp_path):
    (tmp_path / "fleet.yaml").write_text("models: {inflate: {min: 0}}")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        running = up("--fleet", str(tmp_path / "fleet.yaml"))
    finally:
        signal.signal(signal.SIGHUP, before)
    running.wait_serving()
    told = Path(f"/proc/{running.process.pid}/status").read_text().partition("SigIgn:")[2]
    assert int(told.split()[0], 16) >> (signal.SIGHUP - 1) & 1
    running.stop(signal.SIGTERM)


def test_what_keeps_it_from_starting_is_told_in_words(up, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = Up(tmp_path, "--port", str(other.getsockname()[1]))
        taken.process.wait(60)
    open_to_all = Up(tmp_path, "--host", "0.0.0.0")
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("models:\n  inflate: {mni: 1}\n")
    mistaken = Up(tmp_path, "--fleet", str(fleet))
    for one, words in (
        (taken, "Is a server running there already?"),
        (open_to_all, "Not listening on 0.0.0.0 without API keys"),
        (mistaken, "there is no such field. Did you mean 'min'?"),
    ):
        assert one.process.wait(60) == 1
        assert words in " ".join(one.log.split())
        assert "Traceback" not in one.log
