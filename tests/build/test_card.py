"""What the command line tells of a model before the first job."""

from __future__ import annotations

from dataclasses import replace

from polypod.build.declared import declaration
from polypod.cli.card import licence_lines, needs_lines, rules
from polypod.model import Input, Licence
from tests.build.painter import PAINTER


def test_flags_of_the_licence_are_said_plainly() -> None:
    licence = Licence(
        "Community",
        "the same",
        commercial=False,
        regions_excluded=("EU", "UK"),
        parts={"nvdiffrast": "research only"},
        note="A note.",
    )
    told = list(licence_lines(replace(PAINTER, licence=licence).card["licence"]))
    assert told == [
        "Licence: Community, weights the same; not for commercial use; not licensed in EU, UK",
        "  nvdiffrast: research only",
        "  A note.",
    ]


def test_needs_are_told_by_preset_with_their_source() -> None:
    card = PAINTER.card
    told = "\n".join(needs_lines(card["needs"], card["needs_by_preset"]))
    assert "fast: GPU memory 14 GB (gpu)" in told and "best: GPU memory 32 GB (gpu)" in told
    assert "compute capability 8.0, 8.6, 8.9, 9.0; CUDA 12.1 or newer; 1 GB memory" in told
    assert "figures: upstream's setup.md" in told


def test_a_model_for_any_cpu_asks_for_no_gpu() -> None:
    card = declaration("inflate").card
    told = "\n".join(needs_lines(card["needs"], card["needs_by_preset"]))
    assert "GPU" not in told and "1 GB memory" in told


def test_rules_of_inputs_are_told() -> None:
    inputs = {"image": Input(required=True, rules=("One person, whole.",))}
    assert list(rules(replace(PAINTER, inputs=inputs).card["inputs"])) == [
        "  image: One person, whole."
    ]
