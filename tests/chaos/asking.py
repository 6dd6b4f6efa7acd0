"""What a test asks of a server, job by job."""

from __future__ import annotations

from typing import Any

import httpx

from tests.bento import wait_until
from tests.chaos.processes import Server
from tests.chaos.storm import ENDS, Order


def generate(running: Server, seed: int, **params: object) -> httpx.Response:
    picture = Order("", seed, {}, cancels=False).picture
    return running.http.post(
        "/generate",
        files={"image": ("noise.png", picture, "image/png")},
        data={"seed": str(seed), **{name: str(value) for name, value in params.items()}},
    )


def submit(running: Server, seed: int, **params: object) -> str:
    """The id of a job that was accepted."""
    answer = generate(running, seed, **params)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


def ended(running: Server, job: str, limit_s: float = 40) -> dict[str, Any]:
    """The job once it has ended."""

    def look() -> dict[str, Any] | None:
        shown: dict[str, Any] = running.http.get(f"/job/{job}").json()
        return shown if shown["status"] in ENDS else None

    return wait_until(look, limit_s)


def until_in_work(running: Server) -> None:
    """Until some job is in its second stage, on the slot `gpu`."""
    wait_until(lambda: running.slots().get("gpu") == "work")
