"""Allowed Host and Origin headers."""

import socket

import pytest

from llmctl.server.security.hosts import allowed_hosts, host_is_allowed, origin_is_allowed

LOCAL = allowed_hosts("127.0.0.1")


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "LocalHost:1", "127.0.0.1:8000", "[::1]:8000", "localhost."]
)
def test_the_loopback_names_are_allowed(host: str) -> None:
    assert host_is_allowed(host, LOCAL)


@pytest.mark.parametrize(
    "host",
    [
        None, "", "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1",
        "evil.example@localhost", "localhost:8000:9", "localhost:", "localhost/", "localhost, evil.example", "[::1",
        "xlocalhost", "localhost:123456", " localhost", "localhost\n",
    ],
)  # fmt: skip
def test_a_rebound_name_is_refused(host: str | None) -> None:
    assert not host_is_allowed(host, LOCAL)


def test_configured_names_are_allowed_and_a_star_covers_subdomains() -> None:
    names = allowed_hosts("127.0.0.1", ["chat.example", "*.lab.example", "fd00::7"])
    assert host_is_allowed("chat.example:443", names)
    assert host_is_allowed("a.b.lab.example", names)
    assert host_is_allowed("[fd00::7]:80", names)
    assert not host_is_allowed("lab.example", names)
    assert not host_is_allowed("evillab.example", names)
    assert host_is_allowed("anything.example", allowed_hosts("127.0.0.1", ["*"]))


def test_a_public_server_answers_to_addresses_and_its_own_name() -> None:
    names = allowed_hosts("0.0.0.0")
    for host in ("10.1.2.3:8000", "[fd00::1]:8000", "localhost", socket.gethostname()):
        assert host_is_allowed(host, names), host
    assert not host_is_allowed("evil.example", names)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost:8000", "localhost:8000"),
        ("http://localhost", "localhost"),
        ("http://localhost", "localhost:80"),
        ("https://chat.example", "chat.example"),
        ("http://[::1]:8000", "[::1]:8000"),
    ],
)
def test_the_servers_own_page_is_allowed(origin: str, host: str) -> None:
    assert origin_is_allowed(origin, host, ())


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example", "http://localhost:3000", "http://localhost", "null", "", "file://", "localhost:8000",
        "http://localhost:8000@evil.example", "http://evil.example/localhost:8000", "http://localhost:8000.evil.example",
        "ftp://localhost:8000", "http://[::1", "http://127.0.0.1:8000",
    ],
)  # fmt: skip
def test_a_foreign_page_is_refused(origin: str) -> None:
    assert not origin_is_allowed(origin, "localhost:8000", ())


def test_configured_origins_are_allowed() -> None:
    listed = ("https://app.example", "null")
    assert origin_is_allowed("https://app.example", "localhost:8000", listed)
    assert origin_is_allowed("null", "localhost:8000", listed)
    assert not origin_is_allowed("https://app.example:444", "localhost:8000", listed)
    assert not origin_is_allowed("http://app.example", "localhost:8000", listed)
    assert origin_is_allowed("https://any.example", "localhost:8000", ("*",))
