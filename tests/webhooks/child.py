"""A server to be killed: `python -m tests.webhooks.child serve|die DATA URL`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from polypod.jobs.engine import Engine, Submission
from polypod.jobs.job import Job, new_id
from polypod.jobs.store.store import Store
from polypod.settings import Settings
from tests.models.stub.model import MODEL


async def serve(data: Path, url: str) -> None:
    """Until killed."""
    settings = Settings(data=data, allow_private_urls=True, webhook_timeout_s=1)
    engine = Engine([MODEL], settings)
    await engine.start()
    if url:
        image = engine.blobs.put_bytes(b"a picture", "image/png")
        params = MODEL.resolve({})
        await engine.submit(Submission("stub", {"image": image}, {}, params, webhook_url=url))
    print("serving", flush=True)
    await asyncio.Event().wait()


async def end_a_job_and_die(data: Path, url: str) -> None:
    """Killed the moment that the end is committed."""
    store = await Store.open(f"sqlite:///{data}/polypod.db")
    job = Job(new_id(), "stub", "", inputs={}, params=MODEL.resolve({}), created_at=1.0)
    job = await store.submit(job, 10, webhook_url=url)
    await store.finish(replace(job, status="failed", finished_at=time.time()))
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    work = end_a_job_and_die if sys.argv[1] == "die" else serve
    asyncio.run(work(Path(sys.argv[2]), sys.argv[3]))
