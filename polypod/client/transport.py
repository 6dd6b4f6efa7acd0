"""What both clients tell httpx."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import httpx

from polypod.client.calls import LOCAL_HOSTS, Call, default_headers
from polypod.client.commands import Lost
from polypod.client.errors import ClientError

H = TypeVar("H", httpx.Client, httpx.AsyncClient)

MOST_READ = 64 << 20
"""Bytes of an answer that is no file; no service of ours tells so much."""


def connected(kind: type[H], transport: Any, timeout_s: float) -> H:
    """Raises ValueError where a proxy that the environment names cannot be used."""
    # a proxy from the environment cannot reach a service on this very machine
    past_proxies = {} if transport else {f"all://{host}": None for host in LOCAL_HOSTS}
    try:
        return kind(
            transport=transport,
            mounts=past_proxies,
            timeout=httpx.Timeout(timeout_s, connect=10),
            headers=dict(default_headers()),
            follow_redirects=False,
        )
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise ValueError(
            f"The proxy that the environment names cannot be used: {error} "
            "Unset ALL_PROXY, HTTP_PROXY and HTTPS_PROXY, or name an http:// proxy."
        ) from error


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


def add(body: bytearray, chunk: bytes) -> None:
    """Raises ClientError where that is more than any answer has."""
    body += chunk
    if len(body) > MOST_READ:
        raise ClientError(
            f"The answer is larger than {MOST_READ >> 20} MiB: this is not a polypod service.",
            "Check the address.",
        )


def lost(error: httpx.RequestError | httpx.InvalidURL) -> Lost:
    """What broke, in words; a certificate, an address or a header that is wrong stays wrong."""
    reason = str(error).rstrip(".") or type(error).__name__
    if isinstance(error, httpx.ConnectTimeout | httpx.ReadTimeout):
        reason = "nothing came in time"
    elif isinstance(error, httpx.ConnectError) and re.search("refused|attempts failed", reason):
        reason = "connection refused"
    wrong = isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL)
    wrong = wrong or bool(re.search("CERTIFICATE|Illegal header", reason))
    return Lost(reason, silent=isinstance(error, httpx.ReadTimeout), for_good=wrong)
