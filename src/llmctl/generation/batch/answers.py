"""From rows to answers: prompts rendered a window at a time, each row's own settings, then whatever computes."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from llmctl.config import ChatSection
from llmctl.errors import ConfigError, LlmctlError, UserError
from llmctl.generation.adjust import with_generation
from llmctl.generation.batch.order import InOrder
from llmctl.generation.batch.rows import Row, rows_of
from llmctl.generation.completion import Completion
from llmctl.generation.prompt import encode_prompts
from llmctl.generation.request import Request, make_request

if TYPE_CHECKING:
    from llmctl.loader import LoadedModel

WINDOW = 256  # rows whose prompts are rendered in one child
Failed = Callable[[Row, LlmctlError], None]


@dataclass(frozen=True)
class RowAnswer:
    """What became of one row.

    Attributes:
        row: The row.
        completion: Its answer, or None.
        error: Why there is none, or None.
    """

    row: Row
    completion: Completion | None = None
    error: LlmctlError | None = None

    @property
    def text(self) -> str:
        """The answer's text. Raises the row's error where there is none."""
        if self.completion is None:
            raise self.error or AssertionError("an answer or an error")
        return self.completion.text


def generate_batch(loaded: "LoadedModel", rows: Iterable[Any], *, ordered: bool = True) -> Iterator[RowAnswer]:
    """Answer many prompts; a bad one costs no other.

    Args:
        loaded: What `load` returned.
        rows: Each a text, a list of messages, or a mapping with `prompt` or `messages` and, where wanted, `id`, `seed`,
            `system` and `generation`. They are read some hundreds ahead, so they may be endless.
        ordered: In the order of the rows, or as they are finished.

    Yields:
        One for each row. Closing the iterator early stops the model.
    """
    failed: deque[RowAnswer] = deque()

    def fail(row: Row, error: LlmctlError) -> None:
        failed.append(RowAnswer(row, error=error))

    def good() -> Iterator[Row]:
        for row in rows_of(rows):
            if row.error is None:
                yield row
            else:
                fail(row, row.error)

    def as_finished() -> Iterator[RowAnswer]:
        for row, completion in answers(loaded, good(), failed=fail):
            while failed:
                yield failed.popleft()
            yield RowAnswer(row, completion)
        yield from failed

    order: InOrder[RowAnswer] = InOrder()
    for answer in as_finished():
        yield from order.add(answer.row.number, answer) if ordered else (answer,)


def answers(loaded: "LoadedModel", rows: Iterable[Row], *, failed: Failed) -> Iterator[tuple[Row, Completion]]:
    """The answers to rows without an error, in the order in which they are finished.

    Args:
        loaded: What `load` returned.
        rows: Taken as room becomes free, a window ahead.
        failed: Told of a row that has no answer, at once.
    """
    run = _one_by_one(loaded, _requests(loaded, iter(rows), failed))
    for row, outcome in run:
        if isinstance(outcome, LlmctlError):
            failed(row, outcome)
        else:
            yield row, outcome


def _one_by_one(
    loaded: "LoadedModel", requests: Iterable[tuple[Row, Request]]
) -> Iterator[tuple[Row, Completion | LlmctlError]]:
    """One answer after the other: for models that are computed by transformers alone."""
    from llmctl.generation.stream import stream_request

    for row, request in requests:
        try:
            *_, last = stream_request(loaded, request)
        except LlmctlError as error:
            yield row, error
            continue
        assert last.completion is not None, "the last chunk carries the completion"  # noqa: S101
        yield row, last.completion


def _requests(loaded: "LoadedModel", rows: Iterator[Row], failed: Failed) -> Iterator[tuple[Row, Request]]:
    """The requests that rows mean."""

    @lru_cache(maxsize=256)
    def adjusted(generation: str) -> "LoadedModel | LlmctlError":
        try:
            return with_generation(loaded, json.loads(generation))
        except LlmctlError as error:
            return error

    while window := list(islice(rows, WINDOW)):
        prompts = [(row.prompt, _chat(loaded.config.chat, row)) for row in window]
        for row, ids in zip(window, encode_prompts(loaded.tokenizer, prompts), strict=True):
            own = row.settings.get("generation")
            settled = adjusted(json.dumps(own, sort_keys=True)) if own else loaded
            if isinstance(ids, LlmctlError):
                failed(row, ids)
            elif isinstance(settled, LlmctlError):
                failed(row, settled)
            else:
                try:
                    request = make_request(settled, ids, seed=row.settings.get("seed"))
                except UserError as error:
                    failed(row, error)
                else:
                    yield row, request


def _chat(chat: ChatSection, row: Row) -> ChatSection:
    system = row.settings.get("system")
    return chat if system is None else chat.model_copy(update={"system": system})


def in_one_line(error: LlmctlError) -> str:
    """What an error says, for the row that has it."""
    if isinstance(error, ConfigError):
        return "; ".join(f"{problem.key}: {problem.message}" for problem in error.problems)
    return " ".join(error.message.split())
