"""A batch run: earlier answers are reused, and a bad row gets its error in place of an answer."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

from llmctl.errors import LlmctlError
from llmctl.generation.batch.answers import RowOutcome, RowRequest, answers, one_line
from llmctl.generation.batch.keys import Identity, row_key
from llmctl.generation.batch.openai_rows import response_fields
from llmctl.generation.batch.rows import Row
from llmctl.generation.completion import Completion, DecodingStats, reasoning_document
from llmctl.generation.logprobs import logprob_document
from llmctl.generation.structured.structure import parsed_value
from llmctl.reproduce.manifest import make_manifest

if TYPE_CHECKING:
    from llmctl.generation.batch.journal import EarlierAnswer
    from llmctl.loading.model import PromptModel


class Sink(Protocol):
    """The output of a batch: a `Journal` or a `Pipe`."""

    def find(self, key: str) -> "EarlierAnswer | None": ...
    def keep(self, number: int, offset: int) -> None: ...
    def append(self, number: int, document: Mapping[str, Any]) -> None: ...
    def finish(self) -> int: ...
    def close(self) -> None: ...


@dataclass
class BatchCounts:
    """The progress of a run.

    Attributes:
        rows: Rows with an answer or an error.
        errors: Rows with an error.
        resumed: Rows answered by an earlier run.
        prompt_tokens: Prompt tokens of this run's answers.
        completion_tokens: Tokens generated in this run.
        replaced: Earlier answers that no longer belong to a row.
        forward_passes: Forward passes of the model for answers with a draft or prompt lookup.
        drafted_tokens: Tokens proposed by the draft or the lookup.
        accepted_tokens: Proposed tokens that are part of the answers.
    """

    rows: int = 0
    errors: int = 0
    resumed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    replaced: int = 0
    forward_passes: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    def add(self, completion: Completion) -> None:
        """Count one answer."""
        self.prompt_tokens += completion.prompt_token_count
        self.completion_tokens += len(completion.token_ids)
        stats = completion.decoding_stats
        if stats is not None:
            self.forward_passes += stats.forward_passes or 0
            self.drafted_tokens += stats.drafted_tokens or 0
            self.accepted_tokens += stats.accepted_tokens or 0

    def decoding_document(self) -> dict[str, Any]:
        """Return the statistics of proposed tokens as JSON; empty if no tokens were proposed."""
        if not self.forward_passes:
            return {}
        stats = DecodingStats(self.forward_passes, self.drafted_tokens, self.accepted_tokens)
        return {"gains": stats.document(self.forward_passes + self.accepted_tokens)}


class Compute(Protocol):
    """A function that answers rows: `answers` in this process, or another engine."""

    def __call__(self, loaded: Any, rows: Iterable[Row], *, on_pass: Callable[[int], None]) -> Iterator[RowOutcome]:
        """Yield the outcomes of rows, like `answers`."""


class Listener(Protocol):
    """Receives the progress of a run."""

    def row_done(self, counts: BatchCounts) -> None:
        """Handle one more row with an answer or an error."""

    def row_failed(self, row: Row, message: str) -> None:
        """Handle the error of a row."""


_REPLAY_FIELDS = ("token_ids", "prompt_ids", "manifest")  # fields that llmctl replay needs in addition to text and seed


def run_batch(
    rows: Iterable[Row],
    sink: Sink,
    run: Identity,
    load: Callable[[], Any],
    *,
    listener: Listener,
    on_pass: Callable[[int], None] = lambda _: None,
    with_ids: bool = False,
    with_manifest: bool = False,
    compute: Compute | None = None,
) -> BatchCounts:
    """Answer every row that has no answer yet, and finish the output.

    Args:
        rows: Read as they are needed.
        run: The identity at the end of all keys of this run.
        load: Returns the model for `compute`. It is not called if every row already has an answer.
        on_pass: Called before every forward pass with the number of generated tokens. Its exceptions end the run;
            finished answers are kept.
        with_ids: Write the token ids of every answer.
        with_manifest: Write everything that `llmctl replay` needs: token ids of answers and prompts, and the manifest.
        compute: Answers rows; by default, transformers in this process.

    Raises:
        LlmctlError: the model cannot be loaded, or the output cannot be written. Finished answers are kept.
    """
    ids = ("token_ids",) if with_ids else ()
    work = _Run(sink, run, listener, extra_fields=_REPLAY_FIELDS if with_manifest else ids)
    pending = work.pending(rows)
    first = next(pending, None)
    if first is not None:
        loaded = load()
        for row, outcome, request in (compute or answers)(loaded, chain([first], pending), on_pass=on_pass):
            if isinstance(outcome, LlmctlError):
                work.fail(row, outcome)
            elif request is not None:
                work.answer(row, outcome, request)
    work.counts.replaced = sink.finish()
    return work.counts


class _Run:
    """One run. Its state: the counts, and the manifest of the latest settings."""

    def __init__(self, sink: Sink, run: Identity, listener: Listener, *, extra_fields: Sequence[str]) -> None:
        self.counts = BatchCounts()
        self._sink, self._run, self._listener, self._extra_fields = sink, run, listener, extra_fields
        self._manifest: tuple[PromptModel, dict[str, Any]] | None = None

    def pending(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield the rows that have no answer yet; write errors and earlier answers for the others."""
        for row in rows:
            if row.error is not None:
                self.fail(row, row.error)
            elif not self._reuse_answer(row):
                yield row

    def _reuse_answer(self, row: Row) -> bool:
        """Reuse the answer of an earlier run with the row's current id and fields. Return False if there is none."""
        earlier = self._sink.find(row_key(row, self._run))
        if earlier is None or any(name not in earlier.document for name in self._extra_fields):
            return False
        head = _head(row)
        document = {**head, **{k: v for k, v in earlier.document.items() if k not in ("id", "input")}}
        if document == earlier.document:
            self._sink.keep(row.number, earlier.offset)
        else:
            self._sink.append(row.number, document)
        self.counts.resumed += 1
        self._row_done()
        return True

    def answer(self, row: Row, completion: Completion, request: RowRequest) -> None:
        """Write the answer to a row."""
        document = {
            **_head(row),
            "text": completion.text,
            **reasoning_document(completion),
            **parsed_value(completion),
            "finish_reason": completion.finish_reason,
            "length_limit": completion.length_limit,
            "stop_string": completion.stop_string,
            "prompt_tokens": completion.prompt_token_count,
            "completion_tokens": len(completion.token_ids),
            "seed": completion.seed,
        }
        if row.is_openai:
            document |= response_fields(row.id, completion, model=request.loaded.plan.source)
        if completion.decoding_stats is not None:
            document["gains"] = completion.decoding_stats.document(len(completion.token_ids))
        if "token_ids" in self._extra_fields:
            document["token_ids"] = list(completion.token_ids)
        if completion.logprobs is not None:
            document["logprobs"] = [
                logprob_document(scored, request.loaded.tokenizer) for scored in completion.logprobs
            ]
        if "manifest" in self._extra_fields:
            document |= {**request.request.prompt.document(), "manifest": self._manifest_of(request.loaded)}
        self._sink.append(row.number, document | {"key": row_key(row, self._run)})
        self.counts.add(completion)
        self._row_done()

    def _manifest_of(self, loaded: "PromptModel") -> dict[str, Any]:
        """Return the manifest for a row's settings. It is cached, since consecutive rows mostly have equal settings."""
        from llmctl.loading.model import LoadedModel

        assert isinstance(loaded, LoadedModel)  # noqa: S101 (only transformers' answers carry manifests)
        if self._manifest is None or self._manifest[0] is not loaded:
            self._manifest = (loaded, make_manifest(loaded).document())
        return self._manifest[1]

    def fail(self, row: Row, error: LlmctlError) -> None:
        """Write an error in place of the row's answer. The next run tries the row again."""
        message = one_line(error)
        problem = {"kind": error.kind, "message": message, "line": row.line}
        openai = {"response": None, "error": {"code": error.kind, **problem}} if row.is_openai else {}
        self._sink.append(row.number, {**_head(row), "error": problem, **openai})
        self.counts.errors += 1
        self._listener.row_failed(row, message)
        self._row_done()

    def _row_done(self) -> None:
        self.counts.rows += 1
        self._listener.row_done(self.counts)


def _head(row: Row) -> dict[str, Any]:
    """Return the fields that an output row copies from its input row: the id, and other fields under `input`."""
    head = {"id": row.id, "custom_id": row.id} if row.is_openai else {"id": row.id}
    return {**head, "input": dict(row.fields)} if row.fields else head
