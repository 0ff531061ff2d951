"""The bind address of a server. It is bound before the model is loaded, so that a port in use is reported at once."""

import errno
import socket
from collections.abc import Sequence

from llmctl.errors import UserError

_UNAVAILABLE = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}  # a name may resolve to ::1 without IPv6


def bind(host: str, port: int) -> list[socket.socket]:
    """Return a bound socket for every address of a name. Clients cannot connect until the sockets listen.

    Args:
        host: A name or an address; IPv6 with or without brackets.
        port: The port of all sockets; 0 for any free port.

    Raises:
        UserError: the port is in use, or the address is not one of this machine's.
    """
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in _addresses(host, port):
            opened = socket.socket(family)
            try:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                opened.bind((address[0], port_of(sockets) if sockets else port))
            except OSError as error:
                opened.close()
                if not sockets or error.errno not in _UNAVAILABLE:
                    raise
            else:
                sockets.append(opened)
    except OSError as error:
        for opened in sockets:
            opened.close()
        raise UserError(
            f"cannot listen on {host} port {port}: {(error.strerror or str(error)).lower()}",
            hint="use another port: --port N, or any free one: --port 0"
            if error.errno not in _UNAVAILABLE
            else "use --host 127.0.0.1",
        ) from error
    return sockets


def port_of(sockets: Sequence[socket.socket]) -> int:
    """Return the port of sockets from `bind`."""
    return int(sockets[0].getsockname()[1])


def url(host: str, port: int) -> str:
    """Return the URL of an address: `http://127.0.0.1:8000`."""
    return f"http://{f'[{host}]' if ':' in host and host[0] != '[' else host}:{port}"


def _addresses(host: str, port: int) -> list[tuple[int, int, int, str, tuple[str, int]]]:
    """Resolve a name, with IPv4 addresses first, because every machine supports them."""
    addresses = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return sorted(addresses, key=lambda address: address[0] != socket.AF_INET)  # type: ignore[arg-type]
