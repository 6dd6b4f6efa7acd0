from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks.models.stub.model import MODEL as NO_MESH
from polypod.errors import BadInput
from polypod.router.cards import model_of
from services.inflate.model import MODEL as INFLATE
from tests.models.stub.model import MODEL as STUB

MODELS = [INFLATE, STUB]


def over_the_wire(model):
    return model_of(json.loads(json.dumps(model.card)))


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_a_card_says_all_that_a_request_needs(model):
    known = over_the_wire(model)
    assert known.card == json.loads(json.dumps(model.card))
    for given in (
        {},
        {"seed": None},
        {"output_format": "ply"},
        {"preset": list(model.presets)[-1]},
    ):
        assert known.resolve(given) == model.resolve(given)
    assert known.result_name(known.resolve({})) == "model.glb"
    assert [s.name for s in known.plan(known.resolve({}))] == [s.name for s in model.stages]


def test_a_stage_that_is_for_an_input_alone_is_not_planned_without_it():
    first, *rest = STUB.stages
    model = replace(STUB, stages=(replace(first, only_with="mask"), *rest))
    for known in (model, over_the_wire(model)):
        plans = [known.plan(known.resolve({}), inputs=sent) for sent in (["image"], ["mask"], None)]
        assert [first.name in [s.name for s in plan] for plan in plans] == [False, True, True]


def test_stages_that_some_jobs_leave_out_are_planned_as_on_the_pod():
    first, *rest = INFLATE.stages
    some = ({"with_texture": False}, {"depth": {"min": 0.5, "max": 1}, "output_format": ("ply",)})
    model = replace(INFLATE, stages=(replace(first, when=some), *rest))
    known = over_the_wire(model)
    for given in (
        {},
        {"with_texture": False},
        {"depth": 0.6},
        {"depth": 0.6, "output_format": "ply"},
        {"depth": 0.4, "output_format": "ply"},
    ):
        planned = [s.name for s in known.plan(known.resolve(given))]
        assert planned == [s.name for s in model.plan(model.resolve(given))]
    assert first.name not in [s.name for s in known.plan(known.resolve({"depth": 0.6}))]
    assert not any(stage.wanted({}) for stage in known.stages if stage.when)  # an older job


def test_a_model_may_write_by_default_what_is_no_glb():
    known = over_the_wire(NO_MESH)
    assert known.resolve({}) == NO_MESH.resolve({})
    assert known.result_name(known.resolve({})) == "model.bin"


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
@pytest.mark.parametrize(
    "given",
    [
        {"sede": 1},
        {"seed": -1},
        {"seed": "x"},
        {"with_texture": "maybe"},
        {"output_format": "doc"},
        {"preset": "nope"},
        {"depth": 99},
        {"fail": "no such way"},
        {"steps": 0},
    ],
    ids=str,
)
def test_a_bad_request_is_told_as_the_pod_tells_it(model, given):
    def answer(m):
        with pytest.raises(BadInput) as refused:
            m.resolve(given)
        return refused.value.message, refused.value.hint

    assert answer(over_the_wire(model)) == answer(model)


WRONG = {
    "no digest": {"digest": None},
    "a name with a path": {"name": "../stub"},
    "a name with markup": {"name": "<script>"},
    "a title that is no text": {"title": 5},
    "a version that is none": {"version": 5},
    "formats that are none": {"outputs": [5]},
    "presets that are none": {"presets": [1]},
    "a preset that is none": {"presets": {"x": 5}},
    "a stage's share": {"stages": [{"name": "a", "slot": "b", "share": "c", "assets": []}]},
    "a stage's files": {"stages": [{"name": "a", "slot": "b", "share": 1, "assets": ["../c"]}]},
    "a condition that is none": {
        "stages": [
            {"name": "a", "slot": "b", "share": 1, "assets": [], "when": [{"c": {"min": "d"}}]}
        ]
    },
    "an input of no kind": {"inputs": {"image": {"kind": "secret"}}},
    "memory that is no number": {"needs": {"vram_gb": {"gpu": "much"}}},
    "a schema that is none": {"parameters": {"properties": {"x": 5}}},
}


@pytest.mark.parametrize("card", WRONG.values(), ids=WRONG)
def test_a_card_that_would_stop_the_router_is_refused(card):
    with pytest.raises(ValueError):
        model_of(STUB.card | card)


def test_a_card_of_the_future_is_refused():
    with pytest.raises(ValueError, match="schema version 2"):
        model_of(STUB.card | {"schema_version": 2})
