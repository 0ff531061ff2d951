"""Prompts as token ids with media, and the encoding of texts and conversations."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmctl.config import ChatSection
from llmctl.errors import LlmctlError, ModelError, UserError, first_line
from llmctl.generation.prompt_length import check_length
from llmctl.machine.sandbox import EXTRA_BYTES, SECONDS, LimitExceededError, run_bounded_each
from llmctl.transformers_compat import template_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Media:
    """A part of a prompt that is not text, such as an image.

    Attributes:
        sha256: Hash of its content, in hexadecimal.
    """

    kind: Literal["image"]
    sha256: str


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model reads it. Equal prompts give equal answers.

    Attributes:
        ids: Token ids.
        media: Media, in the order in which they appear in the prompt.
    """

    ids: tuple[int, ...]
    media: tuple[Media, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def media_key(self) -> bytes:
        """A digest of the media, or empty. Prompts share keys and values only if their digests are equal."""
        if not self.media:
            return b""
        text = "\n".join(f"{one.kind} {one.sha256}" for one in self.media)
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    def followed_by(self, ids: Iterable[int]) -> "Prompt":
        """Return the prompt with `ids` appended."""
        return Prompt((*self.ids, *ids), self.media)

    def common(self, other: "Prompt") -> int:
        """Return the length of the common prefix in tokens; 0 if the media differ."""
        if self.media != other.media:
            return 0
        pairs = enumerate(zip(self.ids, other.ids, strict=False))
        return next((n for n, (a, b) in pairs if a != b), min(len(self), len(other)))

    def document(self) -> dict[str, Any]:
        """Return the prompt as JSON values."""
        media = {"prompt_media": media_document(self.media)} if self.media else {}
        return {"prompt_ids": list(self.ids), **media}


def media_document(media: Sequence[Media]) -> list[dict[str, str]]:
    """Return media as JSON values."""
    return [{"kind": one.kind, "sha256": one.sha256} for one in media]


def media_from(value: Any) -> tuple[Media, ...]:
    """Return the media in a value that `media_document` wrote. Raise ValueError for any other value."""
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise ValueError("media must be a list of objects with kind and sha256")
    if any(one.get("kind") != "image" or not isinstance(one.get("sha256"), str) for one in value):
        raise ValueError("media must have kind image and a sha256")
    return tuple(Media("image", one["sha256"]) for one in value)


def uses_template(tokenizer: "PreTrainedTokenizerBase", chat: ChatSection, prompt: "str | Messages") -> bool:
    """Return True if a chat template is applied to the prompt."""
    return not isinstance(prompt, str) or (not chat.raw and bool(chat.template or tokenizer.chat_template))


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: "str | Messages",
    chat: ChatSection,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    context_length: int | None = None,
) -> Prompt:
    """Encode a text or a conversation.

    Control tokens in the user's text are encoded as text: only the template writes real ones. A raw prompt is encoded
    literally, with one beginning-of-sequence token.

    Args:
        prompt: A text, or messages. `generation.tools` converts messages with tool calls to the form of a template.
        tools: Tools for the template, in the format of OpenAI's API.
        context_length: Tokens that the model can read. A text that is much longer is refused without tokenising it.

    Raises:
        UserError: the prompt is empty or too long, there is no template for messages, or the template refuses them.
    """
    [encoded] = encode_prompts(tokenizer, [(prompt, chat)], tools=tools, context_length=context_length)
    if isinstance(encoded, LlmctlError):
        raise encoded
    return encoded


def encode_prompts(
    tokenizer: "PreTrainedTokenizerBase",
    prompts: "Sequence[tuple[str | Messages, ChatSection]]",
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    context_length: int | None = None,
) -> list[Prompt | LlmctlError]:
    """Encode many prompts like `encode_prompt`, in one child process. Return a prompt or an error for each."""
    encoded: dict[int, Prompt | LlmctlError] = {}
    renders: dict[int, Callable[[], list[int]]] = {}
    for number, (prompt, chat) in enumerate(prompts):
        try:
            check_length(tokenizer, texts_of([prompt, *(tools or ())]), context_length)
            if uses_template(tokenizer, chat, prompt):
                renders[number] = rendering(tokenizer, prompt, chat, tools)
            else:
                encoded[number] = Prompt(tuple(_encode_raw(tokenizer, str(prompt), chat)))
        except LlmctlError as error:
            encoded[number] = error
    for number, result in zip(renders, run_bounded_each(list(renders.values())), strict=True):
        encoded[number] = template_error(result) if isinstance(result, Exception) else Prompt(tuple(result))
    return [encoded[number] for number in range(len(prompts))]


def as_messages(prompt: "str | Messages", chat: ChatSection) -> list[dict[str, Any]]:
    """Return the conversation of a prompt, the system prompt first."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
    if not messages or (isinstance(prompt, str) and not prompt.strip()):
        raise UserError("the prompt is empty", hint="give --prompt TEXT, --prompt-file FILE, or text on standard input")
    if chat.system is not None and messages[0].get("role") != "system":
        messages.insert(0, {"role": "system", "content": chat.system})
    return messages


def _encode_raw(tokenizer: "PreTrainedTokenizerBase", prompt: str, chat: ChatSection) -> list[int]:
    if chat.system is not None:
        raise UserError("a system prompt needs a chat template", hint="omit --raw or --system")
    bos = tokenizer.bos_token
    doubled = bool(bos) and prompt.startswith(str(bos))
    ids = list(tokenizer(prompt, add_special_tokens=not doubled)["input_ids"])
    if not ids:
        raise UserError("the prompt is empty", hint="give --prompt TEXT, --prompt-file FILE, or text on standard input")
    return ids


def template_text(chat: ChatSection) -> str | None:
    """Return the text of the configured chat template; None to use the model's. Raise UserError if it is unreadable."""
    if chat.template is None:
        return None
    file = Path(chat.template).expanduser()
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"chat.template: {file} cannot be read: {error}") from error


def rendering(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: "str | Messages",
    chat: ChatSection,
    tools: Sequence[Mapping[str, Any]] | None,
) -> Callable[[], list[int]]:
    """Return a function that renders a conversation to ids. Templates are untrusted: run it with limits."""
    messages = as_messages(prompt, chat)
    template = template_text(chat)
    if template is None and not tokenizer.chat_template:
        raise UserError("this model has no chat template for messages", hint="give a prompt text, or --template FILE")
    arguments: dict[str, Any] = dict(chat.template_kwargs)
    if tools:
        arguments["tools"] = list(tools)
    if sanitising := template_arguments(tokenizer):
        arguments |= sanitising
    else:
        _refuse_control_tokens(tokenizer, [*messages, *(tools or ())])

    def render() -> list[int]:
        encoded = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=True, return_dict=True, **arguments
        )
        return [int(token) for token in encoded["input_ids"]]

    return render


def template_error(error: Exception) -> LlmctlError:
    """Return the error for a template that failed."""
    result: LlmctlError
    if isinstance(error, LimitExceededError):
        result = ModelError(
            f"the chat template takes more than {SECONDS} seconds or {EXTRA_BYTES // 10**9} GB for this prompt",
            hint="it was stopped; --raw omits the template, --template FILE uses another one",
        )
    else:
        result = UserError(
            f"the chat template refuses this conversation: {first_line(error)}",
            hint="some models take no system prompt; --raw omits the template",
        )
    result.__cause__ = error
    return result


def _refuse_control_tokens(tokenizer: "PreTrainedTokenizerBase", given: Sequence[Mapping[str, Any]]) -> None:
    """Refuse control tokens in messages: older transformers cannot keep them apart from the template's own."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for text in texts_of(given):
        token = next((token for token in special if token in text), None)
        if token is not None:
            raise UserError(
                f"the prompt contains the control token {token}, which this transformers would take for a real one",
                hint="pip install --upgrade transformers, or remove it from the text",
            )


def texts_of(value: Any) -> Iterator[str]:
    """Yield every string in messages or tools, including argument names."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from texts_of([key, part])
    elif isinstance(value, Sequence):
        for part in value:
            yield from texts_of(part)
