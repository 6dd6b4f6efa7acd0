"""The doctor on this machine: real files, altered ones, and drivers that tell this or that."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from polypod import kit
from polypod.build import bake, doctor
from polypod.build.doctor import Finding, runs_on
from polypod.image import Home
from polypod.settings import Settings
from polypod.workers.devices import Devices
from tests.build.driver import install_driver
from tests.build.painter import PAINTER

A40 = "NVIDIA A40, 46068, 8.6"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """All that the declaration asks for, made by the script that makes it in images."""
    home = Home(tmp_path / "home" / "painter")
    home.python.parent.mkdir(parents=True)
    home.python.symlink_to(sys.executable)
    for checkout in PAINTER.image.checkouts:
        place = Path(home.fill(checkout.place))
        place.mkdir(parents=True)
        (place / ".commit").write_text(f"{checkout.commit}\n")
    (home.weights / "painter").mkdir(parents=True)
    (home.weights / "painter/a.ckpt").write_bytes(b"weights" * 1000)
    (home.weights / "SMPLX.npz").write_bytes(b"body")
    bake.main(["list", "--to", str(home.weights)])
    return home


@pytest.fixture
def with_a40(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_driver(monkeypatch, tmp_path / "bin", A40)


def see(home: Home, *, deeply: bool = False, model=PAINTER, **settings: object) -> list[Finding]:
    devices = Devices()
    asyncio.run(devices.look())
    chosen = Settings(data=home.path / "data", home=home.path.parent, **settings)  # type: ignore
    examine = doctor.examine_deeply if deeply else doctor.examine
    return examine(model, chosen, devices)


def blocking(findings: Sequence[Finding]) -> list[str]:
    return [finding.what for finding in findings if finding.blocks]


def only(findings: Sequence[Finding], what: str) -> Finding:
    (found,) = (finding for finding in findings if finding.what == what)
    return found


@pytest.mark.usefixtures("with_a40")
def test_all_is_well_where_all_is_there(home: Home) -> None:
    findings = see(home, deeply=True)
    assert [finding for finding in findings if not finding.well] == []
    assert "A40" in only(findings, "cuda:0").seen
    assert "3 files" in only(findings, "digests").seen
    assert only(findings, "imports").seen == "json"


def test_a_missing_background_remover_is_told_and_does_not_stop_the_model(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = replace(PAINTER, stages=(kit.cutout(), *PAINTER.stages))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = only(see(home, model=model), "background remover")
    assert not found.well and not found.blocks and "transparent background" in found.seen
    assert not [f for f in see(home) if f.what == "background remover"], "it has no cut-out"


def test_nothing_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = see(Home(tmp_path / "painter"))
    assert blocking(found) == ["environment", "weights", "cuda:0"]
    assert "polypod setup painter" in only(found, "environment").todo
    weights = only(found, "weights").todo
    assert "meta/painter is gated" in weights and "SMPLX.npz" in weights
    assert "--gpus all" in only(found, "cuda:0").todo


@pytest.mark.usefixtures("with_a40")
@pytest.mark.parametrize("harm", ["shorter", "gone", "list"])
def test_weights_that_are_not_whole_are_seen_at_every_start(home: Home, harm: str) -> None:
    file = home.weights / ("weights.json" if harm == "list" else "painter/a.ckpt")
    file.write_bytes(b"weights") if harm == "shorter" else file.unlink()
    found = see(home)
    assert blocking(found) == ["weights"]
    assert file.name in only(found, "weights").seen


@pytest.mark.usefixtures("with_a40")
def test_altered_bytes_of_the_right_number_are_seen_by_digest_only(home: Home) -> None:
    (home.weights / "painter/a.ckpt").write_bytes(b"weighty" * 1000)
    assert blocking(see(home)) == []
    found = see(home, deeply=True)
    assert blocking(found) == ["digests"] and "painter/a.ckpt" in only(found, "digests").seen


@pytest.mark.usefixtures("with_a40")
def test_a_source_of_another_commit_is_seen(home: Home) -> None:
    (home.src / "painter/.commit").write_text("0" * 40)
    (home.weights / "hub/dino_main/.commit").unlink()
    found = see(home)
    assert "source painter" in blocking(found) and "source dino" in blocking(found)
    assert "is at 0000" in only(found, "source painter").seen


@pytest.mark.usefixtures("with_a40")
def test_imports_that_fail_are_told_by_their_own_words(home: Home) -> None:
    broken = home.src / "upstream_of_painter.py"
    broken.write_text("print('noise on stdout')\nraise SystemExit('no CUDA device')\n")
    names = ("json", "upstream_of_painter", "no_such_package")
    env = {"PYTHONPATH": "{src}"}
    model = replace(PAINTER, image=replace(PAINTER.image, imports=names, env=env))
    found = [f.seen for f in see(home, deeply=True, model=model) if f.what == "imports"]
    assert len(found) == 2
    assert "upstream_of_painter" in found[0] and "no CUDA device" in found[0]
    assert "No module named 'no_such_package'" in found[1]


@pytest.mark.usefixtures("with_a40")
def test_what_only_this_shell_can_import_is_missing(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is for the worker, which is given no PYTHONPATH of ours, and its own commands first."""
    (tmp_path / "only_of_this_shell.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    image = replace(PAINTER.image, imports=("only_of_this_shell",))
    found = see(home, deeply=True, model=replace(PAINTER, image=image))
    assert blocking(found) == ["imports"]


@pytest.mark.parametrize(
    ("gpus", "driver", "cuda", "blocks", "told"),
    [
        (["NVIDIA GeForce RTX 5090, 32607, 12.0"], "570.1", "12.8", ["cuda:0"], "8.0, 8.6, 8.9"),
        (["Tesla T4, 15360, 7.5"], "550.1", "12.4", ["cuda:0"], "compute capability 7.5"),
        (["NVIDIA L4, 23034, 8.9"], "550.1", "12.4", [], "needs 32 GB"),
        ([A40], "470.82", "11.4", ["driver"], "CUDA 12.1 or newer"),
        ([A40], "525.60", "12.2", ["driver"], "driver 530.30 or newer"),
        ([], "550.1", "12.4", ["cuda:0"], "There is no GPU cuda:0"),
        (["NVIDIA A40, 46068, [Not Supported]"], "550.1", "12.4", [], "not told"),
    ],
)
def test_gpus_and_drivers_that_do_not_suit(
    home: Home,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpus: list[str],
    driver: str,
    cuda: str,
    blocks: list[str],
    told: str,
) -> None:
    install_driver(monkeypatch, tmp_path / "bin", *gpus, driver=driver, cuda=cuda)
    found = see(home)
    assert blocking(found) == blocks
    assert any(told in f"{finding.seen} {finding.todo}" for finding in found)


@pytest.mark.usefixtures("with_a40")
def test_only_the_gpus_of_its_slots_are_looked_at(home: Home) -> None:
    assert blocking(see(home, slots={"gpu": "cuda:3"})) == ["cuda:3"]
    assert blocking(see(home, slots={"gpu": "cpu"})) == []


@pytest.mark.parametrize(
    ("architecture", "runs"),
    [("8.0", True), ("8.9", True), ("8.7", True), ("9.0", True), ("7.5", False), ("12.0", False)],
)
def test_code_runs_on_newer_gpus_of_the_same_generation(architecture: str, runs: bool) -> None:
    assert runs_on(("8.0", "8.6", "9.0"), architecture) is runs


def test_the_command_tells_all_and_its_status_says_whether_it_can_work(tmp_path: Path) -> None:
    env = os.environ | {"POLYPOD_DATA": str(tmp_path), "POLYPOD_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "polypod.cli", "doctor"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *more], env=env, capture_output=True, text=True, check=False
        )

    well = run("inflate", "--json")
    assert well.returncode == 0
    assert {finding["what"] for finding in json.loads(well.stdout)} == {"disk", "memory"}
    ill = run("sam3d")
    assert ill.returncode == 1
    assert "polypod setup sam3d" in ill.stdout and "HF_TOKEN" in ill.stdout
    assert run("sam4d").stderr.count("Did you mean 'sam3d'?") == 1
    env["HUNYUAN_DEVICE"] = "cuda:7"
    assert "There is no GPU cuda:7" in run("hunyuan21", "--quick").stdout
    env["POLYPOD_SLOT_TEXTURE"] = "cuda:x"
    assert "cuda:x is no device" in run("hunyuan21", "--quick").stderr
