"""Known failures of upstream in the words of a declaration."""

from __future__ import annotations

import pytest

from polypod.jobs.faults import explained
from polypod.jobs.job import JobError
from polypod.model import Fault

FAULTS = (
    Fault(r"No module named 'rast'", "A package is missing.", "Run the doctor.", "not_installed"),
    Fault(r"No module", "Something is missing.", "Look around."),
)


def test_the_first_that_knows_it_words_it() -> None:
    said = "ModuleNotFoundError: No module named 'rast'"
    error = explained(JobError("upstream_failure", said), FAULTS)
    message = f"A package is missing. ({said})"
    assert error == JobError("not_installed", message, "Run the doctor.")
    other = explained(JobError("load_failed", "No module named 'other'"), FAULTS)
    assert (other.code, other.hint) == ("load_failed", "Look around.")


@pytest.mark.parametrize("code", ["bad_input", "out_of_memory", "disk_full"])
def test_what_is_told_well_is_left_alone(code: str) -> None:
    error = JobError(code, "No module named 'rast'", "Lower it.")
    assert explained(error, FAULTS) is error


def test_what_is_not_known_stays() -> None:
    error = JobError("upstream_failure", "ValueError: odd")
    assert explained(error, FAULTS) is error
