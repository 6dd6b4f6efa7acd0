"""Makes upstream's symbols from a contract, inside the worker's process. See standins.py.

Each takes exactly the parameters that the contract names, with its defaults; every call is noted in
`calls.jsonl` and answered by `answers.py`, which is written for each model. All three files lie
beside this one.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).parent
SYMBOLS = json.loads((HERE / "contract.json").read_text())["symbols"]
REQUIRED = object()
OWN = ("self", "cls")


class Default:
    """A default that is no literal, by its source text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"<default {self.text}>"


def fill(names: dict[str, Any], file: str) -> None:
    """Puts the symbols of an upstream file into the names of the module that stands for it."""
    root = file[: len(file) - len(names["__name__"].replace(".", "/") + ".py")]
    if file.endswith("/__init__.py"):
        root = file[: len(file) - len(names["__name__"].replace(".", "/") + "/__init__.py")]
    own = {row["qualname"]: row for row in SYMBOLS if row["file"] == file}
    classes = dict.fromkeys(name.partition(".")[0] for name in own if is_class(name, own))
    for name in classes:
        make_class(name, own, names, root)
    for name, row in own.items():
        if name not in classes and "." not in name:
            names[name] = make_function(row, names["__name__"])


def is_class(qualname: str, own: dict[str, Any]) -> bool:
    return "." in qualname or "bases" in own[qualname]


def make_class(name: str, own: dict[str, Any], names: dict[str, Any], root: str) -> Any:
    if name in names:
        return names[name]
    row = own.get(name, {"bases": [], "fields": [], "methods": []})
    bases = [base_class(base, own, names, root) for base in row["bases"]]
    body: dict[str, Any] = {"__module__": names["__name__"], **constants(row)}
    described = {q.partition(".")[2]: r for q, r in own.items() if q.startswith(name + ".")}
    for method in row["methods"]:
        if method not in described and not (method.startswith("__") and method != "__init__"):
            body[method] = own_signature(f"{name}.{method}")
    if "__init__" not in row["methods"] and "__post_init__" in row["methods"]:
        body["__init__"] = make_function(dataclass_init(name, row), names["__name__"])
    for method, details in described.items():
        made = make_function(details, names["__name__"])
        kinds = {"staticmethod": staticmethod, "classmethod": classmethod, "property": property}
        for decorator in details["decorators"]:
            made = kinds.get(decorator, lambda same: same)(made)
        body[method] = made
    names[name] = type(name, tuple(dict.fromkeys(filter(None, bases))), body)
    return names[name]


def base_class(name: str, own: dict[str, Any], names: dict[str, Any], root: str) -> Any:
    """A base from the same contract, or the one that `answers.BASES` gives; else none."""
    if any(q == name or q.startswith(name + ".") for q in own):
        return make_class(name, own, names, root)
    file = next((r["file"] for r in SYMBOLS if r["qualname"] == name and "bases" in r), "")
    if file.startswith(root) and file:
        module = file[len(root) :].removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        return getattr(importlib.import_module(module), name)
    return getattr(answers(), "BASES", {}).get(name)


def constants(row: dict[str, Any]) -> dict[str, Any]:
    """Class attributes that are literals."""
    found = {}
    for node in (ast.parse(text).body[0] for text in row["fields"]):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = default_of(ast.unparse(node.value))
    return found


def dataclass_init(name: str, row: dict[str, Any]) -> dict[str, Any]:
    parameters = [{"name": "self", "kind": "POSITIONAL_OR_KEYWORD"}]
    for node in (ast.parse(text).body[0] for text in row["fields"]):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            parameter = {"name": node.target.id, "kind": "POSITIONAL_OR_KEYWORD"}
            given = {"default": ast.unparse(node.value)} if node.value else {}
            parameters.append({**parameter, **given})
    return {"qualname": f"{name}.__init__", "parameters": parameters, "decorators": []}


def make_function(row: dict[str, Any], module: str) -> Any:
    """A function that binds as upstream's does, notes the call, and answers."""
    qualname, signature = row["qualname"], signature_of(row["parameters"])

    def call(*args: Any, **kwargs: Any) -> Any:
        values = bind(qualname, signature, args, kwargs)
        note(qualname, values)
        trip(qualname)
        return answer(qualname)(SimpleNamespace(**values))

    call.__name__, call.__qualname__ = qualname.rpartition(".")[2], qualname
    call.__module__ = module
    return call


def signature_of(parameters: list[dict[str, Any]]) -> inspect.Signature:
    """What has no default gets REQUIRED, so that any order of them is allowed."""
    return inspect.Signature(
        [
            inspect.Parameter(
                row["name"],
                getattr(inspect.Parameter, row["kind"]),
                default=inspect.Parameter.empty
                if row["kind"].startswith("VAR_")
                else default_of(row["default"])
                if "default" in row
                else REQUIRED,
            )
            for row in parameters
        ]
    )


def default_of(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except ValueError:
        return Default(text)


def bind(qualname: str, signature: inspect.Signature, args: Any, kwargs: Any) -> dict[str, Any]:
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{qualname}(): {error}") from None
    bound.apply_defaults()
    missing = [name for name, value in bound.arguments.items() if value is REQUIRED]
    if missing:
        raise TypeError(f"{qualname}() is missing {', '.join(missing)}")
    return dict(bound.arguments)


def own_signature(qualname: str) -> Any:
    """A method whose parameters the contract does not tell: only an answer may define them."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return answer(qualname)(*args, **kwargs)

    return functools.wraps(call, assigned=())(call)


def answer(qualname: str) -> Any:
    found = answers().ANSWERS.get(qualname)
    if found is None and qualname.endswith(".__init__"):
        return keep_arguments
    if found is None:
        raise LookupError(f"answers.py has no answer for {qualname}")
    return found


def keep_arguments(given: SimpleNamespace) -> None:
    values = {name: value for name, value in vars(given).items() if name != "self"}
    vars(given.self).update(values)


def answers() -> Any:
    return importlib.import_module("answers")


def note(qualname: str, values: dict[str, Any]) -> None:
    seen = {name: plain(value) for name, value in values.items() if name not in OWN}
    with (HERE / "calls.jsonl").open("a") as file:
        file.write(json.dumps({"call": qualname, "values": seen}) + "\n")


def trip(qualname: str) -> None:
    """Raises what the test has laid down in `fault.json`: `call`, `error` (a class), `text`."""
    laid = HERE / "fault.json"
    fault = json.loads(laid.read_text()) if laid.exists() else {}
    if fault.get("call") == qualname:
        raise getattr(builtins, fault["error"])(fault["text"])


def plain(value: Any) -> Any:
    """The value as JSON, or what kind of thing it is."""
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    shape = getattr(value, "shape", None)
    return repr(value) if isinstance(value, Default) else f"<{type(value).__name__} {shape}>"
