"""What a declaration says of its image, weights, needs and licence; and that the card shows it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from polypod.image import Case, Checkout, Compiled, Home, Hub, Needs, Url, Weights, Wheels
from polypod.model import Licence, Model, Params, Stage
from polypod.router.cards import model_of

COMMIT = "cf066761706cd02b07e2fc6274570ec8cdafb683"


class TexturedParams(Params):
    texture_size: int = 1024


TWO_SLOTS = Model(
    name="two",
    title="Two",
    summary="Two slots.",
    folder=Path(__file__).parent,
    params=TexturedParams,
    stages=(
        Stage("shape", ("image",), ("shape.glb",), slot="geometry"),
        Stage("views", ("shape.glb",), ("views.npz",), slot="texture", worker="painter"),
        Stage("bake", ("views.npz",), ("model.glb",), slot="texture", worker="baker"),
    ),
    formats=("glb", "ply"),
    licence=Licence(code="X", commercial=False, regions_excluded=("EU",), parts={"y": "research"}),
    needs=Needs(
        vram_gb={"geometry": 10, "painter": 21, "baker": 8},
        cases=(
            Case({"output_format": "ply"}, {"painter": 0, "baker": 0}, "the mesh is not textured"),
            Case({"texture_size": {"min": 2048}, "preset": ["high"]}, {"baker": 31}),
        ),
        architectures=("8.0", "9.0"),
        cuda="12.4",
    ),
    presets={"low": {}, "high": {"texture_size": 2048}},
    default_preset="low",
    weights=Weights(hub=(Hub("owner/name", COMMIT, gated=True),)),
)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"geometry": 10, "texture": 21}),
        ({"preset": "high"}, {"geometry": 10, "texture": 31}),
        ({"preset": "high", "texture_size": 1024}, {"geometry": 10, "texture": 21}),
        ({"texture_size": 4096}, {"geometry": 10, "texture": 21}),
        ({"output_format": "ply"}, {"geometry": 10}),
    ],
)
def test_gpu_memory_follows_what_is_asked_for(
    given: dict[str, object], expected: dict[str, float]
) -> None:
    params = TWO_SLOTS.resolve(given)
    assert TWO_SLOTS.vram_gb(params) == expected


def test_stages_that_are_not_run_need_nothing() -> None:
    assert TWO_SLOTS.vram_gb(TWO_SLOTS.resolve({}), until="shape") == {"geometry": 10}


def test_the_card_shows_licence_needs_and_weights_and_a_router_reads_them_back() -> None:
    card = json.loads(json.dumps(TWO_SLOTS.card))
    assert card["licence"]["regions_excluded"] == ["EU"]
    assert not card["licence"]["commercial"]
    assert card["needs_by_preset"] == {
        "low": {"geometry": 10, "texture": 21},
        "high": {"geometry": 10, "texture": 31},
    }
    assert card["weights"] == [{"source": "owner/name", "revision": COMMIT}]
    known = model_of(card)
    for given in ({}, {"preset": "high"}, {"output_format": "ply"}):
        assert known.vram_gb(known.resolve(given)) == TWO_SLOTS.vram_gb(TWO_SLOTS.resolve(given))


def test_other_weights_make_other_results() -> None:
    other = replace(TWO_SLOTS, weights=Weights(urls=(Url("https://x.example/w", "w", "0" * 64),)))
    assert other.code_digest != TWO_SLOTS.code_digest


def test_nothing_that_moves_can_be_declared() -> None:
    with pytest.raises(ValueError, match="no commit"):
        Checkout("https://github.com/owner/name", "main")
    with pytest.raises(ValueError, match="no commit"):
        Compiled("x", "https://github.com/owner/name", "v0.4.0")
    with pytest.raises(ValueError, match="no commit"):
        Hub("owner/name", "main")
    with pytest.raises(ValueError, match="not pinned"):
        Wheels("https://index.example", ("torch>=2",))


def test_places_are_put_into_texts_and_nothing_else_is() -> None:
    home = Home(Path("/opt/polypod/two"))
    assert home.fill("{src}/a:${HOME}:{other}") == "/opt/polypod/two/src/a:${HOME}:{other}"
    assert home.fill(Checkout("https://h.example/a/b", COMMIT).place) == "/opt/polypod/two/src/b"
