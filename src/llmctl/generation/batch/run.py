"""A batch from rows to an output: what was answered before is kept, what is bad is said in its place."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

from llmctl.errors import LlmctlError
from llmctl.generation.batch.answers import Made, Outcome, answers, in_one_line
from llmctl.generation.batch.keys import Identity, row_key
from llmctl.generation.batch.rows import Row
from llmctl.generation.completion import Completion, DecodingStats
from llmctl.generation.logprobs import described
from llmctl.generation.structured.structure import parsed_value
from llmctl.reproduce.manifest import make_manifest

if TYPE_CHECKING:
    from llmctl.generation.batch.journal import Found
    from llmctl.loading.model import PromptModel


class Sink(Protocol):
    """Where answers go: a `Journal`, or a `Pipe`."""

    def find(self, key: str) -> "Found | None": ...
    def keep(self, number: int, place: int) -> None: ...
    def append(self, number: int, document: Mapping[str, Any]) -> None: ...
    def finish(self) -> int: ...
    def close(self) -> None: ...


@dataclass
class Tally:
    """What a run has done so far; it counts up.

    Attributes:
        rows: Rows that have their answer or their error.
        errors: Those with an error.
        resumed: Those that were answered before.
        prompt_tokens: Tokens read in this run.
        completion_tokens: Tokens generated in this run.
        replaced: Earlier answers that no row asks for any more.
        forward_passes: Passes of the model for answers with a draft or prompt lookup.
        drafted_tokens: Tokens proposed to it.
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
        """Return the acceptance of proposed tokens as JSON; empty where nothing proposed any."""
        if not self.forward_passes:
            return {}
        stats = DecodingStats(self.forward_passes, self.drafted_tokens, self.accepted_tokens)
        return {"gains": stats.document(self.forward_passes + self.accepted_tokens)}


class Compute(Protocol):
    """What computes: `answers` here, or another engine elsewhere."""

    def __call__(self, loaded: Any, rows: Iterable[Row], *, on_pass: Callable[[int], None]) -> Iterator[Outcome]:
        """What becomes of rows, as `answers` says it."""


class Listener(Protocol):
    """Who is told how it goes."""

    def settled(self, tally: Tally) -> None:
        """One more row has its answer or its error."""

    def failed(self, row: Row, message: str) -> None:
        """A row has an error."""


_RECORDED = ("token_ids", "prompt_ids", "manifest")  # what llmctl replay needs of an answer, beside text and seed


def run_batch(
    rows: Iterable[Row],
    sink: Sink,
    run: Identity,
    ready: Callable[[], Any],
    *,
    listener: Listener,
    on_pass: Callable[[int], None] = lambda _: None,
    with_ids: bool = False,
    with_manifest: bool = False,
    compute: Compute | None = None,
) -> Tally:
    """Answer every row that has no answer yet, and finish the output.

    Args:
        rows: The rows; they are read as they are needed.
        sink: Where answers go.
        run: What the keys of this run end with.
        ready: Gives the model that `compute` takes. It is called when the first row needs it, so not where every row
            is answered.
        listener: Who is told how it goes.
        on_pass: Called before every pass with the tokens generated so far; what it raises ends the run, and what is
            answered is kept.
        with_ids: Whether answers have their token ids.
        with_manifest: Whether each carries what runs it again: its prompt's ids as well, and its manifest.
        compute: What computes the answers; transformers here where it is left away.

    Raises:
        LlmctlError: the model cannot be loaded, or the output cannot be written. What is answered is kept.
    """
    more = ("token_ids",) if with_ids else ()
    work = _Run(sink, run, listener, more=_RECORDED if with_manifest else more)
    pending = work.pending(rows)
    first = next(pending, None)
    if first is not None:
        loaded = ready()
        for row, outcome, made in (compute or answers)(loaded, chain([first], pending), on_pass=on_pass):
            if isinstance(outcome, LlmctlError):
                work.fail(row, outcome)
            elif made is not None:
                work.answer(row, outcome, made)
    work.tally.replaced = sink.finish()
    return work.tally


class _Run:
    """One run. Its state is its tally."""

    def __init__(self, sink: Sink, run: Identity, listener: Listener, *, more: Sequence[str]) -> None:
        self.tally = Tally()
        self._sink, self._run, self._listener, self._more = sink, run, listener, more
        self._manifest: tuple[PromptModel, dict[str, Any]] | None = None

    def pending(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows that have to be computed; the others are settled on the way."""
        for row in rows:
            if row.error is not None:
                self.fail(row, row.error)
            elif not self._kept(row):
                yield row

    def _kept(self, row: Row) -> bool:
        """Whether the row was answered before; if it has another id or other fields now, they are put right."""
        found = self._sink.find(row_key(row, self._run))
        if found is None or any(name not in found.document for name in self._more):
            return False
        head = _head(row)
        document = {**head, **{k: v for k, v in found.document.items() if k not in ("id", "input")}}
        if document == found.document:
            self._sink.keep(row.number, found.place)
        else:
            self._sink.append(row.number, document)
        self.tally.resumed += 1
        self._settled()
        return True

    def answer(self, row: Row, completion: Completion, made: Made) -> None:
        """Write an answer."""
        document = {
            **_head(row),
            "text": completion.text,
            **parsed_value(completion),
            "finish_reason": completion.finish_reason,
            "stop_string": completion.stop_string,
            "prompt_tokens": completion.prompt_token_count,
            "completion_tokens": len(completion.token_ids),
            "seed": completion.seed,
        }
        if completion.decoding_stats is not None:
            document["gains"] = completion.decoding_stats.document(len(completion.token_ids))
        if "token_ids" in self._more:
            document["token_ids"] = list(completion.token_ids)
        if completion.logprobs is not None:
            document["logprobs"] = [described(scored, made.loaded.tokenizer) for scored in completion.logprobs]
        if "manifest" in self._more:
            document |= {**made.request.prompt.document(), "manifest": self._manifest_of(made.loaded)}
        self._sink.append(row.number, document | {"key": row_key(row, self._run)})
        self.tally.add(completion)
        self._settled()

    def _manifest_of(self, loaded: "PromptModel") -> dict[str, Any]:
        """The manifest of a row's settings; neighbours mostly share theirs."""
        from llmctl.loading.model import LoadedModel

        assert isinstance(loaded, LoadedModel)  # noqa: S101 (only transformers' answers carry manifests)
        if self._manifest is None or self._manifest[0] is not loaded:
            self._manifest = (loaded, make_manifest(loaded).document())
        return self._manifest[1]

    def fail(self, row: Row, error: LlmctlError) -> None:
        """Write an error in the row's place. The next run tries the row again."""
        message = in_one_line(error)
        self._sink.append(
            row.number, {**_head(row), "error": {"kind": error.kind, "message": message, "line": row.line}}
        )
        self.tally.errors += 1
        self._listener.failed(row, message)
        self._settled()

    def _settled(self) -> None:
        self.tally.rows += 1
        self._listener.settled(self.tally)


def _head(row: Row) -> dict[str, Any]:
    """What an output row has from its input row: the id, and the user's own fields under `input`."""
    return {"id": row.id, "input": dict(row.fields)} if row.fields else {"id": row.id}
