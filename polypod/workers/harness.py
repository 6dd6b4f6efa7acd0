"""The model side of a worker: loads `services/NAME/worker.py` and runs its stages, one at a time.

One file, standard library only, Python 3.8 or later. `polypod.workers.worker` starts it as
`MODEL_PYTHON -u harness.py WORKER_PY` and talks to it in JSON lines over the socket that
POLYPOD_CHANNEL names. What the model prints goes to stdout and stderr and becomes the job's log.
The model's code has the main thread; a second thread listens, so a task can be taken back,
cancelled or queued while another runs, and the next one starts without a round trip.
"""

# pyright: basic
from __future__ import annotations

import contextlib
import errno
import faulthandler
import functools
import gc
import importlib
import importlib.util
import json
import os
import re
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from pathlib import Path

MODULE = "polypod_worker"
"""The name under which worker.py is imported, also in processes that it spawns."""
SEND_EVERY_S = 0.05
TICK_S = 0.25
HEARTBEAT_S = 1.0
OUT_OF_MEMORY = re.compile(
    r"(CUDA|HIP|GPU)\b.*out of memory|CU\w+_ALLOC_FAILED|cudaErrorMemoryAllocation"
    r"|Cuda error: 2\b|can't allocate memory|Cannot allocate memory|not enough memory"
    r"|Insufficient memory",
    re.IGNORECASE,
)
GPU_LOST = re.compile(r"(CUDA|HIP)( driver)? error|CUDA_ERROR|cudaError", re.IGNORECASE)
"""After such an error every later call in the same process fails too."""


def main() -> None:
    here = Path(__file__).resolve().parent
    sys.path[:] = [folder for folder in sys.path if not folder or Path(folder).resolve() != here]
    faulthandler.enable()
    fd = int(os.environ.pop("POLYPOD_CHANNEL"))
    os.set_inheritable(fd, False)
    guard = end_with_parent(int(os.environ.pop("POLYPOD_PARENT")), fd)
    leave_the_end_to_the_supervisor()
    pid, status = os.getpid(), 1
    try:
        status = Harness(Channel(fd)).serve()
    except BaseException:
        traceback.print_exc()
    if os.getpid() == pid:  # else upstream forked, and its child came back here
        os.kill(guard, signal.SIGKILL)
        os.waitpid(guard, 0)
    os._exit(status)  # upstream's exit hooks and threads may hang


class Cancelled(BaseException):
    """Raised in the stage by its next progress call; upstream code catches `Exception`."""


class Harness:
    """The queue of tasks and the thread that listens for more. `changed` guards what both touch."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.changed = threading.Condition()
        self.queue = deque()
        self.job: Job | None = None
        self.loading = True
        self.stopping = False
        self.breaks = 0  # failed and cancelled tasks so far
        self.broken = {}  # chain -> the number of its break
        self.memory = Memory()
        self.output = os.dup(1)  # upstream may redirect 1

    def serve(self) -> int:
        """Loads, then works until told to stop. The answer is the exit status."""
        order, *more = self.channel.receive()
        threading.Thread(target=self.listen, args=(more,), daemon=True).start()
        try:
            module = importlib.import_module(MODULE)
            run, state = module.run, module.load(order["worker"], order["settings"])
        except BaseException as error:
            failure, _ = explain(error, {})
            if failure["code"] != "out_of_memory":
                failure["code"] = "load_failed"
            self.channel.send("load_failed", error=failure)
            return 1
        self.channel.send("loaded", seconds=0.0, memory=self.memory.now())
        job = self.next()
        while job is not None and self.work(job, run, state):
            job = self.next()
        return 0

    def next(self) -> Job | None:
        """Waits for a task and makes it the current job; None: the process is to end."""
        with self.changed:
            self.loading = False
            while not self.queue and not self.stopping:
                self.changed.wait()
            if self.stopping:
                self.channel.send("leaving", reason="stopped")
                return None
            self.job = BARS.job = self.queue.popleft()
        BARS.range(0.0, 1.0)
        return self.job

    def work(self, job: Job, run, state) -> bool:
        """Runs the current job. False: the process must not go on after this error."""
        failure, leaving = None, ""
        os.write(self.output, b"\n\x1e" + job.id.encode() + b"\n")  # whose lines follow
        self.memory.reset()
        at, clock = time.time(), time.perf_counter()
        self.channel.send("started", task=job.id, at=at)
        try:
            job.outputs.mkdir(parents=True, exist_ok=True)
            free_gpu_memory()
            run(job.stage, state, job)
        except Cancelled:
            pass
        except BaseException as error:
            failure, leaving = explain(error, job.params)
        seconds = time.perf_counter() - clock
        if self.channel.fd < 0:
            os._exit(1 if failure else 0)  # a process that upstream forked came back here
        BARS.job = None
        job.end()
        job.clear()
        with self.changed:
            self.job = None
            if job.cancelled:
                self.channel.send("cancelled", task=job.id)
            elif failure:
                self.channel.send("failed", task=job.id, error=failure)
            else:
                memory, gpu = self.memory.peaks()
                self.channel.send(
                    "finished",
                    soon=bool(self.queue),
                    task=job.id,
                    at=at + seconds,
                    seconds=seconds,
                    peak_memory=memory,
                    peak_gpu_memory=gpu,
                )
            if job.cancelled or failure:
                self.break_chain(job.chain)
        if leaving:
            self.channel.send("leaving", reason=leaving)
        return not leaving

    def listen(self, orders) -> None:
        """The second thread. Without it the process is deaf, so they end together."""
        try:
            self.obey(orders)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def obey(self, orders) -> None:
        """Orders, heartbeats, and progress that was held back."""
        beat = time.monotonic() + HEARTBEAT_S
        while True:
            for order in orders:
                with self.changed:
                    getattr(self, "on_" + order["op"])(order)
                    queued = [job.outputs for job in self.queue]
                for folder in queued:
                    make_ahead(folder)
            job = self.job
            if job is not None:
                job.flush()
            if time.monotonic() >= beat:
                beat += HEARTBEAT_S
                self.channel.send(
                    "heartbeat",
                    memory=self.memory.now(),
                    gpu_memory=on_gpu("memory_reserved"),
                    cpu_seconds=time.process_time(),
                )
            orders = self.channel.receive(TICK_S)

    def on_run(self, order) -> None:
        """`seen` is how many breaks the supervisor knew of: a later one drops the task."""
        job, seen = Job(order["task"], self.channel), order["seen"]
        if self.broken.get(job.chain, 0) > seen:
            self.channel.send("revoked", task=job.id)
            return
        self.broken = {chain: n for chain, n in self.broken.items() if n > seen}
        self.queue.append(job)
        self.changed.notify()

    def on_revoke(self, order) -> None:
        """With what waits of its chain: taken back in part, a chain would end without a word."""
        chain = {job.chain for job in self.queue if job.id == order["task"]} - {""}
        for job in self.take_back(lambda job: job.id == order["task"] or job.chain in chain):
            self.channel.send("revoked", task=job.id)

    def on_cancel(self, order) -> None:
        if self.job is not None and self.job.id == order["task"]:
            self.job.cancelled = True
        for job in self.take_back(lambda job: job.id == order["task"]):
            self.channel.send("cancelled", task=job.id)
            self.break_chain(job.chain)

    def on_stop(self, order) -> None:
        if self.loading:
            os.killpg(0, signal.SIGKILL)
        if self.job is not None:
            self.job.cancelled = True
        self.stopping = True
        self.changed.notify()

    def break_chain(self, chain: str) -> None:
        self.breaks += 1
        if chain:
            self.broken[chain] = self.breaks
            for job in self.take_back(lambda job: job.chain == chain):
                self.channel.send("revoked", task=job.id)

    def take_back(self, which) -> list:
        taken = [job for job in self.queue if which(job)]
        for job in taken:
            self.queue.remove(job)
        return taken


class Job:
    """What a stage is given: `inputs` (paths by file name), `outputs` (a folder), `params`."""

    def __init__(self, task: dict, channel: Channel) -> None:
        self.id: str = task["id"]
        self.chain: str = task["chain"]
        self.stage: str = task["stage"]
        self.inputs = {name: Path(path) for name, path in task["inputs"].items()}
        self.outputs = Path(task["outputs"])
        self.params = Params(task["params"])
        self.cancelled = False
        self.said = ""  # the last message of an explicit call
        self._channel = channel
        self._lock = threading.Lock()
        self._fraction = 0.0
        self._message = ""
        self._pending = self._ended = False
        self._sent_at = 0.0

    def progress(self, fraction: float, message: str = "", until: float | None = None) -> None:
        """Says how far the stage is (0 to 1; never falls); a cancelled task ends in this call.

        `until`: the tqdm bars that follow fill the range from `fraction` to it.
        """
        fraction = float(fraction)
        BARS.range(fraction, fraction if until is None else float(until))
        self.said = message or self.said
        self.move(fraction, self.said)

    def count(self, function, total: int, low: float, high: float, message: str):
        """`function`, with progress from `low` to `high` in `total` calls of it."""
        calls = 0

        def counted(*args, **kwargs):
            nonlocal calls
            self.progress(low + (high - low) * min(calls / total, 1.0), message)
            calls += 1
            return function(*args, **kwargs)

        return counted

    def scratch(self) -> Path:
        """A folder that goes when the task ends, also for temporary files that upstream leaves."""
        folder = self.outputs / "scratch"
        folder.mkdir(exist_ok=True)
        tempfile.tempdir = str(folder)
        return folder

    def clear(self) -> None:
        if tempfile.tempdir == str(self.outputs / "scratch"):
            tempfile.tempdir = None
            shutil.rmtree(self.outputs / "scratch", ignore_errors=True)

    def move(self, fraction: float, message: object) -> None:
        """`message` becomes text when it is sent: most of a bar's steps are not."""
        if self._channel.fd < 0:
            return  # in a forked process
        with self._lock:
            self._fraction = max(
                self._fraction, min(float(fraction), 1.0)
            )  # a bar's may be numpy's
            self._message = message
            self._pending = True
            if time.monotonic() - self._sent_at >= SEND_EVERY_S:
                self._send()
        self.check()

    def check(self) -> None:
        if self.cancelled:
            raise Cancelled(f"task {self.id} was cancelled")

    def flush(self) -> None:
        with self._lock:
            self._send()

    def end(self) -> None:
        with self._lock:
            self._send()
            self._ended = True

    def _send(self) -> None:
        if self._pending and not self._ended:
            self._pending = False
            self._sent_at = time.monotonic()
            message = " ".join(str(self._message).split())[:200]
            self._channel.send("progress", task=self.id, fraction=self._fraction, message=message)


class Params(dict):
    """The stage's declared parameters, as items and as attributes."""

    def __getattr__(self, name: str):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(
                f"the stage declares no parameter {name!r} (it has: {', '.join(self) or 'none'})"
            ) from None


class Bars:
    """The tap on tqdm: upstream's bars become progress and cancellation points, and print nothing.

    The bars fill the range that the last explicit progress call gave. Nobody knows how many more
    will come, so each outermost bar has `SHARE` of what is left; an inner bar has one step of its
    outer one. `open` holds those under way, outermost first.
    """

    SHARE = 0.8

    def __init__(self) -> None:
        self.job: Job | None = None
        self.range(0.0, 1.0)

    def range(self, low: float, high: float) -> None:
        self.low, self.high = low, max(low, min(high, 1.0))
        self.open = []

    def enter(self, bar) -> Bar:
        while self.open and self.open[-1].complete():
            self.leave(self.open[-1])
        entry = Bar(bar)
        self.open.append(entry)
        return entry

    def leave(self, entry: Bar) -> None:
        try:
            place = self.open.index(entry)
        except ValueError:  # it was left before, or belongs to an earlier task
            return
        del self.open[place:]
        if place == 0:
            self.low += (self.high - self.low) * self.SHARE

    def moved(self, bar) -> None:
        job, entry = self.job, bar.__dict__.get("_polypod")
        if job is None:
            return
        if entry not in self.open:
            job.check()
            return
        if not entry.iterating and not bar.disable:
            entry.n = bar.n
        entry.total = bar.total
        entry.text = (getattr(bar, "desc", "") or "").strip().rstrip(":") or job.said
        if str(entry) == entry.shown:
            job.check()  # tqdm refreshes more often than something changes
            return
        entry.shown = str(entry)
        at, width = self.low, (self.high - self.low) * self.SHARE
        for outer in self.open:
            at += width * outer.part(outer.n)
            width *= outer.part(outer.n + 1) - outer.part(outer.n)
        job.move(at, entry)

    def install(self, module) -> None:
        """Changes the class in `tqdm.std`, which all others (`tqdm.auto`, upstream's) inherit."""
        tqdm = module.tqdm
        names = ("__init__", "__iter__", "update", "refresh", "close")
        real = {name: getattr(tqdm, name) for name in names}

        def __init__(bar, *args, **kwargs):
            real["__init__"](bar, *args, **kwargs)
            bar._polypod = self.enter(bar)
            self.moved(bar)

        def __iter__(bar):
            entry = bar._polypod
            entry.iterating = True  # tqdm itself counts only when it would print
            try:
                for item in real["__iter__"](bar):
                    yield item
                    entry.n += 1
                    self.moved(bar)
            finally:
                entry.iterating = False
                self.leave(entry)

        def update(bar, n=1):
            shown = real["update"](bar, n)
            if bar.disable and not bar._polypod.iterating:
                bar._polypod.n += n
            self.moved(bar)
            return shown

        def refresh(bar, *args, **kwargs):
            shown = real["refresh"](bar, *args, **kwargs)
            self.moved(bar)
            return shown

        def close(bar):
            self.leave(bar.__dict__.get("_polypod"))
            real["close"](bar)

        for function in (__init__, __iter__, update, refresh, close):
            name = function.__name__
            setattr(tqdm, name, functools.wraps(real[name])(function))
        tqdm.display = lambda bar, msg=None, pos=None: True
        tqdm.clear = lambda bar, nolock=False: None
        tqdm.monitor_interval = 0  # no thread that would redraw bars


class Bar:
    """Where one tqdm bar stands."""

    def __init__(self, bar) -> None:
        self.n = getattr(bar, "n", 0) or 0
        self.total = bar.total
        self.text = self.shown = ""
        self.iterating = False

    def part(self, n: float) -> float:
        """How much of it is done after `n` steps; without a total it slows down for ever."""
        return min(n / self.total, 1.0) if self.total else n / (n + 30)

    def complete(self) -> bool:
        return bool(self.total) and self.n >= self.total

    def __str__(self) -> str:
        return f"{self.text} {self.n}" + (f"/{self.total}" if self.total else "")


BARS = Bars()


class Finder:
    """Finds worker.py under its stable name, and taps tqdm when it is first imported.

    worker.py is made a package of its folder, so it can say `from .surface import solve` of a file
    beside it; what upstream calls `surface` stays upstream's.
    """

    def find_spec(self, name, path=None, target=None):
        if name == MODULE:
            beside = [str(Path(sys.argv[1]).resolve().parent)]
            return importlib.util.spec_from_file_location(
                MODULE, sys.argv[1], submodule_search_locations=beside
            )
        if name != "tqdm.std" or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                BARS.install(module)

            spec.loader.exec_module = exec_module
        return spec


class Channel:
    """JSON lines to and from the supervisor. Without it there is nothing to live for."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._rest = self._held = b""
        self._lock = threading.Lock()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        os.register_at_fork(after_in_child=self._forked)

    def send(self, kind: str, soon: bool = False, **fields) -> None:
        """`soon`: with the next message, which is about to come; saves waking the other side."""
        data = json.dumps(dict(fields, kind=kind)).encode() + b"\n"
        if self.fd < 0:
            return
        with self._lock:
            data, self._held = self._held + data, b""
            if soon:
                self._held = data
                return
            try:
                while data:
                    data = data[os.write(self.fd, data) :]
            except OSError:
                os.killpg(0, signal.SIGKILL)

    def receive(self, timeout_s: float | None = None) -> list:
        """The orders that came within the time; ends the group when the supervisor is gone."""
        while self._poll.poll(None if timeout_s is None else timeout_s * 1000):
            try:
                data = os.read(self.fd, 1 << 16)
            except OSError:
                data = b""
            if not data:
                os.killpg(0, signal.SIGKILL)
            *lines, self._rest = (self._rest + data).split(b"\n")
            if lines:
                return [json.loads(line) for line in lines]
        return []

    def _forked(self) -> None:
        os.close(self.fd)
        self.fd = -1
        BARS.job = None


def end_with_parent(parent: int, channel: int) -> int:
    """Ends this process and its children when the serving process is gone, however busy it is.

    The kernel ends this process; the guard, a child that only waits for the channel to close, ends
    the whole group, also while a native call holds the interpreter. Returns the guard's pid.
    """
    import ctypes

    guard = os.fork()
    if guard == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        hung_up = select.poll()
        hung_up.register(channel, 0)
        hung_up.poll()
        os.killpg(0, signal.SIGKILL)
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os.killpg(0, signal.SIGKILL)
    return guard


def leave_the_end_to_the_supervisor() -> None:
    """A SIGTERM to all processes of a service that stops would look like the model's own death.

    What upstream starts or forks can be ended by it as ever.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    signal.siginterrupt(signal.SIGTERM, False)
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def explain(error: BaseException, params) -> tuple:
    """The error for users, and why the process has to end after it (or not: an empty text).

    The traceback goes to the log.
    """
    chain, link = [], error
    while link is not None and link not in chain:
        chain.append(link)
        traceback.clear_frames(link.__traceback__)  # what they hold is what memory ran out of
        link = link.__cause__ or link.__context__
    trace = error.__traceback__
    traceback.print_exception(type(error), error, trace and trace.tb_next)
    hint = str(getattr(error, "hint", "") or "")
    text, leaving = first_line(error), ""
    if any(is_out_of_memory(link) for link in chain):
        code, leaving = "out_of_memory", "ended after out of memory, to give all of it back"
        text = "The model ran out of memory" + (f": {text}" if text else ".")
        hint = hint or f"{what_to_lower(params)}, or use a device with more memory."
    elif any(is_disk_full(link) for link in chain):
        code, text = "disk_full", "The disk is full: the model could not write its files."
        hint = hint or "Try again later, or with settings that make smaller files."
    elif "BadInput" in names_of(error):
        code, text = "bad_input", text or "The input cannot be used."
    elif "NotInstalled" in names_of(error):
        code, text = "not_installed", text or "Something that the model needs is not installed."
    else:
        code, text = "upstream_failure", ": ".join(filter(None, (type(error).__name__, text)))
        if isinstance(error, SystemExit):
            text = f"the model's code called exit({error.code!r})"
        if any(GPU_LOST.search(as_text(link)) for link in chain):
            leaving = "ended after an error of the GPU"
    return {"code": code, "message": text, "hint": hint}, leaving


def names_of(error: BaseException) -> set:
    return {cls.__name__ for cls in type(error).__mro__}


def is_out_of_memory(error: BaseException) -> bool:
    if names_of(error) & {"MemoryError", "OutOfMemoryError"}:
        return True
    return isinstance(error, Exception) and bool(OUT_OF_MEMORY.search(as_text(error)))


def free_gpu_memory() -> None:
    """Before a stage, what the last one left: to the device, where torch uses one."""
    if on_gpu("is_initialized"):
        gc.collect()
        for step in ("synchronize", "empty_cache", "ipc_collect"):
            on_gpu(step)


def make_ahead(folder: Path) -> None:
    """While another task runs; what fails here is tried again, and told, when its own begins."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)


def is_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in as_text(error)


def what_to_lower(params) -> str:
    sizes = [k for k, v in params.items() if type(v) is int and v >= 64 and k != "seed"]
    return "Lower " + " or ".join(sizes) if sizes else "Use a smaller picture"


def first_line(error: BaseException) -> str:
    """The first line that says something, with the folders cut from absolute paths."""
    line = next((part.strip() for part in as_text(error).splitlines() if part.strip()), "")
    line = re.sub(r"(['\"])/[^'\"]*/", r"\1", line)
    return re.sub(r"(?<![\w/:.])/(?:[^\s/'\"`,:;()]+/)+", "", line)[:500]


def as_text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return ""


class Memory:
    """This process's resident memory in bytes: now, and at most since the last `reset`."""

    def __init__(self) -> None:
        self._statm = os.open("/proc/self/statm", os.O_RDONLY)
        self._status = os.open("/proc/self/status", os.O_RDONLY)
        try:
            self._peak = os.open("/proc/self/clear_refs", os.O_WRONLY)
        except OSError:
            self._peak = -1  # peaks are then those of the process's whole life
        self._page = os.sysconf("SC_PAGE_SIZE")

    def now(self) -> int:
        return int(os.pread(self._statm, 256, 0).split()[1]) * self._page

    def reset(self) -> None:
        if self._peak >= 0:
            os.write(self._peak, b"5")
        on_gpu("reset_peak_memory_stats")

    def peaks(self) -> tuple:
        """Of the process and, through torch, of the GPU."""
        _, _, peak = os.pread(self._status, 4096, 0).partition(b"VmHWM:")
        if peak:
            return int(peak.split(None, 1)[0]) * 1024, on_gpu("max_memory_allocated")
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_maxrss * 1024, on_gpu("max_memory_allocated")


def on_gpu(question: str) -> int:
    """Asks `torch.cuda` if the model has imported torch and uses a GPU; else 0."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    try:
        return getattr(cuda, question)() or 0 if cuda and cuda.is_initialized() else 0
    except Exception:  # torch may be half imported, or the GPU lost
        return 0


if __name__ in ("__main__", "__mp_main__"):
    sys.meta_path.insert(0, Finder())
if __name__ == "__main__":
    main()
