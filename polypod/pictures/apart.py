"""Big pictures are checked in child processes, not in the server's.

Decoding one, and giving its memory back, keeps the interpreter for tens of milliseconds, in which
the server answers nobody. A child is started when a big picture comes, stays for the next ones
while they come (30 MiB of memory), and ends itself after `checker.IDLE_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import IO

from polypod import child
from polypod.errors import BadInput, Problem, TooLarge, Unavailable, UnsupportedMedia
from polypod.pictures.checker import ANSWER, REQUEST
from polypod.pictures.picture import Picture, too_much_work

AT_ONCE = 2
"""More wait, with no more held than their file: each may take a processor and much memory."""
BASE_MEMORY = 512 * 1024 * 1024
BYTES_PER_PIXEL = 20

_threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="big-picture")
_own = threading.local()
"""`process`: the child of this thread of `_threads`, if it has one."""


async def check_apart(data: bytes, max_pixels: int, max_bytes: int) -> Picture:
    """`check_picture` in a child process.

    Raises what that raises; Unavailable where the child was ended, and the next one too.
    """
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_threads, _check, data, max_pixels, max_bytes)


def _check(data: bytes, max_pixels: int, max_bytes: int) -> Picture:
    for _ in range(2):  # the first may just have ended, of itself or by somebody
        process = _process(max_pixels * BYTES_PER_PIXEL + 4 * max_bytes + BASE_MEMORY)
        with contextlib.suppress(EOFError, OSError):
            return _asked(process, data, max_pixels, max_bytes)
        if _ended(process) == -signal.SIGALRM:
            raise too_much_work()
    raise Unavailable(
        "The picture was not checked: the process that does it was ended, twice.",
        "Try again, or send a smaller picture. The server may be short of memory.",
    )


def _process(memory: int) -> subprocess.Popen[bytes]:
    process: subprocess.Popen[bytes] | None = getattr(_own, "process", None)
    if process is None or process.poll() is not None:
        _own.process = process = subprocess.Popen(
            [sys.executable, "-m", "polypod.pictures.checker", str(os.getpid()), str(memory)],
            cwd=child.ROOT,
            env=child.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        threading.Thread(target=process.wait, daemon=True).start()  # so that no zombie stays
    return process


def _asked(
    process: subprocess.Popen[bytes], data: bytes, max_pixels: int, max_bytes: int
) -> Picture:
    """Raises OSError or EOFError where the process ends before it has answered."""
    assert process.stdin and process.stdout
    process.stdin.write(REQUEST.pack(len(data), max_pixels, max_bytes))
    process.stdin.write(data)
    process.stdin.flush()
    words, size = ANSWER.unpack(_read(process.stdout, ANSWER.size))
    told = json.loads(_read(process.stdout, words))
    if "error" in told:
        raise _problem(told["error"], told["message"], told["hint"])
    return Picture(_read(process.stdout, size) if told["changed"] else data, **told)


def _ended(process: subprocess.Popen[bytes]) -> int:
    """How it ended, if need be by us."""
    process.kill()
    assert process.stdin and process.stdout
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            stream.close()
    return process.wait()


def _read(stream: IO[bytes], size: int) -> bytes:
    found = stream.read(size)
    if len(found) < size:
        raise EOFError
    return found


def _problem(code: str, message: str, hint: str) -> Problem:
    kinds: dict[str, type[Problem]] = {
        kind.code(): kind for kind in (BadInput, TooLarge, UnsupportedMedia)
    }
    return kinds[code](message, hint)
