"""`llmctl generate --input`: a file of prompts, answered so that a run can be killed and gone on with."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from llmctl.cli._batch_progress import BatchProgress
from llmctl.cli._decoding_stats import acceptance
from llmctl.cli._interrupts import Gentle, resumable
from llmctl.cli._options import prepare_model
from llmctl.cli._render import Output
from llmctl.cli.generate import hashing
from llmctl.config import Settings
from llmctl.errors import UserError

if TYPE_CHECKING:
    from llmctl.generation.batch.keys import Identity
    from llmctl.generation.batch.run import Compute, Sink, Tally
    from llmctl.loading.model import LoadedModel, PromptModel
    from llmctl.loading.prepare import Prepared


@dataclass(frozen=True)
class Files:
    """What is read and written, and how.

    Attributes:
        input: The file of prompts; `-` is standard input.
        output: The file of answers; None and `-` are standard output.
        input_format: What is in the input, where its name does not say.
        column: The column or field that holds the prompt.
        unordered: Whether answers are written in the order in which they are finished.
        overwrite: Whether answers that were made otherwise may be replaced.
    """

    input: Path
    output: Path | None = None
    input_format: str | None = None
    column: str | None = None
    unordered: bool = False
    overwrite: bool = False

    @property
    def to_stdout(self) -> bool:
        """Whether the answers go to standard output."""
        return self.output is None or str(self.output) == "-"


def batch(
    output: Output, settings: Settings, files: Files, *, offline: bool, with_ids: bool, with_manifest: bool = False
) -> bool:
    """Answer a file of prompts; whether every row has an answer.

    Raises:
        LlmctlError: the files, the model or the machine are in the way. What is answered is kept.
    """
    from llmctl.generation.batch.rows import count_rows, input_format, read_rows
    from llmctl.generation.batch.run import run_batch
    from llmctl.loading.model import LoadedModel
    from llmctl.reproduce.manifest import make_manifest

    if files.to_stdout and output.as_json:
        raise UserError("--json describes the run on standard output, where the answers go", hint="give --output FILE")
    kind = input_format(None if str(files.input) == "-" else files.input, files.input_format)
    with ExitStack() as stack:
        stream = stack.enter_context(_opened(files))
        rows = read_rows(stream, kind, column=files.column)
        computer = stack.enter_context(_computer(output, settings, offline=offline, with_manifest=with_manifest))
        prepared, run = computer.prepared, computer.run
        progress = BatchProgress(output, total=None if stream is sys.stdin.buffer else count_rows(files.input, kind))
        started = time.monotonic()
        manifest: dict[str, Any] | None = None
        with _sink(output, files, run, progress) as sink, Gentle() as gentle:

            def ready() -> "PromptModel":
                nonlocal manifest
                loaded = computer.load()
                gentle.begin()
                progress.begin()
                if output.as_json and isinstance(loaded, LoadedModel):
                    manifest = make_manifest(loaded).document()
                return loaded

            def on_pass(tokens: int) -> None:
                gentle.go_on()
                progress.passed(tokens)

            tally = run_batch(
                gentle.reading(rows),
                sink,
                run,
                ready,
                listener=progress,
                on_pass=on_pass,
                with_ids=with_ids,
                with_manifest=with_manifest,
                compute=computer.compute,
            )
    seconds = time.monotonic() - started
    _tell(output, files, tally, seconds=progress.seconds)
    if output.as_json:
        body = _summary(files, tally, prepared, seconds=seconds, computing=progress.seconds)
        output.document("llmctl.batch/1", {**body, "engine": computer.engine, "manifest": manifest})
    return not tally.errors


@dataclass(frozen=True)
class Computer:
    """What computes a batch.

    Attributes:
        prepared: The model.
        run: What the keys of the run end with.
        load: Makes the model ready; called when the first row needs it.
        compute: What computes the answers.
        engine: Its name.
    """

    prepared: "Prepared"
    run: "Identity"
    load: "Callable[[], PromptModel]"
    compute: "Compute"
    engine: str = "transformers"


@contextmanager
def _computer(output: Output, settings: Settings, *, offline: bool, with_manifest: bool) -> Iterator[Computer]:
    """What the settings ask to compute with: transformers in this process, or vLLM, which ends with the context."""
    from llmctl.generation.batch.answers import answers
    from llmctl.generation.batch.keys import identity

    if settings.config.engine == "vllm":
        from llmctl.cli._batch_vllm import vllm_computer

        if with_manifest:
            raise UserError("--manifest is for transformers: llmctl replay does not run vLLM", hint="leave it away")
        with vllm_computer(output, settings, offline=offline) as computer:
            yield computer
        return
    prepared = prepare_model(output, settings, offline=offline)
    with hashing(output, prepared.located):
        run = identity(prepared)
    yield Computer(prepared, run, lambda: _load(output, prepared), answers)


def _load(output: Output, prepared: "Prepared") -> "LoadedModel":
    from llmctl.loading.loader import load_prepared

    with output.waiting(f"loading {prepared.located.source}"):
        loaded = load_prepared(prepared)
    for decision in loaded.plan.decisions:
        output.detail(str(decision))
    return loaded


@contextmanager
def _opened(files: Files) -> Iterator[BinaryIO]:
    if str(files.input) == "-":
        yield sys.stdin.buffer
        return
    if files.output is not None and files.output.exists() and files.input.exists():
        same = files.output.samefile(files.input)
        if same:
            raise UserError("--input and --output are the same file", hint="give another --output")
    try:
        stream = files.input.open("rb")
    except OSError as error:
        raise UserError(f"--input {files.input}: {error.strerror}") from error
    with stream:
        yield stream


@contextmanager
def _sink(output: Output, files: Files, run: "Identity", progress: BatchProgress) -> Iterator["Sink"]:
    """Where the answers go, closed at the end; and what is said when the run is stopped."""
    from llmctl.generation.batch.journal import Journal, explained
    from llmctl.generation.batch.order import Pipe

    path = None if files.to_stdout else files.output
    if path is None or (path.exists() and not path.is_file() and not path.is_dir()):
        with explained(path or Path("standard output")), _stream(path) as stream, progress:
            output.note("the answers go to a stream: a run that is stopped begins anew; --output FILE can be resumed")
            try:
                yield Pipe(stream, ordered=not files.unordered)
            except BrokenPipeError:
                output.warn("standard output was closed: the run ends here")
                raise
        return
    sink = Journal(path, run, overwrite=files.overwrite, ordered=not files.unordered)
    with resumable(output, kept=lambda: f"{progress.kept} are kept in {path}.partial"), progress:
        try:
            yield sink
        finally:
            sink.close()


@contextmanager
def _stream(path: Path | None) -> Iterator[BinaryIO]:
    """Standard output, or what is no regular file: a device, a pipe with a name."""
    if path is None:
        yield sys.stdout.buffer
        return
    with path.open("wb") as stream:
        yield stream


def _tell(output: Output, files: Files, tally: "Tally", *, seconds: float) -> None:
    """What a person wants to know at the end."""
    text = f"{tally.rows:,} row{'' if tally.rows == 1 else 's'}"
    if tally.resumed == tally.rows > 0:
        text += ": every row was answered before"
    elif tally.resumed:
        text += f", {tally.resumed:,} of them answered before"
    if seconds:
        rate = tally.completion_tokens / seconds
        text += f"; {tally.completion_tokens:,} tokens in {seconds:.1f} s, {rate:.1f} tokens/s"
    if tally.forward_passes:
        text += f"; {acceptance(tally.drafted_tokens, tally.accepted_tokens)}"
    output.note(text)
    if tally.replaced and not files.overwrite:
        count, belong, they = (
            ("answers", "belong", "they are") if tally.replaced > 1 else ("answer", "belongs", "it is")
        )
        output.warn(
            f"{tally.replaced:,} earlier {count} {belong} to no row of {files.input} any more: "
            f"{they} now in {files.output}.replaced"
        )
    if tally.errors:
        output.warn(
            f"{tally.errors:,} of {tally.rows:,} rows have an error in place of an answer; a rerun tries them again"
        )


def _summary(files: Files, tally: "Tally", prepared: "Prepared", *, seconds: float, computing: float) -> dict[str, Any]:
    """What `--json` says of a run."""
    return {
        "input": str(files.input),
        "output": str(files.output),
        "rows": tally.rows,
        "errors": tally.errors,
        "resumed": tally.resumed,
        "replaced": tally.replaced,
        "tokens": {"prompt": tally.prompt_tokens, "completion": tally.completion_tokens},
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tally.completion_tokens / computing, 2) if computing else None,
        **tally.decoding_document(),
        "model": prepared.plan.source,
        "commit": prepared.plan.commit,
    }
