"""Several routers on one database: who lives, who leads, whose job it is, what they tell."""

# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("jobs", _text("router", server_default=""))
    op.create_table(
        "routers",
        _text("id"),
        sa.Column("leads", sa.Boolean(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_routers"),
    )
    op.create_index(
        "uq_routers_leads",
        "routers",
        ["leads"],
        unique=True,
        sqlite_where=sa.text("leads"),
        postgresql_where=sa.text("leads"),
    )
    op.create_table(
        "news",
        sa.Column("id", BigId, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        _text("router"),
        _text("kind"),
        _text("about"),
        sa.Column("data", sa.JSON(none_as_null=True)),
        sa.PrimaryKeyConstraint("id", name="pk_news"),
    )
    op.create_table(
        "endpoints",
        _text("id"),
        _text("url"),
        _text("api_key"),
        sa.PrimaryKeyConstraint("id", name="pk_endpoints"),
    )


def downgrade() -> None:
    for table in ("endpoints", "news", "routers"):
        op.drop_table(table)
    op.drop_column("jobs", "router")


def _text(name: str, **more: Any) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=False, **more)
