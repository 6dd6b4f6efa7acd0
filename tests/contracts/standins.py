"""Stand-ins for upstream, made from `tests/contracts/NAME.json`.

A contract holds the signatures of the upstream symbols that a worker calls, read from upstream's
source. `build` makes importable packages of it: same parameters, same defaults, nothing else
accepted. What they return is told by `answers/NAME.py`; packages of third parties that a worker
needs (torch, omegaconf) are in `packages/` where the real ones are not asked for.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Contract = dict[str, Any]


def contract(name: str) -> Contract:
    return json.loads((HERE / f"{name}.json").read_text())


def build(
    name: str, folder: Path, altered: Contract | None = None, packages: Iterable[str] = ()
) -> Path:
    """Packages that stand in for upstream's, in `folder`, which is then the checkout's root.

    `packages` are names of folders of `packages/` that are put there too. What was called is
    written to `folder/calls.jsonl`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    told = altered or contract(name)
    (folder / "contract.json").write_text(json.dumps(told))
    shutil.copy(HERE / "standin.py", folder / "standin.py")
    answers = HERE / "answers" / f"{name}.py"
    (folder / "answers.py").write_text(
        answers.read_text() if answers.exists() else "ANSWERS = {}\n"
    )
    for file in {row["file"] for row in told["symbols"]}:
        module = folder / file
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(f"import standin\n\nstandin.fill(globals(), {file!r})\n")
    for package in packages:
        shutil.copytree(HERE / "packages" / package, folder, dirs_exist_ok=True)
    return folder


def calls(folder: Path) -> list[dict[str, Any]]:
    """What was called so far, in order: `call` (the qualified name) and `values` by parameter."""
    noted = folder / "calls.jsonl"
    return [json.loads(line) for line in noted.read_text().splitlines()] if noted.exists() else []


def calls_from_now(folder: Path) -> Callable[[str], list[dict[str, Any]]]:
    """What will have been called with, by the end of its qualified name."""
    before = len(calls(folder))
    return lambda name: [
        row["values"] for row in calls(folder)[before:] if row["call"].endswith(name)
    ]


def lay_fault(folder: Path, call: str, error: str, text: str) -> None:
    """From now on this call raises, as upstream would; `text` empty: no call does."""
    laid = {"call": call, "error": error, "text": text} if text else {}
    (folder / "fault.json").write_text(json.dumps(laid))


def with_renamed(told: Contract, qualname: str, parameter: str, to: str) -> Contract:
    """The contract as if upstream had renamed a parameter."""
    altered = copy.deepcopy(told)
    _parameter(altered, qualname, parameter)["name"] = to
    return altered


def without_default(told: Contract, qualname: str, parameter: str) -> Contract:
    """The contract as if upstream had dropped a default."""
    altered = copy.deepcopy(told)
    del _parameter(altered, qualname, parameter)["default"]
    return altered


def _parameter(told: Contract, qualname: str, parameter: str) -> dict[str, Any]:
    symbol = next(row for row in told["symbols"] if row["qualname"] == qualname)
    return next(row for row in symbol["parameters"] if row["name"] == parameter)
