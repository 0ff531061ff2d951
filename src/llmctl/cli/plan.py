"""`llmctl plan`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.cli._command import command, new_app
from llmctl.cli._flag import file, integer, switch, texts
from llmctl.cli._flags import MODEL_ARGUMENT, OFFLINE
from llmctl.cli._options import Options
from llmctl.cli._render import Output
from llmctl.errors import UserError
from llmctl.paths import check_output, write_atomically
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
MEASURE = switch("--measure", help="Measure this computer's speed again")
FORCE = switch("--force", help="Replace an existing file", needs="--write")


@command(
    app, MODEL_ARGUMENT, CONTEXT, BATCH, MACHINES, MEASURE, WRITE, FORCE, "Model", "--attn", "--device-map",
    "--draft",
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
    write = options[WRITE]
    if write is not None and write.exists() and not options[FORCE]:
        raise UserError(f"{write} exists already", hint="--force replaces it")
    if write is not None:
        check_output(write, flag="--write")
    preview = preview_model(settings, offline=options[OFFLINE])
    context, limit = options[CONTEXT], preview.info.context_length
    if limit is not None and context > limit:
        output.note(f"the context of {preview.info.source} ends at {limit} tokens")
        context = limit
    surveys = [
        _survey(name, settings, preview, context=context, batch=options[BATCH], measure=options[MEASURE])
        for name in options[MACHINES] or [""]
    ]
    if output.as_json:
        body = {"context": context, "batch": options[BATCH], "machines": [_survey_document(one) for one in surveys]}
        output.document("llmctl.plan/1", {**_model_document(preview), **body})
    else:
        _show_model(output, preview)
        for survey in surveys:
            _show_survey(output, survey)
    if write is not None:
        _write(output, write, settings, preview, surveys[0].recommended)


@dataclass(frozen=True)
class MachineSurvey:
    """The variants of a model on one machine."""

    name: str
    machine: "Machine"
    context: int
    batch: int
    variants: "tuple[Variant, ...]"
    recommended: "Variant | None"


def _survey(
    name: str, settings: "Settings", preview: "ModelPreview", *, context: int, batch: int, measure: bool
) -> MachineSurvey:
    from llmctl.loading.quantized_cache import plan_cache
    from llmctl.machine.cpu_rates import read_cpu_rates
    from llmctl.machine.detection import read_machine
    from llmctl.machine.presets import preset_machine
    from llmctl.plan import PlanRequest
    from llmctl.plan.survey import recommended, survey

    info, config = preview.info, settings.config
    machine = preset_machine(name) if name else read_machine()
    rates = read_cpu_rates(again=measure) if not name and not machine.gpus else None
    request = PlanRequest(
        config,
        machine,
        info,
        context=context,
        batch=batch,
        draft=preview.draft.info if preview.draft else None,
        adapters=preview.adapters,
    )

    def with_cache(variant: "Variant") -> "Variant":
        if variant.plan is None or name:  # the cache of another machine is unknown
            return variant
        plan = plan_cache(variant.plan, config, info, machine, download_bytes=preview.download_bytes)
        return replace(variant, plan=plan)

    variants = tuple(with_cache(variant) for variant in survey(request, cpu_rates=rates))
    return MachineSurvey(name or "this machine", machine, context, batch, variants, recommended(variants))


def _show_model(output: Output, preview: "ModelPreview") -> None:
    from llmctl.model.checkpoint import dtype_bytes

    info = preview.info
    stored = ", ".join(f"{name} {format_bytes(size)}" for name, size in dtype_bytes(info.tensors).items())
    rows = [
        ("model", f"{info.source} ({preview.reason})"),
        ("architecture", f"{info.architecture}, {info.layer_count} layers, context {info.context_length}"),
        ("parameters", f"{info.parameters / 1e6:,.0f} million"),
        ("weights", stored),
        ("download", _download_text(preview)),
    ]
    for adapter in preview.adapters:
        rows.append(("adapter", f"{adapter.source}: {format_bytes(adapter.size_bytes)}; counted in the totals"))
    if preview.draft is not None:
        draft = preview.draft.info
        rows.append(("draft", f"{draft.source}: {draft.parameters / 1e6:,.3g} million; counted in the totals"))
    output.heading(info.source)
    output.pairs(rows)


def _download_text(preview: "ModelPreview") -> str:
    from llmctl.hub.cache.disk import free_bytes
    from llmctl.hub.settings import cache_dir

    if not preview.download_bytes:
        return "nothing: the model is on this machine"
    return f"{format_bytes(preview.download_bytes)}; {format_bytes(free_bytes(cache_dir()))} are free"


def _show_survey(output: Output, survey: MachineSurvey) -> None:
    variants, best = survey.variants, survey.recommended
    sequences = f", {survey.batch} sequences" if survey.batch > 1 else ""
    output.heading(f"{survey.name}, context {survey.context}{sequences}")
    columns = ("", "variant", "weights", "in half", "cache+", "total", "free", "tok/s*", "verdict")
    output.table(columns, [_row(variant, best) for variant in variants])
    if any(variant.speed for variant in variants):
        has_extras = any(variant.plan and variant.plan.memory.draft_and_adapter_bytes for variant in variants)
        extras = ", draft model, adapters" if has_extras else ""
        output.line(f"cache+: KV cache and activations{extras}; * an estimate of decoding, one sequence")
    if best is None or best.plan is None:
        last = variants[-1]
        output.line(f"{'not possible' if last.verdict == 'impossible' else 'nothing fits'}: {last.reason}")
        if last.hint is not None:
            output.line(f"  {last.hint}")
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
        format_bytes(memory.working_bytes + memory.draft_and_adapter_bytes),
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
        whole = f"; entirely on the GPU up to {variant.largest_context} tokens" if variant.largest_context else ""
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
        content = "everything" if names == [""] else f"{names[0]} to {names[-1]}" if len(names) > 1 else names[0]
        lines.append(f"  {device:<7} {'█' * filled}{'·' * (_BAR_WIDTH - filled)} {format_bytes(size):>8}  {content}")
    return lines


def _model_document(preview: "ModelPreview") -> dict[str, Any]:
    from llmctl.model.checkpoint import dtype_bytes

    info, draft = preview.info, preview.draft
    return {
        "model": {
            "source": info.source,
            "commit": info.commit,
            "architecture": info.architecture,
            "parameters": info.parameters,
            "bytes_by_dtype": dict(dtype_bytes(info.tensors)),
            "context_length": info.context_length,
            "download_bytes": preview.download_bytes,
        },
        "draft": {"source": draft.info.source, "download_bytes": draft.download_bytes} if draft else None,
    }


def _survey_document(survey: MachineSurvey) -> dict[str, Any]:
    return {
        "machine": survey.name,
        "gpus": [gpu.name for gpu in survey.machine.gpus],
        "recommended": survey.recommended.name if survey.recommended else None,
        "ways": [_variant_document(variant) for variant in survey.variants],
    }


def _variant_document(variant: "Variant") -> dict[str, Any]:
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


def _write(output: Output, file: Path, settings: "Settings", preview: "ModelPreview", best: "Variant | None") -> None:
    """Write the configuration of the recommended variant."""
    from llmctl.yaml_reader import dump

    if best is None or best.plan is None:
        raise UserError("nothing fits, so there is no configuration to write", hint="try a smaller model or --context")
    values: dict[str, Any] = settings.config.model_dump(mode="json", exclude_unset=True)
    values["model"] = {**values.get("model", {}), "id": preview.info.source}
    for section, part in best.changes.items():
        values[section] = {**values.get(section, {}), **_plain(part)}
    values = {key: value for key, value in values.items() if value != {}}
    head = "\n".join(f"# {decision}" for decision in best.plan.decisions)
    text = f"# Written by llmctl plan for {preview.info.source}\n{head}\n{dump(values, sort_keys=False)}"
    write_atomically(file.absolute(), text)
    output.note(f"written: {file}; next: llmctl generate --config {file} --prompt 'Hello'")


def _plain(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if value is not None}
