"""The quantised cache: weights as they were after quantising, stored on disk, bounded in size.

An entry belongs to one commit (or, for a plain folder, to one state of its files) and to everything that changes its
bytes; all of that is hashed into the name of its folder. `copy.json` beside the weights describes it.
"""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmctl.paths import cache_dir, expand
from llmctl.quant.atomic_folder import NewFolder, remove_abandoned
from llmctl.quant.backend import Quantization
from llmctl.quant.registry import check_saveable

FORMAT = 2  # increase it when the layout or the choice of quantised weights changes: older entries are then out of date
RECORD = "copy.json"
# One file at a time is gathered in memory if it has to be copied there from a GPU.
_SHARD_SIZE = "4GB"


@dataclass(frozen=True)
class CacheEntry:
    """Quantised weights on disk.

    Attributes:
        folder: Their folder.
        source: The Hub id of the model, or its folder as the user named it.
        origin: The folder with the model's own files.
        commit: The commit on the Hub; None for a plain folder.
        fingerprint: The state of a plain folder's weights; empty if there is a commit.
        label: The quantisation: `bitsandbytes 4-bit nf4`.
        dtype: The dtype of weights that are not quantised.
        versions: The libraries that quantised, with the parts of their versions that matter.
        made: The date, ISO 8601, UTC.
        size_bytes: The size of its files.
        last_used: The last time it was loaded, in seconds since 1970.
    """

    folder: Path
    source: str
    origin: Path
    commit: str | None
    fingerprint: str
    label: str
    dtype: str
    versions: Mapping[str, str]
    made: str
    size_bytes: int
    last_used: float


def root() -> Path:
    """Return the folder of the cache."""
    return cache_dir() / "quantized"


def folder_of(identity: Mapping[str, Any]) -> Path:
    """Return the folder of the entry with this identity, whether it exists or not."""
    return root() / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def identify(
    quantization: Quantization, *, state: Mapping[str, str], dtype: str, device: str, packages: Mapping[str, str]
) -> dict[str, Any]:
    """Return everything that changes the bytes of an entry.

    Args:
        state: The `commit` of the model, or the `fingerprint` of its folder.
        dtype: The dtype of weights that are not quantised.
        device: The kind of device that quantises: `cpu`, `cuda`.
        packages: Versions of installed packages by name.
    """
    return {
        "format": FORMAT,
        **state,
        "quantization_config": dict(quantization.arguments),
        "dtype": dtype,
        "device": device,
        "versions": {
            name: short_version(packages, name, parts) for name, parts in quantization.backend.cache_versions.items()
        },
    }


def short_version(packages: Mapping[str, str], name: str, parts: int) -> str:
    """Return the first parts of a package's version; empty if it is not installed."""
    return ".".join(packages.get(name, "").split(".")[:parts])


def write(
    new: NewFolder, model: Any, *, identity: Mapping[str, Any], facts: Mapping[str, str], limit_bytes: int
) -> None:
    """Write a model that was just quantised and has not computed anything yet.

    The files are written before this returns, to the system's page cache. A thread waits until they are on the disk,
    puts the entry in its place and removes old entries; the end of the process waits for it.

    Args:
        identity: The result of `identify`.
        facts: `source`, `origin` and `kind` of the entry.
        limit_bytes: Maximum size of all entries together.

    Raises:
        OSError, SafetensorError: the files cannot be written.
    """
    save_weights(model, new.path)
    sizes = {path.relative_to(new.path).as_posix(): path.stat().st_size for path in sorted(new.path.rglob("*"))}
    record = {**identity, **facts, "made": datetime.now(UTC).isoformat(timespec="seconds"), "sizes": sizes}
    (new.path / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    threading.Thread(target=_place, args=(new, limit_bytes), name="llmctl-quantized-cache").start()


def save_weights(model: Any, folder: Path) -> None:
    """Write weights, config.json and generation_config.json as transformers does, into an existing folder.

    Raises:
        ValueError: the model can no longer be saved, see `QuantBackend.check_saveable`.
        OSError, SafetensorError: the files cannot be written.
    """
    check_saveable(model)
    model.save_pretrained(str(folder), max_shard_size=_SHARD_SIZE)
    usual = (folder / "config.json").stat().st_mode & 0o777
    for file in folder.glob("*.safetensors"):  # safetensors writes them for the owner alone
        file.chmod(usual)


def read(folder: Path) -> CacheEntry | None:
    """Return the entry in a folder; None if there is none or its files do not have their sizes."""
    file = folder / RECORD
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        sizes = record["sizes"]
        if record["format"] != FORMAT or any((folder / n).stat().st_size != size for n, size in sizes.items()):
            return None
        return CacheEntry(
            folder=folder,
            source=str(record["source"]),
            origin=Path(record["origin"]),
            commit=record.get("commit"),
            fingerprint=str(record.get("fingerprint", "")),
            label=str(record["kind"]),
            dtype=str(record["dtype"]),
            versions=dict(record["versions"]),
            made=str(record["made"]),
            size_bytes=sum(sizes.values()),
            last_used=file.stat().st_mtime,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def entries() -> tuple[CacheEntry, ...]:
    """Return every entry, by the name of its model."""
    readable = [entry for folder in folders() if (entry := read(folder)) is not None]
    return tuple(sorted(readable, key=lambda entry: (entry.source, entry.label)))


def folders() -> list[Path]:
    """Return the folders of all entries, damaged ones included."""
    if not root().is_dir():
        return []
    return sorted(path for path in root().iterdir() if path.is_dir() and not path.name.startswith("."))


def mark_used(folder: Path) -> None:
    """Set the time of an entry's last use to now."""
    with suppress(OSError):
        os.utime(folder / RECORD)


def remove(folder: Path) -> None:
    """Remove an entry. Processes that have mapped its files keep them."""
    if folder.parent == root() and not folder.name.startswith("."):
        shutil.rmtree(folder, ignore_errors=True)


def entries_of(model: str) -> list[CacheEntry]:
    """Return all entries of a model, named by its Hub id or its folder."""
    folder = expand(model).absolute()
    return [entry for entry in entries() if entry.source == model or folder in (entry.origin, Path(entry.source))]


def remove_entries_of(model: str) -> int:
    """Remove all entries of a model, named by its Hub id or its folder, and return the bytes that this frees."""
    matching = entries_of(model)
    for entry in matching:
        remove(entry.folder)
    return sum(entry.size_bytes for entry in matching)


def free_bytes() -> int:
    """Return the free bytes of the disk that holds the cache."""
    path = root()
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def _place(new: NewFolder, limit_bytes: int) -> None:
    if read(new.target) is None:
        remove(new.target)  # incomplete or damaged
    try:
        new.place()
    except OSError:  # the disk is full, or another process was faster: the existing folder stays
        new.drop()
        return
    _trim(limit_bytes, newest=new.target)
    remove_abandoned(root())


def _trim(limit_bytes: int, *, newest: Path) -> None:
    """Remove the least recently used entries until the rest takes at most `limit_bytes`; `newest` goes last."""
    by_age = sorted(entries(), key=lambda entry: (entry.folder == newest, entry.last_used))
    total = sum(entry.size_bytes for entry in by_age)
    for entry in by_age:
        if total <= limit_bytes:
            return
        remove(entry.folder)
        total -= entry.size_bytes
