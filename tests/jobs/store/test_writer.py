from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from polypod.errors import Conflict, Unavailable
from polypod.jobs.store.database import open_engines
from polypod.jobs.store.writer import LARGEST_BATCH, Writer, notes, unavailable

pytestmark = pytest.mark.anyio


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[Engine]:
    writing, reading = await asyncio.to_thread(open_engines, database_url, 1)
    yield writing
    writing.dispose()
    reading.dispose()


@pytest.fixture
async def writer(engine: Engine) -> AsyncIterator[Writer]:
    made = Writer(engine)
    yield made
    await made.close()


def put(key: str) -> Callable[[Connection], str]:
    def work(connection: Connection) -> str:
        statement = text("INSERT INTO meta (key, value) VALUES (:key, '')")
        connection.execute(statement, {"key": key})
        return key

    return work


def put_and_raise(key: str, error: Exception) -> Callable[[Connection], str]:
    def work(connection: Connection) -> str:
        put(key)(connection)
        raise error

    return work


def stored(connection: Connection) -> set[str]:
    keys = connection.execute(
        text("SELECT key FROM meta WHERE key NOT IN ('store_id', 'webhook_secret')")
    )
    return set(keys.scalars())


class Gate:
    """Holds the writer, so that what is handed over meanwhile makes one batch."""

    @classmethod
    async def shut(cls, writer: Writer) -> Gate:
        gate, entered = cls(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def hold(connection: Connection) -> bool:
            loop.call_soon_threadsafe(entered.set)
            return gate._opened.wait(10)

        gate._passed = writer.hand_over(hold)
        await entered.wait()
        return gate

    _passed: asyncio.Future[bool]

    def __init__(self) -> None:
        self._opened = threading.Event()

    async def open(self) -> None:
        self._opened.set()
        assert await self._passed


async def test_what_waits_is_done_in_order_in_one_transaction(writer: Writer) -> None:
    gate = await Gate.shut(writer)
    seen: list[str] = []

    def in_the_same_transaction(connection: Connection) -> list[str]:
        return notes(connection).setdefault("keys", seen)

    def note(key: str) -> Callable[[Connection], None]:
        def work(connection: Connection) -> None:
            notes(connection).setdefault("keys", []).append(key)

        return work

    futures = [writer.hand_over(note(str(i))) for i in range(50)]
    keys = writer.hand_over(in_the_same_transaction)
    await gate.open()
    await asyncio.gather(*futures)
    assert await keys == [str(i) for i in range(50)]


async def test_nothing_is_told_before_it_is_committed(writer: Writer, engine: Engine) -> None:
    for i in range(20):
        await writer.hand_over(put(str(i)))
        with engine.connect() as other:
            assert str(i) in stored(other)
            other.rollback()


async def test_more_than_a_batch_is_all_done(writer: Writer) -> None:
    gate = await Gate.shut(writer)
    futures = [writer.hand_over(put(str(i))) for i in range(2 * LARGEST_BATCH + 1)]
    await gate.open()
    assert await asyncio.gather(*futures) == [str(i) for i in range(2 * LARGEST_BATCH + 1)]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_sqlite_syncs_whatever_has_something_durable_in_it(writer: Writer) -> None:
    def level(connection: Connection) -> int:
        return connection.execute(text("PRAGMA synchronous")).scalar_one()

    normal, full = 1, 2
    assert await writer.hand_over(level) == full
    assert await writer.hand_over(level, durable=False) == normal
    assert await writer.hand_over(level, durable=False) == normal
    gate = await Gate.shut(writer)
    both = [writer.hand_over(level, durable=durable) for durable in (False, True)]
    await gate.open()
    assert await asyncio.gather(*both) == [full, full]
    await writer.hand_over(level, durable=False)
    writer._drop_connection()
    assert await writer.hand_over(level, durable=False) == normal, "also on a new connection"
    assert await writer.hand_over(level) == full


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_sqlite_syncs_after_an_error_left_the_connection_as_it_was(writer: Writer) -> None:
    def fail(connection: Connection) -> None:
        connection.execute(text("SELECT 1 FROM nowhere"))

    with pytest.raises(Unavailable):
        await writer.hand_over(fail, durable=False)
    level = await writer.hand_over(lambda c: c.execute(text("PRAGMA synchronous")).scalar_one())
    assert level == 2


@pytest.mark.parametrize("error", [RuntimeError("mine"), Conflict("mine")])
async def test_an_item_that_raises_undoes_only_itself(writer: Writer, error: Exception) -> None:
    gate = await Gate.shut(writer)
    work: list[Callable[[Connection], Any]] = [put("a"), put("b")]
    # A refusal comes before anything is written; after another error, what was written is undone.
    refuse = put_and_raise("bad", error) if isinstance(error, RuntimeError) else _refuse(error)
    futures = [writer.hand_over(w) for w in (work[0], refuse, put("a"), work[1])]
    await gate.open()
    answers = await asyncio.gather(*futures, return_exceptions=True)
    assert answers[0] == "a" and answers[3] == "b"
    assert answers[1] is error
    assert "UNIQUE" in str(answers[2]) or "unique" in str(answers[2])
    assert await writer.hand_over(stored) == {"a", "b"}


def _refuse(error: Exception) -> Callable[[Connection], None]:
    def work(connection: Connection) -> None:
        raise error

    return work


async def test_an_item_alone_that_raises_leaves_nothing(writer: Writer) -> None:
    with pytest.raises(RuntimeError, match="mine"):
        await writer.hand_over(put_and_raise("a", RuntimeError("mine")))
    assert await writer.hand_over(stored) == set()


async def test_notes_do_not_outlive_their_transaction(writer: Writer) -> None:
    await writer.hand_over(lambda c: notes(c).update(queued=3))
    assert await writer.hand_over(lambda c: dict(notes(c))) == {}


async def test_a_caller_that_gave_up_disturbs_nobody(writer: Writer) -> None:
    gate = await Gate.shut(writer)
    given_up, waited_for = writer.hand_over(put("a")), writer.hand_over(put("b"))
    given_up.cancel()
    await gate.open()
    assert await waited_for == "b"
    assert await writer.hand_over(stored) == {"a", "b"}


async def test_close_does_what_was_handed_over_and_refuses_the_rest(engine: Engine) -> None:
    writer = Writer(engine)
    futures = [writer.hand_over(put(str(i))) for i in range(10)]
    await writer.close()
    assert len(await asyncio.gather(*futures)) == 10
    with pytest.raises(Unavailable, match="closed"):
        writer.hand_over(put("late"))
    await writer.close()


async def test_idle_moments_are_used_without_a_transaction(sqlite_url: str) -> None:
    writing, reading = await asyncio.to_thread(open_engines, sqlite_url, 1)
    writer = Writer(writing, when_idle="PRAGMA user_version = 7")
    await asyncio.gather(*(writer.hand_over(put(str(i))) for i in range(200)))
    assert await asyncio.to_thread(_becomes, reading, 7)
    assert await writer.hand_over(put("after")) == "after"
    await writer.close()
    writing.dispose()
    reading.dispose()


def _becomes(engine: Engine, user_version: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with engine.connect() as connection:
            if connection.exec_driver_sql("PRAGMA user_version").scalar() == user_version:
                return True
        time.sleep(0.01)
    return False


async def test_no_room_fails_the_whole_batch_in_words_and_the_writer_goes_on(
    sqlite_url: str,
) -> None:
    writing, reading = await asyncio.to_thread(open_engines, sqlite_url, 1)
    writer = Writer(writing)

    def fill(connection: Connection) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        statement = text("INSERT INTO meta (key, value) VALUES ('long', :value)")
        connection.execute(statement, {"value": "x" * 100_000})

    gate = await Gate.shut(writer)
    futures = [writer.hand_over(work) for work in (put("a"), fill, put("b"))]
    await gate.open()
    for answer in await asyncio.gather(*futures, return_exceptions=True):
        assert isinstance(answer, Unavailable)
        assert "disk is full" in answer.message and answer.hint
    assert await writer.hand_over(stored) == set()
    assert await writer.hand_over(put("c")) == "c"
    await writer.close()
    writing.dispose()
    reading.dispose()


async def test_a_batch_is_repeated_when_its_connection_breaks_before_the_commit(
    postgres_url: str,
) -> None:
    writing, reading = await asyncio.to_thread(open_engines, postgres_url, 1)
    writer = Writer(writing, retry_s=10)
    broken: list[bool] = []

    def break_once(connection: Connection) -> str:
        if not broken:
            broken.append(True)
            connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")
        return "done"

    gate = await Gate.shut(writer)
    futures = [writer.hand_over(work) for work in (put("a"), break_once, put("b"))]
    await gate.open()
    assert await asyncio.gather(*futures) == ["a", "done", "b"]
    assert await writer.hand_over(stored) == {"a", "b"}
    await writer.close()
    writing.dispose()
    reading.dispose()


@pytest.mark.parametrize(
    "text_, words",
    [
        ("database or disk is full", "disk is full"),
        ("could not extend file: No space left on device", "disk is full"),
        ("database is locked", "busy"),
        ("canceling statement due to lock timeout", "busy"),
        ("attempt to write a readonly database", "read-only"),
        ("disk I/O error", "reports an error"),
        ("database disk image is malformed", "damaged"),
        ("server closed the connection unexpectedly", "cannot be reached"),
    ],
)
def test_errors_of_databases_in_words(text_: str, words: str) -> None:
    problem = unavailable(RuntimeError(text_))
    assert words in problem.message
    assert problem.hint
