"""Which GPUs there are, as a machine's driver and CUDA_VISIBLE_DEVICES tell."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from polypod.workers.devices import VISIBLE, Devices, visible_as
from tests.build.driver import install_driver

GPUS = ("NVIDIA L4, 23034, 8.9", "NVIDIA A40, 46068, 8.6", "NVIDIA GB10, [N/A], 12.1")
L4, A40, GB10 = "NVIDIA L4", "NVIDIA A40", "NVIDIA GB10"


def seen(monkeypatch: pytest.MonkeyPatch, folder: Path, names: str | None) -> Devices:
    install_driver(monkeypatch, folder / "bin", *GPUS)
    if names is not None:
        monkeypatch.setenv(VISIBLE, names)
    devices = Devices()
    asyncio.run(devices.look())
    return devices


@pytest.mark.parametrize(
    ("names", "gpus"),
    [
        (None, [L4, A40, GB10]),
        ("1", [A40]),
        ("2, 0", [GB10, L4]),
        ("GPU-11", [A40]),
        ("GPU-2,0", [GB10, L4]),
        ("0,7,1", [L4]),
        ("0,-1,1", [L4]),
        ("GPU-,0", []),
        ("", []),
        ("none", []),
        ("MIG-5c6f4a0b,1", ["part of a GPU", A40]),
    ],
)
def test_only_visible_ones_are_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, names: str | None, gpus: list[str]
) -> None:
    devices = seen(monkeypatch, tmp_path, names)
    assert [gpu.name for gpu in devices.gpus] == gpus
    assert devices.describe()["cuda"] is bool(gpus)


def test_memory_is_that_of_the_visible_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    devices = seen(monkeypatch, tmp_path, "1,2")
    assert devices.describe()["gpu"] == {"name": A40, "vram_gb": 45.0}
    capacity = [devices.capacity_gb(f"cuda:{index}") for index in range(3)]
    assert capacity == [45.0, None, None], "one does not tell its memory, one is not there"


@pytest.mark.parametrize(
    ("names", "device", "told"),
    [
        (None, "cuda:1", "1"),
        (None, "cuda", "0"),
        ("3,GPU-11", "cuda:0", "3"),
        ("3, GPU-11", "cuda:1", "GPU-11"),
        ("3", "cuda:1", ""),
        ("", "cuda:0", ""),
    ],
)
def test_a_worker_sees_the_one_that_its_slot_means(
    monkeypatch: pytest.MonkeyPatch, names: str | None, device: str, told: str
) -> None:
    monkeypatch.delenv(VISIBLE, raising=False)
    if names is not None:
        monkeypatch.setenv(VISIBLE, names)
    assert visible_as(device) == told
