from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from polypod.workers import process


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "1000"], start_new_session=True)


def end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()


def test_secrets_and_python_settings_stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = {
        "POLYPOD_API_KEYS": "a",
        "POLYPOD_DATABASE_URL": "b",
        "RUNPOD_API_KEY": "c",
        "AWS_ACCESS_KEY_ID": "d",
        "AWS_PROFILE": "e",
        "HF_TOKEN": "f",
        "my_password": "g",
        "GOOGLE_APPLICATION_CREDENTIALS": "h",
        "REDIS_URL": "redis://:password@host/1",
        "PYTHONPATH": "/x",
        "PYTHONHOME": "/y",
    }
    kept = {
        "HF_HOME": "/models",
        "CUDA_VISIBLE_DEVICES": "0",
        "NVIDIA_VISIBLE_DEVICES": "all",
        "TOKENIZERS_PARALLELISM": "false",
        "MIRROR": "https://host/path:1@2",
    }
    for name, value in (secret | kept).items():
        monkeypatch.setenv(name, value)
    given = {"CUDA_VISIBLE_DEVICES": "1", "OWN_TOKEN": "given on purpose"}
    got = process.environment("/opt/model/bin/python", given)
    assert not set(secret) & set(got)
    assert got.items() >= {**kept, "CUDA_VISIBLE_DEVICES": "1"}.items()
    assert got["OWN_TOKEN"] == "given on purpose"
    assert got["PATH"] == f"/opt/model/bin:{os.environ['PATH']}"
    assert got["PYTHONUNBUFFERED"] == got["HF_HUB_OFFLINE"] == "1"


def test_leftovers_are_ended_and_strangers_are_not(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    leftover, stranger, dead = sleeper(), sleeper(), sleeper()
    try:
        for child in (leftover, stranger, dead):
            process.record(pids, child.pid)
        note = json.loads((pids / f"{stranger.pid}.json").read_text())
        (pids / f"{stranger.pid}.json").write_text(json.dumps(note | {"birth": "another boot:1"}))
        (pids / "12.json").write_text("{half a no")
        end(dead)
        assert process.end_leftovers(pids) == 1
        assert leftover.wait(5) == -signal.SIGKILL
        assert stranger.poll() is None
        assert list(pids.iterdir()) == []
        assert process.end_leftovers(tmp_path / "never made") == 0
    finally:
        end(leftover)
        end(stranger)


def test_cpu_time_is_that_of_the_whole_session() -> None:
    code = "import os, time; os.fork(); sum(range(10**7)); print(flush=True); time.sleep(1000)"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE) as both:
        assert both.stdout is not None
        both.stdout.readline()
        both.stdout.readline()
        alone = sum(int(field) for field in process._stat(both.pid)[11:13])
        alone_s = alone / os.sysconf("SC_CLK_TCK")
        assert process.session_cpu_s(both.pid) >= alone_s + 0.05
        process.end_group(both.pid)


@pytest.mark.anyio
@pytest.mark.parametrize("watch", [process._by_pidfd, process._by_thread])
async def test_death_is_told_once_before_the_process_is_reaped(watch: Any) -> None:
    child = sleeper()
    dead: list[int] = []
    told = asyncio.Event()

    def note() -> None:
        dead.append(os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT).si_status)
        told.set()

    watch(child.pid, note)
    os.kill(child.pid, signal.SIGTERM)
    await asyncio.wait_for(told.wait(), 10)
    end(child)
    assert dead == [signal.SIGTERM]


def test_the_kernels_count_of_kills_is_read() -> None:
    count = process.oom_kills()
    assert count is None or count >= 0
