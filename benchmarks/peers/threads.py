"""A plain thread queue: one thread computes, results are files, nothing survives the process."""

from __future__ import annotations

import os
import queue
import threading
import uuid
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel

from benchmarks.models.stub import worker


class Order(BaseModel):
    image: str
    seed: int
    seconds: float
    size_bytes: int


app = FastAPI()
folder = Path(os.environ["STUB_FOLDER"])
waiting: queue.SimpleQueue[tuple[str, Order]] = queue.SimpleQueue()
jobs: dict[str, dict[str, Any]] = {}


def compute() -> None:
    while True:
        job_id, order = waiting.get()
        jobs[job_id]["status"] = "processing"
        leave = (folder / job_id).write_bytes
        worker.hold(order.seconds, order.size_bytes, order.seed, leave)
        jobs[job_id]["status"] = "completed"


threading.Thread(target=compute, daemon=True).start()


@app.get("/health")
async def health() -> JSONResponse:
    return JSONResponse({"status": "healthy"})


@app.post("/generate")
async def generate(order: Order) -> JSONResponse:
    job_id = uuid.uuid4().hex
    jobs[job_id] = {"job_id": job_id, "status": "queued"}
    waiting.put((job_id, order))
    return JSONResponse(jobs[job_id], 202)


@app.get("/job/{job_id}")
async def status(job_id: str) -> JSONResponse:
    return JSONResponse(jobs[job_id])


@app.get("/job/{job_id}/download")
async def download(job_id: str) -> FileResponse:
    return FileResponse(folder / job_id)
