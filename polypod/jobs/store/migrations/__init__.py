"""Brings a database to the shape of `polypod.jobs.store.tables` (Alembic, no alembic.ini)."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection

from polypod.errors import Unavailable


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration; `connection` is the one that migrations run on."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    made.set_main_option("path_separator", "os")
    made.attributes["connection"] = connection
    return made


def upgrade(connection: Connection) -> None:
    """Runs what is missing, in the transaction that `connection` is in."""
    try:
        command.upgrade(config(connection), "head")
    except CommandError as error:
        raise Unavailable(
            f"The database has a schema that this version does not know ({error}).",
            "A newer version of polypod wrote it: install that version again, or use another "
            "data folder or database.",
        ) from error
