"""The bind address: bound at once, with clear errors."""

import socket
from contextlib import ExitStack, closing

import pytest

from llmctl.errors import UserError
from llmctl.server.listen_address import bind, port_of, url


def test_port_0_is_one_free_port_for_every_address_of_the_name() -> None:
    with ExitStack() as stack:
        sockets = [stack.enter_context(opened) for opened in bind("localhost", 0)]
        ports = {opened.getsockname()[1] for opened in sockets}
        assert len(ports) == 1
        assert url("localhost", port_of(sockets)) == f"http://localhost:{ports.pop()}"


def test_nobody_can_connect_before_the_server_listens() -> None:
    (opened,) = bind("127.0.0.1", 0)
    with closing(opened), pytest.raises(ConnectionRefusedError):
        socket.create_connection(opened.getsockname(), timeout=2)


def test_the_error_of_a_taken_port_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1 port {port}") as caught:
            bind("127.0.0.1", port)
    assert "--port" in (caught.value.hint or "")


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_an_error(host: str) -> None:
    with pytest.raises(UserError, match=host):
        bind(host, 0)


def test_an_ipv6_address_has_brackets_in_its_url() -> None:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        port = opened.getsockname()[1]
        assert url("::1", port_of([opened])) == url("[::1]", port_of([opened])) == f"http://[::1]:{port}"
