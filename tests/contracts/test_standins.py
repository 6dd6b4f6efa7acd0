"""The stand-ins themselves: what they accept is what the contract says, and nothing else."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.contracts import standins

NAMES = sorted(path.stem for path in standins.HERE.glob("*.json"))
TOLD: standins.Contract = {
    "commit": "-",
    "symbols": [
        {
            "file": "kit/shape.py",
            "qualname": "cut",
            "line": 1,
            "decorators": [],
            "parameters": [
                {"name": "mesh", "kind": "POSITIONAL_OR_KEYWORD"},
                {"name": "ratio", "kind": "POSITIONAL_OR_KEYWORD", "default": "0.5"},
                {"name": "dtype", "kind": "KEYWORD_ONLY", "default": "torch.float16"},
            ],
        },
        {
            "file": "kit/shape.py",
            "qualname": "Pipe",
            "line": 9,
            "bases": ["Base"],
            "fields": ["size = 3"],
            "methods": ["__init__", "make", "other"],
        },
        {
            "file": "kit/shape.py",
            "qualname": "Pipe.make",
            "line": 12,
            "decorators": ["classmethod"],
            "parameters": [
                {"name": "cls", "kind": "POSITIONAL_OR_KEYWORD"},
                {"name": "steps", "kind": "POSITIONAL_OR_KEYWORD"},
            ],
        },
        {
            "file": "kit/base.py",
            "qualname": "Base",
            "line": 1,
            "bases": [],
            "fields": [],
            "methods": ["run"],
        },
        {
            "file": "kit/base.py",
            "qualname": "Base.run",
            "line": 3,
            "decorators": ["torch.no_grad()"],
            "parameters": [
                {"name": "self", "kind": "POSITIONAL_OR_KEYWORD"},
                {"name": "rest", "kind": "VAR_KEYWORD"},
            ],
        },
    ],
}
ANSWERS = """
ANSWERS = {
    "cut": lambda given: [given.mesh, given.ratio, repr(given.dtype)],
    "Pipe.__init__": lambda self: None,
    "Pipe.make": lambda given: given.cls(),
    "Base.run": lambda given: given.rest,
}
"""


def say(folder: Path, code: str, told: standins.Contract = TOLD) -> str:
    """What a process prints in which the stand-ins can be imported; else its last line of error."""
    standins.build("kit", folder, told)
    (folder / "answers.py").write_text(ANSWERS)
    command = [sys.executable, "-c", f"from kit.shape import cut, Pipe\n{code}"]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(folder)}, check=False, capture_output=True, text=True
    )
    return (done.stdout or done.stderr.splitlines()[-1]).strip()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print(cut(1))", "[1, 0.5, '<default torch.float16>']"),
        ("print(cut(1, 2, dtype=3))", "[1, 2, '3']"),
        ("cut(1, 2, 3)", "TypeError: cut(): too many positional arguments"),
        ("cut(1, rate=2)", "TypeError: cut(): got an unexpected keyword argument 'rate'"),
        ("cut(ratio=1)", "TypeError: cut() is missing mesh"),
        ("print(Pipe.make(3).size)", "3"),
        ("print(Pipe().run(a=1))", "{'a': 1}"),
        ("Pipe().other()", "LookupError: answers.py has no answer for Pipe.other"),
        ("Pipe().walk()", "AttributeError: 'Pipe' object has no attribute 'walk'"),
    ],
)
def test_a_call_binds_as_upstreams_does(tmp_path: Path, code: str, said: str) -> None:
    assert say(tmp_path, code) == said


def test_a_changed_contract_refuses_what_was_right_before(tmp_path: Path) -> None:
    renamed = standins.with_renamed(TOLD, "cut", "ratio", "share")
    assert "unexpected keyword argument 'ratio'" in say(tmp_path / "1", "cut(1, ratio=2)", renamed)
    dropped = standins.without_default(TOLD, "cut", "ratio")
    assert say(tmp_path / "2", "cut(1)", dropped) == "TypeError: cut() is missing ratio"
    assert TOLD["symbols"][0]["parameters"][1]["default"] == "0.5"


def test_calls_are_noted(tmp_path: Path) -> None:
    say(tmp_path, "cut([1], dtype=None); Pipe.make(4); print(1)")
    assert standins.calls(tmp_path) == [
        {"call": "cut", "values": {"mesh": [1], "ratio": 0.5, "dtype": None}},
        {"call": "Pipe.make", "values": {"steps": 4}},
    ]


@pytest.mark.parametrize("name", NAMES)
def test_contracts_hold_signatures_of_a_commit_and_no_path(name: str) -> None:
    told: dict[str, Any] = json.loads((standins.HERE / f"{name}.json").read_text())
    assert re.fullmatch(r"[0-9a-f]{40}", told["commit"])
    for row in told["symbols"]:
        assert not row["file"].startswith("/") and ".." not in row["file"]
        assert ("parameters" in row) != ("bases" in row)
        for parameter in row.get("parameters", []):
            assert set(parameter) <= {"name", "kind", "default", "annotation"}


def packages_of(name: str) -> tuple[str, ...]:
    """What a model's answers import."""
    if importlib.util.find_spec(f"tests.contracts.{name}") is None:
        return ()
    return importlib.import_module(f"tests.contracts.{name}").PACKAGES


def environment_of(name: str, folder: Path) -> dict[str, str]:
    """What upstream's packages look for at their import."""
    if importlib.util.find_spec(f"services.{name}") is None:
        return {"PYTHONPATH": str(folder)}
    image = importlib.import_module(f"services.{name}.model").MODEL.image
    return {**image.env, "PYTHONPATH": str(folder)}


def test_every_contract_makes_modules_that_can_be_imported(tmp_path: Path) -> None:
    code = (
        "import json, sys, importlib.util, standin\n"
        "for row in standin.SYMBOLS:\n"
        "    names = {'__name__': row['file'][:-3].replace('/', '.').removesuffix('.__init__')}\n"
        "    standin.fill(names, row['file'])\n"
        "    assert row['qualname'].partition('.')[0] in names, row\n"
    )
    for name in NAMES:
        folder = standins.build(name, tmp_path / name, packages=packages_of(name))
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, env=environment_of(name, folder), check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
