"""The stub of `tests/models`, which also notes every run of a stage in the file CHAOS_RUNS."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.models.stub.model import MODEL as STUB

MODEL = replace(STUB, name="chaos", folder=Path(__file__).parent)
HASTY = replace(
    MODEL,
    name="hasty",
    stages=tuple(replace(stage, limit_s=4, silence_s=1.5) for stage in MODEL.stages),
)
