"""A BentoML task: submitted, asked about, fetched."""

from __future__ import annotations

import bentoml

from benchmarks.models.stub import worker


@bentoml.service(logging={"access": {"enabled": False}})
class Task:
    @bentoml.task
    def generate(self, image: str, seed: int, seconds: float, size_bytes: int) -> bytes:
        return worker.hold(seconds, size_bytes, seed, lambda result: result)
