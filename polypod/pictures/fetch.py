"""Gets a file from a URL that a stranger chose.

It goes out through `safe_http`: only to the public internet. Redirects go the same way, one by
one, and never from https down to http.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from http import HTTPStatus

import httpx

from polypod import __version__
from polypod.errors import BadInput, TooLarge
from polypod.safe_http import (
    CHECK,
    Resolve,
    Words,
    ask,
    check_addresses,
    make_request,
    parse_target,
    resolve_host,
    tls_context,
)

MAX_REDIRECTS = 5

_HEADERS = {
    "User-Agent": f"polypod/{__version__}",
    "Accept": "image/*, */*;q=0.5",
    "Accept-Encoding": "identity",
}


async def fetch(
    url: str,
    *,
    max_bytes: int,
    timeout_s: float = 15,
    allow_private: bool = False,
    name: str = "image_url",
    resolve: Resolve = resolve_host,
    transport: httpx.AsyncBaseTransport | None = None,
) -> tuple[bytes, str]:
    """The bytes behind `url` and their content type (lower case, without parameters; may be "").

    `timeout_s` covers everything from the first look-up to the last byte. `name` is what messages
    call the URL. `resolve` and `transport` are where tests stand in for the internet; a transport
    that is given is closed at the end.

    Raises:
        BadInput: a URL that is refused, or a server that does not answer with a file in time.
        TooLarge: more than `max_bytes` bytes.
    """
    try:
        target = parse_target(url, _words(name))
        answer = _follow(target, max_bytes, timeout_s, allow_private, name, resolve, transport)
        return await asyncio.wait_for(answer, timeout_s)
    except asyncio.TimeoutError:
        raise BadInput(
            f"`{name}`: the file did not arrive within {timeout_s:g} s.",
            "Use a faster server, or send the file itself.",
        ) from None


async def _follow(
    target: httpx.URL,
    max_bytes: int,
    timeout_s: float,
    allow_private: bool,
    name: str,
    resolve: Resolve,
    transport: httpx.AsyncBaseTransport | None,
) -> tuple[bytes, str]:
    transport = transport or httpx.AsyncHTTPTransport(verify=await asyncio.to_thread(tls_context))
    async with transport:
        for _ in range(MAX_REDIRECTS + 1):
            addresses = await check_addresses(target, allow_private, _words(name), resolve)
            response = await _get(transport, target, addresses, timeout_s, name)
            try:
                if not response.has_redirect_location:
                    return await _body(response, target, max_bytes, name), _content_type(response)
                target = _redirected(target, response.headers["location"], name)
            finally:
                await response.aclose()
    raise BadInput(
        f"`{name}`: redirected more than {MAX_REDIRECTS} times.", "Give the final address."
    )


async def _get(
    transport: httpx.AsyncBaseTransport,
    target: httpx.URL,
    addresses: Sequence[str],
    timeout_s: float,
    name: str,
) -> httpx.Response:
    request = make_request("GET", target, _HEADERS)
    try:
        return await ask(transport, request, addresses, timeout_s, _words(name))
    except httpx.HTTPError as error:
        raise _broken(target, name) from error


def _redirected(target: httpx.URL, location: str, name: str) -> httpx.URL:
    try:
        joined = str(target.join(location))
    except (httpx.InvalidURL, ValueError):
        joined = ""
    following = parse_target(joined, _words(name))
    if target.scheme == "https" and following.scheme == "http":
        raise BadInput(
            f"`{name}`: the server redirects from https to http, which is not followed.",
            "Give the final address.",
        )
    return following


async def _body(response: httpx.Response, target: httpx.URL, max_bytes: int, name: str) -> bytes:
    if response.status_code != HTTPStatus.OK:
        raise BadInput(
            f"`{name}`: {target.host} answered {_status_words(response.status_code)}.",
            "Open the address in a private browser window: it must lead to the file itself.",
        )
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise BadInput(
            f"`{name}`: the server sends the file compressed, which is not accepted.",
            "Serve it without Content-Encoding, or send the file itself.",
        )
    announced = response.headers.get("content-length", "")
    body = bytearray()
    try:
        if announced.isdecimal() and float(announced) > max_bytes:  # int() has a limit of digits
            raise _too_large(max_bytes, name)
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > max_bytes:
                raise _too_large(max_bytes, name)
    except httpx.HTTPError as error:
        raise _broken(target, name) from error
    if not body:
        raise BadInput(f"`{name}`: {target.host} answered with an empty file.", CHECK)
    return bytes(body)


def _words(name: str) -> Words:
    return Words(
        name,
        example="https://example.com/photo.jpg",
        use="fetched",
        other_scheme=f"Send files and data URLs as `{name.removesuffix('_url')}`.",
        userinfo="Use a signed URL, or send the file itself.",
        instead="Send the file itself.",
    )


def _content_type(response: httpx.Response) -> str:
    return response.headers.get("content-type", "").partition(";")[0].strip().lower()


def _status_words(status: int) -> str:
    """The status with its standard name; the server's own words are not repeated."""
    try:
        return f"{status} ({HTTPStatus(status).phrase})"
    except ValueError:
        return str(status)


def _broken(target: httpx.URL, name: str) -> BadInput:
    return BadInput(
        f"`{name}`: the connection to {target.host} broke before the file had arrived.",
        "Try again, or send the file itself.",
    )


def _too_large(max_bytes: int, name: str) -> TooLarge:
    return TooLarge(
        f"`{name}`: the file is larger than {max_bytes:,} bytes.",
        "Use a smaller file, for example a picture scaled down or saved as JPEG.",
    )
