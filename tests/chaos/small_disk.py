"""A real file system with little room that only the server sees: a tmpfs in its own namespace."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

from tests.bento import ROOT

PAGE = 4096
AS_ROOT = () if os.geteuid() == 0 else ("--map-root-user",)
"""Who is not root becomes it in a name space of users."""


def why_not() -> str:
    """Why no file system can be mounted here; empty where it can."""
    if not shutil.which("unshare") or not shutil.which("nsenter"):
        return "unshare and nsenter are not here: install util-linux"
    probe = subprocess.run(
        ["unshare", "--mount", *AS_ROOT, "mount", "-t", "tmpfs", "none", "/mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no file system can be mounted here: {probe.stderr.strip()}" if probe.returncode else ""


@contextlib.contextmanager
def small_disk(folder: Path, size: int, files: int) -> Generator[SmallDisk]:
    """A disk at `folder` for whatever is started with its `command`, until the block is left."""
    folder.mkdir(parents=True, exist_ok=True)
    script = f'mount -t tmpfs -o size={size},nr_inodes={files} none "$0" && echo && exec cat'
    keeper = subprocess.Popen(
        ["unshare", "--mount", *AS_ROOT, "sh", "-c", script, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"\n", "mounted"
        yield SmallDisk(keeper.pid, folder)


class SmallDisk:
    """`root`: where it is seen from outside, through a process that has it."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.folder = folder
        self.root = Path(f"/proc/{pid}/root{folder}")
        user = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
        self.command = ["nsenter", "--target", str(pid), "--mount", *user, f"--wd={ROOT}"]

    @contextlib.contextmanager
    def full(self) -> Generator[None]:
        """No room for a single byte; there is again afterwards."""
        filler = self.root / "filler"
        try:
            self.fill(filler)
            yield
        finally:
            filler.unlink()

    def fill(self, path: Path) -> None:
        """Makes a file that takes all the room there is."""
        with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(PAGE))

    @contextlib.contextmanager
    def files_left(self, count: int) -> Generator[None]:
        """No room for more than `count` new names."""
        fillers = self.root / "fillers"
        fillers.mkdir()
        try:
            with contextlib.suppress(OSError):
                for number in range(self._free_names() - count):
                    (fillers / str(number)).touch()
            yield
        finally:
            shutil.rmtree(fillers)

    def _free_names(self) -> int:
        return os.statvfs(self.root).f_ffree
