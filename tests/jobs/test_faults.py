"""Known failures of upstream in words: of a declaration, else of any model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polypod.jobs.faults import explained
from polypod.jobs.job import JobError
from polypod.model import Fault, Needs
from tests.models.stub.model import MODEL

FAULTS = (
    Fault(r"No module named 'rast'", "A package is missing.", "Run the doctor.", "not_installed"),
    Fault(r"No module", "Something is missing.", "Look around."),
)
RAST = replace(MODEL, faults=FAULTS)
PLAIN = replace(MODEL, needs=Needs(architectures=("8.0", "12.0")))


def test_the_first_that_knows_it_words_it() -> None:
    said = "ModuleNotFoundError: No module named 'rast'"
    error = explained(JobError("upstream_failure", said), RAST)
    message = f"A package is missing. ({said})"
    assert error == JobError("not_installed", message, "Run the doctor.")
    other = explained(JobError("load_failed", "No module named 'other'"), RAST)
    assert (other.code, other.hint) == ("load_failed", "Look around.")


@pytest.mark.parametrize("code", ["bad_input", "not_installed", "out_of_memory", "disk_full"])
def test_what_is_told_well_is_left_alone(code: str) -> None:
    error = JobError(code, "No module named 'rast'", "Lower it.")
    assert explained(error, RAST) is error


def test_what_is_missing_without_a_word_of_what_to_do_is_explained() -> None:
    error = explained(JobError("not_installed", "No module named 'rast'"), RAST)
    assert error.hint == "Run the doctor."


@pytest.mark.parametrize(
    ("said", "code", "todo"),
    [
        ("RuntimeError: No CUDA GPUs are available", "no_gpu", "--gpus all"),
        ("RuntimeError: Found no NVIDIA driver on your system", "no_gpu", "--gpus all"),
        ("AssertionError: Torch not compiled with CUDA enabled", "no_gpu", "--gpus all"),
        ("CUDA error: no kernel image is available", "unsupported_gpu", "8.0, 12.0 (A100)"),
        ("The process was killed by SIGILL", "host_fault", "another machine"),
        ("ModuleNotFoundError: No module named 'nvdiffrast'", "not_installed", "doctor"),
        ("ImportError: ops.so: undefined symbol: _ZN2at", "not_installed", "doctor"),
        ("LocalEntryNotFoundError: Cannot find the file", "weights_missing", "doctor"),
        ("HTTPError: HTTP Error 403: rate limit exceeded", "weights_missing", "doctor"),
        ("URLError: <urlopen error [Errno -2] Name or service not known>", "weights_missing", ""),
    ],
)
def test_what_any_model_may_meet_is_known(said: str, code: str, todo: str) -> None:
    error = explained(JobError("upstream_failure", said), PLAIN)
    assert (error.code, todo in error.hint, said in error.message) == (code, True, True)


def test_what_is_not_known_stays() -> None:
    error = JobError("upstream_failure", "ValueError: odd")
    assert explained(error, RAST) is error
