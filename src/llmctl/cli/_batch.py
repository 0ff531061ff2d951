"""`llmctl generate --input`: answer a file of prompts in a run that can be stopped and resumed."""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from llmctl.cli._batch_computer import Computer, open_computer
from llmctl.cli._completion import acceptance_text
from llmctl.cli._interrupts import HeldInterrupts, resumable
from llmctl.cli._progress import BatchProgress
from llmctl.cli._render import Output
from llmctl.cli._text_input import stdin_bytes
from llmctl.errors import UserError
from llmctl.paths import check_output

if TYPE_CHECKING:
    from llmctl.config import Settings
    from llmctl.generation.batch.keys import Identity
    from llmctl.generation.batch.rows import Row
    from llmctl.generation.batch.run import BatchCounts, Sink
    from llmctl.loading.model import PromptModel
    from llmctl.loading.prepare import Prepared


@dataclass(frozen=True)
class BatchFiles:
    """The files of a batch and their formats.

    Attributes:
        input: The file of prompts; `-` is standard input.
        output: The file of answers; None and `-` are standard output.
        input_format: The format of the input, if the file name does not determine it.
        column: The column or field that holds the prompt.
        template: A text with names of columns in braces, which makes the prompt.
        unordered: Write answers in the order in which they finish.
        overwrite: Replace answers made with a different model or settings.
        with_ids: Write the token ids of each answer.
        with_manifest: Write to each answer what a replay needs.
    """

    input: Path
    output: Path | None = None
    input_format: str | None = None
    column: str | None = None
    template: str | None = None
    unordered: bool = False
    overwrite: bool = False
    with_ids: bool = False
    with_manifest: bool = False

    @property
    def to_stdout(self) -> bool:
        """True when the answers go to standard output."""
        return self.output is None or str(self.output) == "-"


def answer_batch(output: Output, settings: "Settings", files: BatchFiles, *, offline: bool) -> bool:
    """Answer a file of prompts and return True if every row has an answer.

    Raises:
        LlmctlError: the files, the model or the machine prevent it. Answers so far are kept.
    """
    from llmctl.generation.batch.prompt_template import parse_template
    from llmctl.generation.batch.row_images import with_media
    from llmctl.generation.batch.rows import choose_format, count_rows, read_rows

    if files.to_stdout and output.as_json:
        raise UserError("--json describes the run on standard output, where the answers go", hint="give --output FILE")
    if files.output is not None and not files.to_stdout and (files.output.is_file() or not files.output.exists()):
        check_output(files.output, flag="--output")
    template = parse_template(files.template) if files.template is not None else None
    input_format = choose_format(None if str(files.input) == "-" else files.input, files.input_format)
    with ExitStack() as stack:
        stream = stack.enter_context(_open_input(files))
        rows = with_media(
            read_rows(stream, input_format, column=files.column, template=template), folder=files.input.parent
        )
        computer = stack.enter_context(
            open_computer(output, settings, offline=offline, with_manifest=files.with_manifest)
        )
        progress = BatchProgress(
            output, total=None if stream is sys.stdin.buffer else count_rows(files.input, input_format)
        )
        started = time.monotonic()
        counts, manifest = _run(output, files, rows, computer, progress)
    seconds = time.monotonic() - started
    _note_tally(output, files, counts, seconds=progress.seconds)
    if output.as_json:
        body = _summary(files, counts, computer.prepared, seconds=seconds, computing=progress.seconds)
        output.document("llmctl.batch/1", {**body, "engine": computer.engine, "manifest": manifest})
    return not counts.errors


def _run(
    output: Output, files: BatchFiles, rows: "Iterator[Row]", computer: Computer, progress: BatchProgress
) -> "tuple[BatchCounts, dict[str, Any] | None]":
    """Answer the rows; return the counts, and for --json the manifest of the run."""
    from llmctl.generation.batch.run import run_batch
    from llmctl.loading.model import LoadedModel
    from llmctl.reproduce.manifest import make_manifest

    manifest: dict[str, Any] | None = None
    with _open_sink(output, files, computer.identity, progress) as sink, HeldInterrupts() as interrupts:

        def load() -> "PromptModel":
            nonlocal manifest
            loaded = computer.load()
            interrupts.hold()
            progress.begin()
            if output.as_json and isinstance(loaded, LoadedModel):
                manifest = make_manifest(loaded).document()
            return loaded

        def on_pass(tokens: int) -> None:
            interrupts.check()
            progress.passed(tokens)

        counts = run_batch(
            interrupts.released_while_reading(rows),
            sink,
            computer.identity,
            load,
            listener=progress,
            on_pass=on_pass,
            with_ids=files.with_ids,
            with_manifest=files.with_manifest,
            compute=computer.compute,
        )
    return counts, manifest


@contextmanager
def _open_input(files: BatchFiles) -> Iterator[BinaryIO]:
    if str(files.input) == "-":
        yield stdin_bytes()
        return
    output = files.output
    if output is not None and output.exists() and files.input.exists() and output.samefile(files.input):
        raise UserError("--input and --output are the same file", hint="give another --output")
    try:
        stream = files.input.open("rb")
    except OSError as error:
        raise UserError(f"--input {files.input}: {error.strerror}") from error
    with stream:
        yield stream


@contextmanager
def _open_sink(output: Output, files: BatchFiles, identity: "Identity", progress: BatchProgress) -> Iterator["Sink"]:
    """Open the destination of the answers; on an interrupt, print how to continue."""
    from llmctl.generation.batch.journal import Journal, translate_disk_errors
    from llmctl.generation.batch.order import Pipe

    path = None if files.to_stdout else files.output
    if path is None or (path.exists() and not path.is_file() and not path.is_dir()):
        # a failure of standard output is reported where all commands end
        with translate_disk_errors(path) if path else nullcontext(), _open_stream(path) as stream, progress:
            output.note("the answers go to a stream: an interrupted run starts over; --output FILE can be resumed")
            try:
                yield Pipe(stream, ordered=not files.unordered)
            except BrokenPipeError:
                output.warn("standard output was closed: the run ends here")
                raise
        return
    sink = Journal(path, identity, overwrite=files.overwrite, ordered=not files.unordered)
    with resumable(output, kept=lambda: f"{progress.kept} are kept in {path}.partial"), progress:
        try:
            yield sink
        finally:
            sink.close()


@contextmanager
def _open_stream(path: Path | None) -> Iterator[BinaryIO]:
    """Open standard output, or a path that is not a regular file: a device or a named pipe."""
    if path is None:
        yield sys.stdout.buffer
        return
    with path.open("wb") as stream:
        yield stream


def _note_tally(output: Output, files: BatchFiles, counts: "BatchCounts", *, seconds: float) -> None:
    text = f"{counts.rows:,} row{'' if counts.rows == 1 else 's'}"
    if counts.resumed == counts.rows > 0:
        text += ": every row was answered before"
    elif counts.resumed:
        text += f", {counts.resumed:,} of them answered before"
    if seconds:
        rate = counts.completion_tokens / seconds
        text += f"; {counts.completion_tokens:,} tokens in {seconds:.1f} s, {rate:.1f} tokens/s"
    if counts.forward_passes:
        text += f"; {acceptance_text(counts.drafted_tokens, counts.accepted_tokens)}"
    output.note(text)
    if counts.replaced and not files.overwrite:
        answers = f"{counts.replaced:,} earlier answer{'s' if counts.replaced > 1 else ''}"
        output.warn(f"{answers} without a row in {files.input}: moved to {files.output}.replaced")
    if counts.errors:
        output.warn(
            f"{counts.errors:,} of {counts.rows:,} rows have an error instead of an answer; a rerun tries them again"
        )


def _summary(
    files: BatchFiles, counts: "BatchCounts", prepared: "Prepared", *, seconds: float, computing: float
) -> dict[str, Any]:
    return {
        "input": str(files.input),
        "output": str(files.output),
        "rows": counts.rows,
        "errors": counts.errors,
        "resumed": counts.resumed,
        "replaced": counts.replaced,
        "tokens": {"prompt": counts.prompt_tokens, "completion": counts.completion_tokens},
        "seconds": round(seconds, 3),
        "tokens_per_second": round(counts.completion_tokens / computing, 2) if computing else None,
        **counts.decoding_document(),
        "model": prepared.plan.source,
        "commit": prepared.plan.commit,
    }
