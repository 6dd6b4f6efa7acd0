"""Outlines of people, whole and not: a table."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from polypod.kit.cutting import BadInput
from polypod.kit.person import check_person


def figure(top: int = 20, height: int = 360, x: int = 150, canvas: tuple[int, int] = (300, 400)):
    """The outline of somebody standing, whose head begins at `top`."""
    picture = Image.new("L", canvas)
    draw, unit = ImageDraw.Draw(picture), height / 8
    head = (x - unit / 2, top, x + unit / 2, top + unit)
    draw.ellipse(head, fill=255)
    draw.rectangle((x - unit, top + unit, x + unit, top + 4 * unit), fill=255)
    for side in (-1, 1):
        middle = x + side * unit * 0.6
        left, right, sole = middle - unit * 0.3, middle + unit * 0.3, top + 8 * unit
        draw.rectangle((left, top + 4 * unit, right, sole - unit / 4), fill=255)
        draw.ellipse((left, sole - unit / 2, right, sole), fill=255)
    return np.asarray(picture)


def beside(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.concatenate([first, second], axis=1)


WHOLE = figure()
CROPPED_TIGHT = WHOLE[20:381]
FINE = {
    "with space around": WHOLE,
    "a tight cut-out touches all borders": CROPPED_TIGHT[:, 105:196],
    "with a bag lying near": beside(
        WHOLE, np.pad(np.full((60, 40), 255, np.uint8), ((340, 0), (9, 9)))
    ),
}
BAD = {
    "two people": (beside(WHOLE, figure()), "More than one"),
    "cut at the waist": (WHOLE[:200], "the feet"),
    "cut at the knees": (figure(height=540)[:400], "the feet"),
    "without a head": (WHOLE[80:], "the head"),
    "lying": (np.rot90(WHOLE).repeat(2, 0).repeat(2, 1), "wider"),
    "tiny": (figure(height=100), "100 pixels tall|101 pixels tall"),
    "nothing": (np.zeros((300, 300), np.uint8), "0 pixels tall"),
}


@pytest.mark.parametrize("name", FINE)
def test_a_whole_person_passes(name: str) -> None:
    check_person(FINE[name], full_body=True)


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_one_whole_person_is_refused_with_what_to_do(name: str) -> None:
    alpha, words = BAD[name]
    with pytest.raises(BadInput, match=words) as refused:
        check_person(alpha, full_body=True)
    assert refused.value.hint.startswith("Send ")


@pytest.mark.parametrize("name", ["cut at the waist", "without a head", "lying"])
def test_a_part_of_a_person_passes_where_that_is_asked_for(name: str) -> None:
    check_person(BAD[name][0], full_body=False)
