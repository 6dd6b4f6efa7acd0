"""inflate: real geometry from the silhouette of one picture, on any CPU, without weights."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from polypod.model import Input, Licence, Model, Needs, Params, Stage


class InflateParams(Params):
    """What the four stages can be told."""

    resolution: int = Field(
        192,
        ge=32,
        le=768,
        description="Grid cells along the longer side of the object: finer shape and rim; "
        "triangles and solving time grow with its square.",
    )
    depth: float = Field(
        1.0,
        ge=0.05,
        le=3.0,
        description="Thickness. 1 makes a half sphere of a disc on each side; the height above "
        "the silhouette is multiplied by it.",
    )
    relief: float = Field(
        0.3,
        ge=0.0,
        le=1.0,
        description="Detail on the front from the picture's light and dark, up to half of the "
        "local height at 1; 0 leaves the front as smooth as the back.",
    )
    texture_size: int = Field(
        1024,
        ge=64,
        le=4096,
        description="Most pixels along the longer side of the texture. The picture is made smaller "
        "to fit and never enlarged (it is kept at up to 2048 pixels).",
    )
    seed: int | None = Field(
        42,
        ge=0,
        lt=2**32,
        description="No effect: nothing here is random. The same picture and parameters give the "
        "same bytes.",
    )
    with_texture: bool = Field(
        True,
        description="Put the photograph on the surface; false leaves it plain grey and skips the "
        "stage.",
    )


MODEL = Model(
    name="inflate",
    title="Inflate",
    summary="Blows the silhouette of one object up to a closed surface with the photograph on it. "
    "Runs on any CPU in a fraction of a second, without a GPU and without weights.",
    folder=Path(__file__).parent,
    params=InflateParams,
    inputs={
        "image": Input(
            required=True,
            description="One object before a background of other colours, or a PNG whose "
            "transparent part is the background.",
        ),
        "mask": Input(
            description="A picture of the same shape, white (or opaque) where the object is; it "
            "takes the place of the cut-out.",
        ),
    },
    stages=(
        Stage(
            "cutout",
            inputs=("image", "mask"),
            outputs=("input.png",),
            assets=("input.png",),
            slot="cpu",
            share=5,
            limit_s=60,
        ),
        Stage(
            "inflate",
            inputs=("input.png",),
            outputs=("mesh.npz",),
            params=("resolution", "depth", "relief"),
            slot="cpu",
            share=3,
            limit_s=120,
        ),
        Stage(
            "texture",
            inputs=("input.png",),
            outputs=("texture.jpg",),
            params=("texture_size",),
            assets=("texture.jpg",),
            slot="cpu",
            share=1,
            limit_s=60,
            when=({"with_texture": True},),
        ),
        Stage(
            "export",
            inputs=("mesh.npz", "texture.jpg"),
            outputs=("model.glb", "model.ply"),
            optional=("model.glb", "model.ply"),
            params=("output_format",),
            assets=("model.glb", "model.ply"),
            slot="cpu",
            share=1,
            limit_s=60,
        ),
    ),
    formats=("glb", "ply"),
    licence=Licence(
        code="MIT",
        note="No weights. rembg and its weights, where someone has installed them, have their own.",
    ),
    needs=Needs(
        cpu_cores=1,
        memory_gb=1,
        disk_gb=1,
        source="measured with benchmarks/inflate.py: README.md",
    ),
    presets={
        "draft": {"resolution": 96, "texture_size": 512},
        "balanced": {"resolution": 192, "texture_size": 1024},
        "high": {"resolution": 384, "texture_size": 2048},
    },
    default_preset="balanced",
)
