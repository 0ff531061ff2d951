"""The address that a server listens on: taken before the model is loaded, so that a taken port costs no wait."""

import errno
import socket
from collections.abc import Sequence

from llmctl.errors import UserError

_MISSING = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}  # a name may stand for ::1, too, where there is no IPv6


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets for every address that a host's name stands for; nobody can connect before they listen.

    Args:
        host: A name or an address; IPv6 with or without brackets.
        port: 0 for a free one, the same for all of them.

    Raises:
        UserError: the port is taken, or the address is none of this machine's.
    """
    found: list[socket.socket] = []
    try:
        for family, _, _, _, address in _addresses(host, port):
            opened = socket.socket(family)
            try:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                opened.bind((address[0], found[0].getsockname()[1] if found else port))
            except OSError as error:
                opened.close()
                if not found or error.errno not in _MISSING:
                    raise
            else:
                found.append(opened)
    except OSError as error:
        for opened in found:
            opened.close()
        raise UserError(
            f"cannot listen on {host} port {port}: {_reason(error)}",
            hint="another port: --port N; 0 takes a free one" if error.errno not in _MISSING else "--host 127.0.0.1",
        ) from error
    return found


def port_of(sockets: Sequence[socket.socket]) -> int:
    """The port that sockets of `bind` have."""
    return int(sockets[0].getsockname()[1])


def url(host: str, port: int) -> str:
    """Where it is: `http://127.0.0.1:8000`."""
    return f"http://{f'[{host}]' if ':' in host and host[0] != '[' else host}:{port}"


def _addresses(host: str, port: int) -> list[tuple[int, int, int, str, tuple[str, int]]]:
    """What a name stands for; IPv4 first, which every machine has."""
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return sorted(found, key=lambda one: one[0] != socket.AF_INET)  # type: ignore[arg-type]


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
