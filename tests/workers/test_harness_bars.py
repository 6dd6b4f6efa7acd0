"""The tap on tqdm, on every interpreter that is here."""

from __future__ import annotations

from typing import Any

import pytest

from polypod.workers.worker import Cancelled, Finished, Started

pytestmark = pytest.mark.anyio

SHARE = 0.8
"""What one outermost bar gets of its range."""


async def play(model: Any, stage: str, **params: Any) -> None:
    model.run(stage, stage, **params)
    await model.until(Finished, stage)


@pytest.mark.parametrize("early", [False, True], ids=["imported late", "imported early"])
async def test_every_kind_of_bar_becomes_progress_and_prints_nothing(
    start: Any, python: str, tqdm_only: dict[str, str], early: bool
) -> None:
    model = await start("bars", python=python, env=tqdm_only, early=early)
    for stage in ("plain", "disabled", "by_hand", "disabled_by_hand", "subclass"):
        await play(model, stage)
        fractions = model.fractions(stage)
        assert fractions[-4:] == [0.2, 0.4, 0.6, 0.8], stage
        assert not model.lines(stage), stage
    assert model.messages("plain")[-4:] == [f"Sampling {n}/4" for n in (1, 2, 3, 4)]
    assert not model.lines()


async def test_a_bar_may_count_in_numbers_that_are_not_pythons(
    start: Any, tqdm_only: dict[str, str]
) -> None:
    model = await start("bars", env=tqdm_only)
    await play(model, "by_numbers_of_numpy")
    assert [round(fraction, 5) for fraction in model.fractions("by_numbers_of_numpy")[-2:]] == [
        0.6,
        0.8,
    ]


async def test_a_bar_without_total_moves_and_never_ends(
    start: Any, tqdm_only: dict[str, str]
) -> None:
    model = await start("bars", env=tqdm_only)
    await play(model, "endless")
    fractions = model.fractions("endless")
    assert len(set(fractions)) >= 6 and fractions == sorted(fractions)
    assert fractions[-1] < SHARE
    assert model.messages("endless")[-1] == "Marching 6"


async def test_bars_fill_the_range_that_progress_gave(
    start: Any, tqdm_only: dict[str, str]
) -> None:
    model = await start("bars", env=tqdm_only)
    await play(model, "within")
    told = list(zip(model.fractions("within"), model.messages("within"), strict=True))
    views = [fraction for fraction, message in told if message.startswith("Views")]
    assert views[0] == 0.2 and views == sorted(views)
    assert {0.28, 0.36, 0.44, 0.52, 0.584} <= set(views) and views[-1] < 0.6
    assert (0.6, "Mesh 2/2") in told
    assert told[-1] == (0.9, "Texture")


async def test_an_inner_bar_fills_one_step_of_the_outer(
    start: Any, tqdm_only: dict[str, str]
) -> None:
    model = await start("bars", env=tqdm_only)
    await play(model, "nested")
    fractions = model.fractions("nested")
    assert fractions == sorted(fractions)
    assert {0.2, 0.4, 0.6, 0.8} <= set(fractions) <= {0.0, 0.2, 0.4, 0.6, 0.8}
    assert "Step 1/2" in model.messages("nested")


async def test_a_bar_that_was_left_makes_room_for_the_next(
    start: Any, tqdm_only: dict[str, str]
) -> None:
    model = await start("bars", env=tqdm_only)
    for stage in ("left_early", "never_closed"):
        await play(model, stage)
        assert model.fractions(stage)[-1] == 0.96, stage  # 0.8, and 0.8 of what is left
        assert model.messages(stage)[-1] == "Second 2/2", stage


async def test_a_bar_of_an_earlier_task_is_harmless(start: Any, tqdm_only: dict[str, str]) -> None:
    model = await start("bars", env=tqdm_only)
    await play(model, "never_closed")
    await play(model, "after_never_closed")
    assert model.fractions("after_never_closed")[-1] == 0.8


async def test_what_is_written_beside_a_bar_is_logged(
    start: Any, tqdm_only: dict[str, str]
) -> None:
    model = await start("bars", env=tqdm_only)
    await play(model, "written")
    lines = model.lines("written")
    assert sorted(lines) == ["printed beside the bar"] * 3 + ["said beside the bar"] * 3


async def test_descriptions_become_messages(start: Any, tqdm_only: dict[str, str]) -> None:
    model = await start("bars", env=tqdm_only)
    await play(model, "described")
    assert model.messages("described")[-1] == "Baking 1/2"
    assert model.fractions("described")[-1] == 0.4


async def test_bars_in_threads(start: Any, tqdm_only: dict[str, str]) -> None:
    model = await start("bars", env=tqdm_only)
    await play(model, "threads")
    assert model.messages("threads")[-1] == "Points 20/20"


@pytest.mark.parametrize("disable", [False, True])
async def test_a_bar_is_a_point_of_cancellation(
    start: Any, python: str, tqdm_only: dict[str, str], disable: bool
) -> None:
    model = await start("bars", python=python, env=tqdm_only)
    model.run("a", "forever", disable=disable)
    await model.until(Started, "a")
    model.worker.cancel("a")
    await model.until(Cancelled, "a")
    assert model.worker.alive and not model.lines("a")
    await play(model, "plain")
