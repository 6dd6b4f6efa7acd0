from __future__ import annotations

import pytest

from polypod.api import params
from polypod.errors import BadInput, BadRequest
from polypod.model import Model


def test_text_of_a_form_becomes_what_the_schema_says(stub: Model) -> None:
    found = params.from_form(
        stub, {"seconds": "0.5", "with_texture": "True", "seed": "null", "say": "1", "steps": "x"}
    )
    assert found == {
        "seconds": 0.5, "with_texture": True, "seed": None, "say": "1", "steps": "x"
    }  # fmt: skip
    assert params.from_form(stub, {"seed": "", "preset": "large"}) == {
        "seed": None,
        "preset": "large",
    }


def test_what_a_form_says_badly_is_named(stub: Model) -> None:
    with pytest.raises(BadInput, match=r"'steps'.*'x'"):
        params.resolve(stub, params.from_form(stub, {"steps": "x"}))


def test_a_form_cannot_nest_for_ever(stub: Model) -> None:
    with pytest.raises(BadInput, match="'steps'"):
        params.resolve(stub, params.from_form(stub, {"steps": "[" * 500 + "]" * 500}))


def test_a_null_seed_is_drawn_and_a_given_one_kept() -> None:
    seeds = {params.draw_seed({"seed": None})["seed"] for _ in range(8)}
    assert len(seeds) > 1
    assert all(0 <= s < 2**32 for s in seeds)
    assert params.draw_seed({"seed": 7}) == {"seed": 7}


def test_a_preset_must_be_text(stub: Model) -> None:
    with pytest.raises(BadInput, match="preset"):
        params.resolve(stub, {"preset": ["plain"]})


def test_going_on_inherits_what_is_not_given(stub: Model) -> None:
    parent = stub.resolve({"preset": "plain", "seed": 9, "steps": 3})
    assert params.inherit(stub, parent, {}) == parent
    assert params.inherit(stub, parent, {"steps": 4}) == {**parent, "steps": 4}
    large = params.inherit(stub, parent, {"preset": "large"})
    assert (large["size_bytes"], large["steps"], large["seed"]) == (2_000_000, 3, 9)
    assert large["preset"] == "large"


def test_a_parent_of_another_version_gives_what_is_still_known(stub: Model) -> None:
    parent = {**stub.resolve({}), "gone": 1}
    assert "gone" not in params.inherit(stub, parent, {})
    with pytest.raises(BadInput, match=r"stepz.*Did you mean 'steps'"):
        params.inherit(stub, parent, {"stepz": 1})


def test_text_fields_are_text() -> None:
    fields = {"until": "work", "model": None, "x": 1}
    assert params.take_text(fields, "until") == "work"
    assert params.take_text(fields, "model") == ""
    assert fields == {"x": 1}
    with pytest.raises(BadRequest):
        params.take_text(fields, "x")
