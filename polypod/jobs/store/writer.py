"""All writes of a store: one thread, and one transaction for everything that waits (group commit).

A commit costs one fsync whether it holds one change or two hundred, so whatever came in while the
last commit was under way goes into the next one. Nobody is told before the commit is done.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from polypod.errors import DiskFull, Problem, Unavailable

logger = logging.getLogger(__name__)
T = TypeVar("T")

LARGEST_BATCH = 256
"""Items per transaction: bounds how long the first of them waits for the last."""
IDLE_S = 0.1
TIDY_AFTER = 100
"""Items after which the next idle moment is used for `when_idle`."""


@dataclass(frozen=True)
class _Item:
    work: Callable[[Connection], Any]
    future: asyncio.Future[Any]
    durable: bool


@dataclass(frozen=True)
class _Outcome:
    item: _Item
    value: Any = None
    error: Exception | None = None


class Writer:
    """Runs functions of a connection, in the order in which they were handed over.

    A function refuses by raising a `Problem` before it writes anything. After any other exception
    what it wrote is undone, and only that: the batch is run again with a savepoint for each. It is
    also repeated, for `retry_s`, when the connection is lost before its commit; so functions must
    bear being run more than once. When the database itself fails (disk full, gone), every caller
    of the batch gets `Unavailable`, and the next batch starts afresh.
    """

    def __init__(
        self,
        engine: Engine,
        retry_s: float = 0.0,
        when_idle: str = "",
        at_end: Callable[[Connection], None] | None = None,
    ) -> None:
        """Belongs to the running event loop. `engine` begins transactions as writers must.

        `when_idle`: a statement that is run now and then, outside transactions and of nobody's
        time, while no writes come in. `at_end` is called in each transaction, before its commit.
        """
        self._engine = engine
        self._retry_s = retry_s
        self._when_idle = when_idle
        self._at_end = at_end
        self._untidy = 0
        self._loop = asyncio.get_running_loop()
        self._waiting: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._closed = False
        self._connection: Connection | None = None
        self._syncs: bool | None = None
        """None: it is not known. The pool gives a connection back as an error has left it."""
        self._thread = threading.Thread(target=self._run, name="polypod-writer", daemon=True)
        self._thread.start()

    def hand_over(self, work: Callable[[Connection], T], durable: bool = True) -> asyncio.Future[T]:
        """The future has what `work` returned once that is committed.

        The work is done even if nobody waits for the future any more. What need not be `durable`
        outlives this process, but until a later commit that is a loss of power may undo it.
        """
        if self._closed:
            raise Unavailable("The job store is closed.", "The server is shutting down: try later.")
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.put(_Item(work, future, durable))
        return future

    async def close(self) -> None:
        """Does what was handed over before, then ends the thread."""
        if not self._closed:
            self._closed = True
            self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        going_on = True
        while going_on:
            items, going_on = self._next_items()
            if items:
                self._tell(self._batch(items))
        self._drop_connection()

    def _next_items(self) -> tuple[list[_Item], bool]:
        """Waits for one item, then takes all that are there. False: that was the end."""
        item = self._next()
        items: list[_Item] = []
        while item is not None:
            items.append(item)
            if len(items) == LARGEST_BATCH:
                return items, True
            try:
                item = self._waiting.get_nowait()
            except queue.Empty:
                return items, True
        return items, False

    def _next(self) -> _Item | None:
        if self._when_idle and self._untidy >= TIDY_AFTER:
            try:
                return self._waiting.get(timeout=IDLE_S)
            except queue.Empty:
                self._tidy()
        return self._waiting.get()

    def _tidy(self) -> None:
        self._untidy = 0
        if self._connection is not None:
            try:
                _outside(self._connection, self._when_idle)
            except Exception:
                logger.warning("%s failed", self._when_idle, exc_info=True)

    def _batch(self, items: list[_Item]) -> list[_Outcome]:
        self._untidy += len(items)
        deadline = time.monotonic() + self._retry_s
        pause = 0.05
        while True:
            try:
                return self._transaction(items)
            except _Lost as lost:
                if time.monotonic() + pause > deadline:
                    return _all_failed(items, lost.error)
            except Exception as error:
                return _all_failed(items, error)
            time.sleep(pause)
            pause = min(pause * 2, 1.0)

    def _transaction(self, items: list[_Item]) -> list[_Outcome]:
        """Raises `_Lost` while a repetition on another connection is safe."""
        connection = None
        committing = False
        try:
            connection = self._connect()
            self._sync(connection, any(item.durable for item in items))
            transaction = connection.begin()
            try:
                outcomes = _run_items(connection, items, savepoints=False)
            except _Spoilt:
                transaction.rollback()
                transaction = connection.begin()
                outcomes = _run_items(connection, items, savepoints=True)
            if self._at_end:
                self._at_end(connection)
            committing = True
            transaction.commit()
            return outcomes
        except Exception as error:
            gone = connection is None or connection.invalidated
            self._drop_connection()
            if gone and not committing:
                raise _Lost(error) from error
            raise

    def _connect(self) -> Connection:
        if self._connection is None:
            self._connection, self._syncs = self._engine.connect(), None
        return self._connection

    def _sync(self, connection: Connection, on: bool) -> None:
        """Whether SQLite waits for the disk when it commits. Only a pod has what need not be."""
        if on != self._syncs and connection.dialect.name == "sqlite":
            _outside(connection, f"PRAGMA synchronous = {'full' if on else 'normal'}")
            self._syncs = on

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except SQLAlchemyError:
                logger.warning("closing the writer's connection failed", exc_info=True)

    def _tell(self, outcomes: list[_Outcome]) -> None:
        try:
            self._loop.call_soon_threadsafe(_resolve, outcomes)
        except RuntimeError:
            logger.warning("the event loop ended before %d writes were told", len(outcomes))


class _Lost(Exception):
    """The connection is gone and nothing of the batch can have been committed."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _Spoilt(Exception):
    """An item failed after it may have written: the transaction must be done again with savepoints.

    Savepoints for all would be the greater part of the work of a full batch.
    """


def _outside(connection: Connection, statement: str) -> None:
    """Runs it on the driver's connection, which begins no transaction for it."""
    cursor = connection.connection.cursor()
    cursor.execute(statement)
    cursor.close()


def _run_items(connection: Connection, items: list[_Item], savepoints: bool) -> list[_Outcome]:
    forget_notes(connection)
    news(connection).clear()
    return [_run_item(connection, item, savepoints) for item in items]


def _run_item(connection: Connection, item: _Item, savepoint: bool) -> _Outcome:
    """Errors of the database as a whole are raised, all others belong to the item."""
    told = len(news(connection))
    if savepoint:
        connection.exec_driver_sql("SAVEPOINT item")
    try:
        outcome = _Outcome(item, value=item.work(connection))
    except Exception as error:
        if _concerns_all(error):
            raise
        if not savepoint:
            if isinstance(error, Problem):
                return _Outcome(item, error=error)
            raise _Spoilt from error
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT item")
        forget_notes(connection)
        del news(connection)[told:]
        outcome = _Outcome(item, error=error)
    if savepoint:
        connection.exec_driver_sql("RELEASE SAVEPOINT item")
    return outcome


def _all_failed(items: list[_Item], error: Exception) -> list[_Outcome]:
    log_error(error)
    return [_Outcome(item, error=unavailable(error)) for item in items]


def _concerns_all(error: Exception) -> bool:
    return isinstance(error, OperationalError | InterfaceError) or (
        isinstance(error, DBAPIError) and error.connection_invalidated
    )


def _resolve(outcomes: list[_Outcome]) -> None:
    for outcome in outcomes:
        future = outcome.item.future
        if future.done():  # its caller gave up
            continue
        if outcome.error is None:
            future.set_result(outcome.value)
        else:
            future.set_exception(outcome.error)


def notes(connection: Connection) -> dict[str, Any]:
    """What items of one transaction may tell those after them; empty when a transaction begins."""
    return cast(dict[str, Any], connection.info.setdefault("notes", {}))


def news(connection: Connection) -> list[dict[str, Any]]:
    """What the transaction has to tell when it ends; empty when one begins."""
    return cast(list[dict[str, Any]], connection.info.setdefault("news", []))


def forget_notes(connection: Connection) -> None:
    notes(connection).clear()


def log_error(error: Exception) -> None:
    """Without statement and parameters, which may hold what users sent."""
    if isinstance(error, SQLAlchemyError):
        logger.error("database: %s", getattr(error, "orig", None) or error)
    else:
        logger.error("the writer failed", exc_info=error)


def unavailable(error: Exception) -> Unavailable:
    """The database's error in words for the user."""
    text = str(getattr(error, "orig", None) or error).lower()
    if any(words in text for words in ("disk is full", "no space left", "disk full")):
        return DiskFull(
            "The disk is full: the job store cannot write.",
            "Free some disk space, or lower POLYPOD_DISK_BUDGET_BYTES.",
        )
    if any(words in text for words in ("locked", "lock timeout")):
        return Unavailable(
            "The job store is busy: another process holds its lock.",
            "Try again. If this goes on, look for another program that has the database open.",
        )
    if "readonly" in text or "read-only" in text:
        return Unavailable(
            "The job store cannot be written: it is read-only.",
            "Check the rights of the data folder and how its disk is mounted.",
        )
    if "disk i/o" in text:
        return Unavailable(
            "The job store cannot be written: the disk reports an error.",
            "Look at the system's log (dmesg) and at the state of the disk.",
        )
    if "malformed" in text or "not a database" in text:
        return Unavailable(
            "The job store cannot be read: its database is damaged.",
            "Stop the server and bring the database back from a backup; the log says more.",
        )
    return Unavailable(
        "The database cannot be reached or did not answer.",
        "Try again. If this goes on, check that the database runs and POLYPOD_DATABASE_URL.",
    )
