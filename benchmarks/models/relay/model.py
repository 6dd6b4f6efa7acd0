"""A model of two stages on two slots, which hold their device for a given time; one on the CPU goes
before them if that is asked for."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from polypod.model import Input, Licence, Model, Needs, Params, Stage


class RelayParams(Params):
    output_format: str = "bin"
    shape_s: float = Field(0.3, ge=0, description="How long the first stage holds its device.")
    paint_s: float = Field(0.2, ge=0, description="How long the second one does.")
    prepare: bool = Field(False, description="Begin with a stage on the CPU.")


MODEL = Model(
    name="relay",
    title="Relay",
    summary="Two stages on two slots, one after the other.",
    folder=Path(__file__).parent,
    params=RelayParams,
    stages=(
        Stage(
            "prepare",
            inputs=("image",),
            outputs=("input.bin",),
            slot="cpu",
            when=({"prepare": True},),
        ),
        Stage(
            "shape",
            inputs=("image", "input.bin"),
            outputs=("shape.bin",),
            params=("shape_s", "seed"),
            slot="geometry",
        ),
        Stage(
            "paint",
            inputs=("shape.bin",),
            outputs=("model.bin",),
            params=("paint_s",),
            assets=("model.bin",),
            slot="texture",
        ),
    ),
    formats=("bin",),
    inputs={"image": Input(kind="file", required=True)},
    licence=Licence(code="MIT"),
    needs=Needs(vram_gb={"geometry": 10, "texture": 21}),
)
