"""A failure of upstream's code in words: what a model's declaration knows of it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from polypod.jobs.job import JobError
from polypod.model import Fault


def explained(error: JobError, faults: Iterable[Fault]) -> JobError:
    """`error` as the first fault that knows it words it; what upstream said stays behind it.

    Errors that already tell the user what to do are left alone.
    """
    if error.code in ("bad_input", "not_installed", "out_of_memory", "disk_full"):
        return error
    for fault in faults:
        if re.search(fault.pattern, error.message):
            said = f"{fault.message} ({error.message})" if fault.message else error.message
            return replace(error, code=fault.code or error.code, message=said, hint=fault.hint)
    return error
