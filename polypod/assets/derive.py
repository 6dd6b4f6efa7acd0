"""Other formats, previews and facts of a mesh, made in a child process with limits.

A file of a model is not trusted here: whatever it does to the readers stays in that process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from polypod import child
from polypod.errors import BadInput, DiskFull, Problem, TooLarge, Unavailable

log = logging.getLogger(__name__)

FORMATS = ("glb", "ply", "obj", "stl", "usdz")
"""Any of them can be made from any; `formats` says what each keeps."""
VIEWS = ("view_0.png", "view_1.png", "view_2.png", "view_3.png")
"""Seen from the front (+Z), right (+X), back (-Z), left (-X); `render` has the details."""
PreviewResult = dict[str, Any]
"""`triangles`, `vertices`, `bounds` ([min, max]), `watertight`, `volume` (None if not)."""

GIB = 1 << 30
MEMORY = 6 * GIB
"""Address space of the child. Seen, with a texture of 4096 px, drawn / as OBJ / as USDZ: 100 000
triangles 0.7 / 0.5 / 1.2 GiB, 5 million 1.9 / 2.4 / 2.0 GiB (much of it is never touched)."""
FILE_SIZE = 2 * GIB
AT_ONCE = 2
"""More wait: each may take a processor and `MEMORY`."""
WORDS_KEPT = 4000

_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


async def convert(
    source: Path,
    source_format: str,
    target: Path,
    target_format: str,
    limit_s: float = 120,
    memory: int = MEMORY,
) -> None:
    """Writes `target`; whole or not at all.

    Raises BadInput or TooLarge (the source cannot be converted), Unavailable (too little memory,
    time or disk).
    """
    for format in (source_format, target_format):
        _check(format)
    request = {"task": "convert", "target": target.name, "target_format": target_format}
    async with _scratch(target.parent) as folder:
        await _run(request, source, source_format, folder, limit_s, memory)
        (folder / target.name).replace(target)


async def previews(
    source: Path,
    source_format: str,
    folder: Path,
    size: int = 768,
    limit_s: float = 120,
    memory: int = MEMORY,
) -> PreviewResult:
    """Writes `VIEWS` into `folder` and returns the facts. Raises as `convert` does."""
    _check(source_format)
    async with _scratch(folder) as scratch:
        request = {"task": "previews", "size": size}
        facts = await _run(request, source, source_format, scratch, limit_s, memory)
        for name in VIEWS:
            (scratch / name).replace(folder / name)
        return facts


def _check(format: str) -> None:
    if format not in FORMATS:
        raise BadInput(f"There is no format {format!r}.", f"Choose one of {', '.join(FORMATS)}.")


@contextlib.asynccontextmanager
async def _scratch(parent: Path) -> AsyncGenerator[Path]:
    """A folder on the same file system, gone afterwards whatever happened in it."""
    folder = Path(tempfile.mkdtemp(prefix=".derive-", dir=parent))
    try:
        yield folder
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _run(
    request: dict[str, Any], source: Path, format: str, folder: Path, limit_s: float, memory: int
) -> Any:
    request |= _shared(source, format, folder, memory)
    turn = _turns.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(AT_ONCE))
    async with turn:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "polypod.assets.tool", json.dumps(request)),
            cwd=child.ROOT,
            env={**child.environment(), "TMPDIR": str(folder)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            answer, words = await asyncio.wait_for(_listen(process), limit_s)
        except asyncio.TimeoutError:
            raise Unavailable(
                f"Making this file took longer than {limit_s:g} s and was stopped.",
                "Choose a result with fewer triangles, or another format.",
            ) from None
        finally:
            await _end(process)
    return _result(answer, words, process.returncode, memory)


def _shared(source: Path, format: str, folder: Path, memory: int) -> dict[str, Any]:
    return {
        "source": str(source.resolve()),
        "format": format,
        "folder": str(folder.resolve()),
        "parent": os.getpid(),
        "memory": memory,
        "file_size": FILE_SIZE,
    }


async def _listen(process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    """The answer, and the end of what was printed."""
    assert process.stdout and process.stderr

    async def end_of(stream: asyncio.StreamReader) -> bytes:
        words = b""
        while chunk := await stream.read(1 << 16):
            words = (words + chunk)[-WORDS_KEPT:]
        return words

    answer, words = await asyncio.gather(process.stdout.readline(), end_of(process.stderr))
    await process.wait()
    return answer, words


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kills what is left of its session, and does not return before it is gone."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    waiting = asyncio.ensure_future(process.wait())
    while not waiting.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(waiting)


def _result(answer: bytes, words: bytes, status: int | None, memory: int) -> Any:
    reply: dict[str, str] = {}
    with contextlib.suppress(ValueError):
        reply = json.loads(answer)
    if "result" in reply:
        return reply["result"]
    error = reply.get("error", "died")
    log.warning(
        "derived asset failed: %s, exit status %s\n%s",
        error,
        status,
        words.decode(errors="replace"),
    )
    for problem in (BadInput, TooLarge):
        if error == problem.code():
            raise problem(reply["message"], reply["hint"])
    if error == "out_of_memory":
        raise Unavailable(
            f"Making this file needs more than {memory / GIB:.3g} GiB of memory.",
            "Choose a result with fewer triangles or smaller textures.",
        )
    if error == "disk_full":
        raise DiskFull("The disk is full, so the file could not be made.", "Try again later.")
    if error == "died":
        raise Unavailable(
            "The process that makes this file was ended, most likely for want of memory.",
            "Choose a result with fewer triangles or smaller textures.",
        )
    raise Problem("This file could not be made.", "The server's log says why.")
