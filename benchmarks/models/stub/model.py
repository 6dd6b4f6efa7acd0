"""The stub model's declaration: one stage, or two in the same worker."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from polypod.model import Input, Licence, Model, Params, Stage


class StubParams(Params):
    output_format: str = "bin"
    seconds: float = Field(0, ge=0, description="How long each stage holds the device.")
    size_bytes: int = Field(0, ge=0, description="Size of the result.")
    stages: Literal[1, 2] = Field(1, description="How many stages there are.")
    lines: int = Field(0, ge=0, description="How often it prints the time, on its way.")
    deaf: Literal["", "swallow", "native"] = Field("", description="How it ignores a cancel.")


MODEL = Model(
    name="stub",
    title="Stub",
    summary="Holds its device, then leaves bytes.",
    folder=Path(__file__).parent,
    params=StubParams,
    stages=(
        Stage(
            "first",
            inputs=("image",),
            outputs=("finished.bin",),
            params=("seconds", "size_bytes", "seed"),
            when=({"stages": 2},),
        ),
        Stage(
            "work",
            inputs=("image", "finished.bin"),
            outputs=("model.bin",),
            optional=("model.bin",),
            params=("seconds", "size_bytes", "seed", "lines", "deaf"),
            assets=("model.bin",),
        ),
    ),
    formats=("bin",),  # not a mesh: no previews are made of it, as the others make none
    licence=Licence(code="MIT"),
    inputs={"image": Input(required=True)},
)
