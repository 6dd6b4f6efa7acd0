"""`fetch` against real HTTP servers on loopback; names and routes are the only stand-ins."""

from __future__ import annotations

import asyncio
import gzip
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypod.errors import BadInput, Problem, TooLarge
from polypod.pictures.fetch import MAX_REDIRECTS, fetch
from polypod.safe_http import may_connect, resolve_host

PUBLIC = "93.184.215.14"
BODY = bytes(range(256)) * 40


class Server(ThreadingHTTPServer):
    """Answers by path with what `pages` says, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, Callable[[Handler], None]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.over = threading.Event()
        self.port: int = self.server_address[1]

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves early is expected here."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
        self.server.pages[self.path](self)

    def answer(self, status: int = 200, body: bytes = BODY, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join(10)


class Internet(httpx.AsyncBaseTransport):
    """Leads every address to the server on loopback, and remembers what was dialled."""

    def __init__(self, port: int, verify: ssl.SSLContext | bool = False) -> None:
        self.port = port
        self.dialled: list[str] = []
        self.inner = httpx.AsyncHTTPTransport(verify=verify)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.dialled.append(f"{request.url.host}:{request.url.port or request.url.scheme}")
        request.url = request.url.copy_with(host="127.0.0.1", port=self.port)
        return await self.inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self.inner.aclose()


class Names:
    """A name server: each name has a list of answers, given one after the other."""

    def __init__(self, **names: Sequence[Sequence[str]]) -> None:
        self.names = {name.replace("_", "."): list(answers) for name, answers in names.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if host not in self.names:
            raise socket.gaierror("no such name")
        answers = self.names[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]


def get(url: str, max_bytes: int = 1_000_000, **options: object) -> tuple[bytes, str]:
    return asyncio.run(fetch(url, max_bytes=max_bytes, **options))


def refused(url: str, error: type[Problem] = BadInput, **options: object) -> Problem:
    with pytest.raises(error) as caught:
        get(url, **options)
    problem = caught.value
    assert 400 <= problem.status < 500
    assert problem.message.startswith("`image_url`")
    assert problem.hint.endswith(".")
    for inside in ("httpx", "Errno", "SSL", "Exception", PUBLIC):
        assert inside not in problem.message + problem.hint
    return problem


# Getting a file --------------------------------------------------------------------------------


def test_a_file_with_its_type(server: Server) -> None:
    server.pages["/a.png?x=1%20y"] = lambda page: page.answer(Content_Type="Image/PNG; q=1")
    url = f" {server.url('/a.png?x=1%20y#part')}\n"
    assert get(url, allow_private=True) == (BODY, "image/png")
    _, headers = server.asked[0]
    assert headers["host"] == f"127.0.0.1:{server.port}"
    assert headers["accept-encoding"] == "identity"


def test_without_length_and_type(server: Server) -> None:
    def page(page: Handler) -> None:
        page.send_response(200)
        page.end_headers()
        page.wfile.write(BODY)

    server.pages["/"] = page
    assert get(server.url(""), allow_private=True) == (BODY, "")


def test_the_system_resolver_finds_localhost(server: Server) -> None:
    server.pages["/"] = lambda page: page.answer()
    assert get(f"http://localhost:{server.port}/", allow_private=True)[0] == BODY
    assert "127.0.0.1" in asyncio.run(resolve_host("localhost", 80))


def test_the_checked_address_is_dialled_and_the_name_is_told(server: Server) -> None:
    server.pages["/a"] = lambda page: page.answer()
    internet, names = Internet(server.port), Names(photos_example=[[PUBLIC], ["127.0.0.1"]])
    get("http://photos.example/a", transport=internet, resolve=names)
    assert names.asked == ["photos.example"]
    assert internet.dialled == [f"{PUBLIC}:http"]
    assert server.asked[0][1]["host"] == "photos.example"


def test_the_next_address_is_tried(server: Server) -> None:
    server.pages["/"] = lambda page: page.answer()
    names = Names(two_example=[["127.0.0.2", "127.0.0.1"]])  # nobody listens on the first
    url = f"http://two.example:{server.port}/"
    assert get(url, allow_private=True, resolve=names)[0] == BODY


def test_proxies_of_the_environment_are_not_used(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pages["/"] = lambda page: page.answer()
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert get(server.url("/"), allow_private=True)[0] == BODY


# Where it does not go --------------------------------------------------------------------------

FORBIDDEN = """
0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.100.100.200 127.0.0.1 127.255.255.254 168.63.129.16
169.254.169.254 169.254.0.1 172.16.0.1 172.31.255.255 192.0.0.192 192.0.2.1 192.88.99.1 192.168.0.1
198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
:: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:169.254.169.254 ::ffff:0:10.0.0.1 64:ff9b::a00:1
64:ff9b::169.254.169.254 64:ff9b:1::1 100::1 2001::1 2001:db8::1 2002:7f00:1:: 2002:a9fe:a9fe::1
3fff::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1 fec0::1 ff02::1
"""
NEVER = """
0.0.0.0 169.254.169.254 100.100.100.200 168.63.129.16 192.0.0.192 224.0.0.1 255.255.255.255 ::
fd00:ec2::254 fe80::1 ff02::1 ::ffff:169.254.169.254 64:ff9b::169.254.169.254 2002:a9fe:a9fe::1
"""
PRIVATE = ["10.0.0.1", "100.64.0.1", "127.0.0.1", "172.16.0.1", "192.168.0.1", "::1", "fd00::1"]
OPEN = [PUBLIC, "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1", "64:ff9b::808:808"]


def test_addresses() -> None:
    assert [address for address in FORBIDDEN.split() if may_connect(address)] == []
    assert [address for address in NEVER.split() if may_connect(address, True)] == []
    assert all(may_connect(address, allow_private=True) for address in PRIVATE + OPEN)
    assert all(may_connect(address) for address in [*OPEN, f"::ffff:{PUBLIC}"])
    assert not any(may_connect(text) for text in ("nonsense", "fe80::1%eth0", "2606:4700::1%1"))


@pytest.mark.parametrize("address", FORBIDDEN.split())
def test_forbidden_addresses_as_host_and_by_name(address: str) -> None:
    host = f"[{address}]" if ":" in address else address
    assert "public internet" in refused(f"http://{host}/x.png").message
    internet, names = Internet(9), Names(evil_example=[[PUBLIC, address]])
    problem = refused("https://evil.example/x.png", transport=internet, resolve=names)
    assert "evil.example is not on the public internet" in problem.message
    assert internet.dialled == []


@pytest.mark.parametrize(
    "host",
    [
        *("2130706433", "0x7f.1", "0x7f000001", "0177.0.0.1", "127.1", "127.0.0.01", "0", "1.2.3"),
        *("127.0.0.1.", "localhost.", "photos.example.", "[fe80::1%25eth0]", "[::1%1]"),
        *("\u2460\u2461\u2466.\u24ea.\u24ea.\u2460", "127\u30020\u30020\u30021", "0x", "1e3.0x1"),
    ],
)
@pytest.mark.parametrize("allow_private", [False, True])
def test_addresses_in_disguise(host: str, allow_private: bool) -> None:
    names = Names()
    refused(f"http://{host}/", allow_private=allow_private, resolve=names)
    assert names.asked == []


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "a.localhost"])
def test_localhost_by_name(host: str) -> None:
    names = Names()
    assert "public internet" in refused(f"http://{host}/", resolve=names).message
    assert names.asked == []


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("", "http://"),
        ("photo.png", "http://"),
        ("//photos.example/a", "http://"),
        ("file:///etc/passwd", "http://"),
        ("ftp://photos.example/a", "http://"),
        ("gopher://photos.example/a", "http://"),
        ("data:image/png;base64,AAAA", "http://"),
        ("http://", "http://"),
        ("http:///a", "http://"),
        ("http://a\x00b/", "valid URL"),
        ("http://photos.example:99999/", "port 99999"),
        ("http://photos.example%2f/", "host name"),
        ("http://a b/", "host name"),
        ("http://[::1/", "valid URL"),
        ("http://\ud800.example/", "valid URL"),
        ("http://user:secret@photos.example/", "password"),
        ("http://photos.example@127.0.0.1/", "password"),
        ("http://photos.example:22/", "port 22"),
        ("http://photos.example:0/", "port 0"),
        ("http://" + "a." * 200 + "example/", "host name"),
    ],
)
def test_urls_that_are_refused_by_their_form(url: str, word: str) -> None:
    names = Names()
    problem = refused(url, resolve=names)
    assert word in problem.message
    assert "secret" not in problem.message
    assert names.asked == []


def test_unknown_names() -> None:
    assert "no server named a.example" in refused("http://a.example/", resolve=Names()).message
    assert "public internet" in refused("http://a.example/", resolve=Names(a_example=[[]])).message


def test_rebinding_between_redirects_is_seen(server: Server) -> None:
    server.pages["/a"] = lambda page: page.answer(302, b"", Location="/b")
    server.pages["/b"] = lambda page: page.answer()
    internet, names = Internet(server.port), Names(evil_example=[[PUBLIC], ["127.0.0.1"]])
    refused("http://evil.example/a", transport=internet, resolve=names)
    assert internet.dialled == [f"{PUBLIC}:http"]
    assert [path for path, _ in server.asked] == ["/a"]


# Redirects -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(server: Server, status: int) -> None:
    server.pages["/a"] = lambda page: page.answer(status, b"", Location="b/c?d=1")
    server.pages["/b/c?d=1"] = lambda page: page.answer(Content_Type="image/jpeg")
    assert get(server.url("/a"), allow_private=True) == (BODY, "image/jpeg")


@pytest.mark.parametrize(
    ("location", "word"),
    [
        ("http://169.254.169.254/latest/meta-data/", "public internet"),
        ("http://10.0.0.7/", "public internet"),
        ("http://[::ffff:127.0.0.1]/", "public internet"),
        ("//inside.example/", "public internet"),
        ("http://localhost/", "public internet"),
        ("http://2130706433/", "host name"),
        ("http://user:pass@photos.example/", "password"),
        ("http://photos.example:25/", "port 25"),
        ("file:///etc/passwd", "http://"),
        ("http://[", "host name"),
    ],
)
def test_redirects_are_checked(server: Server, location: str, word: str) -> None:
    server.pages["/a"] = lambda page: page.answer(302, b"", Location=location)
    internet = Internet(server.port)
    names = Names(photos_example=[[PUBLIC]], inside_example=[["192.168.1.1"]])
    problem = refused("http://photos.example/a", transport=internet, resolve=names)
    assert word in problem.message
    assert internet.dialled == [f"{PUBLIC}:http"]


def test_private_addresses_do_not_open_metadata(server: Server) -> None:
    server.pages["/a"] = lambda page: page.answer(302, b"", Location="http://169.254.169.254/")
    assert "public internet" in refused(server.url("/a"), allow_private=True).message


def test_redirects_end(server: Server) -> None:
    server.pages["/a"] = lambda page: page.answer(302, b"", Location="/a")
    assert "more than 5 times" in refused(server.url("/a"), allow_private=True).message
    assert len(server.asked) == MAX_REDIRECTS + 1


def test_cookies_do_not_travel(server: Server) -> None:
    server.pages["/a"] = lambda page: page.answer(302, b"", Location="/b", Set_Cookie="a=1")
    server.pages["/b"] = lambda page: page.answer()
    get(server.url("/a"), allow_private=True)
    assert "cookie" not in server.asked[1][1]


# TLS -------------------------------------------------------------------------------------------


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's context with a certificate for photos.example."""
    if not shutil.which("openssl"):
        pytest.skip("makes its certificate with openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=photos.example"
    names = ["-addext", "subjectAltName=DNS:photos.example"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate, key)
    return serving, ssl.create_default_context(cafile=str(certificate))


def test_certificates_are_checked_against_the_name(
    server: Server, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    told: list[str | None] = []
    tls[0].sni_callback = lambda _socket, name, _context: told.append(name)
    server.socket = tls[0].wrap_socket(server.socket, server_side=True)
    server.pages["/a"] = lambda page: page.answer()
    names = Names(photos_example=[[PUBLIC]], other_example=[[PUBLIC]])

    right = Internet(server.port, tls[1])
    assert get("https://photos.example/a", transport=right, resolve=names)[0] == BODY
    assert right.dialled == [f"{PUBLIC}:https"]
    assert told == ["photos.example"]

    wrong = Internet(server.port, tls[1])
    problem = refused("https://other.example/a", transport=wrong, resolve=names)
    assert "could not connect" in problem.message
    assert "certificate" in problem.hint


def test_https_does_not_redirect_down_to_http(
    server: Server, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    server.socket = tls[0].wrap_socket(server.socket, server_side=True)
    server.pages["/a"] = lambda page: page.answer(302, b"", Location="http://photos.example/a")
    internet, names = Internet(server.port, tls[1]), Names(photos_example=[[PUBLIC]])
    problem = refused("https://photos.example/a", transport=internet, resolve=names)
    assert "from https to http" in problem.message


def test_unknown_certificates_are_refused(
    server: Server, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    server.socket = tls[0].wrap_socket(server.socket, server_side=True)
    problem = refused(f"https://127.0.0.1:{server.port}/", allow_private=True)
    assert "could not connect" in problem.message


# Bad servers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, "404 (Not Found)"),
        (403, "403 (Forbidden)"),
        (500, "500 (Internal"),
        (799, "799"),
        (204, "204"),
    ],
)
def test_other_statuses_are_told(server: Server, status: int, words: str) -> None:
    server.pages["/a"] = lambda page: page.answer(status, b"")
    assert words in refused(server.url("/a"), allow_private=True).message


def test_a_redirect_without_target(server: Server) -> None:
    server.pages["/a"] = lambda page: page.answer(302, b"")
    assert "302 (Found)" in refused(server.url("/a"), allow_private=True).message


def test_empty_files(server: Server) -> None:
    server.pages["/a"] = lambda page: page.answer(body=b"")
    assert "empty file" in refused(server.url("/a"), allow_private=True).message


def test_too_large_by_its_length(server: Server) -> None:
    """Refused before the body: this server never sends one."""

    def page(page: Handler) -> None:
        page.send_response(200)
        page.send_header("Content-Length", "9" * 19)
        page.end_headers()
        page.wfile.flush()
        server.over.wait(20)

    server.pages["/a"] = page
    problem = refused(server.url("/a"), TooLarge, allow_private=True, max_bytes=10_000)
    assert problem.status == 413
    assert "10,000 bytes" in problem.message


def test_too_large_while_it_comes(server: Server) -> None:
    sent = 0

    def page(page: Handler) -> None:
        nonlocal sent
        page.send_response(200)
        page.end_headers()
        while not server.over.is_set():
            sent += page.wfile.write(bytes(10_000))

    server.pages["/a"] = page
    refused(server.url("/a"), TooLarge, allow_private=True, max_bytes=100_000)
    server.over.set()
    assert sent < 100_000_000


def test_exactly_the_limit_is_accepted(server: Server) -> None:
    server.pages["/a"] = lambda page: page.answer()
    assert get(server.url("/a"), allow_private=True, max_bytes=len(BODY))[0] == BODY
    refused(server.url("/a"), TooLarge, allow_private=True, max_bytes=len(BODY) - 1)


def test_compressed_answers_are_not_unpacked(server: Server) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    server.pages["/a"] = lambda page: page.answer(body=bomb, Content_Encoding="gzip")
    assert "compressed" in refused(server.url("/a"), allow_private=True).message


def drip(page: Handler) -> None:
    page.send_response(200)
    page.end_headers()
    while not page.server.over.wait(0.01):
        page.wfile.write(b"x")


def drip_head(page: Handler) -> None:
    page.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not page.server.over.wait(0.01):
        page.wfile.write(b"X-A: b\r\n")


def say_nothing(page: Handler) -> None:
    page.server.over.wait(20)


def redirect_slowly(page: Handler) -> None:
    page.server.over.wait(0.1)
    page.answer(302, b"", Location="/a")


@pytest.mark.parametrize("page", [drip, drip_head, say_nothing, redirect_slowly])
def test_the_time_limit_covers_the_whole(server: Server, page: Callable[[Handler], None]) -> None:
    server.pages["/a"] = page
    began = time.monotonic()
    problem = refused(server.url("/a"), allow_private=True, timeout_s=0.3)
    assert "within 0.3 s" in problem.message
    assert time.monotonic() - began < 10


def test_the_time_limit_covers_the_look_up() -> None:
    async def never(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    assert "within 0.1 s" in refused("http://a.example/", timeout_s=0.1, resolve=never).message


def answering(raw: bytes) -> tuple[socket.socket, threading.Thread]:
    """A socket that reads a request, sends `raw` and closes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(10_000)
            connection.sendall(raw)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return listener, thread


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 300_000,
        bytes(1000),
    ],
)
def test_servers_that_break_off_or_speak_nonsense(raw: bytes) -> None:
    listener, thread = answering(raw)
    with listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        assert "broke" in refused(url, allow_private=True, timeout_s=10).message
        thread.join(10)


def test_nobody_listens() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        assert "could not connect" in refused(url, allow_private=True).message


def test_other_inputs_are_called_by_their_name() -> None:
    with pytest.raises(BadInput, match="`mask_url` must begin with http"):
        get("mask.png", name="mask_url")


# Anything at all -------------------------------------------------------------------------------

HOSTS = st.sampled_from(
    ["a.example", "127.0.0.1", "[::1]", "0x7f.1", "localhost", "ex\u00e4mple", ""]
)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.text(max_size=60), st.builds("http://{}{}".format, HOSTS, st.text(max_size=20)))
)
def test_any_text_as_url(url: str) -> None:
    with pytest.raises(Problem):
        get(url, resolve=Names(), transport=Internet(9))
