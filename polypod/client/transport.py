"""What both clients tell httpx."""

from __future__ import annotations

import re
from typing import Any

import httpx

from polypod.client.calls import LOCAL_HOSTS, Call, default_headers
from polypod.client.commands import Lost


def client_options(timeout_s: float) -> dict[str, Any]:
    return {
        "timeout": httpx.Timeout(timeout_s, connect=10),
        "headers": dict(default_headers()),
        "follow_redirects": False,
    }


def request_options(timeout: httpx.Timeout, call: Call) -> dict[str, Any]:
    """The arguments of `build_request`."""
    options: dict[str, Any] = {"method": call.method, "url": call.url, "headers": call.headers}
    if call.parts:
        options["files"] = {
            name: (part.filename, part.data, part.media_type) for name, part in call.parts.items()
        }
        options["data"] = dict(call.form)
    elif call.json is not None:
        options["json"] = call.json
    if call.read_timeout_s:
        options["timeout"] = httpx.Timeout(
            call.read_timeout_s, connect=timeout.connect, write=timeout.write, pool=timeout.pool
        )
    return options


def lost(error: httpx.TransportError) -> Lost:
    """What broke, in words; a certificate or an address that is wrong stays wrong."""
    reason = str(error) or type(error).__name__
    if isinstance(error, httpx.ConnectTimeout | httpx.ReadTimeout):
        reason = "nothing came in time"
    elif isinstance(error, httpx.ConnectError) and re.search("refused|attempts failed", reason):
        reason = "connection refused"
    wrong = isinstance(error, httpx.UnsupportedProtocol) or "CERTIFICATE" in reason
    return Lost(reason, silent=isinstance(error, httpx.ReadTimeout), for_good=wrong)


def past_proxies(transport: object) -> dict[str, None]:
    """A proxy from the environment cannot reach a service on this very machine."""
    return {} if transport else {f"all://{host}": None for host in LOCAL_HOSTS}
