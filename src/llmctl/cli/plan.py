"""`llmctl plan`."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.cli._command import command, new_app
from llmctl.cli._flag import file, integer, optional_integer, switch, text, texts
from llmctl.cli._flags import MODEL_ARGUMENT, OFFLINE
from llmctl.cli._options import Options
from llmctl.cli._render import Output
from llmctl.errors import UserError
from llmctl.paths import check_output, write_atomically
from llmctl.units import format_bytes, format_count

if TYPE_CHECKING:
    from llmctl.cli._plan_images import ImagesToPlan
    from llmctl.config import Settings
    from llmctl.machine.detection import Machine
    from llmctl.model.info import ModelInfo
    from llmctl.model.resolve import ModelPreview
    from llmctl.plan.survey import Variant

app = new_app()
_BAR_WIDTH = 32
DEFAULT_CONTEXT = 4096
DEFAULT_IMAGE_SIZE = "1024x768"

CONTEXT = integer("--context", help="Tokens of prompt and answer together", default=DEFAULT_CONTEXT, minimum=1)
BATCH = integer("--batch", help="Concurrent sequences", default=1, minimum=1)
MACHINES = texts(
    "--machine",
    metavar="NAME",
    help="Machine to plan for instead of this one (repeatable): h100, 2xh100, rtx4090+gtx1660, a100-40, mi300x, "
    "arc-b580, m3-max-36, or a YAML file",
    default_text="this machine",
)
IMAGES = optional_integer("--images", help="Images to plan for, beside --context", minimum=1, maximum=1000)
IMAGE_SIZE = text(
    "--image-size", metavar="WxH", help="Pixels of each image", default_text=DEFAULT_IMAGE_SIZE, needs="--images"
)
WRITE = file("--write", help="YAML file to write with the recommended configuration")
MEASURE = switch("--measure", help="Measure this computer's speed again")
FORCE = switch("--force", help="Replace an existing file", needs="--write")


@command(
    app, MODEL_ARGUMENT, CONTEXT, BATCH, MACHINES, IMAGES, IMAGE_SIZE, MEASURE, WRITE, FORCE, "--max-image-tokens",
    "Model", "--quant", "--dtype", "--attn", "--device-map", "--draft",
)  # fmt: skip
def plan(options: Options) -> None:
    """Show how a model would run here, before downloading it.

    The command reads config.json and the headers of the weights, a few hundred kilobytes from the Hub. For every
    variant it estimates weights, KV cache at the given context, activations, runtime and speed.

    Examples:

      llmctl plan meta-llama/Meta-Llama-3-8B-Instruct

      llmctl plan Qwen/Qwen3-32B --context 32768 --machine t4 --machine 2xh100

      llmctl plan Qwen/Qwen3-VL-8B-Instruct --images 4 --image-size 1024x768

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
    images = _images(options, preview)
    context, limit = options[CONTEXT] + (images.all_tokens if images else 0), preview.info.context_length
    if limit is not None and context > limit:
        output.note(f"the context of {preview.info.source} ends at {limit} tokens")
        context = limit
    surveys = [
        _survey(name, settings, preview, context=context, batch=options[BATCH], images=images, measure=options[MEASURE])
        for name in options[MACHINES] or [""]
    ]
    if output.as_json:
        body: dict[str, Any] = {
            "context": context,
            "batch": options[BATCH],
            "images": asdict(images) if images else None,
        }
        body |= {"machines": [_survey_document(one) for one in surveys]}
        output.document("llmctl.plan/1", {**_model_document(preview), **body})
    else:
        _show_model(output, preview, images)
        for survey in surveys:
            _show_survey(output, survey)
    if write is not None:
        _write(output, write, settings, preview, surveys[0].recommended)


@dataclass(frozen=True)
class MachineSurvey:
    """The variants of a model on one machine.

    Attributes:
        batch: Concurrent sequences that the user wants; the recommended variant may be planned for fewer.
        measured: Date on which the speed of this computer's processor was measured; None if it was not.
    """

    name: str
    machine: "Machine"
    context: int
    batch: int
    variants: "tuple[Variant, ...]"
    recommended: "Variant | None"
    measured: str | None = None


def _images(options: Options, preview: "ModelPreview") -> "ImagesToPlan | None":
    """Return the images that --images asks for, with their tokens."""
    count = options[IMAGES]
    if count is None:
        return None
    from llmctl.cli._plan_images import images_to_plan

    load = options.settings().config.load
    if load.images == "never":
        raise UserError("--images plans for images, and load.images is never", hint="omit one of them")
    size = options[IMAGE_SIZE] or DEFAULT_IMAGE_SIZE
    return images_to_plan(
        preview.info, count=count, size=size, max_tokens=load.max_image_tokens, offline=options[OFFLINE]
    )


def _survey(
    name: str,
    settings: "Settings",
    preview: "ModelPreview",
    *,
    context: int,
    batch: int,
    images: "ImagesToPlan | None",
    measure: bool,
) -> MachineSurvey:
    from llmctl.loading.quantized_cache import plan_cache
    from llmctl.machine.cpu_rates import read_cpu_rates
    from llmctl.machine.detection import read_machine
    from llmctl.machine.presets import preset_machine
    from llmctl.plan import PlanRequest
    from llmctl.plan.survey import recommended, survey, with_fewer_sequences

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
        images=images.request if images else None,
    )

    def with_cache(variant: "Variant") -> "Variant":
        if variant.plan is None or name:  # the cache of another machine is unknown
            return variant
        plan = plan_cache(variant.plan, config, info, machine, download_bytes=preview.download_bytes)
        return replace(variant, plan=plan)

    variants = survey(request, cpu_rates=rates)
    best = recommended(variants)
    if best is not None and best.verdict != "fits" and best.largest_batch is not None:
        best = with_fewer_sequences(best, request, cpu_rates=rates)
    return MachineSurvey(
        name or "this machine",
        machine,
        context,
        batch,
        tuple(with_cache(variant) for variant in variants),
        with_cache(best) if best is not None else None,
        rates.measured if rates is not None else None,
    )


def _show_model(output: Output, preview: "ModelPreview", images: "ImagesToPlan | None") -> None:
    from llmctl.model.checkpoint import dtype_bytes

    info = preview.info
    stored = ", ".join(f"{name} {format_bytes(size)}" for name, size in dtype_bytes(info.tensors).items())
    rows = [
        ("model", f"{info.source} ({preview.reason})"),
        ("architecture", f"{info.architecture}, {info.layer_count} layers, context {info.context_length}"),
        ("parameters", format_count(info.parameters)),
        ("weights", stored),
        *([("left out", _left_out_text(info))] if info.towers and images is None else []),
        *(images.rows(info) if images is not None else []),
        ("download", _download_text(preview)),
    ]
    for adapter in preview.adapters:
        rows.append(("adapter", f"{adapter.source}: {format_bytes(adapter.size_bytes)}; counted in the totals"))
    if preview.draft is not None:
        draft = preview.draft.info
        rows.append(("draft", f"{draft.source}: {format_count(draft.parameters)}; counted in the totals"))
    output.heading(info.source)
    output.pairs(rows)


def _left_out_text(info: "ModelInfo") -> str:
    return f"{', '.join(info.towers)}: {format_bytes(sum(info.towers.values()))}; not counted in the totals"


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
    rows = [_row(variant, is_best=_is_same(variant, best)) for variant in variants]
    omitted = output.table(columns, rows, drop=("in half", "cache+", "free", "weights"), wrap=("verdict",))
    output.pairs([note for note in _notes(survey) if note[0] not in omitted])
    if best is None or best.plan is None:
        last = variants[-1]
        text = last.reason if last.hint is None else f"{last.reason}: {last.hint}"
        output.pairs([("not possible" if last.verdict == "impossible" else "nothing fits", text)])
        return
    batch = best.plan.memory.batch
    fewer = f", {batch} of the {survey.batch} sequences at a time" if batch < survey.batch else ""
    output.heading(f"recommended: {best.name}{fewer}")
    decisions = [(d.key, f"{d.value}  ({d.reason})") for d in best.plan.decisions]
    output.pairs([*_speed_rows(best), *decisions])
    for line in _bars(best, survey.machine):
        output.line(line)


def _is_same(variant: "Variant", best: "Variant | None") -> bool:
    """Return True if `best` is this variant, perhaps with fewer sequences."""
    return best is not None and variant.name == best.name


def _notes(survey: MachineSurvey) -> Iterator[tuple[str, str]]:
    """Yield what the columns mean."""
    variants = survey.variants
    if not any(variant.needed for variant in variants):
        return
    needed = [variant.needed for variant in variants if variant.needed]
    has_draft = any(memory.draft_bytes or memory.adapter_bytes for memory in needed)
    has_images = any(memory.images.total_bytes for memory in needed)
    has_state = any(memory.state_bytes for memory in needed)
    parts = ["KV cache", *(["recurrent states"] if has_state else []), "activations"]
    parts += ["draft model", "adapters"] if has_draft else []
    parts += ["vision tower", "features of images"] if has_images else []
    yield "cache+", ", ".join(parts)
    if any(variant.speed for variant in variants):
        measured = f", measured on {survey.measured}; --measure repeats it" if survey.measured else ""
        yield "tok/s*", f"estimate: tokens per second of one sequence after a short prompt{measured}"
    has_card = any(gpu.kind != "mps" for gpu in survey.machine.gpus)
    if has_card and any("-bit" in variant.name and variant.verdict in ("spills", "too large") for variant in variants):
        yield "RAM", "weights that are quantised on loading stay in half precision in the RAM beside a GPU"


def _row(variant: "Variant", *, is_best: bool) -> tuple[str, ...]:
    mark, verdict, memory = "->" if is_best else "", verdict_text(variant), variant.needed
    if memory is None:
        return (mark, variant.name, "", "", "", "", "", "", verdict)
    return (
        mark,
        variant.name,
        format_bytes(sum(memory.weights.values())),
        format_bytes(variant.unquantised_bytes) if variant.unquantised_bytes else "",
        format_bytes(memory.working_bytes + memory.extra_bytes),
        format_bytes(memory.total_bytes),
        format_bytes(variant.free_bytes),
        _range_text(variant.speed.decode) if variant.speed else "" if variant.verdict == "too large" else "?",
        verdict,
    )


def _range_text(value: tuple[float, float]) -> str:
    """Return `41-51`: three digits and never an exponent."""
    low, high = (f"{end:,.0f}" if end >= 9.95 else f"{end:.2g}" for end in value)
    return low if low == high else f"{low}-{high}"


def verdict_text(variant: "Variant") -> str:
    """Return the verdict of a variant in words."""
    if variant.verdict == "fits":
        return "fits, on the CPU" if variant.is_on_cpu else "fits"
    if variant.verdict == "impossible":
        return f"not possible: {variant.reason}"
    smaller = []
    if variant.largest_batch is not None:
        smaller.append(f"{variant.largest_batch} sequence{'s' if variant.largest_batch > 1 else ''}")
    if variant.largest_context is not None:
        smaller.append(f"{variant.largest_context} tokens")
    if variant.verdict == "spills":
        in_ram = f"{_spilled_text(variant)} in RAM"
        return f"{in_ram}; fits: {' or '.join(smaller)}" if smaller else in_ram
    missing = f"{format_bytes(variant.missing_bytes)} missing"
    return f"{missing}; fits: {' or '.join(smaller)}" if smaller else missing


def _spilled_text(variant: "Variant") -> str:
    """Return what is in RAM beside a GPU: `3 blocks`, or the modules around the blocks."""
    blocks, others = variant.spilled_blocks, variant.spilled_modules
    if blocks:
        return f"{blocks} block{'s' if blocks > 1 else ''}"
    return " and ".join(others) if len(others) < 3 else f"{len(others)} modules"


def _speed_rows(best: "Variant") -> list[tuple[str, str]]:
    """Return the estimates of speed as a row of the decisions."""
    if best.speed is None or best.plan is None:
        return []
    speed, context = best.speed, best.plan.memory.context
    prompt = _range_text(speed.prefill)
    text = f"{_range_text(speed.decode)} tokens/s, {_range_text(speed.decode_at_end)} at {context} tokens"
    return [("speed", f"{text}; prompt {prompt} tokens/s  (estimated for one sequence)")]


def _bars(variant: "Variant", machine: "Machine") -> Iterator[str]:
    """Yield a bar per device: how full it gets, and its modules."""
    assert variant.plan is not None  # noqa: S101 (the caller checks)
    memory = variant.plan.memory
    free = {gpu.device: gpu.free_bytes for gpu in machine.gpus}
    modules: dict[str, list[str]] = {}
    for module, device in variant.plan.module_devices.items():
        modules.setdefault(device, []).append(module)
    for device in memory.weights:
        used, room = memory.bytes_on(device), free.get(device, machine.ram_available_bytes)
        filled = min(max(round(used / room * _BAR_WIDTH), 1), _BAR_WIDTH) if room else _BAR_WIDTH
        names = modules.get(device, [""])
        content = "everything" if names == [""] else f"{names[0]} to {names[-1]}" if len(names) > 1 else names[0]
        bar = f"{'█' * filled}{'·' * (_BAR_WIDTH - filled)}"
        yield f"  {device:<7} {bar} {format_bytes(used)} of {format_bytes(room)} free"
        yield f"          {content}"


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
            "left_out": dict(info.towers),
            "context_length": info.context_length,
            "download_bytes": preview.download_bytes,
        },
        "draft": {"source": draft.info.source, "download_bytes": draft.download_bytes} if draft else None,
    }


def _survey_document(survey: MachineSurvey) -> dict[str, Any]:
    best = survey.recommended
    return {
        "machine": survey.name,
        "gpus": [gpu.name for gpu in survey.machine.gpus],
        "recommended": survey.recommended.name if survey.recommended else None,
        "recommended_batch": best.plan.memory.batch if best is not None and best.plan is not None else None,
        "speed_measured": survey.measured,
        "ways": [_variant_document(variant) for variant in survey.variants],
    }


def _variant_document(variant: "Variant") -> dict[str, Any]:
    body: dict[str, Any] = asdict(replace(variant, plan=None, needed=None))
    del body["plan"], body["needed"]
    if variant.plan is not None:
        body["model_kwargs"] = dict(variant.plan.model_kwargs)
        body["decisions"] = [asdict(decision) for decision in variant.plan.decisions]
    if variant.needed is not None:
        memory = variant.needed
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
