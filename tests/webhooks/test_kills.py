"""`kill -9` of a real server: what was committed is told, at least once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.webhooks.receiver import Receiver

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def child(how: str, data: Path, url: str = "") -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.webhooks.child", how, str(data), url]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_killed_between_commit_and_send(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with Receiver() as receiver:
        with child("die", data, receiver.url()) as server:
            assert server.wait(30) == -signal.SIGKILL
        assert receiver.got == []
        with child("serve", data):
            (got,) = receiver.wait()
        assert got.json["event"] == "job.failed"
        assert got.json["job"]["status"] == "failed"


def test_killed_between_send_and_note(tmp_path: Path) -> None:
    with Receiver() as receiver:
        pids: list[int] = []

        def answer(handler) -> None:
            if len(receiver.got) == 1:
                os.kill(pids[0], signal.SIGKILL)
            handler.say()

        receiver.answers["/hook"] = answer
        with child("serve", tmp_path / "data", receiver.url()) as server:
            pids.append(server.pid)
            assert server.wait(30) == -signal.SIGKILL
        with child("serve", tmp_path / "data"):
            first, second = receiver.wait(2)
    assert first.headers["x-polypod-delivery"] == second.headers["x-polypod-delivery"]
    assert second.headers["x-polypod-attempt"] == "2"
    assert first.json["event"] == second.json["event"] == "job.completed"
