"""Who comes after: a server started again goes on where the last one was, and only one works."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from tests.bento import wait_until
from tests.chaos.asking import ended, submit, until_in_work
from tests.chaos.processes import Server, kill, server


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("takeover")) as one:
        yield one


def test_a_stop_repeats_only_the_unfinished_stage(running: Server) -> None:
    job = submit(running, seed=1, seconds=2)
    until_in_work(running)
    assert running.stop() == 0
    assert running.family() == []
    assert deaths(running, job) == (0, 0)
    running.start_until_healthy()
    assert ended(running, job)["status"] == "completed"
    assert running.runs_of(1) == {"prepare": 1, "work": 2}


def test_a_stop_that_has_to_kill_the_worker_is_no_death_of_the_jobs(running: Server) -> None:
    job = submit(running, seed=2, seconds=1, fail="native")
    wait_until(lambda: running.http.get(f"/job/{job}").json()["progress"] > 50)
    assert running.stop() == 0
    assert running.family() == []
    assert deaths(running, job) == (0, 0)
    running.start_until_healthy()
    running.http.post(f"/job/{job}/cancel")
    assert ended(running, job)["status"] == "cancelled"


def test_a_server_that_waits_takes_over_when_the_first_is_killed(running: Server) -> None:
    with server(running.folder, wait=False) as second:
        wait_until(second.waits_for_the_data)
        job = submit(running, seed=4, seconds=3)
        until_in_work(running)
        assert len(second.engines()) == 1, "one engine works on the data"
        kill(running.parent())
        running.process.wait()
        wait_until(second.is_healthy)
        assert len(second.engines()) == 1
        assert ended(second, job)["status"] == "completed"
        assert second.runs_of(4) == {"prepare": 1, "work": 2}


def deaths(running: Server, job: str) -> tuple[int, int]:
    """Of the job's workers and of its servers, as they are counted."""
    question = "SELECT worker_deaths, server_deaths FROM jobs WHERE id = ?"
    with sqlite3.connect(running.data / "polypod.db") as store:
        return store.execute(question, (job,)).fetchone()
