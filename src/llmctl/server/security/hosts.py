"""Which Host and Origin headers are let in: what keeps other web pages away from a server on this machine.

A page from anywhere can make a browser send requests to 127.0.0.1. Those carry the page's Origin. A page whose name is
pointed at 127.0.0.1 while it is open (DNS rebinding) is of the same origin as the server for the browser, but its
requests carry that name as their Host.
"""

import re
import socket
from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import urlsplit

from llmctl.server.security.keys import is_loopback

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::(\d{1,5}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
ANY_ADDRESS = "<any address>"


def host_names(host: str, extra: Iterable[str] = ()) -> tuple[str, ...]:
    """What a Host header may say of a server that listens on `host`: names, `*.name`, or `*`, without ports.

    On the loopback that is this machine by its loopback names. Elsewhere it is `host`, this machine's name, and every
    literal address, since no name was resolved to reach one.
    """
    names = ["localhost", "127.0.0.1", "[::1]", _bracketed(host)]
    if not is_loopback(host):
        names += [socket.gethostname(), socket.getfqdn(), ANY_ADDRESS]
    return tuple(dict.fromkeys(name.lower().rstrip(".") for name in [*names, *map(_bracketed, extra)]))


def host_is_let_in(header: str | None, names: Iterable[str]) -> bool:
    """Whether a Host header names this server."""
    match = _HOST.fullmatch(header or "")
    if match is None:
        return False
    name = match[1].lower().rstrip(".")
    return any(_is(name, allowed) for allowed in names)


def _is(name: str, allowed: str) -> bool:
    if allowed == ANY_ADDRESS:
        return _is_address(name)
    if allowed.startswith("*."):
        return name.endswith(allowed[1:])
    return allowed in ("*", name)


def origin_is_let_in(origin: str, host: str | None, origins: Iterable[str]) -> bool:
    """Whether a page of this origin may use the server: its own page, and those that the configuration lists."""
    return origin_is_listed(origin, origins) or _is_own(origin, host or "")


def origin_is_listed(origin: str, origins: Iterable[str]) -> bool:
    """Whether the configuration lists an origin: exactly, or by `*`."""
    return any(listed in ("*", origin) for listed in origins)


def _is_own(origin: str, host: str) -> bool:
    """Whether an origin is that of a page which came from `host`. Its scheme may be https: a proxy may speak that."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    default = _DEFAULT_PORTS.get(parts.scheme)
    match, own = _HOST.fullmatch(parts.netloc), _HOST.fullmatch(host)
    if default is None or match is None or own is None:
        return False
    return (match[1].lower(), match[2] or default) == (own[1].lower(), own[2] or default)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _is_address(name: str) -> bool:
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
