from __future__ import annotations

import asyncio

from polypod.jobs.events import EVENTS_PER_JOB, JOBS_REMEMBERED, EventHub


async def snapshot(job_id):
    return {"job_id": job_id, "status": "processing"}


async def take(stream, count):
    return [await asyncio.wait_for(anext(stream), 5) for _ in range(count)]


async def everything(stream):
    return [event async for event in stream]


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 10))


def test_a_stream_begins_with_a_snapshot_and_ends_with_the_job():
    async def scenario():
        hub = EventHub()
        stream = hub.stream(["a"], snapshot)
        first = await take(stream, 1)
        hub.publish("a", "progress", {"progress": 5})
        hub.publish("b", "progress", {"progress": 50})
        hub.publish("a", "status", {"status": "completed"})
        return first + await everything(stream)

    events = run(scenario())
    assert [e.kind for e in events] == ["snapshot", "progress", "status"]


def test_many_jobs_share_a_stream_in_order():
    async def scenario():
        hub = EventHub()
        stream = hub.stream(["a", "b"], snapshot)
        await take(stream, 2)
        for job in "abba":
            hub.publish(job, "log", {"line": job})
        got = await take(stream, 4)
        hub.publish("a", "status", {"status": "failed"})
        hub.publish("b", "status", {"status": "cancelled"})
        return got, await everything(stream)

    logs, ends = run(scenario())
    assert [e.job_id for e in logs] == ["a", "b", "b", "a"]
    assert [e.job_id for e in ends] == ["a", "b"]


def test_last_event_id_resumes_without_a_gap():
    async def scenario():
        hub = EventHub()
        stream = hub.stream(["a"], snapshot)
        await take(stream, 1)
        for i in range(10):
            hub.publish("a", "log", {"line": i})
        seen = await take(stream, 4)
        again = hub.stream(["a"], snapshot, seen[-1].id)
        return await take(again, 6)

    events = run(scenario())
    assert [e.data["line"] for e in events] == [4, 5, 6, 7, 8, 9]


def test_an_unknown_id_is_harmless():
    async def scenario(event_id):
        hub = EventHub()
        hub.publish("a", "log", {"line": 0})
        return await take(hub.stream(["a"], snapshot, event_id), 1)

    for event_id in ("", "x", "-", "deadbeef-12", "-1", "0-" + "9" * 50):
        assert run(scenario(event_id))[0].kind == "snapshot"


def test_resuming_after_the_end_shows_the_end():
    async def ended(job_id):
        return {"job_id": job_id, "status": "completed"}

    async def scenario():
        hub = EventHub()
        hub.publish("a", "status", {"status": "completed"})
        (event,) = await everything(hub.stream(["a"], ended))
        return await everything(hub.stream(["a"], ended, event.id))

    assert [e.kind for e in run(scenario())] == ["snapshot"]


def test_a_slow_listener_gets_a_snapshot_for_what_was_dropped():
    async def scenario():
        hub = EventHub()
        stream = hub.stream(["a"], snapshot)
        await take(stream, 1)
        for i in range(EVENTS_PER_JOB + 50):
            hub.publish("a", "log", {"line": i})
        (event,) = await take(stream, 1)
        hub.publish("a", "log", {"line": "after"})
        return event, await take(stream, 1)

    caught_up, after = run(scenario())
    assert caught_up.kind == "snapshot"
    assert [e.data["line"] for e in after] == ["after"]


def test_listeners_leave_nothing_behind():
    async def scenario():
        hub = EventHub()
        stream = hub.stream(["a"], snapshot)
        await take(stream, 1)
        assert hub.watched() == {"a"}
        await stream.aclose()
        return hub.watched()

    assert run(scenario()) == set()


def test_a_stream_hears_of_its_oldest_job_also_where_a_new_one_has_no_room():
    async def scenario():
        hub = EventHub()
        for number in range(JOBS_REMEMBERED):
            hub.publish(str(number), "status", {"status": "queued"})
        stream = hub.stream(["0", "new"], snapshot)
        await take(stream, 2)
        hub.publish("0", "status", {"status": "completed"})
        return await take(stream, 1)

    assert [(e.job_id, e.kind) for e in run(scenario())] == [("0", "status")]


def test_a_stream_hears_of_its_job_also_where_all_others_are_watched():
    async def scenario():
        hub = EventHub()
        crowd = hub.stream([str(number) for number in range(JOBS_REMEMBERED)], snapshot)
        await take(crowd, 1)
        stream = hub.stream(["new"], snapshot)
        await take(stream, 1)
        hub.publish("new", "status", {"status": "completed"})
        return await take(stream, 1)

    assert [e.kind for e in run(scenario())] == ["status"]
