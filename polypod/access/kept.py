"""The store's keys, seen before there is a server, or beside one."""

from __future__ import annotations

from pathlib import Path

from polypod.settings import Settings


def database_url(settings: Settings) -> str:
    return settings.database_url or f"sqlite:///{database_file(settings)}"


def database_file(settings: Settings) -> Path:
    """The database where there is no POLYPOD_DATABASE_URL."""
    return settings.data / "polypod.db"


def keys_were_made(settings: Settings) -> bool:
    """Whether there was ever a key in the store, which other servers may use meanwhile. Blocks."""
    if not settings.database_url and not database_file(settings).exists():
        return False
    from polypod.access.statements import KEYS_VERSION
    from polypod.jobs.store.database import open_engines

    engines = open_engines(database_url(settings), 1)
    try:
        with engines[1].connect() as connection:
            return int(connection.execute(KEYS_VERSION).one()[0]) > 0
    finally:
        for engine in engines:
            engine.dispose()
