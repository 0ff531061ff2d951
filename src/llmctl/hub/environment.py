"""Environment variables that decide how the Hub is reached and how libraries are imported: their faults and the fixes.

The libraries report a mistake in one of them as a ValueError, ImportError or OSError that does not name the variable.
"""

import os
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from llmctl.errors import LlmctlError, MachineError, UserError

# huggingface_hub takes any value but these for "no": a mistake would open the network that should be closed.
_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_SWITCH_VALUES = ("", "0", "1", "true", "false", "yes", "no", "on", "off")
_CACHES = ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME")  # without them and without a home, the cache would be ./~
_FOLDERS = ("HF_HOME", "HF_HUB_CACHE", "HF_TOKEN_PATH", "XDG_CACHE_HOME", "LLMCTL_HOME")
# huggingface_hub converts these while it is imported, so a wrong one stops every command.
NUMBERS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
OTHER_CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # which other libraries read, and httpx does not
# An empty value of these would be taken literally: as the address "", or as the folder of the command.
_MEANINGLESS_IF_EMPTY = (*NUMBERS, "HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_TOKEN_PATH", "XDG_CACHE_HOME")
_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
_SOCKS = ("socks5", "socks5h")
# RFC 6750 allows these characters in a bearer token.
_TOKEN_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/=")
_QUOTES = frozenset("\"'`´‘’‚‛“”„‟«»‹›")


@dataclass(frozen=True)
class Fault:
    """A variable with a value that cannot be used.

    Attributes:
        problem: End of a sentence that begins with the variable's name. It never contains a secret.
        fix: The change or the command to make.
        lacks_package: True if the value is right, and a package is missing.
    """

    variable: str
    problem: str
    fix: str
    lacks_package: bool = False

    def error(self) -> LlmctlError:
        """Return the error for a command that needs the variable."""
        kind = MachineError if self.lacks_package else UserError
        return kind(f"{self.variable} {self.problem}", hint=self.fix, details={"variable": self.variable})


def drop_empty(environ: MutableMapping[str, str]) -> None:
    """Remove variables that are set to nothing, as in `NAME=${OTHER}` of a compose file."""
    for name in _MEANINGLESS_IF_EMPTY:
        if not environ.get(name, "x").strip():
            del environ[name]


def import_faults(environ: Mapping[str, str]) -> Iterator[Fault]:
    """Yield the faults with which huggingface_hub, and so transformers, cannot be imported."""
    address = environ.get("HF_ENDPOINT", "")
    try:
        urlsplit(address)
    except ValueError:
        yield from filter(None, [endpoint_fault(address)])
    for name in NUMBERS:
        text = environ.get(name, "").strip()
        if text and not (text.isascii() and text.isdigit() and int(text[:9]) > 0 and len(text) < 9):
            problem = f"is {text[:40]!r}, which is not a whole number of seconds above 0"
            yield Fault(name, problem, f"export {name}=30, or unset it")
    if not _has_home() and not any(environ.get(name) for name in _CACHES):
        yield Fault("HOME", "is not set, and this user has no home folder", "export HOME=FOLDER, or HF_HOME=FOLDER")
    for name in _SWITCHES:
        if environ.get(name, "").lower() not in _SWITCH_VALUES:
            yield Fault(name, f"is {environ[name][:40]!r}: it is 1 to forbid the network, or 0", f"export {name}=1")
    if sys.flags.optimize > 1:
        yield Fault("PYTHONOPTIMIZE", "is 2 (or python -OO): it removes docstrings that transformers needs", "unset it")


def _has_home() -> bool:
    try:
        Path.home()
    except RuntimeError:
        return False
    return True


def check_imports() -> None:
    """Check that the libraries can be imported.

    Raises:
        UserError: a variable prevents it.
    """
    if fault := next(import_faults(os.environ), None):
        raise fault.error()


def doubts(environ: Mapping[str, str]) -> Iterator[Fault]:
    """Yield variables that probably do not do what was intended."""
    if not environ.get("SSL_CERT_FILE") and not environ.get("SSL_CERT_DIR"):
        for name in OTHER_CERTIFICATES:
            if environ.get(name):
                problem = "is set, and neither llmctl nor huggingface_hub reads it"
                yield Fault(name, problem, f"export SSL_CERT_FILE=${name}")
    for name in _FOLDERS:
        folder = environ.get(name, "")
        if folder and not folder.startswith(("~", "$")) and not Path(folder).is_absolute():
            problem = f"is {folder!r}: it names another folder wherever llmctl is started"
            yield Fault(name, problem, "give the whole path")


def endpoint_fault(address: str) -> Fault | None:
    """Return what is wrong with the address of the Hub."""
    shown = without_credentials(address)
    problem = _address_problem(address, schemes=("http", "https"))
    if problem is None and ("?" in address or "#" in address):
        problem = "has a ? or # in it"
    if problem is None:
        return None
    fix = "write it as in HF_ENDPOINT=https://huggingface.co, or unset it"
    return Fault("HF_ENDPOINT", f"is {shown!r}: it {problem}", fix)


def connection_faults(environ: Mapping[str, str] | None = None, *, scheme: str | None = None) -> Iterator[Fault]:
    """Yield the faults of the variables for proxies and certificates.

    Args:
        environ: By default, that of this process; proxies may also come from the system's settings.
        scheme: Only proxies that are used for addresses of this scheme.
    """
    given = os.environ if environ is None else environ
    yield from _proxy_faults(given, ("http", "https", "all") if scheme is None else (scheme, "all"))
    file, folders = given.get("SSL_CERT_FILE"), given.get("SSL_CERT_DIR")
    if file:
        problem = _certificate_problem(Path(file))
        if problem:
            yield Fault("SSL_CERT_FILE", f"names {file}: {problem}", "point it to a file of certificates, or unset it")
    elif folders and not any(Path(folder).is_dir() for folder in folders.split(os.pathsep)):
        yield Fault("SSL_CERT_DIR", f"names {folders}: there is no such folder", "correct it, or unset it")


def token_fault(token: str, source: str) -> Fault | None:
    """Return what is wrong with a token before it is sent; only its origin and the kind of character are named."""
    wrong = next((character for character in token if character not in _TOKEN_CHARACTERS), None)
    if wrong is None:
        return None
    kind = "a letter or sign that no token has"
    if wrong in _QUOTES:
        kind = "a quotation mark"
    elif wrong.isspace():
        kind = "a space"
    elif not wrong.isprintable():
        kind = "an invisible character"
    again = "copy the token again" if source.isupper() else "store the token again: llmctl login"
    return Fault(source, f"contains {kind}: it is not a token as the Hub shows it", again)


def without_credentials(address: str) -> str:
    """Return an address without user name, password and query."""
    scheme, separator, rest = address.rpartition("://")
    public = scheme.rpartition("@")[2] + separator + rest.rpartition("@")[2]  # a password may have any character
    return public.partition("?")[0].partition("#")[0]


def _proxy_faults(environ: Mapping[str, str], schemes: tuple[str, ...]) -> Iterator[Fault]:
    from urllib.request import getproxies  # slow to import

    proxies = getproxies() if environ is os.environ else {}
    for scheme in schemes:
        names = (f"{scheme}_proxy", f"{scheme.upper()}_PROXY")
        variable = next((name for name in names if environ.get(name)), None)
        value = environ[variable] if variable else proxies.get(scheme)
        if not value:
            continue
        address = value if "://" in value else f"http://{value}"
        named = variable or f"the system's setting for {scheme}"
        problem = _address_problem(address, schemes=_PROXY_SCHEMES)
        if problem:
            fix = "write it as in http://HOST:PORT or socks5h://HOST:PORT, or unset it"
            yield Fault(named, f"is {without_credentials(value)!r}: it {problem}", fix)
        elif urlsplit(address).scheme in _SOCKS and find_spec("socksio") is None:
            yield Fault(named, "is a SOCKS proxy, which needs the package socksio", "pip install socksio", True)


def _address_problem(address: str, *, schemes: tuple[str, ...]) -> str | None:
    """Return what is wrong with an address, as the end of a sentence. A password may have any character."""
    public = without_credentials(address)
    if any(character.isspace() or not character.isprintable() or not character.isascii() for character in public):
        return "contains a space or another character that no address has"
    try:
        parts = urlsplit(address)
    except ValueError:
        return "is not an address"
    if parts.scheme not in schemes or not address.startswith(f"{parts.scheme}://"):
        known = f"{', '.join(f'{scheme}://' for scheme in schemes[:-1])} or {schemes[-1]}://"
        return f"must begin with {known}"
    try:
        _ = parts.port
    except ValueError:
        return "has a port that is not a number up to 65535"
    return None if parts.hostname else "has no host"


def _certificate_problem(file: Path) -> str | None:
    import ssl

    if file.is_dir():
        return "it is a folder (SSL_CERT_DIR takes one)"
    try:
        ssl.create_default_context(cafile=str(file))
    except ssl.SSLError:
        return "there is no certificate in it"
    except OSError as error:
        return error.strerror or type(error).__name__
    return None
