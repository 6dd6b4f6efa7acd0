"""Jobs, their files, kept stages, images.

Written out rather than taken from `tables`, which later versions change and this must not.
"""

from __future__ import annotations

import uuid
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _meta()
    _jobs()
    _assets()
    _kept_stages()
    _images()


def downgrade() -> None:
    for table in (
        "image_files",
        "images",
        "kept_files",
        "kept_stages",
        "assets",
        "jobs",
        "meta",
    ):
        op.drop_table(table)


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=False)


def _double(name: str, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.Double(), nullable=nullable)


def _file() -> list[sa.Column[Any]]:
    return [
        _text("digest"),
        sa.Column("size", sa.BigInteger(), nullable=False),
        _text("media_type"),
        _text("filename"),
    ]


def _meta() -> None:
    table = op.create_table(
        "meta", _text("key"), _text("value"), sa.PrimaryKeyConstraint("key", name="pk_meta")
    )
    op.bulk_insert(table, [{"key": "store_id", "value": uuid.uuid4().hex}])


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("seq", BigId, nullable=False),
        _text("id"),
        _text("model"),
        _text("owner"),
        _text("status"),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("worker_deaths", sa.Integer(), nullable=False),
        sa.Column("server_deaths", sa.Integer(), nullable=False),
        _double("created_at"),
        _double("started_at", nullable=True),
        _double("finished_at", nullable=True),
        _double("results_at", nullable=True),
        _double("inputs_at", nullable=True),
        _text("card"),
        _text("until"),
        _text("parent"),
        _text("idempotency_key"),
        _text("request_digest"),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("error", sa.JSON()),
        sa.Column("stages", sa.JSON(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        _text("log"),
        sa.PrimaryKeyConstraint("seq", name="pk_jobs"),
        sa.UniqueConstraint("id", name="uq_jobs_id"),
        sa.CheckConstraint(
            "status in ('queued', 'processing', 'completed', 'failed', 'cancelled')",
            name=op.f("ck_jobs_status"),
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_jobs_owner_seq", "jobs", ["owner", "seq"])
    op.create_index("ix_jobs_model_seq", "jobs", ["model", "seq"])
    op.create_index("ix_jobs_status_seq", "jobs", ["status", "seq"])
    _partial("uq_jobs_idempotency", ["owner", "model", "idempotency_key"], "idempotency_key != ''")
    _partial("ix_jobs_finished_at", ["finished_at"], "finished_at is not null")
    _partial("ix_jobs_results_at", ["results_at"], "results_at is not null")
    _partial("ix_jobs_inputs_at", ["inputs_at"], "inputs_at is not null")


def _partial(name: str, columns: list[str], where: str) -> None:
    op.create_index(
        name,
        "jobs",
        columns,
        unique=name.startswith("uq_"),
        sqlite_where=sa.text(where),
        postgresql_where=sa.text(where),
    )


def _assets() -> None:
    op.create_table(
        "assets",
        sa.Column("id", BigId, nullable=False),
        sa.Column("job", BigId, nullable=False),
        _text("kind"),
        _text("name"),
        _text("stage"),
        *_file(),
        sa.PrimaryKeyConstraint("id", name="pk_assets"),
        sa.ForeignKeyConstraint(["job"], ["jobs.seq"], name="fk_assets_job", ondelete="CASCADE"),
        sa.UniqueConstraint("job", "kind", "name", name="uq_assets_job_kind_name"),
    )
    op.create_index("ix_assets_digest", "assets", ["digest", "size"])


def _kept_stages() -> None:
    op.create_table(
        "kept_stages",
        sa.Column("id", BigId, nullable=False),
        _text("key"),
        _text("model"),
        _text("stage"),
        _text("owner"),
        _text("preset"),
        _text("device"),
        _double("seconds"),
        sa.Column("peak_memory", sa.BigInteger(), nullable=False),
        sa.Column("peak_gpu_memory", sa.BigInteger(), nullable=False),
        _double("created_at"),
        _double("used_at"),
        sa.PrimaryKeyConstraint("id", name="pk_kept_stages"),
        sa.UniqueConstraint("key", name="uq_kept_stages_key"),
    )
    op.create_index("ix_kept_stages_used_at", "kept_stages", ["used_at"])
    op.create_table(
        "kept_files",
        sa.Column("kept", BigId, nullable=False),
        _text("name"),
        *_file(),
        sa.PrimaryKeyConstraint("kept", "name", name="pk_kept_files"),
        sa.ForeignKeyConstraint(
            ["kept"], ["kept_stages.id"], name="fk_kept_files_kept", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_kept_files_digest", "kept_files", ["digest", "size"])


def _images() -> None:
    op.create_table(
        "images",
        _text("id"),
        _text("owner"),
        _double("created_at"),
        sa.PrimaryKeyConstraint("id", name="pk_images"),
    )
    op.create_index("ix_images_created_at", "images", ["created_at"])
    op.create_table(
        "image_files",
        _text("image"),
        _text("name"),
        *_file(),
        sa.PrimaryKeyConstraint("image", "name", name="pk_image_files"),
        sa.ForeignKeyConstraint(
            ["image"], ["images.id"], name="fk_image_files_image", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_image_files_digest", "image_files", ["digest", "size"])
