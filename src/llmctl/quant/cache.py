"""Quantised copies of weights: kept after the first load, read by the next, bounded in size.

A copy belongs to one commit (or, for a plain folder, to one state of its files) and to everything that changes its
bytes; all of that is hashed into the name of its folder. `copy.json` beside the weights says in words what it is.
"""

import hashlib
import json
import os
import shutil
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmctl.config import Config
from llmctl.errors import ModelError
from llmctl.machine.detection import Machine
from llmctl.model.checkpoint import read_header, weight_files
from llmctl.model.info import ModelInfo
from llmctl.paths import cache_dir
from llmctl.plan import Plan
from llmctl.plan.quantized_cache import QuantizedCopy, decide_copy, told
from llmctl.quant.atomic_folder import NewFolder, abandoned, remove_abandoned
from llmctl.quant.save import save_weights
from llmctl.units import parse_bytes

FORMAT = 1  # raise it when the layout changes: older copies are then outdated
RECORD = "copy.json"


def root() -> Path:
    """The folder of all copies."""
    return cache_dir() / "quantized"


def consider(plan: Plan, config: Config, info: ModelInfo, machine: Machine, *, download_bytes: int = 0) -> Plan:
    """Add to a plan that quantises whether a copy is read, or will be kept. Reads headers and the copy's record.

    Args:
        plan: What was decided so far.
        config: What was asked.
        info: The model.
        machine: This computer.
        download_bytes: What will be written to the disk before.
    """
    if not plan.quantizes:
        return plan
    known = find(plan, info, machine) if config.quantization.cache else None
    return decide_copy(plan, config, info, found=known, free_bytes=_free_bytes() - download_bytes)


def find(plan: Plan, info: ModelInfo, machine: Machine) -> QuantizedCopy | None:
    """The copy of exactly these weights quantised exactly so, whole as far as sizes tell, or None."""
    if info.folder is None and info.commit is None:
        return None
    return _read(root() / _name(_identity(plan, info, machine)))


def keep(model: Any, plan: Plan, config: Config, info: ModelInfo, machine: Machine) -> Plan:
    """Write a copy of a model that was just quantised and has not computed anything yet.

    The files are written before this returns, to the system's own cache; that they reach the disk, and take their
    place there, is waited for by a thread, which the end of the process waits for.

    Returns:
        The plan, which says what became of it. A copy is a convenience: that it cannot be written is no error.
    """
    from safetensors import SafetensorError

    identity = _identity(plan, info, machine)
    target = root() / _name(identity)
    try:
        new = NewFolder(target)
    except BlockingIOError:
        return told(plan, "none", "another process is writing it now")
    except OSError as error:
        return told(plan, "none", f"it cannot be written: {error.strerror or error}")
    try:
        save_weights(model, new.path)
        _write_record(new.path, plan, info, identity)
    except (OSError, SafetensorError) as error:
        new.drop()
        return told(plan, "none", f"it cannot be written: {getattr(error, 'strerror', None) or error}")
    except BaseException:
        new.drop()
        raise
    limit = parse_bytes(config.quantization.cache_size)
    threading.Thread(target=_finish, args=(new, limit), name="llmctl-quantized-copy").start()
    return plan


def kept_copies() -> tuple[QuantizedCopy, ...]:
    """Every copy, by the name of its model."""
    found = [_read(folder) for folder in _folders()]
    return tuple(sorted((copy for copy in found if copy is not None), key=lambda copy: (copy.source, copy.kind)))


def mark_used(folder: Path) -> None:
    """Remember that a copy was loaded just now."""
    with suppress(OSError):
        os.utime(folder / RECORD)


def forget(folder: Path) -> None:
    """Remove a copy. Processes that have it mapped keep what they have."""
    if folder.parent == root() and not folder.name.startswith("."):
        shutil.rmtree(folder, ignore_errors=True)


def make_room(limit_bytes: int, *, spare: Path | None = None) -> None:
    """Remove the least recently used copies until all together take at most `limit_bytes`; `spare` goes last."""
    copies = sorted(kept_copies(), key=lambda copy: (copy.folder == spare, copy.last_used))
    total = sum(copy.size_bytes for copy in copies)
    for copy in copies:
        if total <= limit_bytes:
            return
        forget(copy.folder)
        total -= copy.size_bytes


def remove_copies(model: str) -> int:
    """Remove all copies of a model, named by its Hub id or its folder; returns the bytes that this frees."""
    folder = Path(model).expanduser().absolute()
    mine = [copy for copy in kept_copies() if copy.source == model or folder in (copy.origin, Path(copy.source))]
    for copy in mine:
        forget(copy.folder)
    return sum(copy.size_bytes for copy in mine)


@dataclass(frozen=True)
class Stale:
    """A copy that will never be read again, or what was to become one.

    Attributes:
        path: Its folder.
        size_bytes: What its removal frees.
        why: In a few words.
        repo_id: The model, as far as it is known.
    """

    path: Path
    size_bytes: int
    why: str
    repo_id: str


def find_stale(machine: Machine) -> tuple[Stale, ...]:
    """What a prune would remove of the copies."""
    found = []
    for folder in _folders():
        copy = _read(folder)
        why = "damaged copy" if copy is None else _why_stale(copy, machine)
        if why is not None:
            found.append(Stale(folder, _size(folder), why, copy.source if copy else "-"))
    return (*found, *(Stale(path, _size(path), "unfinished copy", "-") for path in abandoned(root())))


def remove_stale(stale: tuple[Stale, ...]) -> int:
    """Remove what `find_stale` found; returns the bytes freed."""
    for item in stale:
        forget(item.path)
    remove_abandoned(root())
    return sum(item.size_bytes for item in stale)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _why_stale(copy: QuantizedCopy, machine: Machine) -> str | None:
    if any(_version(name, machine, len(version.split("."))) != version for name, version in copy.versions.items()):
        return "copy by another version"
    if not copy.origin.is_dir():
        return "copy of a model that is gone"
    if copy.commit is None:
        with suppress(ModelError, OSError):
            if fingerprint(copy.origin) == copy.fingerprint:
                return None
        return "copy of a model that has changed"
    return None


def fingerprint(folder: Path) -> str:
    """What the weights of a plain folder look like: names, sizes, times and headers of the files, and config.json.

    Raises:
        ModelError: there are none.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in weight_files(folder):
        stat = file.stat()
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns} ".encode() + read_header(file))
    return digest.hexdigest()


def _identity(plan: Plan, info: ModelInfo, machine: Machine) -> dict[str, Any]:
    """Everything that changes the bytes of a copy."""
    assert plan.quantization is not None  # noqa: S101 (the plan quantises)
    model = {"commit": info.commit} if info.commit else {"fingerprint": fingerprint(info.folder or Path())}
    return {
        "format": FORMAT,
        **model,
        "quantization_config": dict(plan.quantization.arguments),
        "dtype": plan.model_kwargs["dtype"],
        "device": plan.devices[0].partition(":")[0],
        "versions": {
            name: _version(name, machine, parts) for name, parts in plan.quantization.backend.cache_versions.items()
        },
    }


def _version(name: str, machine: Machine, parts: int) -> str:
    return ".".join(machine.packages.get(name, "").split(".")[:parts])


def _name(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def _write_record(folder: Path, plan: Plan, info: ModelInfo, identity: dict[str, Any]) -> None:
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*"))}
    record = {
        **identity,
        "source": info.source,
        "origin": str((info.folder or Path()).absolute()),
        "kind": plan.quantization.label if plan.quantization is not None else "none",
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "sizes": sizes,
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _read(folder: Path) -> QuantizedCopy | None:
    """The copy in a folder, or None where it is not whole or not one."""
    file = folder / RECORD
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        sizes = record["sizes"]
        if record["format"] != FORMAT or any((folder / n).stat().st_size != size for n, size in sizes.items()):
            return None
        return QuantizedCopy(
            folder=folder,
            source=str(record["source"]),
            origin=Path(record["origin"]),
            commit=record.get("commit"),
            fingerprint=str(record.get("fingerprint", "")),
            kind=str(record["kind"]),
            dtype=str(record["dtype"]),
            versions=dict(record["versions"]),
            made=str(record["made"]),
            size_bytes=sum(sizes.values()),
            last_used=file.stat().st_mtime,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _finish(new: NewFolder, limit_bytes: int) -> None:
    if _read(new.target) is None:
        forget(new.target)  # cut off, or damaged otherwise
    try:
        new.place()
    except OSError:  # the disk, or another process was faster: what is there stays
        new.drop()
        return
    make_room(limit_bytes, spare=new.target)
    remove_abandoned(root())


def _folders() -> list[Path]:
    if not root().is_dir():
        return []
    return sorted(entry for entry in root().iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _free_bytes() -> int:
    place = root()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def without_copy(plan: Plan, reason: str) -> Plan:
    """The plan after its copy turned out to be unusable: quantise, and keep a new one."""
    return replace(told(plan, "made anew", reason), copy_folder=None, keep_copy=True)
