"""Conversations as token ids, through the chat template, in a child that lives as long as the server."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmctl.config import ChatSection
from llmctl.generation.prompt import Messages, encode_prompt, rendering, template_trouble, uses_template
from llmctl.machine.sandbox import BoundedChild, FailedError, TooMuchError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Prompts:
    """What `encode_prompt` gives, without a fork for each conversation.

    Args:
        tokenizer: The tokenizer. The child has a copy of it.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._child = BoundedChild(self._render)

    def start(self) -> None:
        """Make the child now, while nothing else runs."""
        self._child.start()

    def close(self) -> None:
        """End it."""
        self._child.close()

    def encode(
        self, prompt: "str | Messages", chat: ChatSection, *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """The ids of a prompt. Arguments and errors are those of `encode_prompt`."""
        if not uses_template(self._tokenizer, chat, prompt):
            return encode_prompt(self._tokenizer, prompt, chat)
        rendering(self._tokenizer, prompt, chat, tools)  # raises what is wrong with it before the template sees it
        given = prompt if isinstance(prompt, str) else [dict(message) for message in prompt]
        try:
            return list(self._child([given, chat.model_dump(mode="json"), [dict(t) for t in tools] if tools else None]))
        except (TooMuchError, FailedError) as error:
            raise template_trouble(error) from error

    def _render(self, argument: Any) -> list[int]:
        """In the child."""
        prompt, chat, tools = argument
        return rendering(self._tokenizer, prompt, ChatSection.model_validate(chat), tools)()
