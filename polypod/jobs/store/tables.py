"""The tables of the job store: one place for names, types and indexes.

`migrations/` brings a database to this shape; a test compares the two. Times are Unix seconds. A
file column group (`digest`, `size`, `media_type`, `filename`) is a `FileRef`; whatever row has one
keeps that blob from being swept.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

REVISION = "0008"
"""The newest migration: what this code reads and writes."""

GIVEN = "given"
"""The `assets.kind` of a job's `inputs`; the other kinds are those of `Asset`."""

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

_BigId = BigInteger().with_variant(Integer(), "sqlite")
_Json = JSON(none_as_null=True)


def _text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False)


def _time(name: str, nullable: bool = False) -> Column[Any]:
    return Column(name, Double, nullable=nullable)


def _big(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False)


def _file() -> list[Column[Any]]:
    return [_text("digest"), _big("size"), _text("media_type"), _text("filename")]


def _part_of(name: str, owner: str) -> Column[int]:
    return Column(name, _BigId, ForeignKey(owner, ondelete="CASCADE"), nullable=False)


meta = Table(
    "meta",
    metadata,
    Column("key", Text, primary_key=True),
    _text("value"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("seq", _BigId, primary_key=True),
    _text("id"),
    _text("model"),
    _text("owner"),
    _text("status"),
    Column("priority", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("worker_deaths", Integer, nullable=False),
    Column("server_deaths", Integer, nullable=False),
    _time("created_at"),
    _time("started_at", nullable=True),
    _time("finished_at", nullable=True),
    _time("results_at", nullable=True),
    _time("inputs_at", nullable=True),
    _text("card"),
    _text("until"),
    _text("parent"),
    _text("idempotency_key"),
    _text("request_digest"),
    Column("params", _Json, nullable=False),
    Column("error", _Json),
    Column("stages", _Json, nullable=False),
    Column("facts", _Json, nullable=False),
    _text("log"),  # long and seldom asked for, so after the others: SQLite reads rows from the left
    Column("trace", Text, nullable=False, server_default=""),
    Column("router", Text, nullable=False, server_default=""),  # its owner, where there are several
    Column("relayed", Boolean, nullable=False, server_default=false()),
    UniqueConstraint("id"),
    CheckConstraint(
        "status in ('queued', 'processing', 'completed', 'failed', 'cancelled')", name="status"
    ),
    sqlite_autoincrement=True,  # a deleted job's place is never given again: cursors stay right
)
Index("ix_jobs_owner_seq", jobs.c.owner, jobs.c.seq)
Index("ix_jobs_model_seq", jobs.c.model, jobs.c.seq)
Index("ix_jobs_status_seq", jobs.c.status, jobs.c.seq)
Index(
    "uq_jobs_idempotency",
    jobs.c.owner,
    jobs.c.model,
    jobs.c.idempotency_key,
    unique=True,
    sqlite_where=text("idempotency_key != ''"),
    postgresql_where=text("idempotency_key != ''"),
)
Index(
    "ix_jobs_queued_owner",
    jobs.c.owner,
    sqlite_where=text("status = 'queued'"),
    postgresql_where=text("status = 'queued'"),
)
# `results_at`, `inputs_at`: when a job that still has outputs (inputs) ended; null before the end,
# and once they are forgotten.
for _column in (jobs.c.finished_at, jobs.c.results_at, jobs.c.inputs_at):
    Index(
        f"ix_jobs_{_column.name}",
        _column,
        sqlite_where=_column.is_not(None),
        postgresql_where=_column.is_not(None),
    )

assets = Table(
    "assets",
    metadata,
    Column("id", _BigId, primary_key=True),
    _part_of("job", "jobs.seq"),
    _text("kind"),
    _text("name"),
    _text("stage"),
    *_file(),
    UniqueConstraint("job", "kind", "name"),
)
Index("ix_assets_digest", assets.c.digest, assets.c.size)

kept_stages = Table(
    "kept_stages",
    metadata,
    Column("id", _BigId, primary_key=True),
    _text("key"),
    _text("model"),
    _text("stage"),
    _text("owner"),
    _text("preset"),
    _text("device"),
    Column("seconds", Double, nullable=False),
    _big("peak_memory"),
    _big("peak_gpu_memory"),
    _time("created_at"),
    _time("used_at"),
    UniqueConstraint("key"),
)
Index("ix_kept_stages_used_at", kept_stages.c.used_at)

kept_files = Table(
    "kept_files",
    metadata,
    Column("kept", _BigId, ForeignKey("kept_stages.id", ondelete="CASCADE"), primary_key=True),
    Column("name", Text, primary_key=True),
    *_file(),
)
Index("ix_kept_files_digest", kept_files.c.digest, kept_files.c.size)

images = Table(
    "images",
    metadata,
    Column("id", Text, primary_key=True),
    _text("owner"),
    _time("created_at"),
)
Index("ix_images_created_at", images.c.created_at)

image_files = Table(
    "image_files",
    metadata,
    Column("image", Text, ForeignKey("images.id", ondelete="CASCADE"), primary_key=True),
    Column("name", Text, primary_key=True),
    *_file(),
)
Index("ix_image_files_digest", image_files.c.digest, image_files.c.size)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    _text("name"),
    _text("hash"),
    _text("scopes"),  # separated by spaces
    Column("submits_per_minute", Integer),
    Column("most_queued", Integer),
    _time("created_at"),
    _time("revoked_at", nullable=True),
    _time("last_used_at", nullable=True),
    # when it may submit a minute's worth at once again, by the database's clock
    Column("full_at", Double, nullable=False, server_default=text("0")),
)

audit = Table(
    "audit",
    metadata,
    Column("id", _BigId, primary_key=True),
    _time("at"),
    _text("who"),
    _text("act"),
    _text("object"),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Text, primary_key=True),
    _part_of("job", "jobs.seq"),
    _text("url"),
    _text("host"),
    _text("event"),
    _time("event_at", nullable=True),
    Column("attempts", Integer, nullable=False),
    _time("next_at", nullable=True),
    _time("done_at", nullable=True),
    Column("last_status", Integer),
    _text("last_error"),
    UniqueConstraint("job"),
)
Index(
    "ix_deliveries_next_at",
    deliveries.c.next_at,
    sqlite_where=deliveries.c.next_at.is_not(None),
    postgresql_where=deliveries.c.next_at.is_not(None),
)

cards = Table(
    "cards",
    metadata,
    Column("model", Text, primary_key=True),
    Column("card", _Json, nullable=False),
    _time("seen_at"),
)

routers = Table(
    "routers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("leads", Boolean, nullable=False),
    _time("expires_at"),  # by the database's clock
)
Index(
    "uq_routers_leads",
    routers.c.leads,
    unique=True,
    sqlite_where=text("leads"),
    postgresql_where=text("leads"),
)

news = Table(
    "news",
    metadata,
    Column("id", _BigId, primary_key=True),
    _time("at"),  # by the database's clock
    _text("router"),
    _text("kind"),
    _text("about"),
    Column("data", _Json),
)

endpoints = Table(
    "endpoints",
    metadata,
    Column("id", Text, primary_key=True),
    _text("url"),
    _text("api_key"),
)

FILES = (assets, kept_files, image_files)
"""Every table whose rows point to blobs."""
