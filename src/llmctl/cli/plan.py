"""`llmctl plan`."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.cli._command import command, new_app
from llmctl.cli._flag import file, integer, switch, texts
from llmctl.cli._flags import MODEL_ARGUMENT, OFFLINE
from llmctl.cli._options import Options
from llmctl.cli._render import Output
from llmctl.errors import UserError
from llmctl.units import format_bytes

if TYPE_CHECKING:
    from llmctl.config import Settings
    from llmctl.machine.detection import Machine
    from llmctl.model.resolve import ModelPreview
    from llmctl.plan.survey import Variant

app = new_app()
_BAR_WIDTH = 40
DEFAULT_CONTEXT = 4096

CONTEXT = integer("--context", help="Tokens of prompt and answer together", default=DEFAULT_CONTEXT, minimum=1)
BATCH = integer("--batch", help="Concurrent sequences", default=1, minimum=1)
MACHINES = texts(
    "--machine",
    metavar="NAME",
    help="Machine to plan for instead of this one (repeatable): h100, 2xh100, a100-40, rtx4090, t4, m3-max-36, or a "
    "YAML file",
    default_text="this machine",
)
WRITE = file("--write", help="YAML file to write with the recommended configuration")
FORCE = switch("--force", help="Replace an existing file", needs="--write")


@command(
    app, MODEL_ARGUMENT, CONTEXT, BATCH, MACHINES, WRITE, FORCE, "Model", "--attn", "--device-map", "--draft",
)  # fmt: skip
def plan(options: Options) -> None:
    """Show how a model would run here, before downloading it.

    The command reads config.json and the headers of the weights, a few hundred kilobytes from the Hub. For every
    variant it estimates weights, KV cache at the given context, activations, runtime and speed.

    Examples:

      llmctl plan meta-llama/Meta-Llama-3-8B-Instruct

      llmctl plan Qwen/Qwen3-32B --context 32768 --machine t4 --machine 2xh100

      llmctl plan Qwen/Qwen3-4B --write llmctl.yaml
    """
    from llmctl.model.resolve import preview_model

    output, settings = options.output, options.settings()
    context, batch, write = options[CONTEXT], options[BATCH], options[WRITE]
    if write is not None and write.exists() and not options[FORCE]:
        raise UserError(f"{write} exists already", hint="--force replaces it")
    seen = preview_model(settings, offline=options[OFFLINE])
    limit = seen.info.context_length
    if limit is not None and context > limit:
        output.note(f"the context of {seen.info.source} ends at {limit} tokens")
        context = limit
    surveyed = [_survey(name, settings, seen, context=context, batch=batch) for name in options[MACHINES] or [""]]
    if output.as_json:
        output.document("llmctl.plan/1", _document(seen, surveyed, context=context, batch=batch))
    else:
        _show_model(output, seen)
        for name, _, variants, best in surveyed:
            _show_ways(output, name, variants, best, context=context, batch=batch)
    if write is not None:
        _write(output, write, settings, seen, surveyed[0][3])


Surveyed = tuple[str, "Machine", tuple["Variant", ...], "Variant | None"]


def _survey(name: str, settings: "Settings", seen: "ModelPreview", *, context: int, batch: int) -> Surveyed:
    from llmctl.loading.quantized_cache import plan_cache
    from llmctl.machine.detection import measure_ram_bandwidth, read_machine
    from llmctl.machine.presets import imagined
    from llmctl.plan import PlanRequest
    from llmctl.plan.survey import recommended, survey

    machine = imagined(name) if name else read_machine()
    bandwidth = measure_ram_bandwidth() if not name and not machine.gpus else None
    request = PlanRequest(
        settings.config,
        machine,
        seen.info,
        context=context,
        batch=batch,
        draft=seen.draft.info if seen.draft else None,
        adapters=seen.adapters,
    )
    variants = survey(request, ram_bandwidth=bandwidth)
    if not name:
        variants = tuple(
            replace(
                variant,
                plan=plan_cache(variant.plan, settings.config, seen.info, machine, download_bytes=seen.download_bytes),
            )
            if variant.plan is not None
            else variant
            for variant in variants
        )
    return name or "this machine", machine, variants, recommended(variants)


def _show_model(output: Output, seen: "ModelPreview") -> None:
    from llmctl.model.checkpoint import dtype_bytes

    info = seen.info
    stored = ", ".join(f"{name} {format_bytes(size)}" for name, size in dtype_bytes(info.tensors).items())
    rows = [
        ("model", f"{info.source} ({seen.reason})"),
        ("architecture", f"{info.architecture}, {info.layer_count} layers, context {info.context_length}"),
        ("parameters", f"{info.parameters / 1e6:,.0f} million"),
        ("weights", stored),
    ]
    if seen.download_bytes:
        from llmctl.hub.cache.disk import free_bytes
        from llmctl.hub.settings import cache_dir

        rows.append(
            ("download", f"{format_bytes(seen.download_bytes)}; {format_bytes(free_bytes(cache_dir()))} are free")
        )
    else:
        rows.append(("download", "nothing: the model is on this machine"))
    for adapter in seen.adapters:
        rows.append(("adapter", f"{adapter.source}: {format_bytes(adapter.size_bytes)}; counted in the totals"))
    if seen.draft is not None:
        small = seen.draft.info
        rows.append(("draft", f"{small.source}: {small.parameters / 1e6:,.3g} million; counted in the totals"))
    output.heading(info.source)
    output.pairs(rows)


def _show_ways(
    output: Output, name: str, variants: "tuple[Variant, ...]", best: "Variant | None", *, context: int, batch: int
) -> None:
    sequences = f", {batch} sequences" if batch > 1 else ""
    output.heading(f"{name}, context {context}{sequences}")
    rows = [_row(variant, best) for variant in variants]
    output.table(("", "way", "weights", "in half", "cache+", "total", "free", "tok/s*", "verdict"), rows)
    if any(variant.speed for variant in variants):
        beside = (
            ", draft model, adapters"
            if any(variant.plan and variant.plan.memory.beside_bytes for variant in variants)
            else ""
        )
        output.line(f"cache+: KV cache and activations{beside}; * an estimate of decoding, one sequence")
    if best is None or best.plan is None:
        output.line(f"nothing fits: {variants[-1].reason}")
        return
    output.heading(f"recommended: {best.name}")
    output.pairs([(d.key, f"{d.value}  ({d.reason})") for d in best.plan.decisions])
    for line in _bars(best):
        output.line(line)


def _row(variant: "Variant", best: "Variant | None") -> tuple[str, ...]:
    mark = "->" if variant is best else ""
    verdict = verdict_text(variant)
    if variant.plan is None:
        return (mark, variant.name, "", "", "", "", "", "", verdict)
    memory = variant.plan.memory
    speed = f"{variant.speed.decode[0]:.3g}-{variant.speed.decode[1]:.3g}" if variant.speed else "?"
    return (
        mark,
        variant.name,
        format_bytes(sum(memory.weights.values())),
        format_bytes(variant.unquantised_bytes) if variant.unquantised_bytes else "",
        format_bytes(memory.working_bytes + memory.beside_bytes),
        format_bytes(memory.total_bytes),
        format_bytes(variant.free_bytes),
        speed,
        verdict,
    )


def verdict_text(variant: "Variant") -> str:
    """Return the verdict of a variant in words."""
    if variant.verdict == "fits":
        return "fits"
    if variant.verdict == "spills":
        whole = f"; whole up to {variant.largest_context} tokens" if variant.largest_context else ""
        return f"fits with {variant.spilled_blocks} blocks in RAM{whole}"
    if variant.verdict == "too large":
        return (
            f"does not fit; would with {variant.largest_context} tokens" if variant.largest_context else "does not fit"
        )
    return f"not possible: {variant.reason}"


def _bars(variant: "Variant") -> list[str]:
    """Return a bar per device: its share of the weights, and its modules."""
    assert variant.plan is not None  # noqa: S101 (the caller checks)
    total = sum(variant.plan.memory.weights.values()) or 1
    modules: dict[str, list[str]] = {}
    for module, device in variant.plan.model_kwargs["device_map"].items():
        modules.setdefault(str(device), []).append(module)
    lines = []
    for device, size in variant.plan.memory.weights.items():
        filled = max(round(size / total * _BAR_WIDTH), 1)
        names = modules.get(device, [""])
        what = "everything" if names == [""] else f"{names[0]} to {names[-1]}" if len(names) > 1 else names[0]
        lines.append(f"  {device:<7} {'█' * filled}{'·' * (_BAR_WIDTH - filled)} {format_bytes(size):>8}  {what}")
    return lines


def _document(seen: "ModelPreview", surveyed: list[Surveyed], *, context: int, batch: int) -> dict[str, Any]:
    from llmctl.model.checkpoint import dtype_bytes

    info = seen.info
    return {
        "model": {
            "source": info.source,
            "commit": info.commit,
            "architecture": info.architecture,
            "parameters": info.parameters,
            "bytes_by_dtype": dict(dtype_bytes(info.tensors)),
            "context_length": info.context_length,
            "download_bytes": seen.download_bytes,
        },
        "draft": {"source": seen.draft.info.source, "download_bytes": seen.draft.download_bytes}
        if seen.draft
        else None,
        "context": context,
        "batch": batch,
        "machines": [
            {
                "machine": name,
                "gpus": [gpu.name for gpu in machine.gpus],
                "recommended": best.name if best else None,
                "ways": [_way_document(variant) for variant in variants],
            }
            for name, machine, variants, best in surveyed
        ],
    }


def _way_document(variant: "Variant") -> dict[str, Any]:
    body: dict[str, Any] = asdict(replace(variant, plan=None))
    del body["plan"]
    if variant.plan is not None:
        memory = variant.plan.memory
        body["model_kwargs"] = dict(variant.plan.model_kwargs)
        body["decisions"] = [asdict(decision) for decision in variant.plan.decisions]
        body["memory"] = {
            **asdict(memory),
            "overhead_bytes": memory.overhead_bytes,
            "total_bytes": memory.total_bytes,
            "peak_ram_bytes": memory.peak_ram_bytes,
        }
    return body


def _write(output: Output, file: Path, settings: "Settings", seen: "ModelPreview", best: "Variant | None") -> None:
    """Write the configuration of the recommended variant."""
    import yaml

    from llmctl.paths import write_atomically

    if best is None or best.plan is None:
        raise UserError("nothing fits, so there is no configuration to write", hint="try a smaller model or --context")
    values: dict[str, Any] = settings.config.model_dump(mode="json", exclude_unset=True)
    values["model"] = {**values.get("model", {}), "id": seen.info.source}
    for section, part in best.changes.items():
        values[section] = {**values.get(section, {}), **_plain(part)}
    values = {key: value for key, value in values.items() if value != {}}
    head = "\n".join(f"# {decision}" for decision in best.plan.decisions)
    text = f"# Written by llmctl plan for {seen.info.source}\n{head}\n{yaml.safe_dump(values, sort_keys=False)}"
    write_atomically(file.absolute(), text)
    output.note(f"written: {file}; next: llmctl generate --config {file} --prompt 'Hello'")


def _plain(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if value is not None}
