"""One turn of a conversation: what is to be answered, its measurements, and the use of the context."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmctl.generation.chat.transcript import Message
from llmctl.generation.completion import Completion
from llmctl.generation.prompt import Prompt


@dataclass(frozen=True)
class Task:
    """An answer to be generated.

    Attributes:
        messages: The messages before the answer.
        attempt: Number of the attempt to answer them, which is added to a configured seed.
        continued: The answer that is continued, or None for a new one.
    """

    prompt: Prompt
    messages: Sequence[Message]
    attempt: int = 0
    continued: Message | None = None


@dataclass(frozen=True)
class Turn:
    """The measurements of one answer.

    Attributes:
        prompt_tokens: Tokens of the whole conversation before the answer.
        prefilled_tokens: Prompt tokens computed in this turn; the others were cached from earlier turns.
        completion: The complete answer; None if it was stopped.
        seed: The seed of the answer.
        is_loop: True if the answer was stopped because it repeated itself.
    """

    prompt_tokens: int
    prefilled_tokens: int
    completion: Completion | None
    seed: int
    is_loop: bool = False


@dataclass(frozen=True)
class ContextUsage:
    """The use of the context.

    Attributes:
        prompt_tokens: Tokens of the conversation, including the next message.
        context_length: Maximum tokens, including the answer; None if the model does not state it.
        answer_tokens: Minimum tokens that should be left for the answer.
    """

    prompt_tokens: int
    context_length: int | None
    answer_tokens: int

    @property
    def left(self) -> int | None:
        """Tokens left for the answer; negative if the conversation itself does not fit."""
        return None if self.context_length is None else self.context_length - self.prompt_tokens

    @property
    def is_tight(self) -> bool:
        """True if the answer may be cut off because the context is full."""
        return self.left is not None and self.left < self.answer_tokens


@dataclass(frozen=True)
class Context:
    """Everything that an answer depends on, except sampling: an answer can only be continued in the same context."""

    messages: tuple[Message, ...]
    system: str | None
    thinking: bool | None
    tokenizer: Any
