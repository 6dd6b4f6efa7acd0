"""What `polypod run --skip-stage1` goes on from: an earlier job with the same picture."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from polypod.cli.given import is_url
from polypod.client import Client, ClientError, JobView
from polypod.model import Model
from polypod.parts import first_part, parameters


@dataclass(frozen=True)
class Earlier:
    """A job to continue."""

    job: str
    stage: str
    """The last stage of its first part, which must not run again."""
    params: Mapping[str, Any]
    """Those of the first part as they were; the others as they are asked for now."""


def check_possible(photo: str, data: Path | None) -> None:
    """Before anything is started."""
    if data is None:
        raise typer.BadParameter(
            "--skip-stage1 needs --data, the folder of the earlier run; without it nothing is kept."
        )
    if is_url(photo):
        raise typer.BadParameter("--skip-stage1 compares pictures: name a file, not a URL.")
    if not (data / "polypod.db").exists():
        raise typer.BadParameter(
            f"Nothing is kept in {data}: run once with --data {data}, and without --skip-stage1."
        )


def find(client: Client, model: Model, photo: str, asked: Mapping[str, Any]) -> Earlier:
    """The newest job with this picture whose first part is done, with the parameters asked for.

    Raises:
        ClientError: there is none; in words.
    """
    digest = hashlib.sha256(Path(photo).read_bytes()).hexdigest()
    part = first_part(model)
    stage, named = part[-1].name, parameters(part)
    wanted = {name: value for name, value in asked.items() if name in named}
    nearest: Mapping[str, Any] | None = None
    for job in client.jobs(model=model.name):
        if _picture(job) != digest or not _has_passed(job, stage):
            continue
        made = job.raw["params"]
        if wanted.items() <= made.items():
            first = {name: made[name] for name in named if name in made}
            return Earlier(job.id, stage, {**asked, **first})
        nearest = nearest or made
    if nearest is None:
        raise ClientError(
            f"No earlier job with this picture got as far as {stage} here.",
            "Run it once without --skip-stage1, with the same --data and picture.",
        )
    other = next(name for name, value in wanted.items() if nearest.get(name) != value)
    raise ClientError(
        f"The kept {stage} of this picture has {other} {nearest.get(other)!r}, "
        f"not {wanted[other]!r}.",
        f"Leave {other} out, or run without --skip-stage1.",
    )


def _has_passed(job: JobView, stage: str) -> bool:
    """Also a job that failed later: of that one a router knows what its stages have left."""
    left = stage in {asset.stage for asset in job.assets}
    return job.done and (left or stage not in job.remaining_stages)


def _picture(job: JobView) -> str:
    return next((a.sha256 for a in job.assets if a.kind == "input" and a.name == "image"), "")
