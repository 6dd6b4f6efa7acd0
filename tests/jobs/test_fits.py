"""Whether a job fits the GPU memory, and what is told that would."""

from __future__ import annotations

import pytest

from polypod.errors import BadInput
from polypod.jobs import fits
from polypod.jobs.fits import Capacity
from tests.build.painter import PAINTER


def gb(capacity: float | None) -> Capacity:
    return lambda slot: capacity


@pytest.mark.parametrize("capacity", [32.0, 30.0, 80.0, None])
def test_what_fits_or_is_not_known_is_taken(capacity: float | None) -> None:
    fits.check(PAINTER, PAINTER.resolve({}), "", gb(capacity))


def test_what_does_not_fit_is_refused_with_what_does() -> None:
    with pytest.raises(BadInput) as refused:
        fits.check(PAINTER, PAINTER.resolve({}), "", gb(22.5))
    problem = refused.value
    assert "needs 32 GB of GPU memory (gpu); there are 22.5 GB" in problem.message
    assert problem.extra["fits"] == ["output_format ply"]
    assert "upstream's setup.md" in problem.hint


def test_the_preset_is_asked_for_in_the_format_that_was_asked_for() -> None:
    with pytest.raises(BadInput) as refused:
        fits.check(PAINTER, PAINTER.resolve({"output_format": "ply"}), "", gb(8))
    assert refused.value.extra["fits"] == []
    assert "Nothing that it makes fits" in refused.value.hint
    assert "claimed by its wrapper" in refused.value.hint
