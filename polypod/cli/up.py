"""`polypod up` and `polypod endpoints`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from polypod.cli.output import FAILED, at, complain, guarded, print_json, result_console
from polypod.cli.settings import read_settings
from polypod.cli.show import PATIENCE_S, print_table
from polypod.client import Client
from polypod.client.views import Json
from polypod.command import typed
from polypod.errors import Problem

COLUMNS = ("endpoint", "model", "state", "jobs", "job", "gpu", "version", "up", "cost", "url")
COLOURS = {"ready": "green", "busy": "cyan", "lost": "red", "unusable": "red"}


def run_up(host: str, port: int | None, data: Path | None, fleet: Path | None) -> int:
    """Exit status of `polypod up`."""
    from polypod.router.fleet import FLEET, read_fleet
    from polypod.router.up import up

    told: dict[str, Any] = {"host": host} if host else {}
    if port is not None:
        told["port"] = port
    if data is not None:
        told["data"] = data.expanduser().absolute()
    settings = read_settings()
    try:
        up(settings.model_copy(update=told), read_fleet(fleet or FLEET))
    except Problem as problem:
        complain(problem.message, problem.hint)
        return FAILED
    except click.ClickException as error:
        complain(error.message)
        return FAILED
    return 0


def show_endpoints(as_json: bool, url: str, api_key: str) -> int:
    def show(client: Client) -> None:
        found = client.endpoints()
        if as_json:
            print_json(found)
        elif not found:
            add = escape(typed(f"endpoints add ADDRESS{at(url)}"))
            result_console().print(f"There are no endpoints. Add one: {add}", soft_wrap=True)
        else:
            print_table(COLUMNS, [_row(endpoint) for endpoint in found])

    return _ask(show, as_json, url, api_key)


def add_endpoint(
    address: str, name: str, endpoint_key: str, as_json: bool, url: str, api_key: str
) -> int:
    def add(client: Client) -> None:
        added = client.add_endpoint(address, name, endpoint_key)
        if as_json:
            print_json(added)
        else:
            result_console().print(f"{escape(added['id'])} is added; it is {added['state']}.")

    return _ask(add, as_json, url, api_key)


def remove_endpoint(name: str, as_json: bool, url: str, api_key: str) -> int:
    def remove(client: Client) -> None:
        removed = client.remove_endpoint(name)
        if as_json:
            print_json(removed)
        elif removed["jobs"]:
            result_console().print(
                f"{escape(name)} does its {len(removed['jobs'])} jobs, then goes."
            )
        else:
            result_console().print(f"{escape(name)} is removed.")

    return _ask(remove, as_json, url, api_key)


def _ask(what: Callable[[Client], None], as_json: bool, url: str, api_key: str) -> int:
    def work() -> int:
        with Client(url, api_key=api_key, patience_s=PATIENCE_S) as client:
            what(client)
        return 0

    return guarded(work, as_json=as_json)


def _row(endpoint: Json) -> tuple[str, ...]:
    state = str(endpoint["state"])
    cost = endpoint.get("cost_usd")
    gpu: Json = endpoint.get("gpu") or {}
    return (
        escape(endpoint["id"]),
        escape(", ".join(endpoint["models"])),
        f"[{COLOURS.get(state, 'yellow')}]{escape(state)}[/]",
        str(len(endpoint["jobs"])),
        escape(endpoint.get("job") or "")[:8],
        escape(str(gpu.get("name") or "-")),
        escape(endpoint.get("version") or ""),
        _uptime(endpoint.get("uptime_s")),
        "" if cost is None else f"${cost:.2f}",
        escape(endpoint["url"] or ""),
    )


def _uptime(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes = int(seconds // 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
