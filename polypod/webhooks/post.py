"""Sends one webhook: to checked addresses only, within a time limit, whatever the receiver does."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from polypod import __version__
from polypod.errors import BadInput
from polypod.safe_http import (
    Resolve,
    Words,
    ask,
    check_addresses,
    check_form,
    make_request,
    parse_target,
    resolve_host,
    tls_context,
)

MAX_ANSWER_BYTES = 4096
MAX_URL = 2000

WORDS = Words(
    "webhook_url",
    example="https://example.com/hooks/polypod",
    use="called",
    other_scheme="Give the address of your own HTTP server.",
    userinfo="Check the signature of what comes instead, or put a token into the path.",
    instead="Use an address that this service can reach from outside of your network.",
)

_OWN_HEADERS = {"Content-Type": "application/json", "User-Agent": f"polypod/{__version__}"}


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    """No more than the first 4096 bytes."""


def check_url(url: str, *, allow_private: bool) -> None:
    """Raises BadInput where it is clear, without asking a name server, that it is not called."""
    if len(url) > MAX_URL:
        raise BadInput(
            f"`{WORDS.name}` has more than {MAX_URL} characters.", "Use a shorter address."
        )
    check_form(url, allow_private, WORDS)


async def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    timeout_s: float,
    allow_private: bool,
    resolve: Resolve = resolve_host,
) -> Answer:
    """What the receiver answers to this JSON; redirects are not followed.

    `timeout_s` covers all up to the head of the answer; its body gets what is left.

    Raises:
        BadInput: an address that must not be called, or no answer in time.
    """
    end = time.monotonic() + timeout_s
    headers = {**_OWN_HEADERS, **headers}
    async with httpx.AsyncHTTPTransport(verify=await asyncio.to_thread(tls_context)) as transport:
        try:
            head = _head(transport, url, body, headers, timeout_s, allow_private, resolve)
            response = await asyncio.wait_for(head, timeout_s)
        except asyncio.TimeoutError:
            raise BadInput(
                f"No answer came within {timeout_s:g} s.", "Answer first, then work."
            ) from None
        except httpx.HTTPError as error:
            raise BadInput("The connection broke before an answer came.") from error
        try:
            return Answer(response.status_code, await _beginning(response, end))
        finally:
            await response.aclose()


async def _head(
    transport: httpx.AsyncBaseTransport,
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    timeout_s: float,
    allow_private: bool,
    resolve: Resolve,
) -> httpx.Response:
    target = parse_target(url, WORDS)
    addresses = await check_addresses(target, allow_private, WORDS, resolve)
    request = make_request("POST", target, headers, body)
    return await ask(transport, request, addresses, timeout_s, WORDS)


async def _beginning(response: httpx.Response, end: float) -> bytes:
    """As much of the body as came until `end`, on the monotonic clock."""
    body = bytearray()

    async def read() -> None:
        async for chunk in response.aiter_raw():
            body.extend(chunk[: MAX_ANSWER_BYTES - len(body)])
            if len(body) >= MAX_ANSWER_BYTES:
                return

    with contextlib.suppress(asyncio.TimeoutError, httpx.HTTPError):
        await asyncio.wait_for(read(), max(end - time.monotonic(), 0))
    return bytes(body)
