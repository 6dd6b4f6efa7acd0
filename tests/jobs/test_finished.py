"""Finished stages on their way between servers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polypod.jobs.finished import FinishedStage, finished_stages, stages_to_keep
from polypod.jobs.job import FileRef, KeptStage, StageRun
from tests.models.stub.model import MODEL

INPUTS = {"image": FileRef("a" * 64, 10, "image/png", "a.png")}
MADE = {"prepared.json": FileRef("b" * 64, 20, "application/json", "prepared.json")}
PARAMS = MODEL.resolve({"seed": 7})


def kept(owner="one"):
    key = MODEL.stage_key(MODEL.stage("prepare"), {"image": "a" * 64}, PARAMS, owner)
    run = StageRun("prepare", 1.5, "cpu", False)
    return KeptStage(key, "stub", "prepare", owner, MADE, run, "plain", 0.0)


def told(**changes):
    (stage,) = finished_stages(MODEL, INPUTS, PARAMS, [kept()])
    return replace(FinishedStage.from_json(stage.to_json()), **changes)


def test_what_one_has_done_is_the_others_under_its_own_key():
    (taken,) = stages_to_keep(MODEL, INPUTS, PARAMS, "another", [told()])
    assert (taken.key, taken.files, taken.run) == (kept("another").key, MADE, kept().run)
    assert told().key not in (kept("one").key, kept("another").key)


def test_a_stage_that_was_left_out_does_not_hide_those_after_it():
    left_out = replace(MODEL.stages[0], name="motion", only_with="motion")
    model = replace(MODEL, stages=(left_out, *MODEL.stages))
    (taken,) = stages_to_keep(model, INPUTS, PARAMS, "another", [told()])
    assert taken.stage == "prepare"


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "c" * 64},
        {"files": {}},
        {"files": MADE | {"other.bin": MADE["prepared.json"]}},
        {"run": StageRun("work", 1.5, "cpu", False)},
        {"run": StageRun("nothing", 1.5, "cpu", False)},
    ],
    ids=["another key", "a file is missing", "a file too many", "another stage", "no stage"],
)
def test_what_this_server_would_not_have_made_is_not_taken(changes):
    assert stages_to_keep(MODEL, INPUTS, PARAMS, "another", [told(**changes)]) == []


def test_other_inputs_or_parameters_make_it_another_stage():
    other = {"image": replace(INPUTS["image"], digest="d" * 64)}
    assert stages_to_keep(MODEL, other, PARAMS, "another", [told()]) == []
    assert stages_to_keep(MODEL, INPUTS, PARAMS | {"seed": 8}, "another", [told()]) == []


@pytest.mark.parametrize(
    "given",
    [None, {}, {"key": "x", "files": {}, "run": {}}, {"key": "x", "files": [], "run": {}}, "text"],
    ids=str,
)
def test_garbage_is_no_finished_stage(given):
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        FinishedStage.from_json(given)
