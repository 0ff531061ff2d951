"""Which names and which pages are let in."""

import socket

import pytest

from llmctl.server.security.hosts import host_is_let_in, host_names, origin_is_let_in

LOCAL = host_names("127.0.0.1")


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "LocalHost:1", "127.0.0.1:8000", "[::1]:8000", "localhost."]
)
def test_this_machine_is_let_in_by_its_loopback_names(host: str) -> None:
    assert host_is_let_in(host, LOCAL)


@pytest.mark.parametrize(
    "host",
    [
        None, "", "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1",
        "evil.example@localhost", "localhost:8000:9", "localhost:", "localhost/", "localhost, evil.example", "[::1",
        "xlocalhost", "localhost:123456", " localhost", "localhost\n",
    ],
)  # fmt: skip
def test_a_rebound_name_is_not_let_in(host: str | None) -> None:
    assert not host_is_let_in(host, LOCAL)


def test_names_of_the_configuration_are_let_in_and_a_star_covers_what_is_below() -> None:
    names = host_names("127.0.0.1", ["chat.example", "*.lab.example", "fd00::7"])
    assert host_is_let_in("chat.example:443", names)
    assert host_is_let_in("a.b.lab.example", names)
    assert host_is_let_in("[fd00::7]:80", names)
    assert not host_is_let_in("lab.example", names)
    assert not host_is_let_in("evillab.example", names)
    assert host_is_let_in("anything.example", host_names("127.0.0.1", ["*"]))


def test_on_another_address_this_machine_answers_to_addresses_and_its_own_name() -> None:
    names = host_names("0.0.0.0")
    for host in ("10.1.2.3:8000", "[fd00::1]:8000", "localhost", socket.gethostname()):
        assert host_is_let_in(host, names), host
    assert not host_is_let_in("evil.example", names)


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
def test_the_servers_own_page_is_let_in(origin: str, host: str) -> None:
    assert origin_is_let_in(origin, host, ())


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example", "http://localhost:3000", "http://localhost", "null", "", "file://", "localhost:8000",
        "http://localhost:8000@evil.example", "http://evil.example/localhost:8000", "http://localhost:8000.evil.example",
        "ftp://localhost:8000", "http://[::1", "http://127.0.0.1:8000",
    ],
)  # fmt: skip
def test_a_foreign_page_is_not_let_in(origin: str) -> None:
    assert not origin_is_let_in(origin, "localhost:8000", ())


def test_pages_of_the_configuration_are_let_in() -> None:
    listed = ("https://app.example", "null")
    assert origin_is_let_in("https://app.example", "localhost:8000", listed)
    assert origin_is_let_in("null", "localhost:8000", listed)
    assert not origin_is_let_in("https://app.example:444", "localhost:8000", listed)
    assert not origin_is_let_in("http://app.example", "localhost:8000", listed)
    assert origin_is_let_in("https://any.example", "localhost:8000", ("*",))
