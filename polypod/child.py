"""Child processes that read what strangers sent: how they are started, and what binds them."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

import polypod

ROOT = Path(polypod.__file__).parents[1]
"""The folder to start them in, with `python -m`."""
PR_SET_PDEATHSIG = 1


def environment() -> dict[str, str]:
    """No key or password of the server is in it; one thread for each library."""
    kept = {
        name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ
    }
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "OMP", "MKL")}
    return {**kept, **threads, "PYTHONDONTWRITEBYTECODE": "1"}


def bind(parent: int, memory: int, file_size: int) -> None:
    """In the child, before it imports anything that a hostile file could hurt.

    It ends with the thread of `parent` that started it, yields to the server, leaves no core, and
    gets this much address space and writes files up to this size (bytes).
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)
    os.nice(5)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
