"""`llmctl load`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llmctl.cli._command import command, new_app
from llmctl.cli._flag import switch, text
from llmctl.cli._flags import MODEL_ARGUMENT, OFFLINE
from llmctl.cli._loading import load_model, prepare_model
from llmctl.cli._options import Options
from llmctl.cli._render import Output
from llmctl.units import format_bytes

if TYPE_CHECKING:
    from llmctl.loading.model import LoadedModel
    from llmctl.loading.prepare import Prepared
    from llmctl.model.adapters import AdapterInfo

app = new_app()

SHOW_CODE = switch("--show-code", help="Print the equivalent plain transformers script and stop")
PROMPT = text("--prompt", "-p", help="Prompt to use in the script", needs="--show-code")


@command(app, MODEL_ARGUMENT, SHOW_CODE, PROMPT, "Model", "Loading", "--seed", "--draft")
def load(options: Options) -> None:
    """Load a model and show what was requested, decided and measured.

    Examples:

      llmctl load Qwen/Qwen3-4B --quant 4bit

      llmctl load --config configs/llama3-8b-4bit.yaml --json

      llmctl load --show-code > run.py && python run.py
    """
    output = options.output
    prepared = prepare_model(output, options.settings(), offline=options[OFFLINE])
    if options[SHOW_CODE]:
        _show_code(output, prepared, options[PROMPT])
        return
    loaded = load_model(output, prepared)
    if output.as_json:
        output.document("llmctl.load/1", document(loaded))
    else:
        _show(output, loaded)


def _show_code(output: Output, prepared: "Prepared", prompt: str | None) -> None:
    from llmctl.reproduce.script import EXAMPLE_PROMPT, transformers_script

    code = transformers_script(prepared, prompt=prompt or EXAMPLE_PROMPT)
    if output.as_json:
        output.document("llmctl.code/1", {"code": code})
    else:
        output.line(code.rstrip("\n"))


def document(loaded: "LoadedModel") -> dict[str, Any]:
    """Return the document of `--json`: requested, decided and measured."""
    plan = loaded.plan
    return {
        "model": {
            "source": plan.source,
            "commit": plan.commit,
            "folder": str(plan.folder),
            "reason": loaded.resolved.reason,
            "architecture": loaded.info.architecture,
            "parameters": loaded.measured.parameters,
            "stored_dtype": loaded.info.stored_dtype,
            "size_bytes": loaded.info.size_bytes,
            "context_length": loaded.context_length,
        },
        "asked": loaded.config.model_dump(mode="json"),
        "decided": {
            "model_kwargs": dict(plan.model_kwargs),
            "tokenizer_kwargs": dict(plan.tokenizer_kwargs),
            "generation_kwargs": dict(plan.generation_kwargs),
            "generation": plan.generation.document(),
            "eos_token_ids": list(loaded.eos_token_ids),
            "decisions": [asdict(decision) for decision in plan.decisions],
            "memory": {**asdict(plan.memory), "total_bytes": plan.memory.total_bytes},
            "left_out": dict(plan.left_out),
        },
        "measured": {**asdict(loaded.measured), "tower_bytes": _tower_bytes(loaded)},
        "adapters": adapter_documents(loaded),
        "draft": document(loaded.draft) if loaded.draft else None,
    }


def _show(output: Output, loaded: "LoadedModel") -> None:
    measured, plan, info = loaded.measured, loaded.plan, loaded.info
    output.heading("requested")
    requested = loaded.config.model_dump(mode="json", exclude_unset=True)
    rows = [(f"{section}.{key}", str(value)) for section, part in requested.items() if isinstance(part, dict)
            for key, value in part.items()]  # fmt: skip
    rows += [(key, str(value)) for key, value in requested.items() if not isinstance(value, dict)]
    output.pairs(rows or [("", "nothing: defaults only")])
    output.heading("decided")
    output.pairs([(decision.key, f"{decision.value}  ({decision.reason})") for decision in plan.decisions])
    output.heading("measured")
    where = ", ".join(f"{device} {format_bytes(size)}" for device, size in measured.device_bytes.items())
    planned = format_bytes(sum(plan.memory.weights.values()) + plan.memory.adapter_bytes)
    output.pairs(
        [
            ("class", f"{measured.model_class}, {measured.parameters / 1e6:,.0f} million parameters"),
            ("context", f"{loaded.context_length} tokens"),
            ("end tokens", _end_tokens_text(loaded)),
            ("dtype", f"{measured.dtype} (stored in {info.stored_dtype})"),
            ("attention", measured.attn_implementation),
            ("quantization", measured.quantization),
            ("device map", _map_text(measured.device_map)),
            ("weights", f"{where}; planned {planned}"),
            *([("vision tower", _tower_text(loaded))] if plan.loads_towers else []),
            ("loaded in", f"{measured.load_seconds:.1f} s"),
            ("peak memory", format_bytes(measured.peak_memory_bytes)),
            *[("adapter", _adapter_text(loaded, adapter)) for adapter in loaded.adapters],
            *([("draft", _draft_text(loaded.draft))] if loaded.draft else []),
        ]
    )


def adapter_documents(loaded: "LoadedModel") -> list[dict[str, Any]]:
    """Return the adapters of a loaded model for `--json`."""
    return [
        {
            "source": adapter.source,
            "commit": adapter.commit,
            "folder": str(adapter.folder),
            "scale": adapter.scale,
            "base_model": adapter.base_model,
            "parameters": adapter.parameters,
            "merged": loaded.config.model.merge_adapters,
        }
        for adapter in loaded.adapters
    ]


def _end_tokens_text(loaded: "LoadedModel") -> str:
    return ", ".join(f"{token} {loaded.tokenizer.decode([token])!r}" for token in loaded.eos_token_ids)


def _tower_bytes(loaded: "LoadedModel") -> int | None:
    """Return the bytes of the towers in memory; None if they are not loaded at the start."""
    from llmctl.loading.image_encoder import image_encoder

    return image_encoder(loaded).towers().size_bytes if loaded.plan.loads_towers else None


def _tower_text(loaded: "LoadedModel") -> str:
    planned = loaded.plan.memory.images.tower_bytes
    return f"{format_bytes(_tower_bytes(loaded) or 0)} in memory; planned {format_bytes(planned)}"


def _adapter_text(loaded: "LoadedModel", adapter: "AdapterInfo") -> str:
    how = "merged" if loaded.config.model.merge_adapters else format_bytes(adapter.size_bytes)
    return f"{adapter.source}: {adapter.parameters / 1e6:,.3g} million parameters, {how}"


def _draft_text(draft: "LoadedModel") -> str:
    measured = draft.measured
    size = format_bytes(sum(measured.device_bytes.values()))
    kind = measured.dtype if measured.quantization == "none" else f"{measured.dtype}, {measured.quantization}"
    return (
        f"{draft.plan.source}: {measured.model_class}, {measured.parameters / 1e6:,.3g} million parameters, "
        f"{size} in {kind} on {', '.join(measured.device_bytes)}"
    )


def _map_text(device_map: Any) -> str:
    """Return a device map in short: the modules of each device, or the one device of all."""
    if set(device_map) == {""}:
        return f"everything on {device_map['']}"
    counts: dict[str, list[str]] = {}
    for module, device in device_map.items():
        counts.setdefault(device, []).append(module)
    return "; ".join(f"{device}: {modules[0]} … {modules[-1]} ({len(modules)})" for device, modules in counts.items())
