"""A PostgreSQL of its own, with the settings that it comes with: every commit is on the disk."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path

import psycopg

from benchmarks.servers import until


@contextlib.contextmanager
def postgres(beside: Path) -> Generator[str]:
    """The URL of an empty database, its files in a new folder on the disk of `beside`.

    RuntimeError: there is no PostgreSQL on this machine.
    """
    programs = _programs()
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir=beside))
    user = _user() if os.geteuid() == 0 else None  # it refuses to run as root
    if user is not None:
        os.chown(folder, user, -1)
        for parent in folder.parents:
            if parent.stat().st_uid == 0 and not parent.stat().st_mode & 1:
                parent.chmod(parent.stat().st_mode | 0o011)
    sockets = Path(tempfile.mkdtemp(prefix="pg-"))  # a short path, as sockets need it
    if user is not None:
        os.chown(sockets, user, -1)
    data = folder / "data"
    initdb = f"{programs}/initdb -D {data} -U polypod -A trust -E UTF8 --locale=C"
    subprocess.run(initdb.split(), user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, "-k", sockets, "-c", "listen_addresses="],
            user=user,
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    url = f"postgresql://polypod@/postgres?host={sockets}"
    try:
        until(lambda: _answers(url), 60, 0.05)
        yield url
    finally:
        server.send_signal(signal.SIGINT)  # postgres: end now, without waiting for clients
        server.wait(30)
        shutil.rmtree(sockets, ignore_errors=True)


def _programs() -> Path:
    """The folder of `initdb` and `postgres`."""
    on_path = shutil.which("initdb")
    found = [Path(on_path).resolve().parent] if on_path else []
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in found:
        if (folder / "postgres").exists():
            return folder
    raise RuntimeError("There is no PostgreSQL here. Debian: apt install postgresql.")


def _user() -> int:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_uid
    return 65534


def _answers(url: str) -> bool:
    with contextlib.suppress(psycopg.OperationalError):
        psycopg.connect(url).close()
        return True
    return False
