"""The use of the quantised cache by a load: look an entry up, write one, and remove entries that are out of date."""

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmctl.config import Config
from llmctl.errors import ModelError
from llmctl.machine.detection import Machine
from llmctl.model.checkpoint import fingerprint
from llmctl.model.info import ModelInfo
from llmctl.plan import Plan
from llmctl.plan.quantized_cache import decide_cache, with_decision
from llmctl.quant import cache
from llmctl.quant.atomic_folder import NewFolder, abandoned, remove_abandoned
from llmctl.units import parse_bytes


def plan_cache(plan: Plan, config: Config, info: ModelInfo, machine: Machine, *, download_bytes: int = 0) -> Plan:
    """Add the decision to read or fill the cache to a plan that quantises. Reads headers and the entry's record.

    `download_bytes` is the size of a download that reaches the same disk first.
    """
    if not plan.quantizes:
        return plan
    has_source = info.folder is not None or info.commit is not None
    entry = None
    if has_source and config.quantization.cache:
        entry = cache.read(cache.folder_of(_identity(plan, info, machine)))
    return decide_cache(plan, config, info, entry=entry, free_bytes=cache.free_bytes() - download_bytes)


def fill_cache(model: Any, plan: Plan, config: Config, info: ModelInfo, machine: Machine) -> Plan:
    """Write a model that was just quantised to the cache, and return the plan with the outcome.

    An entry only saves time, so a failed write is not an error.
    """
    from safetensors import SafetensorError

    assert plan.quantization is not None  # noqa: S101 (the plan quantises)
    identity = _identity(plan, info, machine)
    try:
        new = NewFolder(cache.folder_of(identity))
    except BlockingIOError:
        return with_decision(plan, "none", "another process is writing it")
    except OSError as error:
        return with_decision(plan, "none", f"it cannot be written: {error.strerror or error}")
    origin = str((info.folder or Path()).absolute())
    facts = {"source": info.source, "origin": origin, "kind": plan.quantization.label}
    limit = parse_bytes(config.quantization.cache_size)
    try:
        cache.write(new, model, identity=identity, facts=facts, limit_bytes=limit)
    except (OSError, SafetensorError) as error:
        new.drop()
        return with_decision(plan, "none", f"it cannot be written: {getattr(error, 'strerror', None) or error}")
    except BaseException:
        new.drop()
        raise
    return plan


def refill_cache(plan: Plan, reason: str) -> Plan:
    """Return the plan after its entry turned out to be unusable: quantise, and fill the cache again."""
    plan = with_decision(plan, "written again", reason)
    return replace(plan, quantized_cache=None, fills_quantized_cache=True)


def _identity(plan: Plan, info: ModelInfo, machine: Machine) -> dict[str, Any]:
    assert plan.quantization is not None  # noqa: S101 (the plan quantises)
    return cache.identify(
        plan.quantization,
        state={"commit": info.commit} if info.commit else {"fingerprint": fingerprint(info.folder or Path())},
        dtype=plan.model_kwargs["dtype"],
        device=plan.devices[0].partition(":")[0],
        packages=machine.packages,
    )


@dataclass(frozen=True)
class StaleEntry:
    """A folder of the cache that will never be read again.

    Attributes:
        path: The folder.
        size_bytes: The bytes that its removal frees.
        why: The reason for its removal, in a few words.
        repo_id: The model; `-` if it is not known.
    """

    path: Path
    size_bytes: int
    why: str
    repo_id: str


def find_stale(machine: Machine) -> tuple[StaleEntry, ...]:
    """Return the folders of the cache that `llmctl models prune` removes."""
    stale = []
    for folder in cache.folders():
        entry = cache.read(folder)
        why = "damaged copy" if entry is None else _why_stale(entry, machine)
        if why is not None:
            stale.append(StaleEntry(folder, _size(folder), why, entry.source if entry else "-"))
    unfinished = (StaleEntry(path, _size(path), "unfinished copy", "-") for path in abandoned(cache.root()))
    return (*stale, *unfinished)


def remove_stale(stale: tuple[StaleEntry, ...]) -> int:
    """Remove what `find_stale` returned, and return the bytes freed."""
    for item in stale:
        cache.remove(item.path)
    remove_abandoned(cache.root())
    return sum(item.size_bytes for item in stale)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _why_stale(entry: cache.CacheEntry, machine: Machine) -> str | None:
    for name, version in entry.versions.items():
        if cache.short_version(machine.packages, name, len(version.split("."))) != version:
            return "copy by another version"
    if not entry.origin.is_dir():
        return "copy of a model that is gone"
    if entry.commit is None:
        with suppress(ModelError, OSError):
            if fingerprint(entry.origin) == entry.fingerprint:
                return None
        return "copy of a model that has changed"
    return None
