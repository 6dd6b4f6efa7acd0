"""Webhooks, and the secret that signs them where none is set."""

from __future__ import annotations

import secrets
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
META = sa.table("meta", sa.column("key", sa.Text), sa.column("value", sa.Text))


def upgrade() -> None:
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("job", BigId, nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        _double("event_at"),
        sa.Column("attempts", sa.Integer(), nullable=False),
        _double("next_at"),
        _double("done_at"),
        sa.Column("last_status", sa.Integer(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_deliveries"),
        sa.UniqueConstraint("job", name="uq_deliveries_job"),
        sa.ForeignKeyConstraint(
            ["job"], ["jobs.seq"], name="fk_deliveries_job", ondelete="CASCADE"
        ),
    )
    op.create_index(
        "ix_deliveries_next_at",
        "deliveries",
        ["next_at"],
        sqlite_where=sa.text("next_at IS NOT NULL"),
        postgresql_where=sa.text("next_at IS NOT NULL"),
    )
    op.bulk_insert(META, [{"key": "webhook_secret", "value": secrets.token_hex(32)}])


def downgrade() -> None:
    op.execute(META.delete().where(META.c.key == "webhook_secret"))
    op.drop_table("deliveries")


def _double(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Double(), nullable=True)
