"""The stub model: it holds its device for a time, and in that time makes a result.

All contestants run this file: polypod as a worker, the others by importing it. Standard library
only; Python 3.8 or later. Every run is noted in the file that STUB_LOG names, so that the device's
busy time is measured where it is spent.
"""

import contextlib
import ctypes
import hashlib
import os
import threading
import time

DEVICE = threading.Lock()
LOG = os.open(os.environ["STUB_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def load(worker, settings):
    return None


def run(stage, state, job):
    params = job.params
    if stage == "work" and params.deaf == "swallow":
        swallow(job, params.seconds)
    elif stage == "work" and params.deaf == "native":
        hold_interpreter(job, params.seconds)
    elif stage == "work" and params.lines:
        tell(params.seconds, params.lines, job.outputs / "model.bin")
    else:
        name = "model.bin" if stage == "work" else "finished.bin"
        hold(params.seconds, params.size_bytes, params.seed, (job.outputs / name).write_bytes)


def hold(seconds, size_bytes, seed, leave):
    """Holds the device for `seconds`; in them the result is made and handed to `leave`."""
    with DEVICE:
        begin = time.monotonic()
        note("begin", begin, seed)
        left = leave(result(size_bytes, seed))
        time.sleep(max(0.0, begin + seconds - time.monotonic()))
        note("end", time.monotonic(), seed)
    return left


def result(size_bytes, seed):
    """Bytes that differ from seed to seed."""
    block = hashlib.sha256(str(seed).encode()).digest() * 2048
    return (block * (size_bytes // len(block) + 1))[:size_bytes]


def note(what, at, seed):
    os.write(LOG, f"{what} {at:.6f} {seed}\n".encode())


def tell(seconds, lines, path):
    """Prints the time, again and again."""
    for _ in range(lines):
        print(f"{time.time():.6f}", flush=True)
        time.sleep(seconds / lines)
    path.write_bytes(b"told")


def swallow(job, seconds):
    """Code that catches whatever is raised in it and goes on."""
    note("begin", time.monotonic(), job.params.seed)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(BaseException):
            job.progress(0.5)
            time.sleep(0.01)


def hold_interpreter(job, seconds):
    """A native call that lets no other Python thread run."""
    note("begin", time.monotonic(), job.params.seed)
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))
