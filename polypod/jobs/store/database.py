"""Opens the store's database: connections as they must be, and the schema brought up to date."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from polypod.errors import Unavailable
from polypod.jobs.store.tables import REVISION

BUSY_TIMEOUT_S = 10.0
"""How long a writer waits for another process's transaction."""
HANG_S = 4.0
"""When PostgreSQL ends a transaction that does not go on: sooner than a router's lease."""
CONNECTION: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "application_name": "polypod",
}
"""Of PostgreSQL: a connection whose other end is gone is noticed within about ten seconds."""

_WRITE_LOCK = 0x706F6C79706F64  # "polypod"
_NETWORK = frozenset(
    {"9p", "afpfs", "afs", "beegfs", "ceph", "cifs", "coda", "gfs", "gfs2", "glusterfs", "gpfs"}
    | {"lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "pvfs2", "smb", "smb3", "smbfs"}
)
_NETWORK_FUSE = frozenset(
    {"blobfuse", "blobfuse2", "ceph-fuse", "davfs", "gcsfuse", "geesefs", "glusterfs", "goofys"}
    | {"juicefs", "mfs", "mount-s3", "mountpoint-s3", "rclone", "s3fs", "seaweedfs", "sshfs"}
)


def open_engines(url: str, readers: int) -> tuple[Engine, Engine]:
    """Engines for the writer and for `readers` reading threads; the schema is up to date.

    Raises `Unavailable` for a file on a network file system, a database that cannot be reached,
    and one that a newer version wrote.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite":
        writing, reading = _sqlite(parsed, readers)
    else:
        writing, reading = _postgresql(parsed, readers)
    try:
        _bring_up_to_date(writing, reading)
    except BaseException:
        writing.dispose()
        reading.dispose()
        raise
    return writing, reading


def network_file_system(path: Path, mounts: str) -> str:
    """The type of the network file system that holds `path`, else "". `mounts`: /proc/mounts."""
    best, found = Path(), ""
    for line in mounts.splitlines():
        device, mountpoint, kind, *_ = [*map(_unescape, line.split(" ")), "", "", ""]
        mounted = Path(mountpoint)
        if path.is_relative_to(mounted) and len(mounted.parts) >= len(best.parts):
            best, found = mounted, kind
            if kind == "fuse" and device.startswith("mfs#"):
                found = "fuse.mfs"
    name = found.removeprefix("fuse.")
    return found if found in _NETWORK or (name != found and name in _NETWORK_FUSE) else ""


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), field)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise _unusable("It is not a database URL.") from None
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise _unusable(f"Databases of type {parsed.drivername!r} are not supported.")
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise _unusable("SQLite needs a file: jobs in memory would be lost.")
    return parsed


def _unusable(why: str) -> Unavailable:
    return Unavailable(
        f"The database URL cannot be used. {why}",
        "Set POLYPOD_DATABASE_URL to postgresql://user:password@host/name, or leave it empty "
        "for SQLite in the data folder.",
    )


def _sqlite(url: URL, readers: int) -> tuple[Engine, Engine]:
    path = Path(url.database or "").absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(
            f"The folder of the database cannot be made: {error}",
            "Set POLYPOD_DATA to a folder that can be written.",
        ) from error
    _refuse_network(path.parent.resolve())
    _make_private(path)
    url = url.set(database=str(path))
    plain: dict[str, Any] = {"isolation_level": None}  # the driver begins nothing by itself
    writing = create_engine(
        url, pool_size=1, max_overflow=1, connect_args=plain, json_serializer=to_json
    )
    reading = create_engine(url, pool_size=readers, connect_args=plain)
    on_connect(writing, _pragmas())
    on_connect(reading, [*_pragmas(), "PRAGMA query_only = on"])
    _on_begin(writing, "BEGIN IMMEDIATE")
    return writing, reading


def _make_private(path: Path) -> None:
    """For its owner's eyes, as it holds the webhooks' secret; what lies beside it is made alike."""
    for each in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
        with contextlib.suppress(OSError):  # not there yet, or somebody else's
            each.chmod(each.stat().st_mode & 0o700)
    with contextlib.suppress(OSError):  # told as the database is opened
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def _refuse_network(folder: Path) -> None:
    mounts = Path("/proc/mounts")
    kind = network_file_system(folder, mounts.read_text()) if mounts.exists() else ""
    if kind:
        raise Unavailable(
            f"{folder} is on a network file system ({kind}), where SQLite loses data.",
            "Set POLYPOD_DATA to a folder on a local disk, or POLYPOD_DATABASE_URL to a "
            "PostgreSQL database.",
        )


def _pragmas() -> list[str]:
    return [
        f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}",
        "PRAGMA journal_mode = wal",
        "PRAGMA synchronous = full",  # a commit is on the disk when it returns
        "PRAGMA foreign_keys = on",
        "PRAGMA wal_autocheckpoint = 4000",  # 16 MB, under load only: else done in idle moments
        "PRAGMA journal_size_limit = 67108864",
        "PRAGMA cache_size = -32768",  # 32 MB, taken as needed: indexes on digests are random
    ]


def _postgresql(url: URL, readers: int) -> tuple[Engine, Engine]:
    args = CONNECTION
    writing = create_engine(url, pool_size=1, connect_args=args, json_serializer=to_json)
    reading = create_engine(url, pool_size=readers, connect_args=args, isolation_level="AUTOCOMMIT")
    wait_ms = int(BUSY_TIMEOUT_S * 1000)
    on_connect(
        writing,
        [
            f"SET lock_timeout = {wait_ms}",
            # a router that hangs in a transaction holds up the others for no longer
            f"SET idle_in_transaction_session_timeout = {int(HANG_S * 1000)}",
        ],
    )
    # One writer at a time, as in SQLite: the queue's bound is exact, and nothing deadlocks.
    _on_begin(writing, f"SELECT pg_advisory_xact_lock({_WRITE_LOCK})")
    return writing, reading


def on_connect(engine: Engine, statements: list[str]) -> None:
    """Runs `statements` on every new connection of `engine`, outside any transaction."""

    def run(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        for statement in statements:
            _patiently(cursor.execute, statement)
        cursor.close()
        connection.commit()

    event.listen(engine, "connect", run)


def _patiently(execute: Callable[[str], Any], statement: str) -> None:
    """SQLite does not honour its busy timeout while a file is turned to WAL by someone else."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            execute(statement)
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _on_begin(engine: Engine, statement: str) -> None:
    def run(connection: Connection) -> None:
        connection.exec_driver_sql(statement)

    event.listen(engine, "begin", run)


def _bring_up_to_date(writing: Engine, reading: Engine) -> None:
    """Looks without a lock first; migrates in one transaction: of two processes, one waits."""
    try:
        with reading.connect() as connection:
            if revision(connection) == REVISION:
                return
        from polypod.jobs.store import migrations  # Alembic takes 0.2 s, which no lock waits for

        with writing.begin() as connection:
            if revision(connection) != REVISION:
                migrations.upgrade(connection)
    except DBAPIError as error:
        if re.search("not a database|malformed", str(error.orig)):
            raise Unavailable(
                f"The file {writing.url.database} is damaged: {error.orig}.",
                "Bring it back from a backup; or, to begin anew, move it away with its -wal and"
                " -shm: what jobs left is then not found any more.",
            ) from error
        raise Unavailable(
            f"The database cannot be opened: {error.orig}.",
            "Check that it runs and POLYPOD_DATABASE_URL, or the rights of POLYPOD_DATA.",
        ) from error


def revision(connection: Connection) -> str:
    """The revision of the database's schema; "" when it is new."""
    if not inspect(connection).has_table("alembic_version"):
        return ""
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return str(found or "")


def to_json(value: Any) -> str:
    """JSON that every reader takes: numbers that are none (an empty mesh's bounds) become null."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in cast(Mapping[str, Any], value).items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in cast(list[Any], value)]
    return value
