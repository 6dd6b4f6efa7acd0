"""A model whose stages do what models do, good and bad. Runs on every Python from 3.8 on."""

# ruff: noqa: PTH110, PTH123, SIM115
import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time


class BadInput(Exception):
    def __init__(self, message, hint=""):
        super().__init__(message)
        self.hint = hint


def load(worker, settings):
    print("loading", worker)
    if settings.get("load"):
        STAGES[settings["load"]](None, None)
    return {"worker": worker, "settings": settings, "tasks": 0}


def run(stage, state, job):
    state["tasks"] += 1
    STAGES[stage](state, job)


def describe(state, job):
    data = {
        "state": state,
        "inputs": {name: path.read_text() for name, path in job.inputs.items()},
        "params": job.params,
        "path": sys.path,
        "environment": dict(os.environ),
        "module": __name__,
        "modules": list(sys.modules),
        "stdin": sys.stdin.read(),
        "session": os.getsid(0) == os.getpid(),
    }
    (job.outputs / "described.json").write_text(json.dumps(data))


def import_beside(state, job):
    from . import bars

    (job.outputs / "module.txt").write_text(bars.__name__)


def nothing(state, job):
    pass


def ask_undeclared(state, job):
    assert job.params.depth == job.params["depth"] == 0.5
    job.params.missing  # noqa: B018


def progress(state, job):
    for step in job.params.steps:
        job.progress(step, f"step {step}")


def progress_then_wait(state, job):
    progress(state, job)
    gate_without_progress(state, job)


def leave_files(state, job):
    """As upstream code does: temporary files that nobody removes, and results beside them."""
    folder = job.scratch()
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(b"left")
    (folder / "result").write_text(file.name.rpartition("/")[0])
    (folder / "result").rename(job.outputs / "result")


def calls(state, job):
    step = job.count(lambda value: value + 1, 4, 0.2, 0.6, "Enlarging")
    assert [step(value) for value in range(5)] == [1, 2, 3, 4, 5]


def many_steps(state, job):
    until = time.monotonic() + job.params.seconds
    while time.monotonic() < until:
        job.progress(0.5)
    job.progress(0.9, "last")


def gate(state, job):
    """Goes on when the file `open` is there."""
    while not os.path.exists(job.params.open):
        job.progress(0.1, "waiting")
        time.sleep(0.005)


def gate_without_progress(state, job):
    while not os.path.exists(job.params.open):
        time.sleep(0.005)


def swallow_exceptions(state, job):
    while True:
        try:
            job.progress(0.5)
            time.sleep(0.005)
        except Exception:
            print("swallowed")


def swallow_everything(state, job):
    try:
        while True:
            job.progress(0.5)
            time.sleep(0.005)
    except BaseException:
        (job.outputs / "half").write_text("half a result")


def native_call(state, job):
    """Holds the interpreter, so that no other thread of the process runs."""
    ctypes.PyDLL(None).sleep(job.params.seconds)


def quiet(state, job):
    time.sleep(1000)


def busy(state, job):
    until = time.monotonic() + job.params.seconds
    while time.monotonic() < until:
        pass


def busy_child(state, job):
    code = f"import time; t = time.time() + {job.params.seconds}\nwhile time.time() < t: pass"
    subprocess.run([sys.executable, "-c", code], check=True)


def grandchild(state, job):
    child = subprocess.Popen(["sleep", "1000"])
    (job.outputs / "pid").write_text(str(child.pid))
    job.progress(0.5, "child started")
    ctypes.PyDLL(None).sleep(1000)


def exit_0(state, job):
    sys.exit(0)


def interrupt(state, job):
    raise KeyboardInterrupt


def hard_exit(state, job):
    print("the end is near")
    os._exit(7)


def segfault(state, job):
    print("about to crash")
    ctypes.string_at(0)


def abort(state, job):
    os.abort()


def use_all_memory(state, job):
    kept = bytearray(1 << 20)
    bytearray(1 << 62)
    return kept


def out_of_memory_wrapped(state, job):
    class OutOfMemoryError(RuntimeError):
        pass

    try:
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    except RuntimeError:
        raise ValueError("sampling failed") from None


def out_of_memory_by_text(state, job):
    raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later.")


def gpu_error(state, job):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def disk_full(state, job):
    try:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/opt/secret/model.glb")
    except OSError as error:
        raise RuntimeError("the mesh was not written") from error


def sigterm_to_all(state, job):
    """What a service manager sends to each process; upstream's own still end by it."""
    read, write = os.pipe()
    forked = os.fork()
    if forked == 0:
        os.write(write, b"x")  # from now on it has its own answer to the signal
        time.sleep(60)
        os._exit(0)
    os.read(read, 1)
    os.close(read)
    os.close(write)
    started = subprocess.Popen(["sleep", "60"])
    os.killpg(0, signal.SIGTERM)
    assert os.WTERMSIG(os.waitpid(forked, 0)[1]) == signal.SIGTERM
    assert started.wait() == -signal.SIGTERM


def bad_input(state, job):
    raise BadInput("The silhouette is empty.", "Use a picture with one clear object.")


def upstream_failure(state, job):
    open("/opt/secret place/../models/shape.ckpt")


def unprintable_error(state, job):
    class Odd(Exception):
        def __str__(self):
            raise ValueError("no words")

    raise Odd


def fail_when_open(state, job):
    gate(state, job)
    raise ValueError("broken")


def say(state, job):
    print("plain")
    sys.stdout.write("one\rtwo\rthree\n")
    os.write(1, b"bytes \xff\xfe \x00end\n")
    print("\x1b[31mred\x1b[0m", file=sys.stderr)
    print("long " + "x" * 100000)
    ctypes.CDLL(None).printf(b"from native code\n")
    print("no line break", end="")


def say_stage(state, job):
    print("this is", job.id)


def flood(state, job):
    for number in range(job.params.lines):
        print("line", number)


def use_gpu(state, job):
    import torch

    torch.cuda.use(job.params.bytes)


def use_memory(state, job):
    data = bytearray(job.params.bytes)
    data[::4096] = b"x" * len(data[::4096])


def twice(number):
    return 2 * number


def pool_of_spawned(state, job):
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(twice, [1, 2]) == [2, 4]


def forked_child(state, job):
    """A forked process has no channel: what it calls does nothing, and its end is its own."""
    pid = os.fork()
    if pid == 0:
        job.progress(0.9, "from the child")
        sys.exit(3)
    _, status = os.waitpid(pid, 0)
    assert os.WEXITSTATUS(status) == 1, status
    job.progress(0.2, "from the parent")


def close_everything(state, job):
    os.closerange(3, 100)
    time.sleep(1000)


STAGES = {name: value for name, value in list(globals().items()) if callable(value)}
