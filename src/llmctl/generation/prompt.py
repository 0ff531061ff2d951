"""Prompts as token ids with media, and the encoding of texts and conversations."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

from llmctl.config import ChatSection
from llmctl.errors import LlmctlError, UserError
from llmctl.generation.control_tokens import refuse_control_tokens, texts_in
from llmctl.generation.media import (
    Media,
    cache_ids,
    media_document,
    message_parts,
    pictures_in,
    without_pictures,
)
from llmctl.generation.prompt_images import ProcessorSource, PromptImages, process_images
from llmctl.generation.prompt_length import check_length, is_long, limits_for
from llmctl.generation.template_variables import template_arguments, template_error
from llmctl.machine.sandbox import run_bounded_each
from llmctl.model.tokenizer import in_parts, reads_parts
from llmctl.paths import expand
from llmctl.text_files import NotTextError, read_text, reason
from llmctl.transformers_compat import expanding_tokenizer, sanitising_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, Any]]
# How a rendered conversation ends: with the beginning of the assistant's turn, inside its final message, or after it.
Ending = Literal["turn", "inside", "after"]


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model reads it. Equal prompts give equal answers.

    Attributes:
        ids: Token ids.
        media: Media, in the order in which they appear in the prompt.
        is_open: True if the answer continues the prompt's own text, so that it may begin with a space.
        templated: True if a chat template wrote the prompt, so that the answer may have reasoning and tool calls.
        prefill: The beginning of the answer, which is at the end of the prompt.
    """

    ids: tuple[int, ...]
    media: tuple[Media, ...] = ()
    is_open: bool = False
    templated: bool = False
    prefill: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def cache_ids(self) -> tuple[int, ...]:
        """The ids, with a number of its own for each token of each image. Caches compare these."""
        return cache_ids(self.ids, self.media)

    @property
    def text_ids(self) -> tuple[int, ...]:
        """The ids without those of media."""
        places = {position for one in self.media for position in one.positions}
        return tuple(token for position, token in enumerate(self.ids) if position not in places) if places else self.ids

    def followed_by(self, ids: Iterable[int]) -> "Prompt":
        """Return the prompt with `ids` appended."""
        return replace(self, ids=(*self.ids, *ids))

    def common(self, other: "Prompt") -> int:
        """Return the length of the common prefix in tokens; tokens of different images differ."""
        pairs = enumerate(zip(self.cache_ids, other.cache_ids, strict=False))
        return next((n for n, (a, b) in pairs if a != b), min(len(self), len(other)))

    def document(self) -> dict[str, Any]:
        """Return the prompt as JSON values."""
        media = {"prompt_media": media_document(self.media)} if self.media else {}
        further = {"prompt_is_open": self.is_open, "prompt_templated": self.templated, "prompt_prefill": self.prefill}
        return {"prompt_ids": list(self.ids), **{key: value for key, value in further.items() if value}, **media}


def uses_template(tokenizer: "PreTrainedTokenizerBase", chat: ChatSection, prompt: "str | Messages") -> bool:
    """Return True if a chat template is applied to the prompt."""
    if not isinstance(prompt, str) and not (pictures_in(prompt) and len(prompt) == 1):
        return True
    return not chat.raw and bool(chat.template or tokenizer.chat_template)


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: "str | Messages",
    chat: ChatSection,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    context_length: int | None = None,
    ending: Ending | None = None,
    processor: ProcessorSource | None = None,
) -> Prompt:
    """Encode a text or a conversation.

    Control tokens in the user's text are encoded as text: only the template writes real ones. A raw prompt is encoded
    literally, with one beginning-of-sequence token.

    Args:
        prompt: A text, or messages. `generation.tools` converts messages with tool calls to the form of a template.
        tools: Tools for the template, in the format of OpenAI's API.
        context_length: Tokens that the model can read. A text that is much longer is refused without tokenising it.
        ending: The end of the rendered conversation. By default, a final message of the assistant is continued;
            otherwise its turn begins.
        processor: The model's image processor, loaded for prompts that contain pictures.

    Raises:
        UserError: the prompt is empty or too long, there is no template for messages, or the template refuses them.
    """
    [encoded] = encode_prompts(
        tokenizer, [(prompt, chat)], tools=tools, context_length=context_length, ending=ending, processor=processor
    )
    if isinstance(encoded, LlmctlError):
        raise encoded
    return encoded


def encode_prompts(
    tokenizer: "PreTrainedTokenizerBase",
    prompts: "Sequence[tuple[str | Messages, ChatSection]]",
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    context_length: int | None = None,
    ending: Ending | None = None,
    processor: ProcessorSource | None = None,
) -> list[Prompt | LlmctlError]:
    """Encode many prompts like `encode_prompt`, in one child process. Return a prompt or an error for each."""
    encoded: dict[int, Prompt | LlmctlError] = {}
    renderings: dict[int, Rendering] = {}
    for number, (prompt, chat) in enumerate(prompts):
        try:
            check_length(tokenizer, texts_of(prompt, chat, tools), context_length)
            images = process_images(prompt, processor)
            if uses_template(tokenizer, chat, prompt):
                one = rendering(tokenizer, prompt, chat, tools=tools, ending=ending)
                adds_bos = processor is not None and processor.takes_images
                renderings[number] = replace(one, images=images, adds_bos=adds_bos)
            elif images is not None:
                encoded[number] = _encode_raw_with_images(tokenizer, prompt, chat, images)
            else:
                encoded[number] = Prompt(tuple(_encode_raw(tokenizer, str(prompt), chat)), is_open=True)
        except LlmctlError as error:
            encoded[number] = error
    short = {number: one for number, one in renderings.items() if not is_long(texts_in(one.messages))}
    works = [partial(render, tokenizer, one) for one in short.values()]
    for (number, one), result in zip(short.items(), run_bounded_each(works), strict=True):
        encoded[number] = template_error(result) if isinstance(result, Exception) else _finished(one, result)
    for number in renderings.keys() - short.keys():
        encoded[number] = _render_long(tokenizer, renderings[number])
    return [encoded[number] for number in range(len(prompts))]


def _render_long(tokenizer: "PreTrainedTokenizerBase", conversation: "Rendering") -> Prompt | LlmctlError:
    """Render and tokenise a long conversation, with more time and memory than a template alone may use."""
    seconds, extra_bytes = limits_for(texts_in(conversation.messages))
    work = partial(render, tokenizer, conversation)
    [result] = run_bounded_each([work], seconds=seconds, extra_bytes=extra_bytes)
    if isinstance(result, Exception):
        return template_error(result, seconds=seconds, extra_bytes=extra_bytes)
    return _finished(conversation, result)


def _finished(conversation: "Rendering", ids: Sequence[int]) -> Prompt | LlmctlError:
    """Return the prompt of a rendered conversation, or the error if its images have no place in it."""
    try:
        return conversation.prompt(ids)
    except ValueError as error:
        return UserError(f"the chat template does not fit the images: {error}", hint="--template FILE uses another one")


def _encode_raw_with_images(
    tokenizer: "PreTrainedTokenizerBase", prompt: "str | Messages", chat: ChatSection, images: PromptImages
) -> Prompt:
    """Encode a text and its images without a template. Images without a placeholder in the text go before it."""
    _refuse_without_template(chat)
    text = "".join(str(part.get("text", "")) for part in message_parts(prompt))
    missing = len(images.images) - text.count(images.processor.placeholder)
    ids = images.processor.encode_raw(images.processor.placeholder * max(0, missing) + text, images.images)
    try:
        return Prompt(tuple(ids), images.media(ids), is_open=True)
    except ValueError as error:
        raise UserError(f"the prompt does not fit its images: {error}") from error


def as_messages(prompt: "str | Messages", chat: ChatSection) -> list[dict[str, Any]]:
    """Return the conversation of a prompt, the system prompt first."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
    if not messages or (isinstance(prompt, str) and not prompt.strip()):
        raise UserError("the prompt is empty", hint="give a PROMPT, --prompt-file FILE, or text on standard input")
    if chat.system is not None and messages[0].get("role") != "system":
        messages.insert(0, {"role": "system", "content": chat.system})
    return messages


def _encode_raw(tokenizer: "PreTrainedTokenizerBase", prompt: str, chat: ChatSection) -> list[int]:
    _refuse_without_template(chat)
    bos = tokenizer.bos_token
    doubled = bool(bos) and prompt.startswith(str(bos))
    ids = list(tokenizer(prompt, add_special_tokens=not doubled)["input_ids"])
    if not ids:
        raise UserError("the prompt is empty", hint="give a PROMPT, --prompt-file FILE, or text on standard input")
    return ids


def _refuse_without_template(chat: ChatSection) -> None:
    """Refuse settings that only a chat template can honour. `chat.raw` itself turns off what changes the template."""
    if chat.system is not None:
        raise UserError("a system prompt needs a chat template", hint="omit --raw or --system")
    if chat.prefill is not None:
        raise UserError("a prefill needs a chat template", hint="append it to the prompt, and omit --prefill")
    if not chat.raw and (chat.thinking is not None or chat.template_kwargs):
        name = "template_kwargs" if chat.thinking is None else "thinking"
        raise UserError(f"chat.{name} needs a chat template, and this model has none", hint="--template FILE gives one")


def check_chat(tokenizer: "PreTrainedTokenizerBase", chat: ChatSection) -> None:
    """Raise UserError before any prompt if there is no chat template, or it cannot honour the configuration."""
    if uses_template(tokenizer, chat, ""):
        template_arguments(tokenizer, chat, template_text(chat))
    else:
        _refuse_without_template(chat)


def template_text(chat: ChatSection) -> str | None:
    """Return the text of the configured chat template; None to use the model's. Raise UserError if it is unreadable."""
    if chat.template is None:
        return None
    file = expand(chat.template)
    try:
        return read_text(file)
    except (OSError, NotTextError) as error:
        hint = "for prompts made of columns: --prompt-template" if "{" in chat.template else None
        raise UserError(f"chat.template: {file}: {reason(error)}", hint=hint) from error


def template_source(tokenizer: "PreTrainedTokenizerBase", chat: ChatSection, *, with_tools: bool) -> str:
    """Return the source of the chat template that is used with or without tools; empty if there is none.

    A tokenizer with several templates has one named `tool_use` for tools (transformers: get_chat_template).
    """
    if (text := template_text(chat)) is not None:
        return text
    templates = tokenizer.chat_template or ""
    if isinstance(templates, str):
        return templates
    name = "tool_use" if with_tools and "tool_use" in templates else "default"
    return str(templates.get(name, ""))


@dataclass(frozen=True)
class Rendering:
    """A conversation for a chat template, in JSON values.

    Attributes:
        messages: The messages, with the system prompt and the prefill.
        template: The text of the configured template; None for the model's.
        arguments: Further arguments of `apply_chat_template`, variables of the template included.
        space: White space at the end of a prefill, which many templates remove.
        has_parts: True if the template reads contents as lists of parts.
        images: The images of the messages, in order; None without any.
        adds_bos: True if a missing beginning-of-sequence token is added, as transformers' processors do.
    """

    messages: Sequence[Mapping[str, Any]]
    template: str | None
    arguments: Mapping[str, Any]
    space: str = ""
    has_parts: bool = False
    images: "PromptImages | None" = None
    adds_bos: bool = False

    @property
    def is_open(self) -> bool:
        """True if the answer continues the final message."""
        return bool(self.space or self.arguments.get("continue_final_message"))

    def prompt(self, ids: Sequence[int]) -> Prompt:
        """Return the prompt with the rendered ids. Raise ValueError if its images have no place in it."""
        media = () if self.images is None else self.images.media(ids)
        prefill = str(self.messages[-1]["content"]) if self.arguments.get("continue_final_message") else ""
        return Prompt(tuple(ids), media, is_open=self.is_open, templated=True, prefill=prefill)


def rendering(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: "str | Messages",
    chat: ChatSection,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    ending: Ending | None = None,
) -> Rendering:
    """Return the rendering of a conversation. Arguments and errors are those of `encode_prompt`."""
    messages, ending, space = _end(as_messages(without_pictures(prompt), chat), chat, ending)
    template = template_text(chat)
    if template is None and not tokenizer.chat_template:
        raise UserError("this model has no chat template for messages", hint="give a prompt text, or --template FILE")
    arguments = template_arguments(tokenizer, chat, template, with_tools=bool(tools))
    if not (sanitising := sanitising_arguments(tokenizer)):
        refuse_control_tokens(tokenizer, [*messages, *(tools or ()), arguments])
    if tools:
        arguments["tools"] = list(tools)
    last = {"continue_final_message": True} if ending == "inside" else {"add_generation_prompt": ending == "turn"}
    return Rendering(messages, template, {**arguments, **sanitising, **last}, space, reads_parts(tokenizer, template))


def _end(
    messages: list[dict[str, Any]], chat: ChatSection, ending: Ending | None
) -> tuple[list[dict[str, Any]], Ending, str]:
    """Return the messages with the configured prefill, the ending, and the white space at the end of a prefill."""
    if ending is None and chat.prefill is not None and messages[-1].get("role") != "assistant":
        messages = [*messages, {"role": "assistant", "content": chat.prefill}]
    last = messages[-1]
    if ending is None:
        ending = "inside" if last.get("role") == "assistant" and not last.get("tool_calls") else "turn"
    text = last.get("content")
    if ending != "inside" or not isinstance(text, str):
        return messages, ending, ""
    if text.strip():
        return messages, ending, text[len(text.rstrip()) :]
    if last.get("reasoning_content"):
        raise UserError(
            "the final message has reasoning but no text: only its text can be continued",
            details={"param": "messages"},
        )
    if len(messages) == 1:
        raise UserError("the prompt is empty", details={"param": "messages"})
    return messages[:-1], "turn", text  # an empty message is the beginning of a turn


def render(tokenizer: "PreTrainedTokenizerBase", rendering: Rendering) -> list[int]:
    """Return the ids of a conversation. Templates are untrusted: run it with limits."""
    images = rendering.images
    try:
        encoded = (tokenizer if images is None else expanding_tokenizer(tokenizer, images.expand)).apply_chat_template(
            in_parts(rendering.messages) if rendering.has_parts else list(rendering.messages),
            chat_template=rendering.template,
            tokenize=True,
            return_dict=True,
            **rendering.arguments,
        )
    except ValueError as error:
        if str(error).startswith("continue_final_message"):
            raise ValueError("it changes the final message, so that this message cannot be continued") from error
        raise
    ids = [int(token) for token in encoded["input_ids"]]
    if rendering.adds_bos and tokenizer.bos_token_id is not None and ids[:1] != [tokenizer.bos_token_id]:
        ids = [*_first_special(tokenizer), *ids]
    begins_turn = rendering.arguments.get("add_generation_prompt")
    if rendering.space and (begins_turn or not str(tokenizer.decode(ids)).endswith(rendering.space)):
        ids += _encode_space(tokenizer, rendering.space)
    return ids


def _first_special(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the beginning-of-sequence token if the tokenizer itself writes it before a text."""
    bos = tokenizer.bos_token_id
    return [bos] if list(tokenizer("x")["input_ids"])[:1] == [bos] else []


def _encode_space(tokenizer: "PreTrainedTokenizerBase", space: str) -> list[int]:
    """Encode white space as it stands after a word; alone, some tokenizers would add a space before it."""
    word, both = (list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("x", f"x{space}"))
    if both[: len(word)] == word:
        return both[len(word) :]
    return list(tokenizer(space, add_special_tokens=False)["input_ids"])


def texts_of(prompt: "str | Messages", chat: ChatSection, tools: Sequence[Mapping[str, Any]] | None) -> Iterator[str]:
    """Yield every text that a prompt contains."""
    yield from texts_in([prompt, tools or (), chat.system or "", chat.prefill or ""])
