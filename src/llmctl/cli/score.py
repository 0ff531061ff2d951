"""`llmctl score`."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmctl.cli._command import Command, new_app
from llmctl.cli._options import (
    AttentionOption,
    ConfigOption,
    DeterministicOption,
    DeviceMapOption,
    DtypeOption,
    LogprobsOption,
    ModelOption,
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
from llmctl.errors import UserError
from llmctl.paths import write_atomically

if TYPE_CHECKING:
    from llmctl.generation.prompt import Messages
    from llmctl.generation.scoring import RankedChoice, Score
    from llmctl.loading.model import LoadedModel

app = new_app()
_MOST_PROBLEMS = 5


@dataclass(frozen=True)
class Job:
    """One text to score.

    Attributes:
        prompt: What comes before it, or None.
        text: The text.
        id: The id of its row, where the row has one.
    """

    prompt: "str | Messages | None"
    text: str
    id: Any = None


@app.command(cls=Command)
def score(
    ctx: typer.Context,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="A text to score (repeatable).", show_default=False)
    ] = None,
    file: Annotated[
        list[Path] | None, typer.Option("--file", "-f", help="A text file to score (repeatable).", show_default=False)
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="What comes before; it is not scored.", show_default=False)
    ] = None,
    listed: Annotated[  # not the name of a key: --choices of generate is another thing
        str | None, typer.Option("--choices", help="Answers to rank: yes,no,maybe.", show_default=False)
    ] = None,
    choice: Annotated[
        list[str] | None,
        typer.Option("--choice", help="One answer to rank, taken as it is (repeatable).", show_default=False),
    ] = None,
    by: Annotated[
        Literal["sum", "mean", "byte"],
        typer.Option("--by", help="Rank by the sum, the mean per token, or the sum per byte."),
    ] = "sum",
    rows: Annotated[
        Path | None,
        typer.Option("--input", help="JSON Lines with text, or with prompt and completion.", show_default=False),
    ] = None,
    results: Annotated[
        Path | None, typer.Option("--output", help="Where the scored lines go.", show_default=False)
    ] = None,
    tokens: Annotated[
        bool | None,
        typer.Option("--tokens/--no-tokens", help="Each token; JSON has them by default.", show_default=False),
    ] = None,
    window: Annotated[
        int | None, typer.Option("--window", help="Tokens seen at a time (the context).", show_default=False)
    ] = None,
    stride: Annotated[
        int | None, typer.Option("--stride", help="Tokens the window moves on (half of it).", show_default=False)
    ] = None,
    logprobs: LogprobsOption = None,
    system: Annotated[str | None, typer.Option("--system", help="The system prompt.", show_default=False)] = None,
    raw: Annotated[bool | None, typer.Option("--raw", help="Without the chat template.", show_default=False)] = None,
    template: Annotated[
        str | None, typer.Option("--template", help="A Jinja chat template's file.", show_default=False)
    ] = None,
    model: ModelOption = None,
    revision: RevisionOption = None,
    config: ConfigOption = None,
    quant: QuantOption = None,
    dtype: DtypeOption = None,
    attn: AttentionOption = None,
    device_map: DeviceMapOption = None,
    deterministic: DeterministicOption = None,
    assignments: SetOption = None,
    trust_remote_code: TrustOption = None,
    overcommit: OvercommitOption = None,
    offline: OfflineOption = False,
) -> None:
    """Show how likely a model thinks a text, or which of several answers.

    Log-probabilities are natural logarithms of the model's own distribution: raw logits in float32, no temperature. A
    text without a prompt is taken as it is; its first token has nothing before it and is not scored. A prompt goes
    through the chat template when there is one, and the text is what the assistant would say. A text longer than the
    context is read through a window that moves on by --stride.

    Examples:

      llmctl score --file chapter.txt

      llmctl score --prompt "Is the sky green?" --choices yes,no

      llmctl score --raw --prompt "The capital of France is" --text " Paris" --tokens

      llmctl score --input rows.jsonl --output scored.jsonl
    """
    from llmctl.generation.scoring import make_windows, rank, score_each
    from llmctl.loading.loader import load_prepared

    output: Output = ctx.obj
    answers = [*(part.strip() for part in (listed or "").split(",") if part.strip()), *(choice or ())]
    _check_combination(bool(text or file), bool(answers), rows, results, prompt)
    jobs = _read_rows(rows) if rows else [] if answers else [Job(prompt, t) for t in _read_texts(text, file)]
    settings = settings_asked(ctx)
    prepared = prepare_model(output, settings, offline=offline)
    make_windows(settings.config.tokenizer.model_max_length or prepared.info.context_length, window, stride)
    with output.waiting(f"loading {prepared.located.source}"):
        loaded = load_prepared(prepared)
    top = loaded.config.generation.logprobs or 0
    if answers:
        _show_choices(output, loaded, rank(loaded, prompt or "", answers, by=by, top=top), by=by, tokens=tokens)
        return
    scores = score_each(loaded, ((j.prompt, j.text) for j in jobs), top=top, window=window, stride=stride)
    if rows:
        _write_rows(output, loaded, jobs, scores, results, tokens=tokens is not False)
        return
    with output.waiting("scoring"):
        done = list(scores)
    _show_texts(output, loaded, done, tokens=tokens)


def _check_combination(texts: bool, answers: bool, rows: Path | None, results: Path | None, prompt: str | None) -> None:
    if texts + answers + (rows is not None) > 1:
        raise UserError("--text and --file, --choices, and --input are three different things", hint="give one of them")
    if answers and prompt is None:
        raise UserError("choices are ranked after a prompt", hint="give --prompt TEXT")
    if rows is not None and prompt is not None:
        raise UserError("with --input every row has its own prompt", hint="leave --prompt away")
    if results is not None and rows is None:
        raise UserError("--output is where the rows of --input go", hint="give --input FILE, or use > FILE")


def _read_texts(texts: list[str] | None, files: list[Path] | None) -> list[str]:
    """The texts of the flags, the files, or standard input, whose last newline is not part of the text."""
    found = [*(texts or ()), *(_read(file, "--file") for file in files or ())]
    if not found and not sys.stdin.isatty():
        try:
            found = [sys.stdin.read().removesuffix("\n")]
        except UnicodeDecodeError as error:
            raise UserError("standard input is not UTF-8 text") from error
    if not all(found) or not found:
        raise UserError("there is no text to score", hint="give --text TEXT, --file FILE, or text on standard input")
    return found


def _read(file: Path, flag: str) -> str:
    try:
        return file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"{flag} {file}: {reason}") from error


def _read_rows(file: Path) -> list[Job]:
    """The rows of a JSON Lines file. Every wrong one is named before anything is loaded."""
    jobs, wrong = [], []
    for number, line in enumerate(_read(file, "--input").split("\n"), 1):
        if not line.strip():
            continue
        try:
            jobs.append(_job(json.loads(line)))
        except (ValueError, RecursionError) as error:
            wrong.append(f"{file}:{number}: {error}")
    if wrong:
        shown = wrong[:_MOST_PROBLEMS]
        if len(wrong) > _MOST_PROBLEMS:
            shown.append(f"and {len(wrong) - _MOST_PROBLEMS} more")
        raise UserError(
            "\n  ".join([f"{len(wrong)} of {len(wrong) + len(jobs)} rows cannot be scored:", *shown]),
            hint='a row is {"text": …}, or {"prompt": …, "completion": …}',
        )
    if not jobs:
        raise UserError(f"--input {file}: there are no rows in it")
    return jobs


def _job(row: Any) -> Job:
    """A row as it was read. Raises ValueError."""
    if not isinstance(row, dict):
        raise ValueError("it is not an object")  # noqa: TRY004 (one class for whatever is wrong with a row)
    name = "completion" if "completion" in row else "text"
    text, prompt = row.get(name), row.get("prompt")
    if not isinstance(text, str) or not text:
        raise ValueError(f"{name} must be a text that is not empty")
    if not isinstance(prompt, str | None) and not _are_messages(prompt):
        raise ValueError("prompt must be a text, or a list of messages")
    return Job(prompt, text, row.get("id"))


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) for message in value
    )


def _document(done: "Score", loaded: "LoadedModel", *, tokens: bool) -> dict[str, Any]:
    from llmctl.generation.logprobs import described

    document = {
        "text": done.text,
        "scored_tokens": len(done.logprobs),
        "context_tokens": done.context_token_count,
        "windows": done.window_count,
        "logprob": done.total,
        "logprob_per_token": done.mean,
        "logprob_per_byte": done.per_byte,
        "bits_per_byte": done.bits_per_byte,
        "perplexity": done.perplexity,
    }
    return document | ({"tokens": [described(s, loaded.tokenizer) for s in done.logprobs]} if tokens else {})


def _model(loaded: "LoadedModel") -> dict[str, Any]:
    return {"model": loaded.plan.source, "commit": loaded.plan.commit, "dtype": loaded.measured.dtype}


def _show_texts(output: Output, loaded: "LoadedModel", scores: Sequence["Score"], *, tokens: bool | None) -> None:
    if output.as_json:
        found = [_document(done, loaded, tokens=tokens is not False) for done in scores]
        output.document("llmctl.score/1", {**_model(loaded), "texts": found})
        return
    for number, done in enumerate(scores):
        if number:
            output.line("")
        if len(scores) > 1:
            output.heading(_head(done.text))
        _show_tokens(output, loaded, done, tokens=tokens)
        windows = f", through {done.window_count} windows" if done.window_count > 1 else ""
        output.pairs(
            [
                ("scored", f"{len(done.logprobs)} tokens after {done.context_token_count}{windows}"),
                ("log-probability", f"{done.total:.4f}"),
                ("per token", "-" if done.mean is None else f"{done.mean:.4f}"),
                ("perplexity", "-" if done.perplexity is None else f"{done.perplexity:.4f}"),
                ("bits per byte", f"{done.bits_per_byte:.4f}"),
            ]
        )


def _show_choices(
    output: Output, loaded: "LoadedModel", ranked: Sequence["RankedChoice"], *, by: str, tokens: bool | None
) -> None:
    if output.as_json:
        found = [{**_document(r.score, loaded, tokens=tokens is not False), "share": r.share} for r in ranked]
        output.document("llmctl.score/1", {**_model(loaded), "by": by, "choices": found})
        return
    output.table(
        ("choice", "share", "sum", "per token", "per byte"),
        [
            (
                r.score.text,
                f"{100 * r.share:.3g}%",
                f"{r.score.total:.4f}",
                "-" if r.score.mean is None else f"{r.score.mean:.4f}",
                f"{r.score.per_byte:.4f}",
            )
            for r in ranked
        ],
    )
    for choice in ranked if tokens else ():
        output.heading(_head(choice.score.text))
        _show_tokens(output, loaded, choice.score, tokens=tokens)


def _show_tokens(output: Output, loaded: "LoadedModel", done: "Score", *, tokens: bool | None) -> None:
    from llmctl.generation.logprobs import shown

    for scored in done.logprobs if tokens else ():
        output.line(shown(scored, loaded.tokenizer))


def _head(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= 60 else f"{line[:59]}…"


def _write_rows(
    output: Output,
    loaded: "LoadedModel",
    jobs: Sequence[Job],
    scores: Iterator["Score"],
    results: Path | None,
    *,
    tokens: bool,
) -> None:
    """One line a row, in their order: to standard output as they come, or to a file once all are there."""
    lines = []
    with output.waiting(f"scoring {len(jobs)} rows"):
        for job, done in zip(jobs, scores, strict=True):
            row = {"id": job.id} if job.id is not None else {}
            lines.append(json.dumps({**row, **_document(done, loaded, tokens=tokens)}, ensure_ascii=False))
            if results is None:
                output.line(lines.pop())
    if results is not None:
        try:
            write_atomically(results, "".join(f"{line}\n" for line in lines))
        except OSError as error:
            raise UserError(f"--output {results}: {error.strerror}") from error
    output.note(f"{len(jobs)} rows scored" + (f", in {results}" if results else ""))
