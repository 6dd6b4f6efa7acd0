"""Run by Alembic: the migrations go through the connection that the caller put in the config."""

from __future__ import annotations

from alembic import context

from polypod.jobs.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
