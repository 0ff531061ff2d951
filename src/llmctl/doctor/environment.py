"""Facts of this computer that `Machine` does not have, the disk of the cache, and llmctl's version requirements."""

import errno
import os
import platform
import re
import tempfile
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from llmctl.doctor.findings import Computer, Disk, Requirements
from llmctl.hub.cache.disk import free_bytes
from llmctl.hub.environment import without_credentials
from llmctl.machine.detection import container_memory, read_cpu_name
from llmctl.machine.threads import usable_cores
from llmctl.paths import cache_dir, check_writable, data_dir, existing_parent, state_dir
from llmctl.platform_support import read_system_file, resource_limit

DISTRIBUTION = "llmctl-hf"
# Variables that affect llmctl, without those that contain tokens.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TOKENIZERS_PARALLELISM",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_ENDPOINT",
    "HF_HUB_DOWNLOAD_TIMEOUT",
    "LD_LIBRARY_PATH",
    "BNB_CUDA_VERSION",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
)
_IMPORT_NAMES = {"flash-attn": "flash_attn", "huggingface-hub": "huggingface_hub", "pyyaml": "yaml"}
_PROBE_BYTES = 1 << 20  # small enough for a nearly full disk; a write of zero bytes would always succeed


def read_computer() -> Computer:
    """Read the facts and limits of this computer."""
    return Computer(
        python=platform.python_version(),
        platform=platform.platform(),
        cpu_name=read_cpu_name(),
        usable_cores=usable_cores(),
        swap_bytes=_swap_bytes(),
        container_limit_bytes=container_memory()[0],
        address_limit_bytes=resource_limit("RLIMIT_AS"),
        file_limit=resource_limit("RLIMIT_NOFILE"),
        variables=_variables(),
    )


def read_disk(folder: Path) -> Disk:
    """Check that the cache's folder, or its nearest existing parent, is writable. No file is left."""
    place = existing_parent(folder)
    if not place.is_dir():
        return Disk(folder, place, 0, "not_a_folder", f"{place} is a file")
    free = free_bytes(place)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0" * _PROBE_BYTES)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return Disk(folder, place, free, "full" if is_full else "read_only", error.strerror or str(error))
    return Disk(folder, place, free, has_links=_has_links(place))


def _has_links(folder: Path) -> bool:
    """Return True if symbolic links can be made in a folder that is writable. None is left."""
    if os.environ.get("HF_HUB_DISABLE_SYMLINKS", "").lower() in ("1", "on", "yes", "true"):
        return False
    with tempfile.TemporaryDirectory(dir=folder) as trial:
        try:
            Path(trial, "link").symlink_to("target")
        except OSError:
            return False
    return True


def read_locked_folders() -> tuple[tuple[Path, str], ...]:
    """Return llmctl's own folders that cannot be written, with the system's message."""
    locked: dict[Path, str] = {}
    for folder in (state_dir(), cache_dir(), data_dir()):
        try:
            check_writable(folder)
        except OSError as error:
            locked[Path(error.filename)] = error.strerror or str(error)
    return tuple(locked.items())


def read_requirements() -> Requirements:
    """Return the version ranges in llmctl's metadata, and the installed versions; empty without metadata."""
    try:
        package = distribution(DISTRIBUTION)
    except PackageNotFoundError:
        return Requirements()
    classifiers = package.metadata.get_all("Classifier", [])
    pythons = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", text) for text in classifiers]
    ranges, installed = {}, {}
    for line in package.requires or ():
        requirement, _, marker = line.partition(";")
        match = re.fullmatch(r"\s*([A-Za-z0-9._-]+)\s*([<>=!~0-9.,\s]*)", requirement)
        if match is None or ("extra ==" in marker and "flash" not in marker):
            continue
        name = match[1].lower().replace("_", "-")
        imported = _IMPORT_NAMES.get(name, name)
        ranges[imported] = match[2].strip()
        try:
            installed[imported] = version(name)
        except PackageNotFoundError:
            continue
    tested = tuple(match[1] for match in pythons if match)
    return Requirements((package.metadata.get_all("Requires-Python") or [""])[0], tested, ranges, installed)


def proxy_of(endpoint: str) -> str | None:
    """Return the proxy for an address, without credentials, or None."""
    address = urlsplit(endpoint)
    if address.hostname and proxy_bypass(address.hostname):
        return None
    proxies = getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    return without_credentials(proxy) if proxy else None


def _variables() -> dict[str, str]:
    values = {}
    for name in VARIABLES:
        value = os.environ.get(name) or os.environ.get(name.lower())
        if value is not None and (value or name == "CUDA_VISIBLE_DEVICES"):
            is_address = name.endswith("_PROXY") and name != "NO_PROXY"
            values[name] = without_credentials(value) if is_address or name == "HF_ENDPOINT" else value
    return values


def _swap_bytes() -> int:
    match = re.search(r"^SwapTotal:\s+(\d+) kB", read_system_file("/proc/meminfo"), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0
