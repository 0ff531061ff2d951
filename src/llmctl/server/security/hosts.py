"""Allowed Host and Origin headers: they prevent other sites' pages from using a server on this machine.

Any web page can make a browser send requests to 127.0.0.1. Such requests have the page's Origin. With DNS rebinding, a
page points its own name at 127.0.0.1: the browser then treats the server as the page's own origin, but the requests
have that name as their Host.
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


def allowed_hosts(bind_address: str, extra: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the allowed Host headers without ports: names, `*.name`, or `*`.

    The loopback names are always allowed. A server on another address also allows its bind address, this machine's
    name, and all literal addresses, since DNS rebinding needs a name.
    """
    names = ["localhost", "127.0.0.1", "[::1]", _bracketed(bind_address)]
    if not is_loopback(bind_address):
        names += [socket.gethostname(), socket.getfqdn(), ANY_ADDRESS]
    return tuple(dict.fromkeys(name.lower().rstrip(".") for name in [*names, *map(_bracketed, extra)]))


def host_is_allowed(header: str | None, allowed: Iterable[str]) -> bool:
    """Return True if a Host header names this server."""
    match = _HOST.fullmatch(header or "")
    if match is None:
        return False
    name = match[1].lower().rstrip(".")
    return any(_matches(name, pattern) for pattern in allowed)


def _matches(name: str, pattern: str) -> bool:
    if pattern == ANY_ADDRESS:
        return _is_address(name)
    if pattern.startswith("*."):
        return name.endswith(pattern[1:])
    return pattern in ("*", name)


def origin_is_allowed(origin: str, host: str | None, listed: Iterable[str]) -> bool:
    """Return True for the origin of the server's own page and for origins listed in the configuration."""
    return origin_is_listed(origin, listed) or _is_same_origin(origin, host or "")


def origin_is_listed(origin: str, listed: Iterable[str]) -> bool:
    """Return True if the configuration lists an origin, exactly or by `*`."""
    return any(entry in ("*", origin) for entry in listed)


def _is_same_origin(origin: str, host: str) -> bool:
    """Return True if an origin equals the Host header. Its scheme may be https, because a proxy may terminate TLS."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    default_port = _DEFAULT_PORTS.get(parts.scheme)
    theirs, ours = _HOST.fullmatch(parts.netloc), _HOST.fullmatch(host)
    if default_port is None or theirs is None or ours is None:
        return False
    return (theirs[1].lower(), theirs[2] or default_port) == (ours[1].lower(), ours[2] or default_port)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _is_address(name: str) -> bool:
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
