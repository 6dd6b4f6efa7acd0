"""`polypod image`, `build`, `push`, `lock`, `setup` and `doctor`."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import typer
from rich.markup import escape

from polypod.build import doctor
from polypod.build.container import Order, build, context_files, push
from polypod.build.declared import declaration, serving_lock
from polypod.build.dockerfile import dockerfile
from polypod.build.licensed import wanted
from polypod.build.lock import lock, pins
from polypod.build.setup import Supplied, set_up
from polypod.cli.output import FAILED, guarded, print_json, result_console, talk_console
from polypod.cli.settings import read_settings
from polypod.image import Home
from polypod.model import Model
from polypod.workers.devices import Devices


def show_image(name: str) -> int:
    def work() -> int:
        print(dockerfile(declaration(name), serving_lock()), end="")
        print("\n# The build context, made by `bentoml build`:")
        for path in context_files():
            print(f"#   {path}")
        return 0

    return guarded(work)


def build_image(
    name: str,
    tag: str,
    backend: str,
    licensed: Path | None,
    revisions: Sequence[str],
    options: Sequence[str],
) -> int:
    def work() -> int:
        model = declaration(name)
        folder = licensed or ask_for_licensed(model)
        order = Order(backend, tag, folder, _pairs(revisions), tuple(options))
        print(_told(lambda: build(model, order)))
        return 0

    return guarded(work)


def push_image(name: str, image: str, to: str, backend: str, private: bool) -> int:
    def work() -> int:
        print(_told(lambda: push(declaration(name), image, to, backend=backend, private=private)))
        return 0

    return guarded(work)


def lock_model(name: str, check: bool, upgrade: bool) -> int:
    def work() -> int:
        model = declaration(name)
        kept = model.folder / "requirements.lock"
        if not check:
            lock(model, kept, upgrade=upgrade)
            print(f"{kept}: {len(pins(kept.read_text()))} packages")
            return 0
        found = changes(model, kept)
        for line in found:
            print(line)
        return FAILED if found else 0

    return guarded(work)


def changes(model: Model, kept: Path) -> list[str]:
    """What resolving again would change."""
    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder, "requirements.lock")
        if kept.exists():
            shutil.copy(kept, again)
        lock(model, again)
        before = pins(kept.read_text()) if kept.exists() else {}
        after = pins(again.read_text())
    return [
        f"{package}: {before.get(package, 'not locked')} -> {after.get(package, 'not needed')}"
        for package in sorted({*before, *after})
        if before.get(package) != after.get(package)
    ]


def set_up_model(
    name: str, licensed: Path | None, revisions: Sequence[str], no_system: bool
) -> int:
    def work() -> int:
        model, settings = declaration(name), read_settings()
        home = Home(settings.home / model.name)
        folder = licensed or ask_for_licensed(model)
        set_up(model, home, Supplied(folder, _pairs(revisions), no_system), talk_console().print)
        return see_doctor(name, False, False)

    return guarded(work)


def see_doctor(name: str, quick: bool, as_json: bool) -> int:
    def work() -> int:
        devices, model, settings = Devices(), declaration(name), read_settings()
        asyncio.run(devices.look())
        slots = {**model.slot_devices(os.environ), **settings.slots}  # as its service does
        model, settings = model.configured(os.environ), settings.model_copy(update={"slots": slots})
        examine = doctor.examine if quick else doctor.examine_deeply
        findings = examine(model, settings, devices)
        if as_json:
            print_json([asdict(finding) for finding in findings])
        else:
            _print_findings(findings)
        return FAILED if any(finding.blocks for finding in findings) else 0

    return guarded(work)


def _print_findings(findings: Sequence[doctor.Finding]) -> None:
    out = result_console()
    for finding in findings:
        mark = (
            "[green]ok[/]" if finding.well else "[red]no[/]" if finding.blocks else "[yellow]--[/]"
        )
        out.print(f"{mark}  {escape(finding.what):14} {escape(finding.seen)}")
        if finding.todo:
            out.print(f"    {'':14} [bold]{escape(finding.todo)}[/]")


def ask_for_licensed(model: Model) -> Path | None:
    """The folder of the files under licence, from whoever sits at the terminal; None: nobody."""
    files = model.weights.licensed
    if not files or not sys.stdin.isatty():
        return None
    talk_console().print(
        f"{model.title} needs files that nobody may pass on: get them yourself.\n"
        + escape(wanted(files))
    )
    answer: str = typer.prompt("Folder that holds them", err=True)
    return Path(answer).expanduser()


def _told(work: Callable[[], str]) -> str:
    """A builder that fails has said why; its status is all that is left to tell."""
    try:
        return work()
    except subprocess.CalledProcessError as error:
        raise ValueError(
            f"`{error.cmd[0]} {error.cmd[1]}` ended with status {error.returncode}; "
            "the lines above say why."
        ) from error


def _pairs(given: Sequence[str]) -> dict[str, str]:
    pairs = {repo: commit for repo, _, commit in (pair.partition("=") for pair in given)}
    if not all(pairs.values()):
        raise typer.BadParameter("Write it as REPO=COMMIT.", param_hint="--revision")
    return pairs
