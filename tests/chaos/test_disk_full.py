"""A full disk, for real: jobs fail in words, the service stays, and goes on when there is room."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.bento import wait_until
from tests.chaos import small_disk
from tests.chaos.asking import ended, generate, submit, until_in_work
from tests.chaos.processes import Server, kill, server
from tests.chaos.small_disk import SmallDisk

MIB = 1 << 20
SIZE = 16 * MIB
FILES = 3000


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    if reason := small_disk.why_not():
        pytest.skip(reason)
    with small_disk.small_disk(tmp_path_factory.mktemp("disk") / "data", SIZE, FILES) as made:
        yield made


@pytest.fixture(scope="module")
def running(disk: SmallDisk) -> Iterator[Server]:
    with server(disk.folder.parent, before=disk.command, MAX_QUEUE_SIZE="100") as one:
        yield one


def test_an_output_that_does_not_fit_fails_its_job_in_words_and_leaves_the_room(
    running: Server, disk: SmallDisk
) -> None:
    failed = ended(running, submit(running, seed=1, size_bytes=2 * SIZE))
    assert_says_disk_full(failed)
    assert_goes_on(running, disk, seed=2)


def test_a_disk_that_is_full_when_the_output_is_kept_fails_the_job_in_words(
    running: Server, disk: SmallDisk
) -> None:
    job = submit(running, seed=3, seconds=2)
    until_in_work(running)
    with disk.files_left(1):  # for the output; none for its name among the blobs
        failed = ended(running, job)
    assert_says_disk_full(failed)
    assert_goes_on(running, disk, seed=4)


def test_a_submit_is_refused_in_words_and_everything_else_answers(
    running: Server, disk: SmallDisk
) -> None:
    done = completed(running, submit(running, seed=5))
    with disk.full():
        refused = generate(running, seed=6)
        assert refused.status_code == 503
        assert "disk is full" in refused.json()["error"]
        assert refused.json()["hint"]
        assert int(refused.headers["retry-after"]) > 0
        assert str(running.folder) not in refused.text
        assert running.is_healthy()
        assert running.http.get("/jobs").status_code == 200
        assert running.http.get(f"/job/{done['job_id']}").json()["status"] == "completed"
        assert running.http.get(done["download_url"]).content[:4] == b"glTF"
    assert_goes_on(running, disk, seed=6)


def test_what_the_store_cannot_commit_is_refused_and_what_it_could_is_done_later(
    running: Server, disk: SmallDisk
) -> None:
    """The picture is kept already, so only the database needs room; its log has some left."""
    completed(running, submit(running, seed=7))
    accepted = [submit(running, seed=7, seconds=1, steps=2)]
    with disk.full():
        answers = [generate(running, seed=7, seconds=0, steps=steps) for steps in range(3, 90)]
        assert running.is_healthy()
        shown = running.http.get(f"/job/{accepted[0]}")
        assert shown.status_code == 200
    refused = [answer for answer in answers if answer.status_code != 202]
    assert refused, "the log of the database had room for all of this"
    for answer in refused:
        assert answer.status_code == 503
        assert "disk is full" in answer.json()["error"]
        assert answer.json()["hint"]
    accepted += [answer.json()["job_id"] for answer in answers if answer.status_code == 202]
    for job in accepted:
        shown = ended(running, job)
        if shown["status"] != "completed":
            assert_says_disk_full(shown)
    assert_goes_on(running, disk, seed=8)


def test_a_cancel_that_cannot_be_kept_is_refused_in_words_and_the_job_goes_on(
    running: Server, disk: SmallDisk
) -> None:
    """As above, jobs with a kept picture fill the database's log first."""
    completed(running, submit(running, seed=20))
    jobs = [submit(running, seed=20, seconds=3, steps=2)]
    jobs += [submit(running, seed=20, seconds=0, steps=steps) for steps in range(3, 13)]
    with disk.full():
        more = (generate(running, seed=20, seconds=0, steps=steps) for steps in range(13, 90))
        assert next(answer for answer in more if answer.is_error).status_code == 503
        refused = next(answer for job in jobs if (answer := cancel(running, job)).is_error)
        assert refused.status_code == 503
        assert refused.json()["code"] == "disk_full"
        assert refused.json()["hint"]
        assert int(refused.headers["retry-after"]) > 0
        assert running.is_healthy()
    for job in jobs:
        cancel(running, job)
    for job in jobs:
        assert ended(running, job)["status"] in ("cancelled", "completed")
    assert_goes_on(running, disk, seed=99)


def test_a_server_that_was_killed_as_its_job_filled_the_disk_starts_again(
    running: Server, disk: SmallDisk
) -> None:
    job = submit(running, seed=9, seconds=2)
    until_in_work(running)
    kill(running.parent())
    running.process.wait()
    disk.fill(next(disk.root.glob(f"work/{job}/work.*")) / "half-written")
    running.start_until_healthy(disk.command)
    assert ended(running, job)["status"] == "completed"


def completed(running: Server, job: str) -> dict[str, Any]:
    """The job once its previews are made too: nothing more is written for it."""
    shown = ended(running, job)
    assert shown["status"] == "completed", shown["error"]
    wait_until(lambda: running.http.get(f"/job/{job}/result/view_3.png").status_code == 200, 30)
    return shown


def cancel(running: Server, job: str) -> httpx.Response:
    return running.http.post(f"/job/{job}/cancel")


def assert_says_disk_full(shown: dict[str, Any]) -> None:
    assert shown["status"] == "failed"
    error = shown["error"]
    assert error["code"] == "disk_full"
    assert "disk is full" in error["message"].lower()
    assert error["hint"]
    assert "/" not in error["message"] + error["hint"], "no path of the server's"


def assert_goes_on(running: Server, disk: SmallDisk, seed: int) -> None:
    """There is room: what failed left none of it taken."""
    completed(running, submit(running, seed=seed, size_bytes=MIB))
    wait_until(lambda: nothing_in(disk, "work"))


def nothing_in(disk: SmallDisk, folder: str) -> bool:
    return not list((disk.root / folder).rglob("*"))
