"""`llmctl quantize`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from llmctl.cli._command import Command, new_app
from llmctl.cli._options import (
    ConfigOption,
    DeviceMapOption,
    DtypeOption,
    OfflineOption,
    OvercommitOption,
    QuantOption,
    RevisionOption,
    SetOption,
    TrustOption,
    prepare_model,
    settings_asked,
)
from llmctl.cli._render import Output
from llmctl.units import format_bytes

app = new_app()


@app.command(cls=Command)
def quantize(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Argument(help="A Hub id (org/name) or a folder.", show_default=False)] = None,
    output_folder: Annotated[
        Path, typer.Option("--output", "-o", help="The folder to write. It is not there yet, or empty.")
    ] = ...,  # type: ignore[assignment]
    quant: QuantOption = None,
    revision: RevisionOption = None,
    config: ConfigOption = None,
    dtype: DtypeOption = None,
    device_map: DeviceMapOption = None,
    assignments: SetOption = None,
    trust_remote_code: TrustOption = None,
    overcommit: OvercommitOption = None,
    offline: OfflineOption = False,
) -> None:
    """Quantise a model once, into a folder that loads anywhere.

    The folder has safetensors, configuration, tokenizer, chat template, and the licence where there is one; llmctl
    and plain transformers load it by its path. It is there whole or not at all.

    Examples:

      llmctl quantize Qwen/Qwen3-4B --quant 4bit --output ./qwen3-4b-4bit

      llmctl generate --model ./qwen3-4b-4bit --prompt "Hello"
    """
    from llmctl.quant.export import check_asked
    from llmctl.quant.export import quantize as quantize_prepared

    output: Output = ctx.obj
    settings = settings_asked(ctx)
    check_asked(settings.config, output_folder)
    prepared = prepare_model(output, settings, offline=offline)
    for decision in prepared.plan.decisions:
        output.detail(str(decision))
    with output.waiting(f"quantising {prepared.located.source}"):
        done = quantize_prepared(prepared, output_folder)
    if output.as_json:
        output.document(
            "llmctl.quantize/1", {**asdict(done), "folder": str(done.folder), "source": prepared.plan.source}
        )
        return
    output.line(str(done.folder))
    sizes = f"{format_bytes(done.size_bytes)} instead of {format_bytes(done.original_bytes)}"
    output.note(f"{done.quantization}, {sizes}, {done.seconds:.1f} s; next: llmctl generate --model {output_folder}")
