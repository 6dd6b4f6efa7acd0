"""What a model prints, as log lines: split, cleaned, bounded in length and in rate.

They are for whoever sent the job: where this machine keeps things is none of their business.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping

from polypod.workers.events import Log

MAX_LINE = 2000
BURST = 500
LINES_PER_S = 50.0
LAST_WORDS = 20
MARK = b"\x1e"
"""The harness writes this and a task's id before the lines of the task."""

_BREAK = re.compile(rb"[\r\n]")
_INVISIBLE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")


class Output:
    """Fed with bytes as they come, in pieces of any size."""

    def __init__(self, places: Mapping[str, str] | None = None) -> None:
        """`places`: what is said instead of which path."""
        self._said = named(places or {})
        self._rest = b""
        self._task: str | None = None
        self._last: deque[bytes] = deque(maxlen=LAST_WORDS)
        self._allowed = float(BURST)
        self._left_out = 0
        self._fed_at = 0.0

    @property
    def last_words(self) -> str:
        """They stand in an error, so without any folders."""
        return without_folders("\n".join(filter(None, map(_clean, self._last))))

    def feed(self, data: bytes, now: float) -> Iterator[Log]:
        """At most `LINES_PER_S` after the first `BURST`; how many are left out is told."""
        self._allowed = min(BURST, self._allowed + (now - self._fed_at) * LINES_PER_S)
        self._fed_at = now
        *lines, rest = _BREAK.split(self._rest + data)
        self._rest = rest[: MAX_LINE + 1]  # what is longer says no more
        for line in lines:
            if line.startswith(MARK):
                yield from self._tell_left_out()
                self._task = line[len(MARK) :].decode(errors="replace")
            elif line.strip():
                yield from self._line(line)

    def end(self, task: str | None = None) -> Iterator[Log]:
        """What is left when this task has ended; None: when the process is dead.

        The task after it may have begun to print by then; what it prints is left alone.
        """
        if task not in (None, self._task):
            return
        if not self._rest.startswith(MARK):
            line, self._rest = self._rest, b""
            if line.strip():
                yield from self._line(line)
        yield from self._tell_left_out()

    def _line(self, line: bytes) -> Iterator[Log]:
        self._last.append(line)
        if self._allowed < 1:
            self._left_out += 1
            return
        yield from self._tell_left_out()
        self._allowed -= 1
        if text := _clean(line):
            yield Log(self._task, self._said(text))

    def _tell_left_out(self) -> Iterator[Log]:
        if self._left_out:
            yield Log(self._task, f"[{self._left_out} lines left out]")
            self._left_out = 0


def _clean(line: bytes) -> str:
    text = _INVISIBLE.sub("", line[: MAX_LINE + 1].decode(errors="replace")).rstrip()
    return text if len(text) <= MAX_LINE else text[:MAX_LINE] + "…"


def named(places: Mapping[str, str]) -> Callable[[str], str]:
    """Puts names for paths; what only begins or ends like one of them is left alone."""
    known = sorted((path for path in places if path.rstrip("/")), key=len, reverse=True)
    if not known:
        return str
    paths = "|".join(map(re.escape, known))
    pattern = re.compile(rf"(?:(?<![\w./-])|(?<=file://)|(?<=-[IL]))(?:{paths})(?![\w-]|\.\w)")
    return lambda text: pattern.sub(lambda at: places[at[0]], text) if "/" in text else text


def without_folders(text: str) -> str:
    """Of absolute paths the last part, as the harness words errors (`first_line`)."""
    text = re.sub(r"(['\"])/[^'\"\n]*/", r"\1", text)
    return re.sub(r"(?<![\w/:.])/(?:[^\s/'\"`,:;()]+/)+", "", text)
