"""A bare BentoML service: a blocking API method, and FastAPI routes mounted beside it.

STUB_STATUS names a file with the JSON that a status request is answered with.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import bentoml
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from benchmarks.models.stub import worker

app = FastAPI()
STATUS: dict[str, Any] = json.loads(Path(os.environ["STUB_STATUS"]).read_text())


@app.get("/health")
async def health() -> JSONResponse:
    return JSONResponse({"status": "healthy"})


@app.get("/job/{job_id}")
async def status(job_id: str) -> JSONResponse:
    return JSONResponse(STATUS)


@bentoml.service(logging={"access": {"enabled": False}})
@bentoml.asgi_app(app, path="/")
class Bare:
    @bentoml.api
    def generate(self, image: str, seed: int, seconds: float, size_bytes: int) -> bytes:
        return worker.hold(seconds, size_bytes, seed, lambda result: result)
