"""Encoding of conversations with the chat template, in a child process that lives as long as the server."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from llmctl.config import ChatSection
from llmctl.errors import LlmctlError
from llmctl.generation.image_processor import LazyImageProcessor
from llmctl.generation.media import pictures_in
from llmctl.generation.prompt import (
    Ending,
    Messages,
    Prompt,
    Rendering,
    encode_prompt,
    render,
    rendering,
    template_text,
    texts_of,
    uses_template,
)
from llmctl.generation.prompt_length import is_long
from llmctl.generation.template_variables import template_error, template_variables
from llmctl.machine.sandbox import BoundedChild, FailedError, LimitExceededError
from llmctl.transformers_compat import chat_template_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PromptRenderer:
    """`encode_prompt` without a fork per conversation. Its state: a child process with a copy of the tokenizer."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        chat: ChatSection,
        *,
        context_length: int | None,
        processor: LazyImageProcessor,
    ) -> None:
        self._tokenizer, self._chat, self._context_length = tokenizer, chat, context_length
        self._processor = processor
        self._child = BoundedChild(self._render)

    def start(self) -> None:
        """Fork the child now, before other threads run, and read the templates' variables, which takes a fork, too."""
        template = template_text(self._chat)
        if template or self._tokenizer.chat_template:
            for with_tools in (False, True):
                with suppress(LlmctlError):  # requests that need the variables get the error
                    template_variables(chat_template_source(self._tokenizer, template, with_tools=with_tools))
        self._child.start()

    def close(self) -> None:
        """Stop the child."""
        self._child.close()

    def encode(
        self,
        prompt: "str | Messages",
        chat: ChatSection,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        ending: Ending | None = None,
    ) -> Prompt:
        """Encode a prompt. Arguments and errors are those of `encode_prompt`."""
        is_plain = not uses_template(self._tokenizer, chat, prompt)
        if is_plain or pictures_in(prompt) or is_long(texts_of(prompt, chat, tools)):
            return encode_prompt(
                self._tokenizer,
                prompt,
                chat,
                tools=tools,
                ending=ending,
                context_length=self._context_length,
                processor=self._processor,
            )
        conversation = rendering(self._tokenizer, prompt, chat, tools=tools, ending=ending)
        conversation = replace(conversation, adds_bos=self._processor.takes_images)
        try:
            ids = self._child(asdict(conversation))
        except (LimitExceededError, FailedError) as error:
            raise template_error(error) from error
        return conversation.prompt(ids)

    def _render(self, argument: Any) -> list[int]:
        """Render and encode; runs in the child."""
        return render(self._tokenizer, Rendering(**argument))
