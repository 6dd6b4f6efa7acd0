"""The job store: jobs, their files, kept stages and images, in SQLite or PostgreSQL.

Every write is durable when its call returns (but for a router's jobs, which that keeps), and goes
through one writer thread (`writer`); reads have connections of their own and never wait for it.
Blobs themselves are none of its business: it knows which digests are pointed to
(`unreferenced`, `total_bytes`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, CursorResult, Engine, Executable, Insert
from sqlalchemy.exc import DBAPIError, IntegrityError

from polypod.access.records import Records
from polypod.errors import Conflict, NotFound, QueueFull, TooManyRequests, Unavailable
from polypod.jobs.job import TERMINAL, Asset, FileRef, Job, KeptStage
from polypod.jobs.store import database, deliveries, forget
from polypod.jobs.store import statements as sql
from polypod.jobs.store.deliveries import Delivery
from polypod.jobs.store.forget import Forgotten
from polypod.jobs.store.routers import ENDED, NEW, Routers, check_free, tell
from polypod.jobs.store.tables import jobs
from polypod.jobs.store.writer import Writer, forget_notes, log_error, notes, unavailable
from polypod.settings import Settings

logger = logging.getLogger(__name__)
T = TypeVar("T")

READERS = 4
RETRY_S = 5.0
"""How long writes wait for a lost PostgreSQL to come back before they fail."""
TOUCH_AFTER_S = 60.0
"""A kept stage's last use is noted at most this often: a hit is seldom a write."""


class StageSeconds(NamedTuple):
    model: str
    stage: str
    device: str
    preset: str
    seconds: float


class Store:
    """All methods may raise `Unavailable`: disk full, database gone, store closed.

    Writes are done even if the caller is cancelled while it waits. `attempt` fences them: one that
    names another attempt than the job's present one changes nothing. Where several routers share
    the database (`routers`), so does the job's owner: what another router owns stays as it is.
    Jobs that a router keeps durably need not be `durable` here (see `Writer.hand_over`).
    """

    store_id: str
    """New with every new database."""

    @classmethod
    async def open(cls, url: str) -> Store:
        """Opens or makes the database at a SQLAlchemy `url`, and brings its schema up to date."""
        writing, reading = await asyncio.to_thread(database.open_engines, url, READERS)
        store = cls(writing, reading)
        store.store_id = await store._read(lambda c: c.execute(sql.STORE_ID).scalar_one())
        return store

    def __init__(self, writing: Engine, reading: Engine) -> None:
        self._engines = (writing, reading)
        self._reading = reading
        self._readers = ThreadPoolExecutor(READERS, "polypod-reader")
        self._writer = (
            Writer(writing, when_idle="PRAGMA wal_checkpoint(PASSIVE)")
            if writing.name == "sqlite"
            else Writer(writing, retry_s=RETRY_S, at_end=tell)
        )
        self._put_assets: Insert = sql.PUT_ASSETS[writing.name]
        self.access = Records(self._read, self._writer.hand_over)
        """API keys and administrative acts."""
        self.routers = Routers(self._read, self._writer.hand_over, writing.url)
        """Those that share the database; this server is none of them until it joins."""

    async def close(self) -> None:
        """Finishes the writes under way and closes all connections."""
        await self._writer.close()
        await asyncio.to_thread(self._readers.shutdown)
        for engine in self._engines:
            await asyncio.to_thread(engine.dispose)

    # --- a job's life

    async def submit(
        self,
        job: Job,
        max_queue_size: int,
        retry_after_s: int = 10,
        most_queued: int | None = None,
        webhook_url: str = "",
    ) -> Job:
        """Stores a new job and returns it with its `seq`; its end will be due at `webhook_url`.

        With the idempotency key of an earlier one of the same owner and model: that job as it is
        now, even when the queue is full. Raises `Conflict` where that was another request, or a job
        of this id is here already; `QueueFull` where `max_queue_size` jobs are queued,
        `TooManyRequests` where `most_queued` of the same owner are.
        """

        def work(connection: Connection) -> Job:
            earlier = _earlier(connection, job)
            if earlier is not None:
                return earlier
            _check_share(connection, job.owner, most_queued, retry_after_s)
            _check_room(connection, max_queue_size, retry_after_s)
            row = self.routers.owned(connection, sql.job_row(job))
            key = connection.execute(sql.INSERT_JOB, row).inserted_primary_key
            seq = int(key[0]) if key is not None else 0
            files = sql.given_rows(seq, job.inputs) + sql.asset_rows(seq, job.assets)
            if files:
                connection.execute(sql.INSERT_ASSETS, files)
            if webhook_url:
                deliveries.add(connection, seq, webhook_url)
            _count_in(connection, job.owner)
            self.routers.note(connection, NEW, job.id)
            return replace(job, seq=seq)

        try:
            return await self._writer.hand_over(work, durable=not job.relayed)
        except IntegrityError as error:
            raise Conflict("There is a job of this id.", "Ask for that one.") from error

    async def start(self, job_id: str, attempt: int, at: float, durable: bool = True) -> bool:
        """queued -> processing. False: the job is not queued, or not in this attempt."""

        def work(connection: Connection) -> bool:
            forget_notes(connection)
            values = self._fence(job_id, attempt) | {"at": at}
            return connection.execute(sql.START_JOB, values).rowcount > 0

        return await self._writer.hand_over(work, durable)

    async def note_death(self, job_id: str, attempt: int, worker: bool) -> bool:
        """Counts a death of the job's worker, or of the server; False: nothing to count it on."""
        statement = sql.COUNT_WORKER_DEATH if worker else sql.COUNT_SERVER_DEATH
        values = self._fence(job_id, attempt)
        return await self._writer.hand_over(lambda c: c.execute(statement, values).rowcount > 0)

    async def finish(self, job: Job, as_owner: bool = True) -> bool:
        """Writes the job's end: status, times, error, stages, assets, facts, log.

        The job's outputs are then exactly `job.assets`, and its webhook is due. False, and
        nothing is written: another end came first, or the job went on to another attempt. Where
        several routers share the database, the owner alone writes how the work ended (`as_owner`);
        any of them ends a job for its user, and cancels it whatever the attempt.
        """
        if job.status not in TERMINAL or job.finished_at is None:
            raise ValueError(f"not an end: {job.status}, finished at {job.finished_at}")

        def work(connection: Connection) -> bool:
            forget_notes(connection)
            row = sql.finish_row(job) | self._fence(job.id, job.attempt)
            seq = connection.execute(*self._ending(row, as_owner)).scalar()
            if seq is None:  # True where it is our own end, committed as the connection broke
                return connection.execute(sql.IS_THIS_END, row).scalar() is not None
            self.routers.note(connection, ENDED, job.id)
            connection.execute(sql.DELETE_RESULTS, {"seq": seq})
            self._put(connection, seq, job.assets)
            deliveries.make_due(connection, seq, job)
            return True

        return await self._writer.hand_over(work, durable=not job.relayed)

    async def take_over(self) -> list[Job]:
        """At a server's start: every unfinished job, oldest first, queued again in a new attempt.

        Those that were processing have a server's death more. Raises `Unavailable` where routers
        work on the database.
        """

        def work(connection: Connection) -> list[Job]:
            forget_notes(connection)
            if connection.dialect.name == "postgresql":
                check_free(connection)
            connection.execute(sql.TAKE_OVER, {"new_router": ""})
            return _jobs(connection.execute(sql.UNFINISHED_JOBS))

        return await self._writer.hand_over(work)

    async def put_back(self, unfinished: Sequence[Job]) -> None:
        """At a server's orderly stop: the jobs are queued, so nobody counts this as a death."""
        rows = [self._fence(job.id, job.attempt) for job in unfinished]

        def work(connection: Connection) -> None:
            forget_notes(connection)
            for row in rows:
                connection.execute(sql.PUT_BACK, row)

        if rows:
            await self._writer.hand_over(work)

    async def delete(self, job_id: str) -> bool:
        """Forgets a finished job with its files; False: no such job, or it is not finished."""
        values = {"job_id": job_id}
        return await self._writer.hand_over(
            lambda c: c.execute(sql.DELETE_JOB, values).rowcount > 0
        )

    # --- reading jobs

    async def has_key(self, owner: str, model: str, key: str) -> bool:
        """Whether there is a job with this idempotency key."""
        values = {"owner": owner, "model": model, "key": key}
        return await self._read(lambda c: c.execute(sql.JOB_BY_KEY, values).first() is not None)

    async def get(self, job_id: str) -> Job | None:
        def question(connection: Connection) -> Job | None:
            return next(iter(_jobs(connection.execute(sql.JOB_BY_ID, {"job_id": job_id}))), None)

        return await self._read(question)

    async def jobs(
        self,
        *,
        owner: str | None = None,
        model: str | None = None,
        status: str | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> list[Job]:
        """A page of the history, newest first, without logs; the next one is `before` its last seq.

        None stands for any.
        """
        wanted = {jobs.c.owner: owner, jobs.c.model: model, jobs.c.status: status}
        statement = sql.HISTORY.where(*(c == v for c, v in wanted.items() if v is not None))
        if before is not None:
            statement = statement.where(jobs.c.seq < before)

        return await self._read(lambda c: _jobs(c.execute(statement, {"most": limit})))

    # --- what a job leaves

    async def keep_stage(
        self,
        kept: KeptStage,
        job_id: str,
        attempt: int,
        assets: Sequence[Asset],
        durable: bool = True,
    ) -> bool:
        """Keeps a stage's outputs, and adds `assets` to the job, in one transaction.

        A stage that is kept already stays as it is. An ended job gets no more assets, but what it
        computed is kept. Deaths of servers are counted anew: they are for one stage. False: the
        job is not in this attempt, and nothing is written.
        """

        def work(connection: Connection) -> bool:
            values = self._fence(job_id, attempt)
            found = connection.execute(sql.JOB_IN_ATTEMPT, values).one_or_none()
            if found is None:
                return False
            _keep(connection, kept)
            if found.status not in TERMINAL:
                self._put(connection, found.seq, assets)
            if found.server_deaths:
                connection.execute(sql.FORGIVE_SERVER_DEATHS, {"job_id": job_id})
            return True

        return await self._writer.hand_over(work, durable)

    async def keep_stages(self, stages: Sequence[KeptStage]) -> None:
        """Keeps what stages have left that were computed for no job of this store."""

        def work(connection: Connection) -> None:
            for kept in stages:
                _keep(connection, kept)

        await self._writer.hand_over(work)

    async def find_stage(self, key: str) -> KeptStage | None:
        """The kept outputs under `key`. Its use is noted, so that retention spares it longest."""

        def question(connection: Connection) -> tuple[KeptStage, float] | None:
            row = connection.execute(sql.KEPT_STAGE, {"key": key}).one_or_none()
            return None if row is None else (sql.kept_of(row), row.used_at)

        found = await self._read(question)
        if found is None:
            return None
        kept, used_at = found
        now = time.time()
        if now - used_at > TOUCH_AFTER_S:
            values = {"this_key": key, "at": now}
            touched = self._writer.hand_over(lambda c: c.execute(sql.TOUCH_KEPT_STAGE, values))
            touched.add_done_callback(_log_failure)
        return kept

    async def stage_keys(self) -> list[str]:
        """The keys of all kept stages."""
        return await self._read(lambda c: list(c.execute(sql.STAGE_KEYS).scalars()))

    async def forget_stage(self, key: str) -> None:
        """Keeps the stage no longer: its files are gone."""

        def work(connection: Connection) -> None:
            id_ = connection.execute(sql.KEPT_ID, {"key": key}).scalar()
            if id_ is not None:
                connection.execute(sql.FORGET_STAGES, {"ids": [id_]})

        await self._writer.hand_over(work)

    async def add_asset(self, job_id: str, asset: Asset) -> bool:
        """Adds a file made after the end (or replaces one of its kind and name); False: no job."""

        def work(connection: Connection) -> bool:
            seq = connection.execute(sql.SEQ, {"job_id": job_id}).scalar()
            if seq is None:
                return False
            self._put(connection, seq, [asset])
            return True

        return await self._writer.hand_over(work)

    async def set_facts(self, job_id: str, facts: Mapping[str, Any]) -> bool:
        """False: no such job."""
        values = {"job_id": job_id, "new_facts": dict(facts)}
        return await self._writer.hand_over(lambda c: c.execute(sql.SET_FACTS, values).rowcount > 0)

    async def stage_seconds(self, limit: int = 50) -> list[StageSeconds]:
        """The newest `limit` times of each stage per model, device and preset; newest first."""

        def question(connection: Connection) -> list[StageSeconds]:
            return [
                StageSeconds(*row) for row in connection.execute(sql.STAGE_SECONDS, {"most": limit})
            ]

        return await self._read(question)

    # --- images

    async def add_image(self, image_id: str, owner: str, files: Mapping[str, FileRef]) -> None:
        """Keeps the files of one picture (as uploaded, as checked) under their names."""
        row = {"id": image_id, "owner": owner, "created_at": time.time()}
        rows = [{"image": image_id, "name": n, **sql.file_row(f)} for n, f in files.items()]

        def work(connection: Connection) -> None:
            connection.execute(sql.INSERT_IMAGE, row)
            if rows:
                connection.execute(sql.INSERT_IMAGE_FILES, rows)

        await self._writer.hand_over(work)

    async def image(self, image_id: str, owner: str | None) -> dict[str, FileRef]:
        """The picture's files by name. Raises `NotFound`, also where it is another owner's.

        `owner` None stands for any.
        """

        def question(connection: Connection) -> dict[str, FileRef] | None:
            row = connection.execute(sql.IMAGE, {"image_id": image_id}).one_or_none()
            if row is None or owner not in (None, row.owner):
                return None
            return sql.named_files(row.files)

        files = await self._read(question)
        if files is None:
            raise NotFound(
                f"There is no image {image_id!r}.",
                "Images are kept for a limited time: upload it again with POST /images.",
            )
        return files

    # --- cards of models that endpoints serve

    async def put_card(self, model: str, card: Mapping[str, Any], seen_at: float) -> None:
        """Keeps the card of `model`, in place of an earlier one."""
        row = {"model": model, "card": dict(card), "seen_at": seen_at}

        def work(connection: Connection) -> None:
            connection.execute(sql.FORGET_CARD, {"of_model": model})
            connection.execute(sql.INSERT_CARD, row)

        await self._writer.hand_over(work)

    async def cards(self) -> list[dict[str, Any]]:
        return await self._read(lambda c: list(c.execute(sql.CARDS).scalars()))

    # --- webhooks

    async def webhook_secret(self) -> str:
        """Made with the database, at random: it signs where no other secret is set."""
        return await self._read(lambda c: str(c.execute(sql.WEBHOOK_SECRET).scalar_one()))

    async def delivery(self, job_id: str) -> Delivery | None:
        """The webhook of a job, if it has one."""

        def question(connection: Connection) -> Delivery | None:
            row = connection.execute(sql.DELIVERY, {"job_id": job_id}).mappings().one_or_none()
            return None if row is None else Delivery(**row)

        return await self._read(question)

    async def due_deliveries(
        self, now: float, but: Collection[str] = (), most: int = 100
    ) -> list[Delivery]:
        """Webhooks to be sent, the oldest first, without those to the hosts in `but`."""
        return await self._read(lambda c: deliveries.due(c, now, but, most))

    async def next_delivery_at(self) -> float | None:
        """When the next webhook is due; None: none is to be sent."""
        return await self._read(lambda c: c.execute(sql.NEXT_DELIVERY).scalar())

    async def claim_deliveries(self, wanted: Sequence[Delivery], until: float) -> list[Delivery]:
        """Counts an attempt for each of `wanted` that is still as it was read; returns those.

        They are due again `until` then, unless `note_delivery` says otherwise before.
        """
        return await self._writer.hand_over(lambda c: deliveries.claim(c, wanted, until))

    async def note_delivery(self, delivery: Delivery) -> bool:
        """Keeps `next_at`, `done_at` and the answer; False: another attempt has begun since."""
        return await self._writer.hand_over(lambda c: deliveries.note(c, delivery))

    # --- retention

    async def expire(
        self, now: float, settings: Settings, pinned: Collection[str] = ()
    ) -> Forgotten:
        """Forgets what is older than `settings.keep_...`; stages whose keys are `pinned` stay.

        What unfinished jobs point to is never touched. A completed job without outputs is one
        whose results have been forgotten.
        """
        return await forget.expire(self._writer.hand_over, now, settings, frozenset(pinned))

    async def forget_relayed(self, is_kept: Callable[[str], bool]) -> int:
        """Forgets the jobs of routers of which a file is not kept; returns how many."""

        def work(connection: Connection) -> int:
            rows = connection.execute(sql.RELAYED_FILES).all()
            kept = {digest: is_kept(digest) for digest in {row.digest for row in rows}}
            gone = list({row.seq for row in rows if not kept[row.digest]})
            for i in range(0, len(gone), forget.BATCH):
                connection.execute(sql.FORGET_JOBS, {"ids": gone[i : i + forget.BATCH]})
            return len(gone)

        return await self._writer.hand_over(work)

    async def evict(
        self, bytes_over: int, pinned: Collection[str] = (), before: float = math.inf
    ) -> Forgotten:
        """Forgets the stages that were not used for longest; then, of what ended or came `before`,
        results, inputs of jobs and images, the oldest first. Unfinished jobs keep what they have.

        Stops once blobs of `bytes_over` bytes are pointed to by nothing any more.
        """
        return await forget.evict(self._writer.hand_over, bytes_over, frozenset(pinned), before)

    async def unreferenced(self, digests: Collection[str]) -> set[str]:
        """Those of `digests` that nothing points to: no job, kept stage or image."""
        wanted = set(digests)
        return await self._read(lambda c: forget.unreferenced(c, wanted))

    async def total_bytes(self) -> int:
        """The size of all blobs that something points to, each counted once."""
        return await self._read(lambda c: int(c.execute(sql.TOTAL_BYTES).scalar_one()))

    def _fence(self, job_id: str, attempt: int) -> dict[str, Any]:
        """Who writes: what every write of a job's owner says."""
        return {"job_id": job_id, "this_attempt": attempt, "this_router": self.routers.id}

    def _ending(self, row: dict[str, Any], as_owner: bool) -> tuple[Executable, dict[str, Any]]:
        if self.routers.id and row["new_status"] == "cancelled":
            return sql.CANCEL_JOB, _without(row, "this_attempt", "this_router")
        if not as_owner:
            return sql.END_JOB, _without(row, "this_router")
        return sql.FINISH_JOB, row

    def _put(self, connection: Connection, seq: int, assets: Sequence[Asset]) -> None:
        if assets:
            connection.execute(self._put_assets, sql.asset_rows(seq, assets))

    async def _read(self, question: Callable[[Connection], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._readers, _ask, self._reading, question)
        except RuntimeError as error:
            raise Unavailable("The job store is closed.", "The server is shutting down.") from error


def _ask(engine: Engine, question: Callable[[Connection], T]) -> T:
    """One reading; once more where the connection turns out to have died while it was idle."""
    try:
        try:
            with engine.connect() as connection:
                return question(connection)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            with engine.connect() as connection:
                return question(connection)
    except DBAPIError as error:
        log_error(error)
        raise unavailable(error) from error


def _jobs(rows: CursorResult[Any]) -> list[Job]:
    return [sql.job_of(row) for row in rows.mappings()]


def _without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def _earlier(connection: Connection, job: Job) -> Job | None:
    """The job that the same idempotency key made."""
    if not job.idempotency_key:
        return None
    key = {"owner": job.owner, "model": job.model, "key": job.idempotency_key}
    found = _jobs(connection.execute(sql.JOB_BY_KEY, key))
    if not found:
        return None
    earlier = found[0]
    if earlier.request_digest != job.request_digest:
        raise Conflict(
            f"The idempotency key {job.idempotency_key!r} was used for another request.",
            "Use a new key for a new request; repeat a request unchanged to get its job again.",
            job_id=earlier.id,
        )
    return earlier


def _check_room(connection: Connection, max_queue_size: int, retry_after_s: int) -> None:
    """Counts once per transaction: the jobs that are submitted in it are added in its notes."""
    queued = notes(connection).get("queued")
    if queued is None:
        queued = connection.execute(sql.QUEUED, {"most": max_queue_size + 100}).scalar_one()
        notes(connection)["queued"] = queued
    if queued >= max_queue_size:
        raise QueueFull(
            f"The queue is full: {queued} jobs are waiting.",
            f"Try again in {retry_after_s} s.",
            queue_length=queued,
            max_queue_size=max_queue_size,
            retry_after_s=retry_after_s,
        )


def _check_share(connection: Connection, owner: str, most: int | None, retry_after_s: int) -> None:
    """As `_check_room`, for the jobs of one owner."""
    if most is None:
        return
    queued = notes(connection).get(_share(owner))
    if queued is None:
        queued = connection.execute(sql.QUEUED_OF, {"owner": owner}).scalar_one()
        notes(connection)[_share(owner)] = queued
    if queued >= most:
        raise TooManyRequests(
            f"This API key has {queued} jobs waiting; it may have {most}.",
            f"Try again in {retry_after_s} s, or cancel one that waits.",
            queued=queued,
            most_queued=most,
            retry_after_s=retry_after_s,
        )


def _count_in(connection: Connection, owner: str) -> None:
    counts = notes(connection)
    counts["queued"] += 1
    if _share(owner) in counts:
        counts[_share(owner)] += 1


def _share(owner: str) -> str:
    return f"queued of {owner}"


def _keep(connection: Connection, kept: KeptStage) -> None:
    if connection.execute(sql.KEPT_ID, {"key": kept.key}).scalar() is not None:
        return
    made = connection.execute(sql.INSERT_KEPT_STAGE, sql.kept_row(kept)).inserted_primary_key
    rows = [
        {"kept": made[0] if made else 0, "name": name, **sql.file_row(file)}
        for name, file in kept.files.items()
    ]
    if rows:
        connection.execute(sql.INSERT_KEPT_FILES, rows)


def _log_failure(future: asyncio.Future[Any]) -> None:
    if not future.cancelled() and future.exception() is not None:
        logger.warning("the use of a kept stage was not noted: %s", future.exception())
