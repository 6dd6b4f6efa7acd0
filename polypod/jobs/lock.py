"""One engine per data folder: a file lock that ends with the process that holds it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from pathlib import Path

from polypod.errors import Unavailable

WAIT_S = 15.0
POLL_S = 0.1


class DataLock:
    """Held from `acquire` to `release`, or to the end of the process."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    async def acquire(cls, data: Path, wait_s: float = WAIT_S) -> DataLock:
        """Lock `data`; waits for a server that is just ending, then refuses.

        Raises:
            Unavailable: another server works on this folder, or it cannot be written.
        """
        try:
            fd = await asyncio.to_thread(_open, data)
        except OSError as error:
            raise Unavailable(
                f"The data folder {data} cannot be written: {error.strerror}.",
                "Set POLYPOD_DATA to a folder that can be.",
            ) from error
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return cls(fd)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(fd)
                    raise Unavailable(
                        "Another polypod server already works on this data folder.",
                        "Stop it, or give this one its own folder with POLYPOD_DATA.",
                    ) from None
                await asyncio.sleep(POLL_S)

    def release(self) -> None:
        os.close(self._fd)


def _open(data: Path) -> int:
    data.mkdir(parents=True, exist_ok=True)
    return os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
