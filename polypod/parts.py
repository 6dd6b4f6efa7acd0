"""The two parts of a model that works in two steps: what goes before its first work on a GPU, and
that work; and the rest, which can begin anew from what the first part left."""

from __future__ import annotations

from polypod.jobs.job import Job
from polypod.model import Model, Stage


def first_part(model: Model) -> tuple[Stage, ...]:
    """The stages up to the first on a GPU; where there is none, to the one after the cut-out.

    Its last stage is what `--skip-stage1` takes from an earlier job.
    """
    on_gpu = [n for n, stage in enumerate(model.stages) if stage.slot != "cpu"]
    last = on_gpu[0] if on_gpu else min(1, len(model.stages) - 1)
    return model.stages[: last + 1]


def has_passed(job: Job, stage: str) -> bool:
    """A router knows the stages of completed jobs; of others, what their stages have left."""
    runs = {run.stage for run in job.stages}
    return stage in runs | {asset.stage for asset in job.assets}


def parameters(stages: tuple[Stage, ...]) -> set[str]:
    """Those that any of the stages is handed."""
    return {name for stage in stages for name in stage.params}
