"""`llmctl models`: list, describe and remove cached models."""

import sys
from typing import TYPE_CHECKING, Any

import typer

from llmctl.cli._command import command, new_app
from llmctl.cli._flag import Flag, switch, text
from llmctl.cli._options import Options
from llmctl.cli._render import Output
from llmctl.errors import EXIT_NO, OfflineError, UnreachableError, UserError
from llmctl.units import format_bytes

if TYPE_CHECKING:
    from llmctl.hub.cache.inventory import CachedModel, Waste
    from llmctl.loading.quantized_cache import StaleEntry
    from llmctl.model.info import ModelInfo
    from llmctl.quant.cache import CacheEntry

SUMMARY = "List, describe and remove cached models."
app = new_app(help=SUMMARY, group=True)

MODEL: Flag[str] = Flag(
    names=("MODEL",), help="Hub id of the model: org/name", annotation=str, default="", metavar="MODEL",
    is_required=True,
)  # fmt: skip
MODELS: Flag[list[str]] = Flag(
    names=("MODELS",), help="Models to remove", annotation=list[str], default=[], metavar="MODEL...", is_required=True
)
REVISION = text("--revision", help="Branch, tag or commit", default_text="the main branch")
COPIES = switch("--copies", help="Remove only the quantised copies")
DRY_RUN = switch("--dry-run", help="Show what would be removed and stop")
YES = switch("--yes", "-y", help="Do not ask")


@command(app, name="list")
def list_models(options: Options) -> None:
    """List the cached models.

    Examples:

      llmctl models list

      llmctl models list --json
    """
    from llmctl.hub.cache.inventory import cached_models
    from llmctl.quant.cache import entries

    output = options.output

    def unreadable(model: str, error: OSError) -> None:
        output.warn(f"{model} is not listed: {error.filename or model}: {error.strerror}")

    models, copies = cached_models(unreadable=unreadable), entries()
    if output.as_json:
        listed = {"models": [_as_json(model) for model in models], "quantized_copies": [_copy(copy) for copy in copies]}
        output.document("llmctl.models/1", listed)
        return
    columns = ("model", "revision", "size", "dtype", "parameters", "quantised", "complete", "last used")
    output.table(
        columns,
        [*map(_row, models), *map(_copy_row, copies)],
        drop=("dtype", "parameters", "revision", "quantised", "last used", "complete"),
        wrap=("complete",),
    )
    total = sum(model.size_bytes for model in models)
    plural = "" if len(models) == 1 else "s"
    kept = f"; {len(copies)} quantised, {format_bytes(sum(c.size_bytes for c in copies))}" if copies else ""
    summary = f"{len(models)} model{plural}, {format_bytes(total)}{kept}"
    output.note(summary if models or copies else _none_yet())


@command(app, MODEL, REVISION, name="info")
def info(options: Options) -> None:
    """Describe a model, here or on the Hub: parameters, licence, architecture, context, template.

    A cached model is described without the network. For any other model the Hub is asked, and only the headers of the
    weights are read. Without a network, the small default is described from the demo extra's copy.

    Examples:

      llmctl models info Qwen/Qwen3-4B
    """
    from llmctl.hub.cache.inventory import find_model
    from llmctl.hub.cache.snapshot import find_snapshot

    output = options.output
    model, revision = options.id_and_revision(MODEL, REVISION)
    if find_snapshot(model, revision=revision) is not None:
        cached = find_model(model, revision=revision)
        facts: dict[str, Any] = {"in_cache": True, "commit": cached.commit, "folder": str(cached.folder)}
        facts |= {"size_bytes": cached.size_bytes, **_facts(cached.info)}
    else:
        facts = _facts_elsewhere(output, model, revision)
    if output.as_json:
        output.document("llmctl.model/1", {"repo_id": model, **facts})
        return
    names = (key.removesuffix("_bytes").replace("_", " ") for key in facts)
    values = (_text(key, value) for key, value in facts.items())
    output.pairs([("model", model), *zip(names, values, strict=True)])


@command(app, MODEL, REVISION, name="path")
def path(options: Options) -> None:
    """Print the folder of a cached model; exit code 1 if it is incomplete.

    Examples:

      ls "$(llmctl models path Qwen/Qwen3-4B)"
    """
    from llmctl.hub.cache.inventory import find_model

    output = options.output
    model, revision = options.id_and_revision(MODEL, REVISION)
    cached = find_model(model, revision=revision)
    if output.as_json:
        output.document("llmctl.model-path/1", {"folder": str(cached.folder), "missing": list(cached.missing)})
    else:
        output.line(str(cached.folder))
    if cached.missing:
        output.warn(f"it is incomplete: missing {', '.join(cached.missing)}")
        raise typer.Exit(EXIT_NO)


@command(app, MODEL, REVISION, name="lock")
def lock(options: Options) -> None:
    """Print the lock file of a model: every file with its size and hash, for download --locked.

    Examples:

      llmctl models lock Qwen/Qwen3-4B > qwen.lock.json
    """
    import json

    from llmctl.hub.cache.lockfile import to_json
    from llmctl.hub.cache.snapshot import record_of

    model, revision = options.id_and_revision(MODEL, REVISION)
    record = record_of(model, revision=revision)
    if record is None:
        raise UserError(f"{model} has no lock file: llmctl did not download it", hint=f"llmctl download {model}")
    options.output.line(json.dumps(to_json(record), indent=1))


@command(app, MODELS, COPIES, YES, name="rm")
def remove(options: Options) -> None:
    """Remove models from the cache, with all their revisions and quantised copies.

    Examples:

      llmctl models rm Qwen/Qwen3-4B

      llmctl models rm --copies Qwen/Qwen3-4B
    """
    from llmctl.config.hub_address import id_and_revision

    output, models = options.output, [id_and_revision(model, None)[0] for model in options[MODELS]]
    for model in models:
        _check_present(model, only_copies=options[COPIES])
    what = "the quantised copies of " if options[COPIES] else ""
    _confirm(f"Remove {what}{', '.join(models)} from the cache?", yes=options[YES])
    freed = {model: _remove(model, only_copies=options[COPIES]) for model in models}
    if output.as_json:
        output.document("llmctl.models-rm/1", {"removed": freed})
        return
    for model, size in freed.items():
        output.line(f"removed {model}, {format_bytes(size)}")


@command(app, DRY_RUN, YES, name="prune")
def prune(options: Options) -> None:
    """Remove files that no model needs: partial files, orphans, old revisions, unused quantised copies.

    Examples:

      llmctl models prune --dry-run
    """
    from llmctl.hub.cache.inventory import find_waste, remove_waste
    from llmctl.loading.quantized_cache import find_stale, remove_stale
    from llmctl.machine.detection import read_machine

    output, dry_run = options.output, options[DRY_RUN]
    unneeded, stale = find_waste(), find_stale(read_machine())
    waste: tuple[Waste | StaleEntry, ...] = (*unneeded, *stale)
    total = sum(item.size_bytes for item in waste)
    rows = [(item.repo_id, item.why, format_bytes(item.size_bytes), item.path.name) for item in waste]
    if not output.as_json and waste:
        output.table(("model", "what", "size", "name"), rows, drop=("name",), wrap=("what",))
    freed = 0
    if waste and not dry_run:
        _confirm(f"Remove these {len(waste)}, {format_bytes(total)}?", yes=options[YES])
        freed = remove_waste(unneeded) + remove_stale(stale)
    if output.as_json:
        items = [{"repo_id": w.repo_id, "why": w.why, "size_bytes": w.size_bytes, "path": str(w.path)} for w in waste]
        output.document("llmctl.models-prune/1", {"items": items, "size_bytes": total, "freed_bytes": freed})
    elif not waste:
        output.note("nothing to remove")
    else:
        output.note(f"{format_bytes(total)} would be freed" if dry_run else f"{format_bytes(freed)} freed")


def _check_present(model: str, *, only_copies: bool) -> None:
    """Raise UserError if there is nothing to remove, before anything is asked or removed."""
    from llmctl.hub.cache.inventory import check_cached
    from llmctl.model.resolve import is_path
    from llmctl.quant.cache import entries_of

    if entries_of(model):
        return
    if only_copies or is_path(model):
        raise UserError(f"there are no quantised copies of {model}", hint="see: llmctl models list")
    check_cached(model)


def _remove(model: str, *, only_copies: bool) -> int:
    """Remove a model and its quantised copies, or only the copies; return the bytes that this frees."""
    from llmctl.hub.cache.inventory import remove_model
    from llmctl.hub.settings import repo_dir
    from llmctl.model.resolve import is_path
    from llmctl.quant.cache import remove_entries_of

    in_cache = not is_path(model) and repo_dir(model).is_dir()
    freed = remove_model(model) if in_cache and not only_copies else 0
    return freed + remove_entries_of(model)


def _confirm(question: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError("nothing was removed: there is no terminal to ask on", hint="--yes removes without asking")
    if not typer.confirm(question, err=True):
        raise UserError("nothing was removed")


def _none_yet() -> str:
    """Return the note under an empty list."""
    from llmctl.model import demo

    text = "none yet: llmctl download org/name"
    has_copy = demo.demo_folder() is not None or demo.bundled_gguf() is not None
    return f"{text}; the demo extra's copy of {demo.MODEL_ID} needs no download" if has_copy else text


def _facts_elsewhere(output: Output, model: str, revision: str | None) -> dict[str, Any]:
    """Return the facts of a model that is not in the cache: from the Hub, or of the demo extra's copy without one."""
    from llmctl.hub.describe import describe
    from llmctl.model import demo
    from llmctl.model.info import read_model_info

    try:
        remote = describe(model, revision=revision)
    except (UnreachableError, OfflineError):
        folder = demo.demo_folder() if model == demo.MODEL_ID and revision is None else None
        if folder is None:
            raise
        size = sum(file.stat().st_size for file in folder.iterdir())
        info = read_model_info(folder, source=model, commit=None)
        return {"in_cache": False, "folder": str(folder), "size_bytes": size, **_facts(info)}
    if remote.why_not:
        output.warn(remote.why_not)
    facts = {"in_cache": False, "commit": remote.commit, "page": remote.page, "licence": remote.licence}
    return facts | {"gated": remote.gated, "size_bytes": remote.download_bytes, **_facts(remote.info)}


def _row(model: "CachedModel") -> tuple[str, ...]:
    info = model.info
    stored = info.stored_quantization if info else None
    return (
        model.repo_id,
        f"{', '.join(model.revisions) or '-'} {model.commit[:8]}",
        format_bytes(model.size_bytes),
        info.stored_dtype if info else "?",
        _count(info.parameters) if info else "?",
        "?" if info is None else stored.name if stored else "no",
        "yes" if not model.missing else f"no: {model.missing[0]}",
        _date(model.last_used),
    )


def _copy_row(copy: "CacheEntry") -> tuple[str, ...]:
    size, used = format_bytes(copy.size_bytes), _date(copy.last_used)
    return (copy.source, "quantised copy", size, copy.dtype, "", copy.label, "yes", used)


def _copy(copy: "CacheEntry") -> dict[str, Any]:
    return {
        "source": copy.source,
        "commit": copy.commit,
        "quantization": copy.label,
        "dtype": copy.dtype,
        "folder": str(copy.folder),
        "size_bytes": copy.size_bytes,
        "made": copy.made,
        "last_used": _date(copy.last_used),
    }


def _as_json(model: "CachedModel") -> dict[str, Any]:
    return {
        "repo_id": model.repo_id,
        "commit": model.commit,
        "revisions": list(model.revisions),
        "folder": str(model.folder),
        "size_bytes": model.size_bytes,
        "missing": list(model.missing),
        "last_used": _date(model.last_used),
        **_facts(model.info),
    }


def _facts(info: "ModelInfo | None") -> dict[str, Any]:
    """Return the facts of a model's configuration and headers."""
    if info is None:
        return {}
    stored = info.stored_quantization
    by_dtype: dict[str, int] = {}
    for tensor in info.tensors:
        by_dtype[tensor.dtype] = by_dtype.get(tensor.dtype, 0) + tensor.numel
    return {
        "architecture": info.architecture,
        "model_type": info.model_type,
        "parameters": info.parameters,
        "parameters_by_dtype": by_dtype,
        "quantization": stored.name if stored else None,
        "context_length": info.context_length,
        "has_chat_template": info.has_chat_template,
        "has_remote_code": info.has_remote_code,
    }


def _text(key: str, value: Any) -> str:
    if key.endswith("_bytes"):
        return format_bytes(value)
    if key == "parameters":
        return _count(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_count(count)}" for name, count in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def _count(number: int) -> str:
    """Return a number of parameters as text: `135M`, `8.03B`."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _date(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).date().isoformat() if seconds else "never"
