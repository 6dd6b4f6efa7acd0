"""The child process that checks big pictures: `python -m polypod.pictures.checker PARENT MEMORY`.

Started by `apart`. Reads a request at a time from standard input (`REQUEST`, then the file) and
answers on standard output (`ANSWER`, then JSON, then the new file where something changed). Ends
when there is no more to read, or nothing for `IDLE_S`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import sys
from dataclasses import asdict
from typing import Any, BinaryIO

from polypod import child

REQUEST = struct.Struct("<QQQ")
"""Length of the file, most pixels, most bytes."""
ANSWER = struct.Struct("<QQ")
"""Lengths of the JSON and of the file."""
IDLE_S = 120.0
LIMIT_S = 120
"""A check that takes longer ends the process."""


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print
    parent, memory = map(int, sys.argv[1:])
    child.bind(parent, memory, file_size=memory)
    requests = sys.stdin.buffer
    while select.select([requests], [], [], IDLE_S)[0] and (head := requests.read(REQUEST.size)):
        _answer(answers, requests, *REQUEST.unpack(head))
    os._exit(0)


def _answer(
    answers: BinaryIO, requests: BinaryIO, size: int, max_pixels: int, max_bytes: int
) -> None:
    signal.alarm(LIMIT_S)
    told, file = _checked(requests.read(size), max_pixels, max_bytes)
    words = json.dumps(told).encode()
    answers.write(ANSWER.pack(len(words), len(file)) + words)
    answers.write(file)
    answers.flush()
    signal.alarm(0)


def _checked(data: bytes, max_pixels: int, max_bytes: int) -> tuple[dict[str, Any], bytes]:
    from polypod.errors import Problem
    from polypod.pictures.picture import check_picture

    try:
        picture = check_picture(data, max_pixels, max_bytes)
    except Problem as problem:
        return {"error": problem.code(), "message": problem.message, "hint": problem.hint}, b""
    told = asdict(picture)
    del told["data"]
    return told, picture.data if picture.changed else b""


if __name__ == "__main__":
    main()
