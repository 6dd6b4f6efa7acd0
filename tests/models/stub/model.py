"""A model for tests and benchmarks: it waits, fails or fills files as its parameters say.

What it leaves is a real GLB (or PLY) of a box, padded to `size_bytes`, so conversion and previews
work on it. Jobs with other parameters or another picture share no stage; `seed: null` draws a new
seed at submit, so it also makes a job new.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from polypod.model import Input, Licence, Model, Params, Stage


class StubParams(Params):
    """What the stub does, and what goes wrong with it."""

    prepare_seconds: float = Field(0, ge=0, le=600, description="Time that `prepare` takes.")
    seconds: float = Field(0, ge=0, le=600, description="Time that `work` takes.")
    steps: int = Field(5, ge=1, le=1000, description="Progress reports of each stage.")
    size_bytes: int = Field(0, ge=0, le=2**30, description="Size of the result, at least.")
    say: str = Field("", max_length=1000, description="Printed by `work`, line by line.")
    fail: Literal["", "bad_input", "error", "exit", "memory", "kill", "native", "hang"] = Field(
        "", description="How it fails, half-way."
    )
    fail_in: Literal["prepare", "work"] = Field("work", description="The stage that fails.")


MODEL = Model(
    name="stub",
    title="Stub",
    summary="Waits, then leaves a box.",
    folder=Path(__file__).parent,
    params=StubParams,
    stages=(
        Stage(
            "prepare",
            inputs=("image", "mask", "motion"),
            outputs=("prepared.json",),
            params=("prepare_seconds", "steps", "seed", "fail", "fail_in"),
            assets=("prepared.json",),
            slot="cpu",
            share=1,
            limit_s=900,
        ),
        Stage(
            "work",
            inputs=("prepared.json",),
            outputs=("model.glb", "model.ply"),
            optional=("model.glb", "model.ply"),
            params=(
                "seconds",
                "steps",
                "size_bytes",
                "say",
                "seed",
                "fail",
                "fail_in",
                "output_format",
            ),
            assets=("model.glb", "model.ply"),
            slot="gpu",
            share=4,
            limit_s=900,
        ),
    ),
    formats=("glb", "ply"),
    licence=Licence(code="MIT"),
    presets={"plain": {}, "large": {"size_bytes": 2_000_000}},
    default_preset="plain",
    inputs={
        "image": Input(required=True, description="Any picture."),
        "mask": Input(description="A second picture."),
        "motion": Input(kind="json", description="Any JSON."),
    },
)
