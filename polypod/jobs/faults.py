"""A failure of upstream's code in words: what the model's declaration knows of it, else what any
model on any machine may meet. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from polypod.jobs.job import JobError
from polypod.model import Fault, Model

DOCTOR = "`polypod doctor` says what is missing; the model's image, or `polypod setup`, brings it."
CARDS = {"8.0": "A100", "8.6": "A40, RTX 30xx", "8.9": "L40S, RTX 40xx", "9.0": "H100, H200"}
"""GPUs by compute capability, for examples."""


def explained(error: JobError, model: Model) -> JobError:
    """`error` as the first fault that knows it words it; what upstream said stays behind it.

    Errors that already tell the user what to do are left alone.
    """
    told = error.code in ("bad_input", "out_of_memory", "disk_full")
    if told or (error.code == "not_installed" and error.hint):
        return error
    for fault in (*model.faults, *general(model.needs.architectures)):
        if re.search(fault.pattern, error.message):
            said = f"{fault.message} ({error.message})" if fault.message else error.message
            return replace(error, code=fault.code or error.code, message=said, hint=fault.hint)
    return error


def general(architectures: Sequence[str]) -> tuple[Fault, ...]:
    """What no model is to blame for. `architectures`: those that it is compiled for."""
    cards = ", ".join(CARDS[name] for name in architectures if name in CARDS)
    known = f"{', '.join(architectures)} ({cards})" if cards else ", ".join(architectures)
    return (
        Fault(
            r"No CUDA GPUs are available|Found no NVIDIA driver|not compiled with CUDA"
            r"|CUDA driver version is insufficient",
            "There is no GPU that CUDA can use.",
            "Start the container with `--gpus all`. `polypod doctor` says what it sees.",
            code="no_gpu",
        ),
        Fault(
            r"no kernel image is available|No available kernel",
            "The image has no code for this GPU.",
            f"Use one of compute capability {known}; newer ones may need another torch.",
            code="unsupported_gpu",
        ),
        Fault(
            r"SIGILL|Illegal instruction",
            "The processor of this machine lacks an instruction that the model's packages use.",
            "Try another machine: on rented ones this happens with old processors.",
            code="host_fault",
        ),
        Fault(
            r"No module named|cannot import name|undefined symbol",
            "A package or a compiled extension of the model is missing.",
            DOCTOR,
            code="not_installed",
        ),
        Fault(
            r"LocalEntryNotFound|couldn't connect|Name or service not known|urlopen error"
            r"|HTTP Error \d|Max retries exceeded|Network is unreachable|outgoing traffic",
            "Weights or code were looked for on the network, which a job may not use.",
            DOCTOR,
            code="weights_missing",
        ),
    )
