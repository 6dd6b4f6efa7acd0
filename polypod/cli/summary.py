"""What became of a picture, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from polypod.cli.output import result_console, talk_console
from polypod.client.views import Json

if TYPE_CHECKING:
    from polypod.cli.batch import Item


def tell_saved(item: Item) -> None:
    """Where the files are, what the mesh is, and the time that it took."""
    out = result_console()
    files = dict(item.files)
    result = files.pop("result", None)
    if result:
        out.print(f"[bold green]{escape(str(result))}[/bold green]")
    views = [str(path) for name, path in sorted(files.items()) if name.startswith("view_")]
    rows = [("views", _span(views))]
    rows += [
        (name.rpartition(".")[0], str(path))
        for name, path in sorted(files.items())
        if not name.startswith("view_")
    ]
    if item.job:
        rows += [("mesh", mesh(item.job.facts)), ("time", _time(item)), ("job", item.job.id)]
    for name, text in rows:
        if text:
            out.print(f"  [dim]{escape(name):9}[/dim] {escape(text)}")
    for note in item.notes:
        talk_console().print(f"  [yellow]note[/yellow]      {escape(note)}")


def mesh(facts: Json) -> str:
    """`5,120 triangles, watertight, 0.52 x 1.00 x 0.31, volume 0.081`."""
    parts: list[str] = []
    if "triangles" in facts:
        parts.append(f"{facts['triangles']:,} triangles")
    if "watertight" in facts:
        parts.append("watertight" if facts["watertight"] else "not watertight")
    if bounds := facts.get("bounds"):
        low, high = bounds
        sides = (f"{b - a:.2f}" for a, b in zip(low, high, strict=True))
        parts.append(" x ".join(sides))
    if facts.get("volume") is not None:
        parts.append(f"volume {facts['volume']:.3g}")
    return ", ".join(parts)


def as_document(item: Item) -> dict[str, Any]:
    """One entry of `--json`."""
    message, hint = item.error or ("", "")
    return {
        "photo": item.source,
        "name": item.name,
        "job_id": item.job.id if item.job else None,
        "status": item.job.status if item.job else "refused",
        "files": {name: str(path) for name, path in sorted(item.files.items())},
        "facts": dict(item.job.facts) if item.job else {},
        "seconds": round(item.seconds, 3) if item.seconds else None,
        "notes": item.notes,
        "error": {"message": message, "hint": hint} if item.error else None,
    }


def _span(paths: Sequence[str]) -> str:
    return f"{paths[0]} … {paths[-1]}" if len(paths) > 1 else "".join(paths)


def _time(item: Item) -> str:
    assert item.job
    took = item.job.processing_time
    model = f"{took:.1f} s on the model" if took is not None else ""
    total = f"{item.seconds:.1f} s in all" if item.seconds else ""
    return ", ".join(part for part in (total, model) if part)
