"""Nobody is told before it is on the disk: the order of system calls, seen by strace."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.chaos import trace
from tests.chaos.processes import server
from tests.chaos.storm import Order
from tests.chaos.trace import Call, first

SYNC = ("fsync", "fdatasync")
NAME = ("rename", "renameat", "renameat2", "link", "linkat")
WRITE = ("write", "writev", "pwrite64")
SEND = ("write", "writev", "send", "sendto", "sendmsg")
WAL = r"/polypod\.db-wal>"
COMPLETED = r'\\"status\\": ?\\"completed\\"'


@dataclass(frozen=True)
class Traced:
    """One job, from its submit to the event that ends it."""

    calls: list[Call]
    job_id: str
    picture: str
    """Digest of the upload."""
    outputs: dict[str, str]
    """Digest by asset."""


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    if reason := trace.why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("traced")
    order = Order("key", 5, {"seconds": 0.2, "size_bytes": 100_000}, cancels=False)
    with server(folder, before=trace.command(folder / "trace")) as running:
        job = running.http.post(
            "/generate",
            files={"image": ("noise.png", order.picture, "image/png")},
            data={"seed": "5", **{name: str(value) for name, value in order.params.items()}},
        ).json()["job_id"]
        events = running.http.get(f"/job/{job}/events").text
        assert '"completed"' in events
        shown = running.http.get(f"/job/{job}").json()
    digests = {asset["name"]: asset["sha256"] for asset in shown["assets"]}
    picture = hashlib.sha256(order.picture).hexdigest()
    outputs = {name: digests[name] for name in ("prepared.json", "model.glb", "manifest.json")}
    yield Traced(trace.read(folder / "trace"), job, picture, outputs)


def test_a_202_comes_after_file_name_folder_and_commit(traced: Traced) -> None:
    calls = traced.calls
    kept = named(calls, traced.picture)
    page = first(calls, WRITE, f"{WAL}.*{traced.job_id}", after=kept[-1].ended)
    commit = first(calls, SYNC, WAL, after=page.ended)
    answer = first(calls, SEND, "HTTP/1.1 202")
    assert traced.job_id in answer.text
    in_order(*kept, page, commit, answer)


@pytest.mark.parametrize("name", ["prepared.json", "model.glb", "manifest.json"])
def test_completed_is_said_after_file_name_folder_and_commit(traced: Traced, name: str) -> None:
    calls = traced.calls
    kept = named(calls, traced.outputs[name])
    page = first(calls, WRITE, f"{WAL}.*completed", after=kept[-1].ended)
    commit = first(calls, SYNC, WAL, after=page.ended)
    told = first(calls, SEND, COMPLETED)
    in_order(*kept, page, commit, told)


def named(calls: list[Call], digest: str) -> list[Call]:
    """How a file came to its name: its content synced, the name given, the folder synced."""
    name = first(calls, NAME, f"blobs/{digest[:2]}/{digest}")
    source = re.findall(r'"([^"]*)"', name.text)[0]
    content = first(calls, SYNC, re.escape(f"{source}>"))
    return [content, name, first(calls, SYNC, f"blobs/{digest[:2]}>", after=name.ended)]


def in_order(*calls: Call) -> None:
    for before, after in itertools.pairwise(calls):
        assert before.ended < after.began, f"{before} did not end before {after}"
