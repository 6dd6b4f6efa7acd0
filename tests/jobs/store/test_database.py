from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, text
from sqlalchemy.engine import make_url

from polypod.errors import Unavailable
from polypod.jobs.store.database import network_file_system, open_engines, revision, to_json
from polypod.jobs.store.migrations import config
from polypod.jobs.store.tables import REVISION, metadata

MOUNTS = r"""
/dev/sda1 / ext4 rw 0 0
tmpfs /tmp tmpfs rw 0 0
server:/export /mnt/nfs nfs4 rw 0 0
/dev/sdb1 /mnt/nfs/local xfs rw 0 0
//nas/share /mnt/my\040share cifs rw 0 0
me@host:/ /mnt/ssh fuse.sshfs rw 0 0
/dev/fuse /mnt/ntfs fuseblk rw 0 0
ntfs-3g /mnt/other fuse.ntfs-3g rw 0 0
mfs#volume:9421 /workspace fuse rw 0 0
host /shared 9p rw 0 0
/dev/sdc1 /shared ext4 rw 0 0
"""


@pytest.mark.parametrize(
    "path, expected",
    [
        ("/", ""),
        ("/tmp/data", ""),
        ("/mnt/nfs", "nfs4"),
        ("/mnt/nfs/deep/down", "nfs4"),
        ("/mnt/nfs/local/data", ""),
        ("/mnt/nfs2/data", ""),
        ("/mnt/my share/data", "cifs"),
        ("/mnt/ssh/x", "fuse.sshfs"),
        ("/mnt/ntfs/x", ""),
        ("/mnt/other/x", ""),
        ("/workspace/data", "fuse.mfs"),
        ("/shared/data", ""),  # mounted over the network one
    ],
)
def test_network_file_systems_are_known_by_their_mounts(path: str, expected: str) -> None:
    assert network_file_system(Path(path), MOUNTS) == expected


@pytest.mark.parametrize(
    "url, words",
    [
        ("sqlite://", "in memory"),
        ("mysql://localhost/x", "'mysql'"),
        ("no url", "not a database URL"),
        ("postgresql://nobody@127.0.0.1:1/x", "cannot be opened"),
        ("sqlite:////proc/no/polypod.db", "cannot be made"),
    ],
)
def test_an_unusable_url_is_told_in_words(url: str, words: str) -> None:
    with pytest.raises(Unavailable, match=words) as caught:
        open_engines(url, 1)
    assert "POLYPOD_D" in caught.value.hint


def test_sqlite_is_durable_and_reads_only_read(sqlite_url: str) -> None:
    writing, reading = open_engines(sqlite_url, 1)
    settings = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    for engine, query_only in ((writing, 0), (reading, 1)):
        with engine.connect() as connection:
            for name, value in {**settings, "query_only": query_only}.items():
                assert connection.exec_driver_sql(f"PRAGMA {name}").scalar() == value
        engine.dispose()


def test_what_is_in_the_file_is_its_owners_affair(sqlite_url: str) -> None:
    """It holds the secret that webhooks are signed with."""
    path = Path(str(make_url(sqlite_url).database))
    for was in (None, 0o644):
        if was:
            path.chmod(was)
        writing, reading = open_engines(sqlite_url, readers=1)
        with writing.begin() as connection:
            connection.execute(text("CREATE TABLE IF NOT EXISTS one (n INTEGER)"))
            connection.execute(text("INSERT INTO one VALUES (1)"))
            modes = {f.name: stat.S_IMODE(f.stat().st_mode) for f in path.parent.glob("*.db*")}
        assert path.name in modes and set(modes.values()) == {0o600}, modes
        writing.dispose()
        reading.dispose()


def test_postgres_urls_need_no_driver_name(postgres_url: str) -> None:
    for scheme in ("postgres", "postgresql", "postgresql+psycopg"):
        engines = open_engines(postgres_url.replace("postgresql", scheme, 1), 1)
        assert {engine.dialect.driver for engine in engines} == {"psycopg"}
        _dispose(engines)


def test_migrations_lead_to_the_declared_tables(database_url: str) -> None:
    engines = open_engines(database_url, 1)
    with engines[0].connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        declared = {
            (table.name, index.name): [c.name for c in index.columns]
            for table in metadata.tables.values()
            for index in table.indexes
        }
        found = {
            (table, index["name"]): index["column_names"]
            for table in metadata.tables
            for index in inspect(connection).get_indexes(table)
            if not index.get("duplicates_constraint")
        }
        assert found == declared
    _dispose(engines)


def test_the_code_is_of_the_newest_migration() -> None:
    assert ScriptDirectory.from_config(config()).get_heads() == [REVISION]


def test_a_database_of_a_newer_version_is_refused(database_url: str) -> None:
    engines = open_engines(database_url, 1)
    with engines[0].begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'ffff'"))
    _dispose(engines)
    with pytest.raises(Unavailable, match="does not know") as caught:
        open_engines(database_url, 1)
    assert "newer version of polypod" in caught.value.hint


@pytest.mark.parametrize("content", [b"no database" * 99, b"SQLite format 3\0" + bytes(99)])
def test_a_damaged_file_is_told_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "polypod.db"
    file.write_bytes(content)
    with pytest.raises(Unavailable, match="is damaged") as caught:
        open_engines(f"sqlite:///{file}", 1)
    assert "backup" in caught.value.hint


def test_a_failed_migration_leaves_nothing(database_url: str) -> None:
    """A table that is in the way: what the migration had made before is not there afterwards."""
    engines = open_engines(database_url, 1)
    with engines[0].begin() as connection:
        metadata.drop_all(connection)
        connection.execute(text("DELETE FROM alembic_version"))
        connection.execute(text("CREATE TABLE images (id TEXT)"))
    _dispose(engines)
    with pytest.raises(Unavailable, match="images"):
        open_engines(database_url, 1)
    with engines[0].connect() as connection:
        assert set(inspect(connection).get_table_names()) == {"alembic_version", "images"}
        assert revision(connection) == ""
    _dispose(engines)


OPENER = """
import asyncio, sys
from polypod.jobs.store.store import Store

async def main(url):
    print("ready", flush=True)
    sys.stdin.readline()
    store = await Store.open(url)
    print(store.store_id)
    await store.close()

asyncio.run(main(sys.argv[1]))
"""


def test_processes_that_open_a_fresh_database_at_once_share_it(database_url: str) -> None:
    command = [sys.executable, "-c", OPENER, database_url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    children = [subprocess.Popen(command, text=True, **pipes) for _ in range(3)]
    for child in children:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    ids = [child.communicate()[0].strip() for child in children]
    assert len(set(ids)) == 1
    assert len(ids[0]) == 32


def test_alembic_is_imported_only_when_there_is_something_to_migrate(sqlite_url: str) -> None:
    _dispose(open_engines(sqlite_url, 1))
    code = (
        "import sys; from polypod.jobs.store.database import open_engines; "
        "open_engines(sys.argv[1], 1); print('alembic' in sys.modules)"
    )
    command = [sys.executable, "-c", code, sqlite_url]
    assert subprocess.check_output(command, text=True).strip() == "False"


def test_json_has_no_numbers_that_are_none() -> None:
    assert (
        to_json({"a": [1.5, float("nan")], "b": (float("-inf"),)}) == '{"a":[1.5,null],"b":[null]}'
    )


def _dispose(engines: tuple[Engine, Engine]) -> None:
    for engine in engines:
        engine.dispose()
