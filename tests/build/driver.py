"""A machine's NVIDIA driver, as far as its own tool tells of it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

HEADER = "| NVIDIA-SMI {driver}   Driver Version: {driver}   CUDA Version: {cuda} |"


def install_driver(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    *gpus: str,
    driver: str = "550.54.15",
    cuda: str = "12.4",
) -> None:
    """`gpus` as `nvidia-smi` lists them: `NVIDIA L4, 23034, 8.9`; their UUIDs: GPU-00, GPU-11..."""
    folder.mkdir(exist_ok=True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    lines = "".join(f"  echo 'GPU-{i}{i}, {gpu}, {driver}'\n" for i, gpu in enumerate(gpus))
    header = HEADER.format(driver=driver, cuda=cuda)
    program = folder / "nvidia-smi"
    program.write_text(f'#!/bin/sh\nif [ $# = 0 ]; then echo "{header}"; else :\n{lines}fi\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
