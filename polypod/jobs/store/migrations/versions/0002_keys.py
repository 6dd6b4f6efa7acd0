"""API keys, administrative acts, and an index for the limit of queued jobs per key."""

# pyright: reportUnknownArgumentType=false
from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "api_keys",
        _text("id"),
        _text("name"),
        _text("hash"),
        _text("scopes"),
        sa.Column("submits_per_minute", sa.Integer()),
        sa.Column("most_queued", sa.Integer()),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("revoked_at", sa.Double()),
        sa.Column("last_used_at", sa.Double()),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
    )
    op.create_table(
        "audit",
        sa.Column("id", BigId, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        _text("who"),
        _text("act"),
        _text("object"),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    queued = sa.text("status = 'queued'")
    op.create_index(
        "ix_jobs_queued_owner", "jobs", ["owner"], sqlite_where=queued, postgresql_where=queued
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_queued_owner", "jobs")
    op.drop_table("audit")
    op.drop_table("api_keys")


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=False)
