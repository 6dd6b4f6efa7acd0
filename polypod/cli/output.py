"""How the command line speaks: results on stdout, all else on stderr, failures in one line."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Generator
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.markup import escape

from polypod.client.calls import DEFAULT_URL
from polypod.client.errors import ApiError, ClientError, Unreachable

FAILED, INTERRUPTED = 1, 130


def result_console() -> Console:
    return Console(highlight=False, soft_wrap=True, emoji=False)


def talk_console() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=2))


def guarded(work: Callable[[], int], *, as_json: bool = False) -> int:
    """The exit status of `work`; an error that a user can act on is one line and status 1."""
    try:
        return work()
    except KeyboardInterrupt:
        talk_console().print("Interrupted.")
        return INTERRUPTED
    except (ClientError, OSError, ValueError) as error:
        message, hint = explain(error)
        if as_json:
            print_json({"error": message, "hint": hint})
        complain(message, hint)
        return FAILED


def complain(message: str, hint: str = "", about: str = "") -> None:
    """One line on stderr: what happened, and what to do."""
    head = "[bold red]Error:[/bold red] " + (f"{escape(about)}: " if about else "")
    talk_console().print(f"{head}{escape(message)} {escape(hint)}".rstrip())


def explain(error: Exception) -> tuple[str, str]:
    """What happened, and what to do."""
    if isinstance(error, Unreachable):
        return _unreachable(error)
    if isinstance(error, ApiError) and error.status == 401:
        return error.message, "Set POLYPOD_API_KEY to the key of this service."
    if isinstance(error, ClientError):
        return error.message, error.hint
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename or ''}".rstrip(": ") + ".", ""
    return str(error), ""


def _unreachable(error: Unreachable) -> tuple[str, str]:
    parts = urlsplit(error.url)
    base = f"{parts.scheme}://{parts.netloc}"
    if parts.hostname in ("127.0.0.1", "localhost", "::1"):
        what = f"No service answers at {base}: {error.reason}."
        return what, "Start it with: make serve (or name another with --url)."
    return f"No service answers at {base}: {error.reason}.", "Check the address given with --url."


def at(url: str) -> str:
    """What a command that is told needs, so that it goes to the same service."""
    usual = os.environ.get("POLYPOD_URL") or DEFAULT_URL
    return "" if url == usual else f" --url {shlex.quote(url)}"


@contextlib.contextmanager
def signals_end_us() -> Generator[None]:
    """A closed terminal or a `kill` ends us by an exception, so that all is tidied up.

    With nohup a closed terminal does not.
    """

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    minded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in minded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_terminal() -> bool:
    return sys.stderr.isatty()
