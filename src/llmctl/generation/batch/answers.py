"""Answers to rows: prompts are rendered in groups, each row gets its settings, and the engine answers."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from llmctl.config import ChatSection
from llmctl.errors import ConfigError, LlmctlError, UserError
from llmctl.generation.batch.order import InOrder
from llmctl.generation.batch.row_images import decoded, windows
from llmctl.generation.batch.rows import Row, rows_of
from llmctl.generation.completion import Completion
from llmctl.generation.engine import engine_for_many
from llmctl.generation.image_processor import LazyImageProcessor
from llmctl.generation.overrides import with_generation
from llmctl.generation.prompt import Prompt, check_chat, encode_prompts
from llmctl.generation.request import Request, make_request

if TYPE_CHECKING:
    from llmctl.loading.model import LoadedModel, PromptModel


@dataclass(frozen=True)
class RowRequest:
    """The request of a row.

    Attributes:
        loaded: The model with the row's settings.
    """

    loaded: "PromptModel"
    request: Request


RowOutcome = tuple[Row, Completion | LlmctlError, RowRequest | None]
WINDOW = 256  # number of rows whose prompts are rendered together in one child process


@dataclass(frozen=True)
class RowAnswer:
    """The answer to one row, or its error."""

    row: Row
    completion: Completion | None = None
    error: LlmctlError | None = None

    @property
    def text(self) -> str:
        """The text of the answer. Raises the row's error if there is no answer."""
        return self.completion.text if self.completion is not None else self.raise_error()

    def raise_error(self) -> NoReturn:
        """Raise the row's error."""
        raise self.error or AssertionError("an answer or an error")

    def __str__(self) -> str:
        return self.text


def generate_batch(loaded: "LoadedModel", rows: Iterable[Any], *, ordered: bool = True) -> Iterator[RowAnswer]:
    """Answer many prompts. An error in one does not affect the others.

    Args:
        rows: Each a text, a list of messages, or a mapping with `prompt` or `messages` and optionally `images`, `id`,
            `seed`, `system`, `generation` and `structure`. A few hundred are read ahead; the iterable may be endless.
        ordered: Yield in the order of the rows rather than as answers finish.

    Yields:
        One answer for each row. Closing the iterator early stops the model.
    """
    order: InOrder[RowAnswer] = InOrder()
    for row, result, _ in answers(loaded, rows_of(rows)):
        answer = RowAnswer(row, error=result) if isinstance(result, LlmctlError) else RowAnswer(row, result)
        yield from order.add(row.number, answer) if ordered else (answer,)


def answers(
    loaded: "LoadedModel", rows: Iterable[Row], *, on_pass: Callable[[int], None] = lambda _: None
) -> Iterator[RowOutcome]:
    """Yield the outcomes of rows as they finish: the completion or the row's error, and its request.

    Args:
        rows: Read as the engine has capacity, up to `WINDOW` rows ahead.
        on_pass: Called before every forward pass with the number of generated tokens. Its exceptions end the batch.

    Raises:
        MachineError: memory ran out.
    """
    engine = engine_for_many(loaded)
    requests = row_requests(loaded, iter(rows))
    under_way: dict[int, RowRequest] = {}
    try:
        while True:
            while engine.has_room and (item := next(requests, None)) is not None:
                row, prepared = item
                if isinstance(prepared, LlmctlError):
                    yield row, prepared, None
                else:
                    under_way[row.number] = prepared
                    engine.add(row, prepared.request)
            if not engine.is_busy:
                return
            on_pass(engine.generated_tokens)
            for event in engine.step():
                if event.end is not None:
                    yield event.key, event.end, under_way.pop(event.key.number)
    finally:
        engine.recover()


def row_requests(loaded: "PromptModel", rows: Iterator[Row]) -> Iterator[tuple[Row, RowRequest | LlmctlError]]:
    """Yield the request of each row, or its error. Raise UserError if the chat template cannot honour the settings."""

    @lru_cache(maxsize=256)
    def overridden(settings: str) -> "PromptModel | LlmctlError":
        sections = json.loads(settings)
        try:
            return with_generation(loaded, sections.get("generation", {}), structure=sections.get("structure"))
        except LlmctlError as error:
            return error

    def request(row: Row, prompt: Prompt) -> RowRequest | LlmctlError:
        sections = {name: row.settings[name] for name in ("generation", "structure") if name in row.settings}
        configured = overridden(json.dumps(sections)) if sections else loaded
        if isinstance(configured, LlmctlError):
            return configured
        try:
            return RowRequest(configured, make_request(configured, prompt, seed=row.settings.get("seed")))
        except UserError as error:
            return error

    check_chat(loaded.tokenizer, loaded.config.chat)
    for window in windows(rows, WINDOW):
        read = [decoded(row) for row in window]
        errors = {row.number: row.error for row in read if row.error is not None}
        good = [row for row in read if row.error is None]
        encoded = encode_prompts(
            loaded.tokenizer,
            [(row.prompt, row_chat(loaded.config.chat, row)) for row in good],
            context_length=loaded.context_length,
            processor=LazyImageProcessor(loaded),
        )
        prompts = {row.number: prompt for row, prompt in zip(good, encoded, strict=True)}
        for row in window:
            prompt = errors.get(row.number) or prompts[row.number]
            yield row, prompt if isinstance(prompt, LlmctlError) else request(row, prompt)


def row_chat(chat: ChatSection, row: Row) -> ChatSection:
    """Return the chat section of a row, which may have its own system prompt."""
    system = row.settings.get("system")
    return chat if system is None else chat.model_copy(update={"system": system})


def one_line(error: LlmctlError) -> str:
    """Return the message of an error on one line."""
    if isinstance(error, ConfigError):
        return "; ".join(f"{problem.key}: {problem.message}" for problem in error.problems)
    return " ".join(error.message.split())
