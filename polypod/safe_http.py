"""The way out to addresses that strangers chose, without becoming their door to this network.

Only the public internet is reached: names are resolved here, every address is checked, and the
connection goes to the checked address itself, so that a name cannot point elsewhere a moment
later. TLS and the Host header still carry the name. Proxies of the environment are not used.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx

from polypod.errors import BadInput

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host name and port to IP addresses, the preferred one first; raises OSError."""

_MAX_ADDRESSES = 4

_PRIVATE = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8"),
        *("::1/128", "fc00::/7"),
    )
)
"""What `allow_private` opens."""

_NEVER = tuple(
    ipaddress.ip_network(text)
    for text in (
        # This network, link-local (cloud metadata), protocol assignments, documentation,
        # benchmarks, 6to4 relays, multicast, reserved (IANA special-purpose registries).
        *("0.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        # Metadata services outside of link-local: Alibaba, Azure, AWS.
        *("100.100.100.200/32", "168.63.129.16/32", "fd00:ec2::/32"),
        # Teredo and other protocol assignments, documentation, 6to4: they can embed any IPv4.
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
)
_GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class Words:
    """How the refusals of an address speak of it."""

    name: str
    """The field that it came in."""
    example: str
    use: str
    """What is not done with an address that is refused: `fetched`."""
    other_scheme: str
    userinfo: str
    instead: str = ""
    """What to do in place of giving an address: whole sentences."""


async def resolve_host(host: str, port: int) -> list[str]:
    """The addresses that the system's resolver gives for `host`."""
    look_up = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_look_ups(), look_up)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@functools.cache
def _look_ups() -> ThreadPoolExecutor:
    """Threads of their own: a name server that never answers must not hold up other work."""
    return ThreadPoolExecutor(4, thread_name_prefix="look-up")


def may_connect(address: str, allow_private: bool = False) -> bool:
    """Whether a stranger's URL may lead to this IP address.

    `allow_private` opens private and loopback addresses, never link-local, metadata, multicast,
    unspecified or reserved ones.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None:
            return False
        if ip.ipv4_mapped:
            ip = ip.ipv4_mapped
        elif ip in _NAT64:  # how an IPv6-only network reaches IPv4
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    if any(ip in network for network in _NEVER):
        return False
    if any(ip in network for network in _PRIVATE):
        return allow_private
    return ip.version == 4 or ip in _GLOBAL_IPV6


def parse_target(url: str, words: Words) -> httpx.URL:
    """`url` parsed, once and for all. Raises BadInput if its form alone says no."""
    name = words.name
    try:
        target = httpx.URL(url.strip())
        host = target.raw_host.decode("ascii").lower()
    except (httpx.InvalidURL, ValueError) as error:
        raise BadInput(
            f"`{name}` is not a valid URL.", f"It looks like {words.example}."
        ) from error
    if target.scheme not in ("http", "https") or not host:
        raise BadInput(
            f"`{name}` must begin with http:// or https:// and name a server.",
            words.other_scheme,
        )
    if target.userinfo:
        raise BadInput(
            f"`{name}` holds a user name or password, which is not accepted.",
            words.userinfo,
        )
    if not _is_plain_host(host):
        raise BadInput(
            f"`{name}`: {host:.80} is not an accepted host name.",
            "Use a full name without a dot at its end, or an address such as 203.0.113.7.",
        )
    if target.port not in (None, 80, 443) and not 1024 <= target.port <= 65535:
        raise BadInput(
            f"`{name}`: port {target.port} is refused.", "Use port 80, 443, or one from 1024 up."
        )
    return target


def check_form(url: str, allow_private: bool, words: Words) -> None:
    """Raises BadInput where it is clear without asking a name server that `url` is refused."""
    target = parse_target(url, words)
    known = _without_asking(target, allow_private)
    if known and not may_connect(known, allow_private):
        raise _refused(target, words)


async def check_addresses(
    target: httpx.URL, allow_private: bool, words: Words, resolve: Resolve = resolve_host
) -> Sequence[str]:
    """Where to connect; refused if any address of the host is one that must not be reached."""
    known = _without_asking(target, allow_private)
    if known:
        found: Sequence[str] = [known]
    else:
        host = _host(target)
        try:
            found = await resolve(host, target.port or 0)
        except (OSError, UnicodeError) as error:
            raise BadInput(f"`{words.name}`: no server named {host} was found.", CHECK) from error
    if not found or not all(may_connect(address, allow_private) for address in found):
        raise _refused(target, words)
    return found[:_MAX_ADDRESSES]


def _without_asking(target: httpx.URL, allow_private: bool) -> str:
    """The host's address where no name server need tell it; else ""."""
    host = _host(target)
    local = host == "localhost" or host.endswith(".localhost")
    if local and not allow_private:
        return "127.0.0.1"
    return host if _is_ip(host) else ""


def _host(target: httpx.URL) -> str:
    return target.raw_host.decode("ascii").lower()


def _refused(target: httpx.URL, words: Words) -> BadInput:
    may = "Who runs this service may allow private addresses with POLYPOD_ALLOW_PRIVATE_URLS=true."
    return BadInput(
        f"`{words.name}`: {_host(target)} is not on the public internet, so it is not {words.use}.",
        f"{words.instead} {may}".lstrip(),
    )


async def ask(
    transport: httpx.AsyncBaseTransport,
    request: httpx.Request,
    addresses: Sequence[str],
    timeout_s: float,
    words: Words,
) -> httpx.Response:
    """The head of the answer from the first address that accepts a connection.

    Raises:
        BadInput: none does.
        httpx.HTTPError: the connection broke before the head had come.
    """
    target = request.url
    host = target.raw_host.decode("ascii")
    patience = {"connect": timeout_s / len(addresses)}
    extensions = {"timeout": patience} | ({} if _is_ip(host) else {"sni_hostname": host})
    failure: Exception | None = None
    for address in addresses:
        dialled = httpx.Request(
            request.method,
            target.copy_with(host=address),
            headers=request.headers,
            content=request.content,
            extensions=extensions,
        )
        try:
            response = await transport.handle_async_request(dialled)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            failure = error
        else:
            response.request = dialled
            return response
    raise BadInput(f"`{words.name}`: could not connect to {host}.", CHECK) from failure


def make_request(
    method: str, target: httpx.URL, headers: Mapping[str, str], content: bytes = b""
) -> httpx.Request:
    """A request whose Host header names the host, for a connection of its own."""
    own = {"Host": target.netloc.decode("ascii"), "Connection": "close"}
    return httpx.Request(method, target, headers={**own, **headers}, content=content or None)


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Certificates as httpx checks them; `SSL_CERT_FILE` is honoured. Slow: in a thread."""
    return httpx.create_ssl_context()


def _is_plain_host(host: str) -> bool:
    """False for what resolvers read as an address in disguise: `2130706433`, `0x7f.1`, `a.`."""
    if _is_ip(host):
        return "%" not in host
    last = host.rpartition(".")[2]
    is_name = re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", host) and len(host) <= 253
    return bool(is_name) and not re.fullmatch(r"[0-9]+|0x[0-9a-f]*", last)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


CHECK = "Check the address, that the server is up, and that its certificate is valid."
