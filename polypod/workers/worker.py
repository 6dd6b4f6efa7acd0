"""A worker: one child process that holds a loaded model and runs stages, and its supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from polypod.jobs.job import JobError
from polypod.workers import process
from polypod.workers.channel import Channel
from polypod.workers.events import (
    Cancelled,
    Died,
    Event,
    Failed,
    Finished,
    Heartbeat,
    Leaving,
    Loaded,
    LoadFailed,
    Log,
    Progress,
    Revoked,
    Started,
    TaskEvent,
    parse,
)
from polypod.workers.output import Output
from polypod.workers.process import end_leftovers
from polypod.workers.silence import Silence
from polypod.workers.spec import WorkerSpec

__all__ = [
    "Cancelled",
    "Died",
    "Event",
    "Failed",
    "Finished",
    "Heartbeat",
    "LoadFailed",
    "Loaded",
    "Log",
    "Progress",
    "Revoked",
    "StageTask",
    "Started",
    "TaskEvent",
    "Worker",
    "WorkerSpec",
    "end_leftovers",
]

LEAST_GRACE_S = 1.9
"""A cancel frees the device within 2 s, the kill included."""
MOST_GRACE_S = 30.0
WATCH_S = 0.5
PIPE_SIZE = 1 << 16
"""Reading this much gets all that was printed before an event."""
COUNT_AGAIN_S = 10.0
PAUSE_S = 0.01
"""How long a model that fills the pipe waits, so that its prints do not hold the event loop."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageTask:
    """One stage to run. Tasks of one `chain` (if not empty) are worth nothing without those before.

    `inputs`: path by file name; `outputs`: a folder, made if it is not there.
    """

    id: str
    chain: str
    stage: str
    inputs: Mapping[str, str]
    outputs: str
    params: Mapping[str, Any]
    limit_s: float = 900
    silence_s: float = 120


class Worker:
    """One child process, from `start` to `Died`; a new process is a new Worker.

    Everything happens on the event loop's thread; `on_event` is called there and must not block.
    `Died` is always the last event, also after `stop` and `kill`, and comes after everything that
    the process had said. A task that hung, took too long or did not obey its cancel ends with
    `Failed` or `Cancelled` right before `Died`, when the device is free.
    """

    def __init__(
        self, spec: WorkerSpec, on_event: Callable[[Worker, Event], None], pids: Path
    ) -> None:
        self.spec = spec
        self.pid: int | None = None
        self.alive = False
        self.loaded = False
        self.memory = 0
        self.load_seconds: float | None = None
        self.running: str | None = None
        """The task that has started and not ended, also while `Died` is told."""
        self._on_event = on_event
        self._pids = pids
        self._gone = asyncio.Event()
        self._tasks: dict[str, StageTask] = {}
        self._cancelling: set[str] = set()
        self._breaks = 0
        self._end: tuple[str, bool] | None = None
        """Why the process ends and whether that is expected, once that is known."""
        self._verdict: LoadFailed | Failed | Cancelled | None = None
        """What a process that is being killed cannot say itself."""

    async def start(self) -> None:
        """Starts the process; `Loaded`, or `LoadFailed` and `Died`, follow as events."""
        self._loop = asyncio.get_running_loop()
        self._since: float = self._loop.time()
        self._count_oom_kills()
        self._output = Output(self.spec.places)
        spec = self.spec
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = process.spawn(spec.python, spec.code, spec.env, theirs.fileno())
            except OSError as error:
                ours.close()
                self._loop.call_soon(self._not_started, error)
                return
        self.pid, self.alive = self._process.pid, True
        assert self._process.stdout is not None
        self._pipe = self._process.stdout.fileno()
        os.set_blocking(self._pipe, False)
        self._loop.add_reader(self._pipe, self._read_output)
        self._silence = Silence(self.pid, self._since)
        process.on_death(self.pid, self._dead)
        with contextlib.suppress(OSError):  # a full disk; the guard ends what we cannot
            process.record(self._pids, self.pid)
        self._channel = Channel(ours, self._read_channel)
        self._channel.send({"worker": spec.name, "settings": dict(spec.settings)})
        self._watcher = self._loop.create_task(self._watch())

    def run(self, task: StageTask) -> None:
        """Queues the task in the process: it starts the moment the one before ends."""
        if self._gone.is_set():
            raise RuntimeError(f"worker {self.spec.model}/{self.spec.name} has died")
        if not self.alive:
            return  # `Died` is about to be told, and names this task too
        self._tasks[task.id] = task
        # `seen` tells a task that was on its way when its chain broke from one handed after that
        self._channel.send({"op": "run", "task": asdict(task), "seen": self._breaks})

    def revoke(self, task_id: str) -> None:
        """Takes back a queued task and its chain: `Revoked`, or no answer if it has started."""
        if self.alive and task_id in self._tasks:
            self._channel.send({"op": "revoke", "task": task_id})

    def cancel(self, task_id: str) -> None:
        """`Cancelled` follows, whatever the model does, unless the task has just ended."""
        if self.alive and task_id in self._tasks and task_id not in self._cancelling:
            self._cancelling.add(task_id)
            self._channel.send({"op": "cancel", "task": task_id})
            if self.running == task_id:
                self._loop.call_later(self._grace_s(), self._cancel_by_force, task_id)

    async def stop(self, grace_s: float = 2) -> None:
        """Ends the process: a running task at its next progress call, else by force."""
        if not self.alive:
            return
        self._end = self._end or ("stopped", True)
        self._channel.send({"op": "stop"})
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._gone.wait(), grace_s)
        self.kill()
        await self._gone.wait()

    def kill(self) -> None:
        """Ends the process at once."""
        self._kill("killed by its supervisor", expected=True)

    def _kill(
        self, reason: str, *, expected: bool, verdict: LoadFailed | Failed | Cancelled | None = None
    ) -> None:
        if self.alive and self.pid is not None:
            if self._end is None:
                self._end, self._verdict = (reason, expected), verdict
            process.end_group(self.pid)

    def _grace_s(self) -> float:
        return min(MOST_GRACE_S, max(LEAST_GRACE_S, self.load_seconds or 0))

    def _cancel_by_force(self, task_id: str) -> None:
        if self.running == task_id and task_id in self._cancelling:
            reason = f"killed: the task went on {self._grace_s():.1f} s after its cancel"
            self._kill(reason, expected=True, verdict=Cancelled(task_id))

    def _count_oom_kills(self) -> None:
        self._oom_kills, self._counted_at = process.oom_kills(), self._loop.time()

    async def _watch(self) -> None:
        """Ends the process when the load or a task takes too long, or does nothing at all."""
        while True:
            await asyncio.sleep(WATCH_S)
            now = self._loop.time()
            task = self._tasks.get(self.running or "")
            if not self.loaded and now - self._since > self.spec.load_limit_s:
                error = _too_long("Loading the model", self.spec.load_limit_s)
                self._kill("time limit of the load", expected=False, verdict=LoadFailed(error))
            elif task and now - self._since > task.limit_s:
                error = _too_long(f"Stage {task.stage!r}", task.limit_s)
                self._kill(
                    "time limit of the stage", expected=False, verdict=Failed(task.id, error)
                )
            elif (
                task and await self._silence.lasts(task.silence_s, now) and self.running == task.id
            ):
                self._kill("hung", expected=False, verdict=Failed(task.id, _hung(task)))

    # what the process says

    def _read_channel(self) -> list[bytes]:
        """Handles what has come."""
        lines = self._channel.lines()
        for line in lines:
            try:
                event = parse(line)
            except (ValueError, KeyError, TypeError):
                logger.exception("worker %s wrote %r to its channel", self.pid, line[:200])
                self._kill("the model wrote to the worker's channel", expected=False)
                break
            self._heard(event)
        return lines

    def _heard(self, event: Event | Leaving) -> None:
        """Keeps the state; what was printed before an event is told before it."""
        if isinstance(event, Heartbeat):
            self.memory = event.memory
        else:
            self._silence.broken(self._loop.time())
        if isinstance(event, Leaving):
            self._end = self._end or (event.reason, True)
            return
        if not isinstance(event, Heartbeat | Progress):
            self._drain_output(PIPE_SIZE)
        if isinstance(event, Loaded):
            self.load_seconds = self._loop.time() - self._since
            self.loaded, self.memory = True, event.memory
            event = replace(event, seconds=self.load_seconds)
        elif isinstance(event, LoadFailed):
            self._end, self._verdict = self._end or ("the model could not be loaded", False), event
            return
        elif isinstance(event, Started):
            self.running = event.task
            self._since = self._loop.time()
            if self._since - self._counted_at > COUNT_AGAIN_S:
                self._count_oom_kills()
            if event.task in self._cancelling:
                self._loop.call_later(self._grace_s(), self._cancel_by_force, event.task)
        elif isinstance(event, Finished | Failed | Cancelled | Revoked):
            self._breaks += isinstance(event, Failed | Cancelled)
            self._tell_lines(self._output.end(event.task))
            self._ended(event.task)
        self._tell(event)

    def _ended(self, task_id: str) -> bool:
        """Forgets the task; whether it was there."""
        self._cancelling.discard(task_id)
        if self.running == task_id:
            self.running = None
        return self._tasks.pop(task_id, None) is not None

    def _read_output(self) -> int:
        """Reads once; returns how many bytes there were."""
        try:
            data = os.read(self._pipe, PIPE_SIZE)
        except BlockingIOError:
            return 0
        if not data:
            self._loop.remove_reader(self._pipe)
            return 0
        if len(data) == PIPE_SIZE and self.alive:
            self._loop.remove_reader(self._pipe)
            self._loop.call_later(PAUSE_S, self._read_output_again)
        self._silence.broken(self._loop.time())
        self._tell_lines(self._output.feed(data, self._loop.time()))
        return len(data)

    def _read_output_again(self) -> None:
        if self.alive:
            self._loop.add_reader(self._pipe, self._read_output)

    def _drain_output(self, limit: int) -> None:
        while limit > 0 and (count := self._read_output()):
            limit -= count

    def _tell_lines(self, lines: Iterable[Log]) -> None:
        for log in lines:
            self._tell(log if log.task in self._tasks else replace(log, task=None))

    def _tell(self, event: Event) -> None:
        try:
            self._on_event(self, event)
        except Exception:
            logger.exception("the owner of worker %s failed at %r", self.pid, event)

    # its end

    def _dead(self) -> None:
        """The process is dead, not yet reaped: the last of its words, then why."""
        assert self.pid is not None
        self.alive = False
        process.end_group(self.pid)
        status = self._process.wait()
        while self._read_channel():
            pass
        self._drain_output(2 * PIPE_SIZE)
        self._tell_lines(self._output.end())
        self._release()
        reason, expected, oom = self._cause(status)
        if not self.loaded and not self._verdict and not expected:
            self._verdict = LoadFailed(
                JobError("load_failed", f"The model's process ended while it loaded: {reason}.")
            )
        if isinstance(self._verdict, LoadFailed) or (
            self._verdict and self._ended(self._verdict.task)
        ):
            self._tell(self._verdict)
        self._tell(Died(reason, self._output.last_words, oom, expected))
        self._gone.set()

    def _release(self) -> None:
        assert self._process.stdout is not None
        self._watcher.cancel()
        self._channel.close()
        self._loop.remove_reader(self._pipe)
        self._process.stdout.close()
        process.forget(self._pids, self._process.pid)

    def _cause(self, status: int) -> tuple[str, bool, bool]:
        """Reason, whether it was expected, whether the kernel killed it for want of memory."""
        if self._end:
            return *self._end, False
        if status >= 0:
            return f"exit status {status}", False, False
        if -status != signal.SIGKILL:
            return f"killed by {_signal_name(-status)}", False, False
        kills = process.oom_kills()
        oom = kills is None or self._oom_kills is None or kills > self._oom_kills
        return "killed for want of memory" if oom else "killed from outside", False, oom

    def _not_started(self, error: OSError) -> None:
        message = f"The model's Python interpreter cannot be started: {error.strerror}."
        self._tell(LoadFailed(JobError("load_failed", message, "Check MODEL_PYTHON.")))
        self._tell(Died(f"{self.spec.python}: {error.strerror}", "", oom=False, expected=False))
        self._gone.set()


def _too_long(what: str, limit_s: float) -> JobError:
    return JobError(
        "timeout",
        f"{what} took longer than its limit of {limit_s:g} s.",
        "Lower the settings that cost time, or use a faster device.",
    )


def _hung(task: StageTask) -> JobError:
    return JobError(
        "hung",
        f"Stage {task.stage!r} did nothing for {task.silence_s:g} s: no output, no progress, "
        "no CPU time.",
        "Try again; if it hangs again, the job's log shows where.",
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
