"""`polypod job`, `jobs`, `cancel`, `health` and `models`: what a service tells."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polypod.cli.card import licence_lines, needs_lines, rules
from polypod.cli.output import FAILED, at, complain, explain, guarded, print_json, result_console
from polypod.cli.progress import display, what_happens
from polypod.cli.summary import mesh
from polypod.client import ApiError, Client, JobView, ModelCard
from polypod.client.views import Json
from polypod.command import typed

PATIENCE_S = 3.0
"""A person waits: what does not answer by then is told."""
WHOLE = ("job", "parameter", "model", "id", "created", "used", "when")
"""Columns that are copied and compared: never broken."""
COLOURS = {"completed": "green", "failed": "red", "cancelled": "yellow", "processing": "cyan"}


def show_job(job_id: str, follow: bool, as_json: bool, url: str, api_key: str) -> int:
    def work() -> int:
        with _client(url, api_key, 600 if follow else PATIENCE_S) as client:
            job = client.job(job_id).view
            if follow and not job.done:
                job = _follow(client, job, as_json)
        if as_json:
            print_json(job.raw)
        else:
            _print_job(job, job_id, url)
        return FAILED if job.status in ("failed", "cancelled") else 0

    return guarded(work, as_json=as_json)


def show_jobs(model: str, status: str, limit: int, as_json: bool, url: str, api_key: str) -> int:
    def work() -> int:
        with _client(url, api_key) as client:
            jobs = list(client.jobs(model=model, status=status, limit=limit))
        if as_json:
            print_json([job.raw for job in jobs])
        elif not jobs:
            result_console().print("There are no such jobs.")
        else:
            print_table(
                ("job", "model", "status", "created", "took"),
                [(j.id, j.model, _status(j), _when(j.created_at), _took(j)) for j in jobs],
            )
        return 0

    return guarded(work, as_json=as_json)


def cancel_jobs(job_ids: Sequence[str], as_json: bool, url: str, api_key: str) -> int:
    """One that is not there does not keep the others from it."""
    told: list[Json] = []

    def work() -> int:
        with _client(url, api_key) as client:
            for job_id in job_ids:
                try:
                    job = client.cancel(job_id)
                except ApiError as error:
                    complain(*explain(error))
                else:
                    told.append(job.raw)
                    if not as_json:
                        result_console().print(f"{job.id}  {_status(job)}")
        if as_json:
            print_json(told)
        return FAILED if len(told) < len(job_ids) else 0

    return guarded(work, as_json=as_json)


def show_health(as_json: bool, url: str, api_key: str) -> int:
    def work() -> int:
        with _client(url, api_key, 0) as client:
            health = client.health()
        if as_json:
            print_json(health.raw)
        else:
            colour = "green" if health.status == "healthy" else "yellow"
            out = result_console()
            out.print(f"[bold {colour}]{escape(health.status)}[/] {escape(_queue(health.queue))}")
            refuses = health.raw.get("refuses")
            for reason in (*(health.raw.get("reasons") or ()), *([refuses] if refuses else [])):
                out.print(f"  {escape(str(reason))}")
            loaded = "loaded" if health.model_loaded else "not loaded; the next job loads it"
            out.print(f"  model {loaded}; version {escape(health.version)}")
        return 0 if health.status == "healthy" else FAILED

    return guarded(work, as_json=as_json)


def show_models(name: str, as_json: bool, url: str, api_key: str) -> int:
    def work() -> int:
        with _client(url, api_key) as client:
            cards = [client.model(name)] if name else client.models()
        if as_json:
            print_json(cards[0].raw if name else [card.raw for card in cards])
        elif name:
            _print_card(cards[0])
        else:
            print_table(
                ("model", "title", "what it does"),
                [(c.name, escape(c.title), escape(c.summary)) for c in cards],
            )
        return 0

    return guarded(work, as_json=as_json)


def _client(url: str, api_key: str, patience_s: float = PATIENCE_S) -> Client:
    return Client(url, api_key=api_key, patience_s=patience_s)


def _follow(client: Client, job: JobView, as_json: bool) -> JobView:
    with display(as_json=as_json) as shown:
        for event in client.events(job):
            if event.kind == "log":
                shown.log(job.id[:8], str(event.data.get("line", "")))
            else:
                shown.show(job.id[:8], event.job)
    return client.job(job).view


def _print_job(job: JobView, job_id: str, url: str) -> None:
    out = result_console()
    out.print(f"[bold]{job.id}[/bold]  {escape(job.model)}  {_status(job)}")
    if not job.done:
        out.print(f"  {job.progress:.0f} %, {escape(what_happens(job))}")
    if job.error:
        out.print(f"  {escape(job.error.message)} {escape(job.error.hint)}")
    rows: list[tuple[str, str]] = [
        ("created", _when(job.created_at)),
        ("took", _took(job)),
        ("mesh", mesh(job.facts)),
        ("files", ", ".join(asset.name for asset in job.assets)),
    ]
    for name, text in rows:
        if text:
            out.print(f"  [dim]{name:8}[/dim] {escape(text)}")
    if job.status == "completed":
        out.print(f"Save it with: {escape(typed(f'download {job_id}{at(url)}'))}", soft_wrap=True)


def _print_card(card: ModelCard) -> None:
    out = result_console()
    out.print(f"[bold]{escape(card.title)}[/bold] ({card.name})\n{escape(card.summary)}")
    for line in licence_lines(card.licence):
        out.print(escape(line))
    out.print("Needs:")
    for line in needs_lines(card.raw.get("needs") or {}, card.raw.get("needs_by_preset") or {}):
        out.print(escape(line))
    out.print(f"Inputs: {', '.join(_input(n, i) for n, i in card.inputs.items())}")
    for line in rules(card.inputs):
        out.print(escape(line))
    out.print(f"Formats: {', '.join(card.outputs)}")
    if card.presets:
        out.print(f"Presets: {', '.join(card.presets)}")
    properties: Json = card.parameters.get("properties") or {}
    rows = [
        (name, escape(_range(p)), str(p.get("default", "")), escape(p.get("description") or ""))
        for name, p in properties.items()
    ]
    print_table(("parameter", "values", "default", "meaning"), rows)


def _input(name: str, declared: Any) -> str:
    return name if declared.get("required") else f"{name} (optional)"


def _range(schema: Json) -> str:
    """`0 … 1`, `a | b`, or the type."""
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    options: Sequence[Json] = schema.get("anyOf") or [schema]
    kind = " | ".join(str(option.get("type", "")) for option in options)
    low = _first(options, ("minimum", "exclusiveMinimum"))
    high = _first(options, ("maximum", "exclusiveMaximum"))
    if low is None and high is None:
        return kind
    return f"{kind} {'' if low is None else low} … {'' if high is None else high}".rstrip()


def _first(options: Sequence[Json], names: Sequence[str]) -> Any:
    return next((o[n] for o in options for n in names if n in o), None)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """As wide as it needs to be where nobody looks: a pipe must not lose ids."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in head:
        table.add_column(name, no_wrap=name in WHOLE, overflow="fold")
    for row in rows:
        table.add_row(*row)
    out = result_console()
    if out.is_terminal:
        out.soft_wrap = False
        out.print(table)
    else:
        Console(highlight=False, width=200, emoji=False).print(table)


def _status(job: JobView) -> str:
    colour = COLOURS.get(job.status, "default")
    return f"[{colour}]{escape(job.status)}[/]"


def _when(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""


def _took(job: JobView) -> str:
    return f"{job.processing_time:.1f} s" if job.processing_time is not None else ""


def _queue(queue: Json) -> str:
    waiting, room = queue.get("queued", 0), queue.get("max_queue_size", "?")
    return f"{queue.get('processing', 0)} running, {waiting} waiting (room for {room})"
