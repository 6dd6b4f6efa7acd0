"""The line of unfinished jobs."""

from __future__ import annotations

from dataclasses import replace

from polypod.jobs.job import Job
from polypod.jobs.live import Live
from polypod.jobs.queue import Queue
from tests.models.stub.model import MODEL


def live(number: int, priority: int = 0) -> Live:
    params = MODEL.resolve({})
    job = Job(str(number), MODEL.name, "", {}, params, 0.0, seq=number, priority=priority)
    return Live.of(job, MODEL)


def test_positions_and_counts_follow_what_happens() -> None:
    queue = Queue()
    first, second, urgent = live(1), live(2), live(3, priority=1)
    for each in (first, second, urgent):
        queue.add(each)
    assert [queue.position(each) for each in (urgent, first, second)] == [1, 2, 3]
    assert queue.counts() == {("stub", "queued"): 3, ("stub", "processing"): 0}

    urgent.job = replace(urgent.job, status="processing")
    queue.begin(urgent)
    assert [queue.position(each) for each in (urgent, first, second)] == [0, 1, 2]
    assert queue.counts() == {("stub", "queued"): 2, ("stub", "processing"): 1}

    for each in (urgent, first, first):
        queue.remove(each)
    assert queue.counts() == {("stub", "queued"): 1, ("stub", "processing"): 0}
    assert queue.queued == 1
    queue.clear()
    assert queue.counts() == {}
