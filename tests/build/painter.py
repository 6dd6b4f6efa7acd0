"""A declaration with everything that a declaration can hold, for the tests beside it."""

from __future__ import annotations

from pathlib import Path

from polypod.image import (
    Case,
    Checkout,
    Compiled,
    Hub,
    Image,
    Licensed,
    Needs,
    Step,
    Url,
    Weights,
    Wheels,
)
from polypod.model import Licence, Model, Params, Stage

COMMIT = "cf066761706cd02b07e2fc6274570ec8cdafb683"
OTHER = "253ac4fcea7de5f396371124af597e6cc957bfae"
DIGEST = "ab" * 32

PAINTER = Model(
    name="painter",
    title="Painter",
    summary="Paints.",
    folder=Path(__file__).parent,
    params=Params,
    stages=(
        Stage("shape", ("image",), ("shape.glb",), slot="gpu"),
        Stage("paint", ("shape.glb",), ("model.glb",), slot="gpu"),
    ),
    formats=("glb", "ply"),
    licence=Licence(code="X", commercial=False),
    image=Image(
        python="3.10",
        base="nvidia/cuda:12.1.1-cudnn8-devel-ubuntu22.04",
        base_digest=f"sha256:{DIGEST}",
        packages=("libgl1", "libgomp1"),
        wheels=(
            Wheels("https://wheels.example/cu121", ("torch==2.5.1+cu121",), {"torch": DIGEST}),
            Wheels("https://pages.example/kaolin.html", ("kaolin==0.17.0",), find_links=True),
        ),
        checkouts=(
            Checkout("https://git.example/meta/painter", COMMIT, submodules=("third_party/glm",)),
            Checkout("https://git.example/meta/dino", OTHER, to="{weights}/hub/dino_main"),
        ),
        compiled=(
            Compiled("nvdiffrast", "https://git.example/nv/nvdiffrast", OTHER),
            Compiled("raster", "{src}/painter", folder="raster", env={"FORCE_CUDA": "1"}),
        ),
        steps=(Step("python -m compileall {src}/painter", "bytecode of the source"),),
        env={"TORCH_HOME": "{weights}/torch"},
        imports=("json",),
    ),
    weights=Weights(
        hub=(
            Hub("meta/painter", COMMIT, ("checkpoints/*",), gated=True),
            Hub("meta/later", cache=True, to="hub"),
        ),
        urls=(Url("https://files.example/u2net.onnx", "u2net/u2net.onnx", DIGEST),),
        licensed=(Licensed("SMPLX.npz", "https://smpl.example, after registration"),),
        steps=(Step("python patch.py {weights}/painter", "paths in the configuration"),),
    ),
    needs=Needs(
        vram_gb={"gpu": 32},
        cases=(Case({"output_format": "ply"}, {"gpu": 14}, "claimed by its wrapper"),),
        architectures=("8.0", "8.6", "8.9", "9.0"),
        cuda="12.1",
        driver="530.30",
        memory_gb=1,
        source="upstream's setup.md",
    ),
    presets={"fast": {"output_format": "ply"}, "best": {}},
    default_preset="best",
)
