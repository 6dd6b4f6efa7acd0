"""Routers that share a PostgreSQL database: which live, which one leads, what they tell each other.

Each router has one row, whose lease it renews by the database's clock; one of them leads and owns
every unfinished job. `lead` gives the jobs of a lost leader to another router, in a new attempt, so
nothing that the lost one may still write has any effect.

What happens is told in `news`: rows in the order of their commits, since the transactions of all
writers are one after another. Changes of jobs are told in the transaction that makes them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BindParameter,
    Connection,
    Double,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.engine import URL

from polypod.access.records import Read, Write
from polypod.errors import Unavailable
from polypod.jobs.job import Job
from polypod.jobs.store import statements as sql
from polypod.jobs.store import writer
from polypod.jobs.store.tables import api_keys, endpoints, news, routers

LEASE_S = 8.0
"""How long a router may be silent before another takes over what it leads."""
NEWS_KEPT_S = 120.0
PAGE = 200
CHANNEL = "polypod"
"""Where PostgreSQL says that there is news; the payload is the router that tells it."""

NEW, ENDED = "new", "ended"
JOINED, LEFT, LEADS = "joined", "left", "leads"
REGISTERED, REMOVED = "registered", "removed"
"""Kinds of news that transactions tell: about a job, the router itself, or an endpoint."""

_now = literal_column("extract(epoch from clock_timestamp())::double precision", Double)
_me: BindParameter[Any] = bindparam("me")
_others = routers.alias("others")
_living = select(func.count()).where(_others.c.id != _me, _others.c.expires_at > _now)

JOIN = insert(routers).values(id=_me, leads=False, expires_at=_now + LEASE_S)
RENEW = (
    update(routers)
    .where(routers.c.id == _me)
    .values(expires_at=_now + LEASE_S)
    .returning(
        routers.c.leads,
        _living.scalar_subquery().label("others"),
        (~exists().where(_others.c.leads, _others.c.expires_at > _now)).label("vacant"),
    )
)
LEAVE = delete(routers).where(routers.c.id == _me)
FORGET_LOST = delete(routers).where(routers.c.id != _me, routers.c.expires_at < _now)
LEADER = select(routers.c.id).where(routers.c.leads)
TAKE_LEAD = update(routers).where(routers.c.id == _me).values(leads=True)
INSERT_NEWS = insert(news).values(
    at=_now,
    router=bindparam("router"),
    kind=bindparam("kind"),
    about=bindparam("about"),
    data=bindparam("data", type_=news.c.data.type),
)
NOTIFY = text(f"SELECT pg_notify('{CHANNEL}', :router)")
NEWEST = select(func.coalesce(func.max(news.c.id), 0))
NEWS = (
    select(news.c.id, news.c.kind, news.c.about, news.c.data)
    .where(news.c.id > bindparam("after"), news.c.router != _me)
    .order_by(news.c.id)
    .limit(literal(500))
)
ENDPOINTS = select(endpoints.c.id, endpoints.c.url, endpoints.c.api_key)
INSERT_ENDPOINT = insert(endpoints)
FORGET_ENDPOINT = delete(endpoints).where(endpoints.c.id == bindparam("of_id"))
FORGET_NEWS = delete(news).where(news.c.at < _now - NEWS_KEPT_S)
_this_key = api_keys.c.id == bindparam("key_id")
_begun = literal_column("extract(epoch from statement_timestamp())::double precision", Double)
_full_at = func.greatest(api_keys.c.full_at, _begun) + 60.0 / api_keys.c.submits_per_minute
_wait_s = _full_at - _begun - 60.0
COUNT_SUBMIT = update(api_keys).where(_this_key, _wait_s <= 1e-6).values(full_at=_full_at)
SUBMIT_WAIT_S = select(_wait_s).where(_this_key)
"""`access.rate.Bucket` in SQL: a key's bucket fills up steadily, until it is full."""


@dataclass(frozen=True)
class Lease:
    leads: bool
    others: int
    """Other routers that live."""
    vacant: bool
    """Nobody leads."""


@dataclass(frozen=True)
class News:
    """Something that another router tells. `about`: a job, or what the kind says."""

    id: int
    kind: str
    about: str
    data: dict[str, Any] | None = None


class Routers:
    """All methods may raise `Unavailable`, as those of the store do."""

    def __init__(self, read: Read, write: Write, url: URL) -> None:
        self.id = ""
        """This router's; empty while it is none of them: it then owns what nobody else does."""
        self.url = url
        self._read = read
        self._write = write

    async def join(self, router: str) -> None:
        """From now on this server is one of the routers."""
        self.id = router

        def work(connection: Connection) -> None:
            connection.execute(LEAVE, {"me": router})
            connection.execute(JOIN, {"me": router})
            self.note(connection, JOINED, router)

        await self._write(work)

    async def renew(self) -> Lease | None:
        """Lives on for `LEASE_S`; None: it was taken for lost and has to join again.

        It waits for no other write: a router that hangs in one must not cost others their leases.
        """

        def question(connection: Connection) -> Lease | None:
            row = connection.execute(RENEW, {"me": self.id}).one_or_none()
            return None if row is None else Lease(row.leads, row.others, row.vacant)

        return await self._read(question)

    async def lead(self) -> list[Job] | None:
        """Takes every unfinished job over, oldest first; None: another router leads.

        As after a server's death, they are queued again in a new attempt.
        """

        def work(connection: Connection) -> bool:
            writer.forget_notes(connection)
            connection.execute(FORGET_LOST, {"me": self.id})
            if connection.execute(LEADER).scalar() not in (None, self.id):
                return False
            if not connection.execute(TAKE_LEAD, {"me": self.id}).rowcount:
                return False  # taken for lost itself
            connection.execute(sql.TAKE_OVER, {"new_router": self.id})
            self.note(connection, LEADS, self.id)
            return True

        # read afterwards: a reader that is stopped half-way holds its transaction's locks for ever
        return await self.unfinished() if await self._write(work) else None

    async def was_only_late(self, ids: Collection[str]) -> None:
        """These jobs ran as another router took the lead from this one, which has not died."""

        def work(connection: Connection) -> None:
            connection.execute(sql.FORGIVE_ONE_DEATH, {"job_ids": list(ids)})

        if ids:
            await self._write(work)

    async def leave(self) -> None:
        """Gives up what it leads, at once."""

        def work(connection: Connection) -> None:
            writer.forget_notes(connection)
            connection.execute(LEAVE, {"me": self.id})
            self.note(connection, LEFT, self.id)

        await self._write(work)

    # --- what happens

    def owned(self, connection: Connection, row: dict[str, Any]) -> dict[str, Any]:
        """A new job's row with its owner: the router that leads, if one does."""
        if not self.id:
            return row
        noted = writer.notes(connection)
        if "leader" not in noted:
            noted["leader"] = connection.execute(LEADER).scalar() or ""
        return row | {"router": noted["leader"]}

    def note(
        self, connection: Connection, kind: str, about: str, data: Mapping[str, Any] | None = None
    ) -> None:
        """Told with the transaction's commit; nobody is told by a server that is no router."""
        if self.id:
            row = {"router": self.id, "kind": kind, "about": about, "data": data}
            writer.news(connection).append(row)

    async def tell(self, told: Iterable[tuple[str, str, Mapping[str, Any] | None]]) -> None:
        """Tells the others: kind, about, data."""

        def work(connection: Connection) -> None:
            for kind, about, data in told:
                self.note(connection, kind, about, data)

        await self._write(work)

    async def newest(self) -> int:
        """The number of the newest news."""
        return await self._read(lambda c: int(c.execute(NEWEST).scalar_one()))

    async def news(self, after: int) -> list[News]:
        """What the others told after that number, oldest first; some hundreds at most."""

        def question(connection: Connection) -> list[News]:
            rows = connection.execute(NEWS, {"me": self.id, "after": after})
            return [News(*row) for row in rows]

        return await self._read(question)

    async def forget_news(self) -> None:
        """What everybody has heard by now."""

        def work(connection: Connection) -> None:
            connection.execute(FORGET_NEWS)

        await self._write(work)

    # --- limits of keys

    async def count_submit(self, key_id: str) -> float:
        """0 where a key with a limit of rate may submit now, which is counted for all routers;
        else the seconds until it may. A server that is no router has nobody to count with."""

        def question(connection: Connection) -> float:
            if connection.execute(COUNT_SUBMIT, {"key_id": key_id}).rowcount:
                return 0.0
            wait_s = connection.execute(SUBMIT_WAIT_S, {"key_id": key_id}).scalar_one()
            return max(wait_s, 0.001)  # its time may have come since it was refused

        return await self._read(question) if self.id else 0.0

    # --- endpoints that were registered at one of them

    async def endpoints(self) -> list[tuple[str, str, str]]:
        """Id, URL and API key of each."""

        def question(connection: Connection) -> list[tuple[str, str, str]]:
            return [(row.id, row.url, row.api_key) for row in connection.execute(ENDPOINTS)]

        return await self._read(question)

    async def keep_endpoint(self, id_: str, url: str, api_key: str) -> None:
        """In place of an earlier one of the id."""

        def work(connection: Connection) -> None:
            connection.execute(FORGET_ENDPOINT, {"of_id": id_})
            connection.execute(INSERT_ENDPOINT, {"id": id_, "url": url, "api_key": api_key})
            self.note(connection, REGISTERED, id_)

        await self._write(work)

    async def forget_endpoint(self, id_: str) -> None:
        """Also told of one that was not registered: all are to drain it."""

        def work(connection: Connection) -> None:
            connection.execute(FORGET_ENDPOINT, {"of_id": id_})
            self.note(connection, REMOVED, id_)

        await self._write(work)

    # --- their jobs

    async def unfinished(self) -> list[Job]:
        """Every unfinished job, oldest first."""
        return await self._read(_unfinished)

    async def jobs(self, ids: Collection[str]) -> dict[str, Job]:
        """Those of the jobs that there are."""

        def question(connection: Connection) -> dict[str, Job]:
            rows = connection.execute(sql.JOBS_BY_IDS, {"job_ids": list(ids)}).mappings()
            return {job.id: job for job in map(sql.job_of, rows)}

        return await self._read(question)


def _unfinished(connection: Connection) -> list[Job]:
    """In pages: while one is read, Python does nothing else."""
    jobs: list[Job] = []
    while True:
        after = {"after": jobs[-1].seq if jobs else 0, "most": PAGE}
        rows = connection.execute(sql.UNFINISHED_PAGE, after).mappings().all()
        jobs += map(sql.job_of, rows)
        if len(rows) < PAGE:
            return jobs


def check_free(connection: Connection) -> None:
    """For a server that is no router: raises `Unavailable` where routers work here."""
    if connection.execute(_living, {"me": ""}).scalar():
        raise Unavailable(
            "Routers work on this database.",
            "A pod keeps its jobs in SQLite: unset POLYPOD_DATABASE_URL, or name another database.",
        )


def tell(connection: Connection) -> None:
    """At the end of a transaction: writes down what it has to tell, and wakes the others."""
    told = writer.news(connection)
    if told:
        connection.execute(INSERT_NEWS, told)
        connection.execute(NOTIFY, {"router": told[0]["router"]})
