"""`polypod keys`: works on the data folder's database, whether a server runs there or not."""

from __future__ import annotations

import asyncio
import getpass
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.markup import escape

from polypod.access.kept import database_file, database_url, keys_were_made
from polypod.access.keys import Key, new_key
from polypod.access.records import Act, Records
from polypod.cli.output import FAILED, complain, print_json, result_console, talk_console
from polypod.cli.settings import read_settings
from polypod.cli.show import print_table
from polypod.command import typed
from polypod.errors import Conflict, NotFound, Problem
from polypod.jobs.store.store import Store
from polypod.settings import Settings


def create_key(
    name: str,
    scopes: Sequence[str],
    per_minute: int | None,
    most_queued: int | None,
    data: Path | None,
    as_json: bool,
) -> int:
    """Exit status of `polypod keys create`. The key is on stdout, what is said of it on stderr."""

    async def work(records: Records) -> None:
        secret, key = new_key(
            name, scopes, at=time.time(), submits_per_minute=per_minute, most_queued=most_queued
        )
        await records.add(key, _who())
        if as_json:
            print_json({"key": secret, **_shown(key)})
            return
        print(secret)
        talk_console().print(
            f"Key {key.id} ({escape(name)}): {', '.join(sorted(key.scopes))}. It is shown only "
            "now; keep it where secrets are kept. Send it as `X-API-Key` or "
            "`Authorization: Bearer`; the client reads POLYPOD_API_KEY."
        )
        if first:
            talk_console().print(
                "This is the first key: from now on the server answers nobody without one, "
                "also on this machine."
            )

    settings = _settings(data)
    try:
        first = not settings.api_keys and not keys_were_made(settings)
    except Problem as problem:
        return _failed(problem, as_json)
    return _with_records(work, settings, as_json, new=True)


def list_keys(data: Path | None, as_json: bool) -> int:
    """Exit status of `polypod keys list`."""

    async def work(records: Records) -> None:
        keys = await records.keys()
        if as_json:
            print_json([_shown(key) for key in keys])
        elif not keys:
            result_console().print("There are no keys.")
        else:
            _print_keys(keys)

    return _with_records(work, _settings(data), as_json)


def revoke_key(which: str, data: Path | None, as_json: bool) -> int:
    """Exit status of `polypod keys revoke`."""

    async def work(records: Records) -> None:
        key = _find(which, await records.keys())
        if not await records.revoke(key.id, _who()):
            raise Conflict(f"Key {key.id} is revoked already.")
        if as_json:
            print_json({"id": key.id, "name": key.name})
        else:
            result_console().print(f"Revoked {key.id} ({escape(key.name)}).")

    return _with_records(work, _settings(data), as_json)


def show_audit(limit: int, data: Path | None, as_json: bool) -> int:
    """Exit status of `polypod keys audit`."""

    async def work(records: Records) -> None:
        acts = await records.acts(limit)
        names = {key.id: key.name for key in await records.keys()}
        if as_json:
            print_json([vars(act) for act in acts])
        elif not acts:
            result_console().print("Nothing was administrated yet.")
        else:
            _print_acts(acts, names)

    return _with_records(work, _settings(data), as_json)


def _with_records(
    work: Callable[[Records], Awaitable[None]],
    settings: Settings,
    as_json: bool,
    new: bool = False,
) -> int:
    """`new`: the database is made if it is not there; else a wrong folder would show no keys."""
    if not new and not settings.database_url and not database_file(settings).exists():
        problem = NotFound(
            f"There is no polypod database in {settings.data}.",
            "Name the server's data folder with --data.",
        )
        return _failed(problem, as_json)

    async def run() -> None:
        store = await Store.open(database_url(settings))
        try:
            await work(store.access)
        finally:
            await store.close()

    try:
        asyncio.run(run())
    except Problem as problem:
        return _failed(problem, as_json)
    return 0


def _failed(problem: Problem, as_json: bool) -> int:
    if as_json:
        print_json({"error": problem.message, "hint": problem.hint})
    complain(problem.message, problem.hint)
    return FAILED


def _settings(data: Path | None) -> Settings:
    settings = read_settings()
    if data is None:
        return settings
    return settings.model_copy(update={"data": data.expanduser().absolute()})


def _who() -> str:
    try:
        return f"shell:{getpass.getuser()}"
    except (KeyError, OSError):  # a user id without a name, in a container
        return "shell"


def _find(which: str, keys: Sequence[Key]) -> Key:
    """The key of that id, or the only one of that name; revoked ones do not count beside others."""
    found = [key for key in keys if key.id == which]
    named = [key for key in keys if key.name == which]
    found = found or [key for key in named if key.revoked_at is None] or named[-1:]
    if not found:
        raise NotFound(f"There is no key {which!r}.", f"`{typed('keys list')}` shows all.")
    if len(found) > 1:
        raise Conflict(f"{len(found)} keys are called {which!r}.", "Name one by its id.")
    return found[0]


def _shown(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "submits_per_minute": key.submits_per_minute,
        "most_queued": key.most_queued,
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
        "last_used_at": key.last_used_at,
    }


def _print_keys(keys: Sequence[Key]) -> None:
    rows = [
        (
            key.id,
            escape(key.name),
            " ".join(sorted(key.scopes)),
            _limits(key),
            _when(key.created_at),
            _when(key.last_used_at),
            "revoked" if key.revoked_at else "",
        )
        for key in keys
    ]
    print_table(("id", "name", "scopes", "limits", "created", "used", ""), rows)


def _print_acts(acts: Sequence[Act], names: dict[str, str]) -> None:
    rows = [
        (_when(act.at), escape(f"{act.who} {names.get(act.who, '')}"), act.act, escape(act.object))
        for act in acts
    ]
    print_table(("when", "who", "what", "of"), rows)


def _limits(key: Key) -> str:
    limits = ((key.submits_per_minute, "a minute"), (key.most_queued, "queued"))
    return ", ".join(f"{limit} {what}" for limit, what in limits if limit is not None)


def _when(at: float | None) -> str:
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M") if at else ""
