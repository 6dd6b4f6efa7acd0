"""The supervisor: queue, cancel, limits, and every way in which a process can end."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polypod.workers.worker import (
    Cancelled,
    Died,
    Failed,
    Finished,
    Heartbeat,
    Loaded,
    LoadFailed,
    Log,
    Progress,
    Revoked,
    Started,
)

pytestmark = pytest.mark.anyio

KINDS = (Started, Finished, Failed, Cancelled, Revoked, Died)


def story(model: Any) -> list[tuple[str, str]]:
    """What became of the tasks, in order."""
    return [(type(event).__name__, getattr(event, "task", "")) for event in model.all(KINDS)]


# queue


async def test_tasks_queue_while_the_model_loads(start: Any) -> None:
    model = await start()
    model.run("a", "nothing")
    await model.until(Finished, "a")
    kinds = [type(event) for event in model.events if not isinstance(event, Log | Heartbeat)]
    assert kinds == [Loaded, Started, Finished]


async def test_a_queued_task_can_be_taken_back_and_a_started_one_not(
    start: Any, tmp_path: Path
) -> None:
    model = await start()
    model.run("1", "gate", open=str(tmp_path / "open"))
    model.run("2", "nothing")
    model.run("3", "nothing")
    await model.until(Started, "1")
    model.worker.revoke("1")
    model.worker.revoke("2")
    model.worker.revoke("unknown")
    await model.until(Revoked, "2")
    (tmp_path / "open").touch()
    await model.until(Finished, "3")
    assert [event.task for event in model.all(Revoked)] == ["2"]
    assert [event.task for event in model.all(Finished)] == ["1", "3"]


async def test_a_task_on_its_way_when_its_chain_broke_is_dropped(
    start: Any, tmp_path: Path
) -> None:
    """The owner hands over the next stage before it knows that the one before has failed."""
    model = await start()
    model.run("1", "fail_when_open", "job", open=str(tmp_path / "open"))
    await model.until(Started, "1")
    (tmp_path / "open").touch()
    channel = model.worker._channel._socket
    come = b""
    while b'"failed"' not in come:  # the loop stands still: it comes and is not read
        select.select([channel], [], [])
        come = channel.recv(1 << 16, socket.MSG_PEEK)
    model.run("2", "nothing", "job")
    await model.until(Revoked, "2")
    assert story(model) == [("Started", "1"), ("Failed", "1"), ("Revoked", "2")]
    model.run("3", "nothing", "job")  # the owner knows and tries again
    await model.until(Finished, "3")


async def test_what_the_owner_raises_is_not_the_workers_trouble(
    start: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = await start()
    heard = model.heard

    def fail(worker: Any, event: Any) -> None:
        heard(worker, event)
        if isinstance(event, Started):
            raise ValueError("owner's bug")

    model.worker._on_event = fail
    model.run("a", "nothing")
    await model.until(Finished, "a")
    assert "owner's bug" in caplog.text


# cancel


async def test_cancel_ends_a_stage_at_its_next_progress_call(start: Any) -> None:
    model = await start()
    model.run("1", "swallow_exceptions", "job")
    model.run("2", "nothing", "job")
    model.run("3", "nothing", "other")
    await model.until(Progress, "1")
    pid = model.worker.pid
    model.worker.cancel("1")
    await model.until(Finished, "3")
    assert story(model)[1:4] == [("Cancelled", "1"), ("Revoked", "2"), ("Started", "3")]
    assert model.worker.pid == pid and not model.lines("1")


async def test_what_a_stage_leaves_after_its_cancel_is_never_a_result(start: Any) -> None:
    model = await start()
    model.run("1", "swallow_everything")
    await model.until(Progress, "1")
    model.worker.cancel("1")
    await model.until((Cancelled, Finished), "1")
    assert story(model)[-1] == ("Cancelled", "1")


async def test_a_cancelled_task_that_has_not_started_is_dropped_at_once(
    start: Any, tmp_path: Path
) -> None:
    model = await start()
    model.run("1", "gate_without_progress", open=str(tmp_path / "open"))
    model.run("2", "nothing", "job")
    model.run("3", "nothing", "job")
    await model.until(Started, "1")
    model.worker.cancel("2")
    await model.until(Revoked, "3")
    assert story(model) == [("Started", "1"), ("Cancelled", "2"), ("Revoked", "3")]
    (tmp_path / "open").touch()
    await model.until(Finished, "1")


@pytest.mark.parametrize("stage", ["native_call", "quiet", "busy"])
async def test_a_stage_that_ignores_its_cancel_is_killed(start: Any, stage: str) -> None:
    model = await start()
    model.run("1", stage, seconds=1000)
    model.run("2", "nothing")
    await model.until(Started, "1")
    began = time.monotonic()
    model.worker.cancel("1")
    died = await model.until(Died)
    assert 1.5 < time.monotonic() - began < 10
    assert story(model) == [("Started", "1"), ("Cancelled", "1"), ("Died", "")]
    assert died.expected and not died.oom and "cancel" in died.reason


async def test_a_cancel_that_waits_behind_a_busy_task_kills_nobody(
    start: Any, tmp_path: Path
) -> None:
    """A native call holds the interpreter: the answer to the cancel comes after its grace."""
    model = await start()
    model.run("1", "native_call", seconds=3)
    model.run("2", "nothing")
    await model.until(Started, "1")
    model.worker.cancel("2")
    await model.until(Cancelled, "2")
    await model.until(Finished, "1")
    assert model.worker.alive


# limits


async def test_a_stage_that_takes_too_long_is_killed(start: Any) -> None:
    model = await start()
    model.run("1", "busy", seconds=1000, limit_s=0.5)
    died = await model.until(Died)
    (failed,) = model.all(Failed)
    assert failed.error.code == "timeout"
    assert failed.error.message == "Stage 'busy' took longer than its limit of 0.5 s."
    assert story(model) == [("Started", "1"), ("Failed", "1"), ("Died", "")]
    assert not died.expected and "time limit" in died.reason


async def test_a_stage_that_does_nothing_is_killed(start: Any) -> None:
    model = await start()
    model.run("1", "quiet", silence_s=1)
    died = await model.until(Died)
    (failed,) = model.all(Failed)
    assert failed.error.code == "hung" and died.reason == "hung" and not died.expected


@pytest.mark.parametrize("stage", ["busy", "busy_child"])
async def test_silent_work_is_no_hang(start: Any, stage: str) -> None:
    model = await start()
    model.run("1", stage, seconds=2.5, silence_s=1)
    await model.until((Finished, Died))
    assert story(model)[-1] == ("Finished", "1")


async def test_a_load_that_takes_too_long_is_killed(start: Any) -> None:
    model = await start(load="quiet", load_limit_s=0.5)
    await model.until(Died)
    (failed,) = model.all(LoadFailed)
    assert failed.error.code == "timeout" and "Loading the model" in failed.error.message


# death


@pytest.mark.parametrize(
    ("stage", "reason", "words"),
    [
        ("hard_exit", "exit status 7", "the end is near"),
        ("segfault", "killed by SIGSEGV", "Fatal Python error: Segmentation fault"),
        ("abort", "killed by SIGABRT", "Fatal Python error: Aborted"),
    ],
)
async def test_a_crash_is_told_with_its_last_words(
    start: Any, stage: str, reason: str, words: str
) -> None:
    model = await start()
    model.run("1", stage)
    model.run("2", "nothing")
    died = await model.until(Died)
    assert died.reason == reason and words in died.last_words
    assert not died.expected and not died.oom
    assert story(model) == [("Started", "1"), ("Died", "")]
    assert model.worker.running == "1" and not model.worker.alive
    with pytest.raises(RuntimeError):
        model.run("3", "nothing")


async def test_a_killed_worker_is_noticed_at_once(start: Any) -> None:
    model = await start()
    model.run("1", "quiet")
    await model.until(Started)
    began = time.monotonic()
    os.kill(model.worker.pid, signal.SIGKILL)
    died = await model.until(Died)
    assert time.monotonic() - began < 1
    assert died.reason == "killed from outside" and not died.oom and not died.expected


async def test_after_out_of_memory_the_process_ends(start: Any) -> None:
    for stage in ("use_all_memory", "out_of_memory_wrapped", "out_of_memory_by_text"):
        model = await start()
        model.run("1", stage, "job", resolution=512, steps=30, seed=42000)
        model.run("2", "nothing", "job")
        model.run("3", "nothing", "other")
        died = await model.until(Died)
        (failed,) = model.all(Failed)
        assert failed.error.code == "out_of_memory", failed
        assert failed.error.hint == "Lower resolution, or use a device with more memory."
        told = [("Started", "1"), ("Failed", "1"), ("Revoked", "2"), ("Died", "")]
        assert story(model) == told
        assert died.expected and not died.oom and "out of memory" in died.reason


async def test_a_full_disk_is_told_as_that_without_paths(start: Any) -> None:
    model = await start()
    model.run("1", "disk_full")
    error = (await model.until(Failed)).error
    assert error.code == "disk_full"
    assert error.message == "The disk is full: the model could not write its files."
    assert error.hint
    model.run("2", "nothing")
    await model.until(Finished, "2")


async def test_only_its_supervisor_ends_it_not_a_signal_to_all(start: Any, python: str) -> None:
    model = await start(python=python)
    model.run("1", "sigterm_to_all")
    await model.until(Finished, "1")


async def test_after_an_error_of_the_gpu_the_process_ends(start: Any) -> None:
    model = await start()
    model.run("1", "gpu_error")
    model.run("2", "nothing")
    died = await model.until(Died)
    assert story(model) == [("Started", "1"), ("Failed", "1"), ("Died", "")]
    assert model.all(Failed)[0].error.code == "upstream_failure"
    assert died.expected and "GPU" in died.reason


@pytest.fixture
def small_memory() -> Iterator[Path]:
    """A control group in which processes have 100 MB together, where one can be made."""
    group = _make_memory_group()
    if group is None:
        pytest.skip("control groups cannot be made here")
    yield group
    end = time.monotonic() + 10
    while group.exists():
        try:
            group.rmdir()
        except OSError:  # its processes are dead and not yet forgotten
            assert time.monotonic() < end
            time.sleep(0.01)


def _make_memory_group() -> Path | None:
    """Of version 1 or 2, below the one that this process is in."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        first = "/sys/fs/cgroup/memory" if controllers == "memory" else "/sys/fs/cgroup"
        group = Path(first + path) / f"polypod-test-{os.getpid()}"
        try:
            group.mkdir()
            for name in ("memory.limit_in_bytes", "memory.max"):
                if (group / name).exists():
                    (group / name).write_text(str(100 << 20))
                    return group
            group.rmdir()
        except OSError:
            continue
    return None


async def test_a_process_that_the_kernel_ends_for_want_of_memory(
    start: Any, small_memory: Path
) -> None:
    model = await start()
    (small_memory / "cgroup.procs").write_text(str(model.worker.pid))
    model.run("1", "use_memory", bytes=400 << 20)
    died = await model.until(Died)
    assert died.oom and not died.expected and died.reason == "killed for want of memory"


async def test_a_crash_while_loading(start: Any) -> None:
    model = await start(load="hard_exit")
    died = await model.until(Died)
    (failed,) = model.all(LoadFailed)
    assert failed.error.code == "load_failed" and "exit status 7" in failed.error.message
    assert died.last_words.endswith("the end is near") and not died.expected


async def test_out_of_memory_while_loading(start: Any) -> None:
    model = await start(load="use_all_memory")
    assert (await model.until(LoadFailed)).error.code == "out_of_memory"


async def test_an_interpreter_that_is_not_there(start: Any) -> None:
    model = await start(python="/nowhere/python")
    model.run("1", "nothing")
    died = await model.until(Died)
    (failed,) = model.all(LoadFailed)
    assert failed.error.code == "load_failed" and "MODEL_PYTHON" in failed.error.hint
    assert "/nowhere/python" in died.reason and not model.worker.alive


async def test_stop_and_kill(start: Any, tmp_path: Path, ends: Any) -> None:
    idle, obedient, deaf, loading = [await start(load=load) for load in (None, None, None, "quiet")]
    obedient.run("1", "swallow_exceptions")
    deaf.run("1", "native_call", seconds=1000)
    await obedient.until(Started)
    await deaf.until(Started)
    await idle.until(Loaded)
    await loading.until(Log)
    for model in (idle, obedient, deaf, loading):
        pid = model.worker.pid
        assert (tmp_path / "pids" / f"{pid}.json").exists()
        await model.worker.stop(grace_s=0.3)
        assert isinstance(model.events[-1], Died)
        assert model.events[-1].expected and model.events[-1].reason == "stopped"
        assert ends(pid) and not (tmp_path / "pids" / f"{pid}.json").exists()
        await model.worker.stop()
    assert not loading.all(LoadFailed)
    other = await start()
    other.worker.kill()
    assert (await other.until(Died)).expected


async def test_the_worker_takes_its_children_with_it(start: Any, tmp_path: Path, ends: Any) -> None:
    model = await start()
    model.run("1", "grandchild")
    await model.until(Progress, "1")
    child = int((tmp_path / "out" / "1" / "pid").read_text())
    os.kill(model.worker.pid, signal.SIGKILL)
    await model.until(Died)
    assert ends(child)


async def test_upstream_code_that_closes_the_channel(start: Any) -> None:
    """The worker is deaf then, and ends."""
    model = await start()
    model.run("1", "close_everything")
    died = await model.until(Died)
    assert not died.expected


PARENT = """
import asyncio, sys
from pathlib import Path
from polypod.workers.worker import Progress, StageTask, Worker, WorkerSpec

async def main(code, folder):
    spec = WorkerSpec("sample", "gpu", sys.executable, Path(code), {}, {})
    began = asyncio.Event()
    tell = lambda worker, event: isinstance(event, Progress) and began.set()
    worker = Worker(spec, tell, Path(folder, "pids"))
    await worker.start()
    worker.run(StageTask("1", "", "grandchild", {}, folder + "/out", {}))
    await began.wait()
    print(worker.pid, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("worker_too", [False, True])
async def test_nothing_outlives_the_server(tmp_path: Path, ends: Any, worker_too: bool) -> None:
    """The stage holds the interpreter, so no thread of the worker can act; its child must end."""
    code = Path(__file__).with_name("samples") / "model.py"
    command = [sys.executable, "-c", PARENT, str(code), str(tmp_path)]
    server = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert server.stdout is not None
    pid = int(await server.stdout.readline())
    child = int((tmp_path / "out" / "pid").read_text())
    server.kill()
    if worker_too:
        os.kill(pid, signal.SIGKILL)
    await server.wait()
    assert ends(pid) and ends(child)


# output


async def test_a_chatty_model_is_cut_short_and_goes_on(start: Any) -> None:
    model = await start()
    model.run("1", "flood", lines=100_000)
    await model.until(Finished, "1")
    lines = model.lines("1")
    assert lines[0] == "line 0" and len(lines) < 5000
    assert any(line.endswith("lines left out]") for line in lines)


async def test_heartbeats_tell_memory_and_cpu_time(start: Any) -> None:
    model = await start()
    beat = await model.until(Heartbeat)
    assert beat.memory > 1 << 20 and beat.cpu_seconds > 0 and beat.gpu_memory == 0
    assert model.worker.memory == beat.memory
