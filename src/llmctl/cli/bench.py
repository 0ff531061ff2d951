"""`llmctl bench`."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.cli._command import Command, new_app
from llmctl.cli._options import (
    DeviceMapOption,
    OfflineOption,
    OvercommitOption,
    RevisionOption,
    SetOption,
    TrustOption,
    download_shown,
    settings_from_flags,
)
from llmctl.cli._render import Output
from llmctl.config import Settings
from llmctl.errors import EXIT_NO, EXIT_OK, LlmctlError, RemoteError, UserError

if TYPE_CHECKING:
    from llmctl.bench import Contender, Task

app = new_app()


@app.command(cls=Command)
def bench(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Argument(help="A Hub id (org/name) or a folder.", show_default=False)] = None,
    config: Annotated[
        list[Path] | None,
        typer.Option("--config", "-c", help="A YAML file over the usual ones (repeatable).", show_default=False),
    ] = None,
    quant: Annotated[
        str | None, typer.Option("--quant", help="One or more: none,8bit,4bit", show_default=False)
    ] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="One or more: fp32,bf16", show_default=False)] = None,
    attn: Annotated[str | None, typer.Option("--attn", help="One or more: sdpa,eager", show_default=False)] = None,
    prompt_tokens: Annotated[
        str | None,
        typer.Option("--prompt-tokens", help="Lengths of prompts. Default: 64,512.", show_default=False),
    ] = None,
    batch: Annotated[
        str | None, typer.Option("--batch", help="Sequences at a time. Default: 1,8.", show_default=False)
    ] = None,
    new_tokens: Annotated[
        int | None,
        typer.Option("--new-tokens", help="Tokens to generate. Default: 32.", min=2, show_default=False),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option("--runs", help="Fresh processes for each. Default: 3.", min=1, max=1000, show_default=False),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One run, 64 tokens, one sequence, 16 new tokens; the rest as said.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Write a chart there: a .png or .svg file.", show_default=False)
    ] = None,
    revision: RevisionOption = None,
    device_map: DeviceMapOption = None,
    assignments: SetOption = None,
    trust_remote_code: TrustOption = None,
    overcommit: OvercommitOption = None,
    offline: OfflineOption = False,
) -> None:
    """Measure how fast configurations run a model here, side by side.

    Every combination of the files, quantisations, dtypes and attentions is measured in processes of its own, one at a
    time, taking turns: load, time to the first token, reading a prompt, generating, memory. Exit code 1 where one of
    them did not run.

    Examples:

      llmctl bench --quant none,8bit,4bit

      llmctl bench Qwen/Qwen3-0.6B --dtype fp32,bf16 --prompt-tokens 128,1024 --batch 1,4 --plot speed.svg

      llmctl bench --config a.yaml --config b.yaml --quick --json
    """
    from llmctl.bench import compare
    from llmctl.cli._bench_report import document, show

    output: Output = ctx.obj
    task = _task(prompt_tokens, batch, new_tokens, runs, quick=quick)
    flags = {"model": model, "revision": revision, "device_map": device_map, "trust_remote_code": trust_remote_code}
    named = _variants(
        config, assignments, {"dtype": dtype, "quant": quant, "attn": attn}, {**flags, "overcommit": overcommit}
    )
    if plot is not None:
        from llmctl.bench.plot import check_plot

        check_plot(plot)
    contenders = [_contender(output, name, settings, task, offline=offline) for name, settings in named]
    if all(one.prepared is None for one in contenders):
        raise contenders[0].failure or AssertionError("what is not prepared has failed")
    task = _within_context(output, task, contenders, is_default=prompt_tokens is None)
    for one in dict.fromkeys(one.prepared.located for one in contenders if one.prepared):
        output.note(f"model: {one.source} ({one.reason})")
    _say_busy(output)
    with output.waiting("measuring") as tell:
        comparison = compare(contenders, task, tell=tell)
    if output.as_json:
        output.document("llmctl.bench/1", document(comparison))
    else:
        show(output, comparison)
    if plot is not None:
        from llmctl.bench.plot import draw

        draw(comparison, plot)
        output.note(f"chart: {plot}")
    if comparison.interrupted:
        raise KeyboardInterrupt
    raise typer.Exit(EXIT_NO if any(outcome.failure for outcome in comparison.outcomes) else EXIT_OK)


def _say_busy(output: Output) -> None:
    """Figures of a machine that does something else mean little: say so before an hour is spent on them."""
    from llmctl import platform_support
    from llmctl.bench.compare import BUSY_SHARE
    from llmctl.machine.threads import physical_cores

    load_average, cores = platform_support.load_average(), physical_cores()
    if load_average is not None and load_average > BUSY_SHARE * cores:
        output.warn(f"this machine is busy (load average {load_average:.1f} on {cores} cores): figures mean little")


def _task(
    prompt_tokens: str | None, batch: str | None, new_tokens: int | None, runs: int | None, *, quick: bool
) -> "Task":
    from llmctl.bench.task import QUICK, Task

    said: dict[str, Any] = {"new_tokens": new_tokens, "runs": runs}
    said["prompt_tokens"] = _numbers("--prompt-tokens", prompt_tokens)
    said["batches"] = _numbers("--batch", batch)
    return replace(QUICK if quick else Task(), **{name: value for name, value in said.items() if value is not None})


def _numbers(flag: str, text: str | None) -> tuple[int, ...] | None:
    """`64,512` as numbers, each once."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"{flag} {text}: it takes numbers of 1 or more, with commas between", hint=f"{flag} 64,512")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _variants(
    files: list[Path] | None, assignments: list[str] | None, varied: dict[str, str | None], flags: dict[str, Any]
) -> list[tuple[str, Settings]]:
    """Every combination with its name: what of it differs, or what was said.

    Raises:
        ConfigError: one of them is not valid.
    """
    choices: dict[str, list[str | None]] = {}
    for name, text in varied.items():
        choices[name] = list(dict.fromkeys(part.strip() for part in text.split(","))) if text is not None else [None]
    found: list[tuple[str, Settings]] = []
    paths: list[Path | None] = [*dict.fromkeys(files or [])] or [None]
    stems = [path.stem if path else "" for path in paths]
    for path, values in product(paths, product(*choices.values())):
        given = dict(zip(choices, values, strict=True))
        stem = "" if path is None else path.stem if stems.count(path.stem) == 1 else str(path)
        words = [stem, *(value or "" for value in values)]
        settings = settings_from_flags(path, assignments, **flags, **given)
        found.append((" ".join(word for word in words if word) or "default", settings))
    return found


def _contender(output: Output, name: str, settings: Settings, task: "Task", *, offline: bool) -> "Contender":
    """Find the model and decide how it runs; what is in the way is kept, to stand beside those that run.

    Raises:
        RemoteError: the model has to be fetched and cannot be: there is nothing to compare.
    """
    from llmctl.bench import Contender
    from llmctl.loading.prepare import prepare

    config = settings.config
    try:
        with download_shown(output, settings) as bar:
            prepared = prepare(settings, offline=offline, progress=bar, context=task.context, batch=max(task.batches))
    except RemoteError:
        raise
    except LlmctlError as error:
        return Contender(name, config, failure=error)
    return Contender(name, config, prepared)


def _within_context(output: Output, task: "Task", contenders: "Sequence[Contender]", *, is_default: bool) -> "Task":
    """Leave out default lengths that the shortest context does not hold; refuse those that were asked for."""
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
            hint="shorter ones: --prompt-tokens 32 --new-tokens 8",
        )
    output.note(f"the context of {source} ends at {limits[source]} tokens: longer prompts are left out")
    return replace(task, prompt_tokens=fitting)
