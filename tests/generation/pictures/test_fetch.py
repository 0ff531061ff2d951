"""Fetching of pictures by URL, from real servers on this machine that stand for public ones."""

import http.server
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import pytest

from llmctl.errors import LlmctlError, RemoteError, UserError
from llmctl.generation.pictures import PictureLimits, fetch_picture
from llmctl.generation.pictures.addresses import is_public
from llmctl.generation.pictures.fetch import Network, connect, resolve

FILE = b"\x89PNG" * 1000
PUBLIC, OTHER, BROKEN = "93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "8.8.8.8"
LIMITS = PictureLimits(file_bytes=10_000, fetch_seconds=2)


class Pictures(http.server.BaseHTTPRequestHandler):
    """A server whose answer is given by the path."""

    seen: list[tuple[str, dict[str, str]]]

    def do_GET(self) -> None:
        self.seen.append((self.path, dict(self.headers.items())))
        match unquote(self.path).split("/")[1:]:
            case ["to", *rest]:
                self._answer(302, b"moved", Location="/".join(rest))
            case ["again", count]:
                self._answer(307, b"", Location=f"/again/{int(count) - 1}" if int(count) > 1 else "/a.png")
            case ["status", code]:
                self._answer(int(code), b"no")
            case ["large"]:
                self._answer(200, b"x" * 10_001)
            case ["claims"]:
                self._head(200, {"Content-Length": str(10**12)})
            case ["endless"]:
                self._head(200, {})
                with_errors_ignored(self.wfile.write, b"x" * 100_000)
            case ["slow"]:
                self._head(200, {})
                for _ in range(100):
                    with_errors_ignored(self.wfile.write, b"x")
                    time.sleep(0.05)
            case ["slow-headers"]:
                with_errors_ignored(self.wfile.write, b"HTTP/1.1 200 OK\r\n")
                for _ in range(100):
                    with_errors_ignored(self.wfile.write, b"X: y\r\n")
                    time.sleep(0.05)
            case ["short"]:
                self._head(200, {"Content-Length": "5000"})
                self.wfile.write(b"x" * 10)
            case ["gzip"]:
                self._answer(200, FILE, **{"Content-Encoding": "gzip"})
            case ["no-http"]:
                self.wfile.write(b"220 mail.example.org ESMTP\r\n")
            case _:
                self._answer(200, FILE, **{"Set-Cookie": "id=1"})

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self._head(status, {"Content-Length": str(len(body)), **headers})
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def with_errors_ignored(write: Callable[[bytes], Any], data: bytes) -> None:
    with suppress(OSError):
        write(data)


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[tuple[str, dict[str, str]]]]]:
    """Serve pictures on this machine; yield the port, and the list of requests: paths and headers."""
    seen: list[tuple[str, dict[str, str]]] = []
    handler = type("Handler", (Pictures,), {"seen": seen})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1], seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Internet:
    """Names and addresses of a small internet, whose public addresses are one server on this machine."""

    names: ClassVar[dict[str, Sequence[Sequence[str]]]] = {
        "pictures.example": [[PUBLIC]],
        "xn--bcher-kva.example": [[PUBLIC]],
        "two.example": [[BROKEN, OTHER]],
        "internal.example": [["10.1.2.3"]],
        "mixed.example": [[PUBLIC, "192.168.1.1"]],
        "rebound.example": [[PUBLIC], ["127.0.0.1"]],  # the second time another one
        "metadata.example": [["169.254.169.254"]],
        "empty.example": [[]],
    }

    def __init__(self, port: int) -> None:
        self.port = port
        self.resolved: list[str] = []
        self.connected: list[str] = []

    def network(self, tls: ssl.SSLContext | None = None) -> Network:
        return Network(self.resolve, self.connect, lambda: tls or ssl.create_default_context())

    def resolve(self, host: str, port: int) -> Sequence[str]:
        if host == "never.example":
            time.sleep(1)
        if host not in self.names:
            return resolve(host, port)  # addresses in any form, as the system reads them
        self.resolved.append(host)
        answers = self.names[host]
        return answers[min(self.resolved.count(host), len(answers)) - 1]

    def connect(self, address: str, port: int, seconds: float) -> socket.socket:
        self.connected.append(address)
        if address == BROKEN:
            raise ConnectionRefusedError(111, "Connection refused")
        assert address in (PUBLIC, OTHER), "no other address may be reached"
        return connect("127.0.0.1", self.port, seconds)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[int, list[tuple[str, dict[str, str]]]]]:
    with serving() as (port, seen):
        yield port, seen


@pytest.fixture
def internet(server: tuple[int, list[tuple[str, dict[str, str]]]]) -> Internet:
    server[1].clear()
    return Internet(server[0])


def error_of(url: str, internet: Internet, fetch_seconds: float = 2) -> LlmctlError:
    with pytest.raises(LlmctlError) as caught:
        fetch_picture(url, replace(LIMITS, fetch_seconds=fetch_seconds), network=internet.network())
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    "url",
    [
        "http://pictures.example/a.png",
        "HTTP://PICTURES.EXAMPLE:80/a.png#part",
        "http://pictures.example?size=1",
        "http://bücher.example/ä.png?ö",
        f"http://{PUBLIC}/a.png",
        f"http://[{OTHER}]/a.png",
        "http://pictures.example:8080/to/http://two.example/a.png",
        "http://pictures.example/again/3",
    ],
)
def test_a_picture_of_a_public_server_is_fetched(url: str, internet: Internet) -> None:
    assert fetch_picture(url, LIMITS, network=internet.network()) == FILE


def test_a_server_gets_no_cookies_and_nothing_of_the_environment(
    internet: Internet, server: tuple[int, list[tuple[str, dict[str, str]]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    url = "http://pictures.example:8080/to//b.png"
    assert fetch_picture(url, LIMITS, network=internet.network()) == FILE
    assert [path for path, _ in server[1]] == ["/to//b.png", "/b.png"]
    for _, headers in server[1]:
        assert headers.keys() == {"Host", "User-Agent", "Accept", "Accept-Encoding", "Connection"}
        assert headers["Host"] == "pictures.example:8080"
        assert headers["Accept-Encoding"] == "identity"


NOT_PUBLIC = (
    "http://127.0.0.1/", "http://localhost/", "http://127.1/", "http://2130706433/", "http://0x7f000001/",
    "http://0177.0.0.1/", "http://0/", "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:8.8.8.8]/",
    "http://[64:ff9b::7f00:1]/", "http://[fe80::1]/", "http://[fd00:ec2::254]/", "http://10.0.0.1:8000/",
    "http://169.254.169.254/latest/meta-data/", "http://internal.example/", "http://metadata.example/",
    "http://mixed.example/a.png", "https://internal.example/",
)  # fmt: skip


@pytest.mark.parametrize("url", NOT_PUBLIC)
def test_no_connection_is_made_to_an_address_that_is_not_public(url: str, internet: Internet) -> None:
    error = error_of(url, internet)
    assert isinstance(error, UserError)
    assert "which is not a public server" in error.message
    assert "10.1.2.3" not in error.message, "an answer must not tell the addresses of a network"
    assert internet.connected == []


@pytest.mark.parametrize("url", [*NOT_PUBLIC[:3], NOT_PUBLIC[7], *NOT_PUBLIC[-5:]])
def test_a_redirect_to_an_address_that_is_not_public_is_refused(url: str, internet: Internet) -> None:
    error = error_of(f"http://pictures.example/to/{url}", internet)
    assert isinstance(error, UserError)
    assert "which is not a public server" in error.message
    assert internet.connected == [PUBLIC]


def test_a_name_is_resolved_once_and_the_connection_goes_to_the_checked_address(internet: Internet) -> None:
    assert fetch_picture("http://rebound.example/a.png", LIMITS, network=internet.network()) == FILE
    assert (internet.resolved, internet.connected) == (["rebound.example"], [PUBLIC])
    error = error_of("http://rebound.example/again/2", Internet(0))
    assert isinstance(error, RemoteError), "the first answer is public, but there is no server"
    rebound = Internet(internet.port)
    assert "not a public server" in error_of("http://rebound.example/again/1", rebound).message
    assert rebound.connected == [PUBLIC], "a redirect is resolved and checked again"


REFUSED = {
    "ftp": ("ftp://pictures.example/a.png", UserError, "must begin with http"),
    "file": ("file:///etc/passwd", UserError, "must begin with http"),
    "no scheme": ("pictures.example/a.png", UserError, "must begin with http"),
    "redirect to a file": ("http://pictures.example/to/file:///etc/passwd", UserError, "must begin with http"),
    "password": ("http://me:secret@pictures.example/", UserError, "must not contain a user or a password"),
    "redirect to nonsense": ("http://pictures.example/to/http://[1/", UserError, "is malformed"),
    "redirect with a user": ("http://pictures.example/to/http://me@two.example/", UserError, "a user or a password"),
    "no host": ("http:///a.png", UserError, "is malformed"),
    "port": ("http://pictures.example:99999/", UserError, "is malformed"),
    "long name": ("http://" + "a" * 100 + ".example/", UserError, "is malformed"),
    "address with a zone": ("http://[fe80::1%25eth0]/", UserError, "is malformed|not a public server"),
    "line break": ("http://pictures.example/\r\nX: y", UserError, "has a space"),
    "backslash": ("http://pictures.example\\@127.0.0.1/", UserError, "a backslash"),
    "very long": ("http://pictures.example/" + "a" * 9000, UserError, "is longer than 8,000"),
    "four redirects": ("http://pictures.example/again/4", UserError, "more than 3 redirects"),
    "unknown name": ("http://empty.example/", UserError, "the host of an image is unknown: empty.example"),
    "not found": ("http://pictures.example/status/404", UserError, "answered 404"),
    "no content": ("http://pictures.example/status/204", UserError, "answered 204"),
    "redirect to nowhere": ("http://pictures.example/status/301", UserError, "answered 301"),
    "failure": ("http://pictures.example/status/503", RemoteError, "answered 503"),
    "large": ("http://pictures.example/large", UserError, "is larger than 10 kB"),
    "claims to be large": ("http://pictures.example/claims", UserError, "is larger than 10 kB"),
    "large without a length": ("http://pictures.example/endless", UserError, "is larger than 10 kB"),
    "shorter than announced": ("http://pictures.example/short", RemoteError, "IncompleteRead"),
    "compressed": ("http://pictures.example/gzip", UserError, "compressed, unasked"),
    "another protocol": ("http://pictures.example/no-http", RemoteError, "BadStatusLine"),
    "no server": (f"http://{BROKEN}/", RemoteError, "Connection refused"),
    "no TLS": ("https://pictures.example/", RemoteError, "could not be fetched"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_url_that_leads_to_no_picture_is_refused_with_the_reason(name: str, internet: Internet) -> None:
    url, kind, reason = REFUSED[name]
    error = error_of(url, internet)
    assert type(error) is kind
    assert reason in error.message or any(part in error.message for part in reason.split("|")), error.message
    assert "secret" not in error.message


@pytest.mark.parametrize("url", ["slow", "slow-headers", "never"])
def test_the_time_limit_is_for_everything_together(url: str, internet: Internet) -> None:
    began = time.monotonic()
    url = "http://never.example/" if url == "never" else f"http://pictures.example/{url}"
    error = error_of(url, internet, fetch_seconds=0.3)
    assert "did not deliver the image within 0.3 s" in error.message
    assert isinstance(error, RemoteError)
    assert time.monotonic() - began < 0.9


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a key and a certificate for pictures.example."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("a certificate is made with openssl")
    folder = tmp_path_factory.mktemp("tls")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=pictures.example", "-addext", "subjectAltName=DNS:pictures.example"]
    command += ["-keyout", str(folder / "key"), "-out", str(folder / "certificate")]
    subprocess.run(command, check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_bytes((folder / "key").read_bytes() + (folder / "certificate").read_bytes())
    return both


def test_a_certificate_is_verified_for_the_name_in_the_url(certificate: Path) -> None:
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=str(certificate))
    with serving(ours) as (port, _):
        internet = Internet(port)
        assert fetch_picture("https://pictures.example/a.png", LIMITS, network=internet.network(trusting)) == FILE
        with pytest.raises(UserError, match=r"the certificate of two\.example is not valid: Hostname mismatch"):
            fetch_picture("https://two.example/a.png", LIMITS, network=internet.network(trusting))
        with pytest.raises(UserError, match=r"the certificate of pictures\.example is not valid: self-signed"):
            fetch_picture("https://pictures.example/a.png", LIMITS, network=Network(internet.resolve, internet.connect))


def test_this_machine_is_refused_with_its_own_resolver() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.1)
        with pytest.raises(UserError, match="localhost, which is not a public server"):
            fetch_picture(f"http://localhost:{listener.getsockname()[1]}/")
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("93.184.215.14", True), ("172.32.0.1", True), ("100.128.0.1", True),
        ("168.63.129.17", True),
        ("2606:4700::1111", True), ("2a00:1450:4001:80b::200e", True),
        ("0.0.0.0", False), ("10.255.255.255", False), ("100.100.100.200", False), ("127.8.8.8", False),
        ("168.63.129.16", False), ("169.254.169.254", False), ("172.31.255.255", False), ("192.0.0.192", False),
        ("192.168.0.1", False), ("198.19.0.1", False), ("224.0.0.1", False), ("240.0.0.1", False),
        ("255.255.255.255", False), ("::", False), ("::1", False), ("::8.8.8.8", False), ("::ffff:8.8.8.8", False),
        ("64:ff9b::808:808", False), ("64:ff9b:1::1", False), ("100::1", False), ("2001::1", False),
        ("2001:db8::1", False), ("2002:7f00:1::", False), ("3fff::1", False), ("fc00::1", False),
        ("fd00:ec2::254", False),
        ("fe80::1", False), ("fe80::1%eth0", False), ("fec0::1", False), ("ff02::1", False),
        ("127.1", False), ("localhost", False), ("", False), ("08.8.8.8", False),
    ],
)  # fmt: skip
def test_only_addresses_of_the_public_internet_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public
