"""The process of a worker as the kernel sees it: its environment, birth, traces and death."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

HARNESS = Path(__file__).with_name("harness.py")
_SECRET = re.compile(r"KEY|SECRET|TOKEN(?!IZER)|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
_LOGIN_IN_URL = re.compile(r"://[^/\s]*:[^/\s]*@")
_OURS = ("POLYPOD_", "AWS_", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def environment(python: str, extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without secrets and without its Python settings, plus `extra`.

    The commands beside `python` come first, as in an activated environment: what compiles at run
    time is to use the same ninja as the image's build.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_OURS)
        and not _SECRET.search(name)
        and not _LOGIN_IN_URL.search(value)
    }
    beside = [str(Path(python).parent)] if Path(python).is_absolute() else []
    ours = {
        "PATH": os.pathsep.join([*beside, os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8:backslashreplace",
        "HF_HUB_OFFLINE": "1",
    }
    return kept | ours | dict(extra)


def spawn(
    python: str, code: Path, extra: Mapping[str, str], channel: int
) -> subprocess.Popen[bytes]:
    """Starts the harness in a session of its own; `channel` is its end of the socket.

    The kernel ends it when the *thread* that called this ends: call it on the event loop's.
    """
    own = {"POLYPOD_CHANNEL": str(channel), "POLYPOD_PARENT": str(os.getpid())}
    return subprocess.Popen(
        [python, "-u", str(HARNESS), str(code)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        env=environment(python, extra) | own,
        pass_fds=(channel,),
        start_new_session=True,
    )


def end_group(pid: int) -> None:
    """Kills the worker and the processes that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def record(folder: Path, pid: int) -> None:
    """Writes down that this worker lives, for a server that comes after this one has died."""
    folder.mkdir(parents=True, exist_ok=True)
    note = json.dumps({"pid": pid, "birth": birth(pid)})
    (folder / f"{pid}.json").write_text(note)


def forget(folder: Path, pid: int) -> None:
    (folder / f"{pid}.json").unlink(missing_ok=True)


def end_leftovers(folder: Path, limit_s: float = 5) -> int:
    """Ends the recorded workers that outlived their server; returns how many. Blocking."""
    ended = 0
    for path in folder.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            note = json.loads(path.read_text())
            if birth(int(note["pid"])) == note["birth"]:
                ended += _end_and_wait(int(note["pid"]), limit_s)
        path.unlink(missing_ok=True)
    return ended


def _end_and_wait(pid: int, limit_s: float) -> bool:
    end_group(pid)
    end = time.monotonic() + limit_s
    with contextlib.suppress(OSError):  # it is gone
        while _stat(pid)[0] not in "ZX" and time.monotonic() < end:
            time.sleep(0.01)
    return True


def birth(pid: int) -> str:
    """What no other process of this number shares: the boot's id and the start time since then."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{_stat(pid)[19]}"


def session_cpu_s(pid: int) -> float:
    """CPU seconds that the processes of the session of `pid` have used so far. Blocking."""
    ticks = 0
    for other in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            if (fields := _stat(int(other.name)))[3] == str(pid):
                ticks += sum(int(field) for field in fields[11:15])
    return ticks / _TICKS_PER_S


def _stat(pid: int) -> list[str]:
    """`/proc/PID/stat` from its third field (the state) on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def oom_kills() -> int | None:
    """How many processes the kernel has killed for want of memory; None where it does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/vmstat").read_text().split("oom_kill ")[1].split()[0])
    return None


def on_death(pid: int, callback: Callable[[], object]) -> None:
    """Calls `callback` on the running loop when the child `pid` is dead, before it is reaped."""
    try:
        _by_pidfd(pid, callback)
    except (AttributeError, OSError):  # an old kernel, or a sandbox
        _by_thread(pid, callback)


def _by_pidfd(pid: int, callback: Callable[[], object]) -> None:
    fd = os.pidfd_open(pid)
    loop = asyncio.get_running_loop()

    def dead() -> None:
        loop.remove_reader(fd)
        os.close(fd)
        callback()

    loop.add_reader(fd, dead)


def _by_thread(pid: int, callback: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()

    def wait() -> None:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(callback)

    threading.Thread(target=wait, name=f"worker-{pid}", daemon=True).start()
