"""`llmctl score`."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmctl.cli._command import command, new_app
from llmctl.cli._flag import Flag, file, files, optional_integer, text, texts
from llmctl.cli._flags import IMAGE, MODEL_ARGUMENT, OFFLINE
from llmctl.cli._image_input import PromptInput, check_takes_images, read_image_files
from llmctl.cli._loading import load_model, prepare_model
from llmctl.cli._options import Options
from llmctl.cli._render import Output
from llmctl.cli._text_input import read_stdin, read_text_file
from llmctl.errors import UserError
from llmctl.paths import check_output, write_atomically

if TYPE_CHECKING:
    from llmctl.generation.prompt import Messages
    from llmctl.generation.scoring import RankedChoice, Score
    from llmctl.loading.model import LoadedModel

app = new_app()
_MAX_SHOWN_PROBLEMS = 5

TEXT = texts("--text", group="Text", help="Text to score")
FILES = files("--file", "-f", group="Text", help="Text file to score")
PROMPT = text("--prompt", "-p", group="Text", help="Context before the text; it is not scored", excludes=("--input",))
CHOICES = text("--choices", group="Choices", metavar="LIST", help="Answers to rank: yes,no,maybe")
CHOICE = texts("--choice", group="Choices", help="One answer to rank, commas included")
BY: Flag[Any] = Flag(
    names=("--by",),
    group="Choices",
    metavar="NAME",
    help="Rank by the sum, the mean per token, or the sum per byte: sum, mean or byte",
    annotation=Literal["sum", "mean", "byte"],
    default="sum",
)
ROWS = file("--input", group="Batch", help="JSON Lines with text, or with prompt and completion")
RESULTS = file(
    "--output", group="Batch", help="File for the scored lines", default_text="standard output", needs="--input"
)
TOKENS: Flag[bool | None] = Flag(
    names=("--tokens/--no-tokens",),
    group="Text",
    help="Show each token",
    annotation=bool | None,
    default=None,
    default_text="only with --json",
)
WINDOW = optional_integer("--window", group="Text", help="Tokens of context at a time", default_text="the context")
STRIDE = optional_integer(
    "--stride", group="Text", help="Tokens by which the window moves", default_text="half the window"
)


@dataclass(frozen=True)
class Job:
    """A text to score.

    Attributes:
        prompt: The context before it, or None.
        text: The text itself.
        id: The id of its row, if the row has one.
        has_images: True if the prompt is messages with the paths of images.
    """

    prompt: "str | Messages | None"
    text: str
    id: Any = None
    has_images: bool = False


@command(
    app, MODEL_ARGUMENT, TEXT, FILES, PROMPT, IMAGE, TOKENS, WINDOW, STRIDE, CHOICES, CHOICE, BY, ROWS, RESULTS,
    "--system", "--raw", "--template", "--logprobs", "Model", "Loading",
)  # fmt: skip
def score(options: Options) -> None:
    """Show how likely a text is to a model, or rank several answers.

    Log-probabilities are natural logarithms of the model's own distribution: raw logits in float32, no temperature. A
    text without a prompt is scored as it is, except for its first token, which has no context. A prompt passes through
    the chat template, if there is one, and the text is the assistant's answer. A text longer than the context is read
    through a window that moves by --stride. A text after images must fit in the context.

    Examples:

      llmctl score --file chapter.txt

      llmctl score Qwen/Qwen3-4B --file chapter.txt

      llmctl score --prompt "Is the sky green?" --choices yes,no

      llmctl score --image cat.png --prompt "What is this?" --choices cat,dog --model Qwen/Qwen3-VL-2B-Instruct

      llmctl score --raw -p "The capital of France is" --text " Paris" --tokens

      llmctl score --input rows.jsonl --output scored.jsonl
    """
    from llmctl.generation.scoring import make_windows, rank, score_each

    output, tokens = options.output, options[TOKENS]
    answers, rows = _answers(options), options[ROWS]
    _check_combination(options, has_answers=bool(answers))
    given, prompt = _read_prompt(options)
    if (results := options[RESULTS]) is not None:
        check_output(results, flag="--output")
    jobs = _read_rows(rows) if rows else [] if answers else [Job(prompt, text) for text in _read_texts(options)]
    prepared = prepare_model(output, options.settings(), offline=options[OFFLINE], images=given.images_to_plan)
    if given.pictures or any(job.has_images for job in jobs):
        check_takes_images(prepared)
    window, stride = options[WINDOW], options[STRIDE]
    make_windows(prepared.config.tokenizer.model_max_length or prepared.info.context_length, window, stride)
    loaded = load_model(output, prepared)
    top = loaded.config.generation.logprobs or 0
    if answers:
        ranked = rank(loaded, prompt or "", answers, by=options[BY], top=top)
        _show_choices(output, loaded, ranked, by=options[BY], tokens=tokens)
        return
    scores = score_each(loaded, _pairs(jobs), top=top, window=window, stride=stride)
    if rows:
        _write_rows(output, loaded, jobs, scores, results, tokens=tokens is not False)
        return
    with output.waiting("scoring"):
        finished = list(scores)
    _show_texts(output, loaded, finished, tokens=tokens)


def _answers(options: Options) -> list[str]:
    return [*(part.strip() for part in (options[CHOICES] or "").split(",") if part.strip()), *options[CHOICE]]


def _check_combination(options: Options, *, has_answers: bool) -> None:
    has_texts, has_rows = bool(options[TEXT] or options[FILES]), options[ROWS] is not None
    if has_texts + has_answers + has_rows > 1:
        raise UserError("--text and --file, --choices, and --input are three different tasks", hint="give one of them")
    if has_answers:
        options.refuse(WINDOW, STRIDE, reason="choices are scored without a window")
        if options[PROMPT] is None:
            raise UserError("choices are ranked after a prompt", hint="give --prompt TEXT")
    else:
        options.refuse(BY, reason="--by works only with --choices")


def _read_prompt(options: Options) -> "tuple[PromptInput, str | Messages | None]":
    """Return the prompt of the flags, and as the library takes it: None without one."""
    prompt, files = options[PROMPT], options[IMAGE]
    if files and prompt is None:
        raise UserError("images belong to a prompt", hint="give --prompt TEXT")
    given = PromptInput(prompt or "", tuple(map(str, files)), read_image_files(files))
    return given, None if prompt is None else given.prompt


def _pairs(jobs: Iterable[Job]) -> "Iterator[tuple[str | Messages | None, str]]":
    """Yield prompts and texts. The images of a prompt are decoded when its turn comes."""
    from llmctl.generation.image_input import with_images

    for job in jobs:
        yield with_images(job.prompt) if job.has_images else job.prompt, job.text


def _read_texts(options: Options) -> list[str]:
    """Return the texts of the flags, the files, or standard input, whose last newline is not part of the text."""
    texts = [*options[TEXT], *(read_text_file(path, flag="--file") for path in options[FILES])]
    if not texts and not sys.stdin.isatty():
        texts = [read_stdin().removesuffix("\n")]
    if not all(texts) or not texts:
        raise UserError("there is no text to score", hint="give --text TEXT, --file FILE, or text on standard input")
    return texts


def _read_rows(file: Path) -> list[Job]:
    """Return the rows of a JSON Lines file. Every invalid one is reported before anything is loaded."""
    from llmctl.generation.batch.rows import json_lines

    jobs, problems = [], []
    try:
        with file.open("rb") as stream:
            for line, value, problem in json_lines(stream):
                try:
                    if problem is not None:
                        raise ValueError(problem)
                    jobs.append(_job(value, file.parent))
                except (ValueError, UserError) as error:
                    problems.append(f"{file}:{line}: {error}")
    except OSError as error:
        raise UserError(f"--input {file}: {error.strerror}") from error
    if problems:
        shown = problems[:_MAX_SHOWN_PROBLEMS]
        if len(problems) > _MAX_SHOWN_PROBLEMS:
            shown.append(f"and {len(problems) - _MAX_SHOWN_PROBLEMS} more")
        raise UserError(
            "\n  ".join([f"{len(problems)} of {len(problems) + len(jobs)} rows cannot be scored:", *shown]),
            hint='a row is {"text": …}, or {"prompt": …, "completion": …} and perhaps {"images": [paths]}',
        )
    if not jobs:
        raise UserError(f"--input {file}: there are no rows in it")
    return jobs


def _job(row: Any, folder: Path) -> Job:
    """Return the job of a row. Raises ValueError, and UserError for an image.

    Args:
        folder: Paths of images are relative to it.
    """
    if not isinstance(row, dict):
        raise ValueError("it is not an object")  # noqa: TRY004 (one class for whatever is wrong with a row)
    name = "completion" if "completion" in row else "text"
    text, prompt = row.get(name), row.get("prompt")
    if not isinstance(text, str) or not text:
        raise ValueError(f"{name} must be a text that is not empty")
    if not isinstance(prompt, str | None) and not _are_messages(prompt):
        raise ValueError("prompt must be a text, or a list of messages")
    images = _images(row, prompt, folder)
    return Job(images or prompt, text, row.get("id"), has_images=bool(images))


def _images(row: Any, prompt: "str | Messages | None", folder: Path) -> "Messages | None":
    """Return the messages of a row with images, whose files exist; None without any. Errors are those of `_job`."""
    from llmctl.generation.batch.rows import images_problem
    from llmctl.generation.image_input import count_images, image_sources, with_image_sources
    from llmctl.generation.media import with_pictures

    images = row.get("images")
    if problem := images_problem(images, None if isinstance(prompt, str | None) else prompt):
        raise ValueError(problem)
    if images:
        if not isinstance(prompt, str):
            raise ValueError("images belong to a prompt")
        prompt = with_pictures(prompt, images)
    if prompt is None or not count_images(prompt):
        return None
    messages = with_image_sources(prompt, folder)
    for source in image_sources(messages):
        if isinstance(source, Path) and not source.is_file():
            raise ValueError(f"{source}: there is no such file")
    return messages


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) for message in value
    )


def _document(result: "Score", loaded: "LoadedModel", *, tokens: bool) -> dict[str, Any]:
    from llmctl.generation.logprobs import logprob_document

    document = {
        "text": result.text,
        "scored_tokens": len(result.logprobs),
        "context_tokens": result.context_token_count,
        "windows": result.window_count,
        "logprob": result.total,
        "logprob_per_token": result.mean,
        "logprob_per_byte": result.per_byte,
        "bits_per_byte": result.bits_per_byte,
        "perplexity": result.perplexity,
    }
    return document | ({"tokens": [logprob_document(s, loaded.tokenizer) for s in result.logprobs]} if tokens else {})


def _model(loaded: "LoadedModel") -> dict[str, Any]:
    return {"model": loaded.plan.source, "commit": loaded.plan.commit, "dtype": loaded.measured.dtype}


def _show_texts(output: Output, loaded: "LoadedModel", scores: Sequence["Score"], *, tokens: bool | None) -> None:
    if output.as_json:
        documents = [_document(score, loaded, tokens=tokens is not False) for score in scores]
        output.document("llmctl.score/1", {**_model(loaded), "texts": documents})
        return
    for number, result in enumerate(scores):
        if number:
            output.line("")
        if len(scores) > 1:
            output.heading(_head(result.text))
        _show_tokens(output, loaded, result, tokens=tokens)
        windows = f", through {result.window_count} windows" if result.window_count > 1 else ""
        output.pairs(
            [
                ("scored", f"{len(result.logprobs)} tokens after {result.context_token_count}{windows}"),
                ("log-probability", f"{result.total:.4f}"),
                ("per token", "-" if result.mean is None else f"{result.mean:.4f}"),
                ("perplexity", "-" if result.perplexity is None else f"{result.perplexity:.4f}"),
                ("bits per byte", f"{result.bits_per_byte:.4f}"),
            ]
        )


def _show_choices(
    output: Output, loaded: "LoadedModel", ranked: Sequence["RankedChoice"], *, by: str, tokens: bool | None
) -> None:
    if output.as_json:
        choices = [{**_document(r.score, loaded, tokens=tokens is not False), "share": r.share} for r in ranked]
        output.document("llmctl.score/1", {**_model(loaded), "by": by, "choices": choices})
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
        drop=("per byte", "per token"),
        wrap=("choice",),
    )
    for choice in ranked if tokens else ():
        output.heading(_head(choice.score.text))
        _show_tokens(output, loaded, choice.score, tokens=tokens)


def _show_tokens(output: Output, loaded: "LoadedModel", result: "Score", *, tokens: bool | None) -> None:
    from llmctl.generation.logprobs import logprob_line

    for scored in result.logprobs if tokens else ():
        output.line(logprob_line(scored, loaded.tokenizer))


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
    """Write one line per row, in order: to standard output at once, or to a file at the end."""
    lines = []
    with output.waiting(f"scoring {len(jobs)} rows"):
        for job, result in zip(jobs, scores, strict=True):
            row = {"id": job.id} if job.id is not None else {}
            lines.append(json.dumps({**row, **_document(result, loaded, tokens=tokens)}, ensure_ascii=False))
            if results is None:
                output.line(lines.pop())
    if results is not None:
        try:
            write_atomically(results, "".join(f"{line}\n" for line in lines))
        except OSError as error:
            raise UserError(f"--output {results}: {error.strerror}") from error
    output.note(f"{len(jobs)} rows scored" + (f", in {results}" if results else ""))
