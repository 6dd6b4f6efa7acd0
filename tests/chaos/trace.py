"""System calls of a server as strace saw them, in their order."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

CALLS = (
    *("fsync", "fdatasync", "rename", "renameat", "renameat2", "link", "linkat"),
    *("write", "writev", "pwrite64", "send", "sendto", "sendmsg"),
)
TEXT_BYTES = 5000
"""Of each call: a whole page of SQLite's, so that what a page says can be read."""
_CALL = re.compile(r"(?P<pid>\d+) +[\d:.]+ (?P<name>\w+)\((?P<rest>.*)")
_RESUMED = re.compile(r"(?P<pid>\d+) +[\d:.]+ <\.\.\. (?P<name>\w+) resumed>(?P<rest>.*)")
_UNFINISHED = "<unfinished ...>"


@dataclass(frozen=True)
class Call:
    """`began` and `ended` are lines of the trace, where time goes downwards."""

    name: str
    text: str
    began: int
    ended: int


def why_not() -> str:
    """Why nothing can be traced here; empty where it can."""
    if not shutil.which("strace"):
        return "strace is not here: install Debian's strace"
    probe = subprocess.run(
        ["strace", "-f", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False
    )
    return f"strace cannot run here: {probe.stderr.strip()}" if probe.returncode else ""


def command(output: Path) -> Sequence[str]:
    """What to put before a command. The command's process is the one started, not strace's."""
    options = ["-D", "-f", "--seccomp-bpf", "-tt", "-y", "-s", str(TEXT_BYTES)]
    return ["strace", *options, "-e", f"trace={','.join(CALLS)}", "-o", str(output)]


def read(output: Path) -> list[Call]:
    """The calls that succeeded; one that another process interrupted is put together."""
    calls: list[Call] = []
    open_: dict[str, Call] = {}
    for number, line in enumerate(output.read_text(errors="replace").splitlines()):
        if found := _RESUMED.match(line):
            call = open_.pop(found["pid"], None)
            if call is None or call.name != found["name"]:
                continue
            call = replace(call, text=call.text + found["rest"], ended=number)
        elif found := _CALL.match(line):
            call = Call(found["name"], found["rest"].removesuffix(_UNFINISHED), number, number)
            if found["rest"].endswith(_UNFINISHED):
                open_[found["pid"]] = call
                continue
        else:
            continue
        if not re.search(r"= -1 E[A-Z]+ ", call.text[-200:]):
            calls.append(call)
    return sorted(calls, key=lambda call: call.began)


def first(calls: Sequence[Call], names: Sequence[str], text: str, after: int = -1) -> Call:
    """The first of these calls that has `text` and began after line `after`."""
    found = (c for c in calls if c.name in names and c.began > after and re.search(text, c.text))
    call = next(found, None)
    assert call is not None, f"no {names} with {text!r} after line {after}"
    return call
