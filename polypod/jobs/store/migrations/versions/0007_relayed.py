"""Whether a job is a router's, whose results wait for that."""

# pyright: reportUnknownArgumentType=false
from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    column = sa.Column("relayed", sa.Boolean(), nullable=False, server_default=sa.false())
    op.add_column("jobs", column)


def downgrade() -> None:
    op.drop_column("jobs", "relayed")
