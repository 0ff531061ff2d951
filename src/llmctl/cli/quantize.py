"""`llmctl quantize`."""

import shlex
from dataclasses import asdict

from llmctl.cli._command import command, new_app
from llmctl.cli._flag import required_path, setting
from llmctl.cli._flags import MODEL_ARGUMENT, OFFLINE
from llmctl.cli._loading import prepare_model
from llmctl.cli._options import Options
from llmctl.units import format_bytes

app = new_app()

FORMAT = setting(
    "--format", key="quantization.backend", metavar="NAME",
    help="Format of the folder: bitsandbytes loads in plain transformers, too; llmctl is for llmctl on CPUs",
    default_text="llmctl on a CPU, bitsandbytes on a GPU",
)  # fmt: skip
FOLDER = required_path("--output", "-o", metavar="FOLDER", help="Folder to write; it must be new or empty")


@command(
    app, MODEL_ARGUMENT, FOLDER, FORMAT, "--model", "--revision", "--trust-remote-code", "--config", "--set",
    "--offline", "--quant", "--dtype", "--device-map", "--overcommit",
)  # fmt: skip
def quantize(options: Options) -> None:
    """Quantise a model once, into a folder that loads without quantising.

    The folder holds safetensors, configuration, tokenizer, chat template and the licence, if there is one. In the
    format bitsandbytes, llmctl and plain transformers load it by its path, on GPUs and CPUs. In the format llmctl, the
    default on a CPU, llmctl loads it on CPUs with its kernels. An interrupted run leaves no partial folder.

    Examples:

      llmctl quantize Qwen/Qwen3-4B --quant 4bit --output ./qwen3-4b-4bit

      llmctl quantize Qwen/Qwen3-4B --quant 4bit --format bitsandbytes --output ./qwen3-4b-nf4

      llmctl run ./qwen3-4b-4bit "Hello"
    """
    from llmctl.loading.export import check_output
    from llmctl.loading.export import quantize as quantize_prepared

    output, folder = options.output, options[FOLDER]
    settings = options.settings()
    check_output(settings.config, folder)
    prepared = prepare_model(output, settings, offline=options[OFFLINE])
    for decision in prepared.plan.decisions:
        output.detail(str(decision))
    with output.waiting(f"quantising {prepared.resolved.source}"):
        exported = quantize_prepared(prepared, folder)
    if output.as_json:
        output.document(
            "llmctl.quantize/1", {**asdict(exported), "folder": str(exported.folder), "source": prepared.plan.source}
        )
        return
    output.line(str(exported.folder))
    sizes = f"{format_bytes(exported.size_bytes)} instead of {format_bytes(exported.original_bytes)}"
    output.note(
        f"{exported.quantization}, {sizes}, {exported.seconds:.1f} s; next: llmctl run {shlex.quote(str(folder))}"
    )
