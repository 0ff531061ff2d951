"""From rows to answers: prompts rendered a window at a time, each row's own settings, then whatever computes."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from llmctl.config import ChatSection
from llmctl.errors import ConfigError, LlmctlError, UserError
from llmctl.generation.batch.order import InOrder
from llmctl.generation.batch.rows import Row, rows_of
from llmctl.generation.completion import Completion
from llmctl.generation.engine import engine_for_many
from llmctl.generation.overrides import with_generation
from llmctl.generation.prompt import Prompt, encode_prompts
from llmctl.generation.request import Request, make_request

if TYPE_CHECKING:
    from llmctl.loading.model import LoadedModel, PromptModel


@dataclass(frozen=True)
class Made:
    """What a row's answer was computed from.

    Attributes:
        loaded: The model, with the row's own settings.
        request: The request.
    """

    loaded: "PromptModel"
    request: Request


Outcome = tuple[Row, Completion | LlmctlError, Made | None]  # what became of a row, and from what
WINDOW = 256  # rows whose prompts are rendered in one child


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
            `system`, `generation` and `structure`. They are read some hundreds ahead, so they may be endless.
        ordered: In the order of the rows, or as they are finished.

    Yields:
        One for each row. Closing the iterator early stops the model.
    """
    order: InOrder[RowAnswer] = InOrder()
    for row, outcome, _ in answers(loaded, rows_of(rows)):
        answer = RowAnswer(row, error=outcome) if isinstance(outcome, LlmctlError) else RowAnswer(row, outcome)
        yield from order.add(row.number, answer) if ordered else (answer,)


def answers(
    loaded: "LoadedModel", rows: Iterable[Row], *, on_pass: Callable[[int], None] = lambda _: None
) -> Iterator[Outcome]:
    """What becomes of rows, in the order in which they are finished, and from what; each row's errors are its own.

    Args:
        loaded: What `load` returned.
        rows: Taken as room becomes free, a window ahead.
        on_pass: Called before every pass with the tokens generated so far; what it raises ends the work.

    Raises:
        MachineError: memory ran out.
    """
    engine = engine_for_many(loaded)
    requests = requests_of(loaded, iter(rows))
    under_way: dict[int, Made] = {}
    try:
        while True:
            while engine.has_room and (item := next(requests, None)) is not None:
                row, made = item
                if isinstance(made, LlmctlError):
                    yield row, made, None
                else:
                    under_way[row.number] = made
                    engine.add(row, made.request)
            if not engine.is_busy:
                return
            on_pass(engine.generated_tokens)
            for event in engine.step():
                if event.end is not None:
                    yield event.key, event.end, under_way.pop(event.key.number)
    finally:
        engine.drop_all()


def requests_of(loaded: "PromptModel", rows: Iterator[Row]) -> Iterator[tuple[Row, Made | LlmctlError]]:
    """The requests that rows mean, or what is wrong with them."""

    @lru_cache(maxsize=256)
    def adjusted(own: str) -> "PromptModel | LlmctlError":
        said = json.loads(own)
        try:
            return with_generation(loaded, said.get("generation", {}), structure=said.get("structure"))
        except LlmctlError as error:
            return error

    def request(row: Row, prompt: Prompt) -> Made | LlmctlError:
        own = {name: row.settings[name] for name in ("generation", "structure") if name in row.settings}
        settled = adjusted(json.dumps(own)) if own else loaded
        if isinstance(settled, LlmctlError):
            return settled
        try:
            return Made(settled, make_request(settled, prompt, seed=row.settings.get("seed")))
        except UserError as error:
            return error

    while window := list(islice(rows, WINDOW)):
        good = [row for row in window if row.error is None]
        encoded = encode_prompts(loaded.tokenizer, [(row.prompt, _chat(loaded.config.chat, row)) for row in good])
        prompts = {row.number: prompt for row, prompt in zip(good, encoded, strict=True)}
        for row in window:
            prompt = row.error or prompts[row.number]
            yield row, prompt if isinstance(prompt, LlmctlError) else request(row, prompt)


def _chat(chat: ChatSection, row: Row) -> ChatSection:
    system = row.settings.get("system")
    return chat if system is None else chat.model_copy(update={"system": system})


def in_one_line(error: LlmctlError) -> str:
    """What an error says, for the row that has it."""
    if isinstance(error, ConfigError):
        return "; ".join(f"{problem.key}: {problem.message}" for problem in error.problems)
    return " ".join(error.message.split())
