"""What one job or one client does to the service while others use it: limits, poison, cut lines."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.bento import wait_until
from tests.chaos.asking import ended, submit
from tests.chaos.processes import HASTY, Server, server
from tests.chaos.storm import Order


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Stages may take 4 s here, and be silent for 1.5 s."""
    with server(tmp_path_factory.mktemp("limits"), HASTY) as one:
        yield one


def test_a_stage_that_takes_too_long_fails_and_the_next_job_completes(running: Server) -> None:
    slow = submit(running, seed=1, seconds=60, steps=600)
    after = submit(running, seed=2)
    shown = ended(running, slow)
    assert (shown["status"], shown["error"]["code"]) == ("failed", "timeout")
    assert "4 s" in shown["error"]["message"] and shown["error"]["hint"]
    assert ended(running, after)["status"] == "completed"


def test_a_stage_that_does_nothing_at_all_fails_and_the_next_job_completes(running: Server) -> None:
    stuck = submit(running, seed=3, fail="hang")
    after = submit(running, seed=4)
    shown = ended(running, stuck)
    assert (shown["status"], shown["error"]["code"]) == ("failed", "hung")
    assert shown["error"]["hint"]
    assert ended(running, after)["status"] == "completed"


@pytest.mark.parametrize("stage", ["prepare", "work"])
def test_a_job_that_kills_its_worker_fails_after_three_and_its_neighbours_complete(
    running: Server, stage: str
) -> None:
    seeds = range(10, 15) if stage == "prepare" else range(20, 25)
    before, poison, *after = [
        submit(running, seed=seed, **({"fail": "kill", "fail_in": stage} if seed % 10 == 1 else {}))
        for seed in seeds
    ]
    shown = ended(running, poison)
    assert (shown["status"], shown["error"]["code"]) == ("failed", "worker_died")
    assert "died" in shown["error"]["message"] and shown["error"]["hint"]
    assert running.runs_of(seeds[1])[stage] == 3
    for job in (before, *after):
        assert ended(running, job)["status"] == "completed"


def test_an_upload_that_is_cut_off_leaves_nothing(running: Server) -> None:
    jobs = running.http.get("/jobs").json()["jobs"]
    picture = Order("", 30, {}, cancels=False).picture
    form = (
        b'--line\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n'
        b"Content-Type: image/png\r\n\r\n" + picture + b"\r\n--line--\r\n"
    )
    head = (
        f"POST /generate HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\n"
        "Content-Type: multipart/form-data; boundary=line\r\nIdempotency-Key: cut\r\n"
        f"Content-Length: {len(form)}\r\n\r\n"
    ).encode()
    for part in (len(head) // 2, len(head) + 10, len(head) + len(form) // 2, len(head + form) - 1):
        with socket.create_connection(("127.0.0.1", running.port)) as line:
            line.sendall((head + form)[:part])
    assert running.is_healthy()
    assert running.http.get("/jobs").json()["jobs"] == jobs
    assert list((running.data / "tmp").iterdir()) == []
    with socket.create_connection(("127.0.0.1", running.port)) as line:
        line.sendall(head + form)
        line.shutdown(socket.SHUT_WR)  # sent whole, and nobody waits for the answer
    wait_until(lambda: len(running.http.get("/jobs").json()["jobs"]) in (len(jobs), len(jobs) + 1))
    assert ended(running, submit(running, seed=31))["status"] == "completed"
    assert "Traceback" not in running.log
