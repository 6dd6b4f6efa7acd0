"""Pods as real processes: begun, adopted, started again, ended to the last."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
from pathlib import Path

import httpx
import psutil
import pytest

from polypod.pods import local
from polypod.pods.local import LocalPods, PodSpec, Record, digest, is_alive
from polypod.workers.process import birth
from tests.bento import all_gone

pytestmark = pytest.mark.anyio
SPEC = PodSpec("inflate-1", "inflate")


def record(folder: Path) -> Record:
    return Record(**json.loads((folder / "inflate-1.json").read_text()))


async def until(true, limit_s: float = 90):
    end = asyncio.get_running_loop().time() + limit_s
    while not (value := true()):
        assert asyncio.get_running_loop().time() < end, "not in time"
        await asyncio.sleep(0.05)
    return value


def answers(folder: Path) -> bool:
    """The pod has told its store."""
    return (folder / "inflate-1.json").exists() and bool(record(folder).store_id)


async def test_a_pods_life(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYPOD_API_KEYS", "the-routers-own-key")
    monkeypatch.setenv("MAX_QUEUE_SIZE", "7777")
    monkeypatch.setenv("POLYPOD_HOME", str(tmp_path / "home"))
    folder, came = tmp_path / "pods", []
    pods = LocalPods([SPEC], folder)
    await pods.start(came.append)
    await until(lambda: answers(folder))
    first = record(folder)

    # its key is its own, and only its hash is in its environment
    async with httpx.AsyncClient(base_url=first.known.url, trust_env=False) as http:
        assert (await http.get("/queue")).status_code == 401
        queue = (await http.get("/queue", headers={"X-API-Key": first.key})).json()
        assert queue["max_queue_size"] == 10
    environ = psutil.Process(first.pid).environ()
    assert first.key not in json.dumps(environ)
    assert environ["POLYPOD_HOME"] == str(tmp_path / "home"), "where its model environment is"
    assert "the-routers-own-key" not in json.dumps(environ)
    assert first.key not in " ".join(psutil.Process(first.pid).cmdline())
    assert stat.S_IMODE((folder / "inflate-1.json").stat().st_mode) == 0o600
    assert first.key not in (folder / "inflate-1.log").read_text()
    assert first.key not in repr(first) + repr(came[0])

    # a router that was killed leaves it; the next one goes on with it
    await pods._background.stop()
    pods = LocalPods([SPEC], folder)
    assert [known.url for known in pods.left_running()] == [first.known.url]
    again = []
    await pods.start(again.append)
    await until(lambda: again)
    assert again == [first.known]
    assert record(folder) == first

    # killed, it comes back at the same address with what it had
    os.kill(first.pid, signal.SIGKILL)
    await until(lambda: len(again) == 2)
    assert again[1] == first.known
    await until(lambda: answers(folder))
    second = record(folder)
    assert second.store_id == first.store_id
    assert second.pid != first.pid

    # ended, nothing of it is left
    parent = psutil.Process(second.pid)
    family = [parent, *parent.children(recursive=True)]
    assert len(family) >= 3, "BentoML's parent, the API process, the worker"
    await pods.stop()
    assert all_gone(family)
    assert not list(folder.glob("*.json"))

    # started anew, it has the key to which its finished stages belong
    pods = LocalPods([SPEC], folder)
    await pods.start(came.append)
    await until(lambda: answers(folder))
    assert record(folder).key == first.key
    assert stat.S_IMODE((folder / "inflate-1.key").stat().st_mode) == 0o600
    await pods.stop()


async def test_a_pod_that_is_not_wanted_is_ended(tmp_path):
    folder = tmp_path / "pods"
    folder.mkdir()
    left = await asyncio.create_subprocess_exec("sleep", "1000", start_new_session=True)
    note = Record("old-1", "a digest", left.pid, birth(left.pid), 1, "key")
    (folder / "old-1.json").write_text(json.dumps(note.__dict__))
    pods = LocalPods([], folder)
    assert not list(pods.left_running())
    await pods.start(print)
    await asyncio.wait_for(left.wait(), 20)
    await until(lambda: not list(folder.glob("*.json")))
    await pods.stop()


async def test_another_process_of_the_same_number_is_left_alone(tmp_path):
    folder = tmp_path / "pods"
    folder.mkdir()
    other = await asyncio.create_subprocess_exec("sleep", "1000", start_new_session=True)
    note = Record("old-1", "a digest", other.pid, "another boot:1", 1, "key")
    (folder / "old-1.json").write_text(json.dumps(note.__dict__))
    pods = LocalPods([], folder)
    await pods.start(print)
    await until(lambda: not list(folder.glob("*.json")))
    await pods.stop()
    assert is_alive(other.pid, birth(other.pid))
    other.kill()
    await other.wait()


async def test_a_pod_called_off_while_it_begins_is_ended(tmp_path):
    folder = tmp_path / "pods"
    folder.mkdir()
    os.mkfifo(folder / "inflate-1.key")  # it begins once this can be read to its end
    pods = LocalPods([SPEC], folder)
    await pods.start(print)
    with await asyncio.to_thread((folder / "inflate-1.key").open, "w") as key:
        stopping = asyncio.create_task(pods.stop())
        for _ in range(50):
            await asyncio.sleep(0)
        key.write("key")
    await stopping
    await asyncio.get_running_loop().shutdown_default_executor()  # as the router's end does
    assert not list(folder.glob("*.json"))


async def test_what_was_not_wanted_takes_no_new_pod_with_it(tmp_path):
    """The last of an old pod may outlive its first process by a while."""
    folder = tmp_path / "pods"
    folder.mkdir()
    last = "trap '' TERM; echo $$; sleep 1000"
    left = await asyncio.create_subprocess_exec(
        *("sh", "-c", 'setsid sh -c "$0" & wait', last),
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert left.stdout
    lasting = psutil.Process(int(await left.stdout.readline()))
    note = Record("inflate-1", "other settings", left.pid, birth(left.pid), 1, "key")
    (folder / "inflate-1.json").write_text(json.dumps(note.__dict__))
    pods = LocalPods([SPEC], folder, asleep={"inflate-1"})
    await pods.start(print)
    await left.wait()
    pods.wake("inflate-1")
    await until(lambda: answers(folder))
    assert not lasting.is_running() and not pods.ended
    await pods.stop()


def test_a_pod_of_other_settings_or_other_code_is_not_gone_on_with(tmp_path, monkeypatch):
    before = digest(SPEC)
    assert digest(SPEC) == before
    monkeypatch.setenv("POLYPOD_SLOT_GPU", "cuda:1")
    assert digest(SPEC) != before
    monkeypatch.delenv("POLYPOD_SLOT_GPU")
    monkeypatch.setattr(local, "ROOT", tmp_path)
    empty = digest(SPEC)
    (tmp_path / "services" / "inflate").mkdir(parents=True)
    (tmp_path / "services" / "inflate" / "worker.py").write_text("pass")
    assert len({before, empty, digest(SPEC)}) == 3
