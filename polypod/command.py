"""How this installation's `polypod` is typed, for hints that can be copied as they are printed."""

from __future__ import annotations

import functools
import shlex
import shutil
import sys
from pathlib import Path


def typed(arguments: str) -> str:
    """`polypod ARGUMENTS`; with its path where PATH would find nothing, or another installation."""
    return f"{_program()} {arguments}"


@functools.cache
def _program() -> str:
    script = Path(sys.executable).with_name("polypod")
    found = shutil.which("polypod")
    if found and Path(found).resolve() == script.resolve():
        return "polypod"
    if not script.exists():
        return f"{shlex.quote(sys.executable)} -m polypod.cli"
    here = Path.cwd()
    return shlex.quote(str(script.relative_to(here) if here in script.parents else script))
