"""Webhooks in the store: kept with the job, due with its end, done when they have arrived.

The row is there from the submit on, and the transaction that ends the job makes it due: no end is
without its webhook. An attempt is noted before it is made, together with when the next one is due
should nothing more be heard; so a server's death costs time, never a delivery.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from sqlalchemy import Connection

from polypod.jobs.job import Job, new_id
from polypod.jobs.store import statements as sql


@dataclass(frozen=True)
class Delivery:
    """One webhook. Times are Unix seconds."""

    id: str
    job_id: str
    url: str
    host: str
    """Host and port: one receiver, for fairness."""
    event: str
    """`job.completed`, `job.failed` or `job.cancelled`; empty until the job has ended."""
    event_at: float | None
    attempts: int
    next_at: float | None
    """When it is due; None: not yet, or no more."""
    done_at: float | None
    """When it had arrived, or was given up."""
    last_status: int | None
    last_error: str


def add(connection: Connection, seq: int, url: str) -> None:
    """With the job's submit."""
    row = {"id": new_id(), "job": seq, "url": url, "host": urlsplit(url).netloc.lower()}
    connection.execute(sql.INSERT_DELIVERY, row)


def make_due(connection: Connection, seq: int, job: Job) -> None:
    """With the job's end."""
    values = {"seq": seq, "new_event": f"job.{job.status}", "at": job.finished_at}
    connection.execute(sql.MAKE_DELIVERY_DUE, values)


def due(connection: Connection, now: float, but: Collection[str], most: int) -> list[Delivery]:
    """The oldest `most`, without those to the hosts in `but`."""
    values = {"now": now, "hosts": list(but), "most": most}
    return [Delivery(**row) for row in connection.execute(sql.DUE_DELIVERIES, values).mappings()]


def claim(connection: Connection, wanted: Iterable[Delivery], until: float) -> list[Delivery]:
    """Those that nobody else has claimed; nobody does `until` then."""
    claimed: list[Delivery] = []
    for delivery in wanted:
        values = {"delivery": delivery.id, "seen": delivery.attempts, "until": until}
        if connection.execute(sql.CLAIM_DELIVERY, values).rowcount:
            claimed.append(replace(delivery, attempts=delivery.attempts + 1, next_at=until))
    return claimed


def note(connection: Connection, delivery: Delivery) -> bool:
    """How the attempt went; False: another attempt has begun since."""
    values = {
        "delivery": delivery.id,
        "seen": delivery.attempts,
        "new_next_at": delivery.next_at,
        "new_done_at": delivery.done_at,
        "new_status": delivery.last_status,
        "new_error": sql.storable(delivery.last_error),
    }
    return connection.execute(sql.NOTE_DELIVERY, values).rowcount > 0
