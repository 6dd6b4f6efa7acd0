"""How many jobs a key has submitted lately, counted for all routers of the database."""

# pyright: reportUnknownArgumentType=false
from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    column = sa.Column("full_at", sa.Double(), nullable=False, server_default=sa.text("0"))
    op.add_column("api_keys", column)


def downgrade() -> None:
    op.drop_column("api_keys", "full_at")
