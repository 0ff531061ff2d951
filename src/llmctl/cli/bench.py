"""`llmctl bench`."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from llmctl.cli._command import command, new_app
from llmctl.cli._flag import file, files, optional_integer, switch, text
from llmctl.cli._flags import MODEL_ARGUMENT, OFFLINE
from llmctl.cli._loading import show_download
from llmctl.cli._options import Options
from llmctl.cli._render import Output
from llmctl.errors import EXIT_NO, EXIT_OK, LlmctlError, RemoteError, UserError

if TYPE_CHECKING:
    from llmctl.bench import Contender, Task
    from llmctl.config import Settings

app = new_app()

CONFIGS = files("--config", "-c", group="Variants", help="YAML file on top of the usual ones")
QUANT = text("--quant", group="Variants", metavar="LIST", help="Quantisations to compare: none,8bit,4bit")
DTYPE = text("--dtype", group="Variants", metavar="LIST", help="Data types to compare: fp32,bf16")
ATTENTION = text("--attn", group="Variants", metavar="LIST", help="Attentions to compare: sdpa,eager")
PROMPT_TOKENS = text(
    "--prompt-tokens", group="Task", metavar="LIST", help="Prompt lengths in tokens", default_text="64,512"
)
BATCH = text("--batch", group="Task", metavar="LIST", help="Numbers of concurrent sequences", default_text="1,8")
NEW_TOKENS = optional_integer("--new-tokens", group="Task", help="Tokens to generate", default_text="32", minimum=2)
RUNS = optional_integer(
    "--runs", group="Task", help="Fresh processes of each variant", default_text="3", minimum=1, maximum=1000
)
QUICK = switch("--quick", group="Task", help="One run, 64 prompt tokens, one sequence, 16 new tokens, unless given")
PLOT = file("--plot", help="Chart to write: a .png or .svg file")
_VARIED = {"load.dtype": DTYPE, "quantization.bits": QUANT, "load.attn_implementation": ATTENTION}


@command(
    app, MODEL_ARGUMENT, CONFIGS, QUANT, DTYPE, ATTENTION, PROMPT_TOKENS, BATCH, NEW_TOKENS, RUNS, QUICK, PLOT,
    "--model", "--revision", "--trust-remote-code", "--set", "--offline", "--device-map", "--overcommit",
)  # fmt: skip
def bench(options: Options) -> None:
    """Measure how fast a model runs here in several configurations.

    Every combination of files, quantisations, data types and attentions runs in its own processes, in turn. The report
    shows load time, time to the first token, prefill, decoding and memory. The exit code is 1 if a variant failed.

    Examples:

      llmctl bench --quant none,8bit,4bit

      llmctl bench Qwen/Qwen3-0.6B --dtype fp32,bf16 --plot speed.svg

      llmctl bench --prompt-tokens 128,1024 --batch 1,4

      llmctl bench --config a.yaml --config b.yaml --quick --json
    """
    from llmctl.bench import compare
    from llmctl.bench.plot import check_plot, draw
    from llmctl.cli._bench_report import document, show

    output, plot, task = options.output, options[PLOT], _task(options)
    variants = list(_variants(options))
    if plot is not None:
        check_plot(plot)
    contenders = _contenders(options, variants, task)
    task = _within_context(output, task, contenders, is_default=options[PROMPT_TOKENS] is None)
    _warn_if_busy(output)
    with output.waiting("measuring") as tell:
        comparison = compare(contenders, task, on_step=tell)
    if output.as_json:
        output.document("llmctl.bench/1", document(comparison))
    else:
        show(output, comparison)
    if plot is not None:
        draw(comparison, plot)
        output.note(f"chart: {plot}")
    if comparison.interrupted:
        raise KeyboardInterrupt
    raise typer.Exit(EXIT_NO if any(outcome.failure for outcome in comparison.outcomes) else EXIT_OK)


def _warn_if_busy(output: Output) -> None:
    """Warn before an hour is spent on measurements that other programs disturb."""
    from llmctl import platform_support
    from llmctl.bench.compare import BUSY_SHARE
    from llmctl.machine.threads import physical_cores

    load_average, cores = platform_support.load_average(), physical_cores()
    if load_average is not None and load_average > BUSY_SHARE * cores:
        output.warn(f"this machine is busy (load average {load_average:.1f} on {cores} cores): unreliable results")


def _task(options: Options) -> "Task":
    from llmctl.bench.task import QUICK as QUICK_TASK
    from llmctl.bench.task import Task

    given: dict[str, Any] = {
        "new_tokens": options[NEW_TOKENS],
        "runs": options[RUNS],
        "prompt_tokens": _numbers("--prompt-tokens", options[PROMPT_TOKENS]),
        "batches": _numbers("--batch", options[BATCH]),
    }
    changes = {name: value for name, value in given.items() if value is not None}
    return replace(QUICK_TASK if options[QUICK] else Task(), **changes)


def _numbers(flag: str, text: str | None) -> tuple[int, ...] | None:
    """Return `64,512` as numbers without duplicates."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"{flag} {text}: expected positive whole numbers, separated by commas", hint=f"{flag} 64,512")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _variants(options: Options) -> "Iterator[tuple[str, Settings]]":
    """Yield every combination with its name, which is made of the values that were given.

    Raises:
        ConfigError: one of them is not valid.
    """
    choices: list[list[str | None]] = []
    for flag in _VARIED.values():
        text = options[flag]
        choices.append(list(dict.fromkeys(part.strip() for part in text.split(","))) if text is not None else [None])
    paths: list[Path | None] = [*dict.fromkeys(options[CONFIGS])] or [None]
    stems = [path.stem if path else "" for path in paths]
    for path, values in product(paths, product(*choices)):
        stem = "" if path is None else path.stem if stems.count(path.stem) == 1 else str(path)
        words = [stem, *(value or "" for value in values)]
        settings = options.settings(replace=dict(zip(_VARIED, values, strict=True)), config=path)
        yield " ".join(word for word in words if word) or "default", settings


def _contenders(options: Options, variants: "Sequence[tuple[str, Settings]]", task: "Task") -> "list[Contender]":
    """Plan every variant; at least one must be possible."""
    output = options.output
    contenders = [_contender(output, name, settings, task, offline=options[OFFLINE]) for name, settings in variants]
    if all(one.prepared is None for one in contenders):
        raise contenders[0].failure or AssertionError("a contender without a plan has a failure")
    for resolved in dict.fromkeys(one.prepared.resolved for one in contenders if one.prepared):
        output.note(f"model: {resolved.source} ({resolved.reason})")
    return contenders


def _contender(output: Output, name: str, settings: "Settings", task: "Task", *, offline: bool) -> "Contender":
    """Find the model and plan it; a failure is kept for the report.

    Raises:
        RemoteError: the model has to be fetched and cannot be, so there is nothing to compare.
    """
    from llmctl.bench import Contender
    from llmctl.loading.prepare import prepare

    config = settings.config
    try:
        with show_download(output, settings) as progress:
            prepared = prepare(
                settings, offline=offline, progress=progress, context=task.context, batch=max(task.batches)
            )
    except RemoteError:
        raise
    except LlmctlError as error:
        return Contender(name, config, failure=error)
    return Contender(name, config, prepared)


def _within_context(output: Output, task: "Task", contenders: "Sequence[Contender]", *, is_default: bool) -> "Task":
    """Drop default lengths that exceed the shortest context; refuse lengths that the user gave."""
    limits: dict[str, int] = {}
    for one in contenders:
        if one.prepared is not None:
            length = one.config.tokenizer.model_max_length or one.prepared.info.context_length
            limits[one.source] = min(length or 2**62, limits.get(one.source, 2**62))
    source = min(limits, key=lambda name: limits[name], default=None)
    if source is None or task.context <= limits[source]:
        return task
    fitting = tuple(length for length in task.prompt_tokens if length + task.new_tokens <= limits[source])
    if not is_default or not fitting:
        raise UserError(
            f"the context of {source} ends at {limits[source]} tokens: prompts of {max(task.prompt_tokens)} and "
            f"{task.new_tokens} new tokens do not fit",
            hint="for example: --prompt-tokens 32 --new-tokens 8",
        )
    output.note(f"the context of {source} ends at {limits[source]} tokens: longer prompts are skipped")
    return replace(task, prompt_tokens=fitting)
