"""From a prompt to token ids: through the chat template, or as it is."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.bounded import EXTRA_BYTES, SECONDS, FailedError, TooMuchError, run_bounded
from llmctl.config import ChatSection
from llmctl.errors import ModelError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, Any]]


def uses_template(tokenizer: "PreTrainedTokenizerBase", chat: ChatSection, prompt: "str | Messages") -> bool:
    """Whether the prompt goes through a chat template."""
    return not isinstance(prompt, str) or (not chat.raw and bool(chat.template or tokenizer.chat_template))


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: "str | Messages", chat: ChatSection) -> list[int]:
    """The ids of a prompt.

    Control tokens in the user's text stay text: only the template writes real ones. A raw prompt is taken literally,
    and gets the beginning-of-sequence token once.

    Raises:
        UserError: the prompt is empty, there is no template for messages, or the template refuses them.
    """
    if not uses_template(tokenizer, chat, prompt):
        return _encode_raw(tokenizer, str(prompt), chat)
    messages = as_messages(prompt, chat)
    template = template_text(chat)
    if template is None and not tokenizer.chat_template:
        raise UserError("this model has no chat template for messages", hint="give a prompt text, or --template FILE")
    return _apply(tokenizer, messages, template, chat.template_kwargs)


def as_messages(prompt: "str | Messages", chat: ChatSection) -> list[dict[str, Any]]:
    """The conversation that a prompt means, the system prompt first."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
    if not messages or (isinstance(prompt, str) and not prompt.strip()):
        raise UserError("the prompt is empty", hint="give --prompt TEXT, --prompt-file FILE, or text on standard input")
    if chat.system is not None and messages[0].get("role") != "system":
        messages.insert(0, {"role": "system", "content": chat.system})
    return messages


def _encode_raw(tokenizer: "PreTrainedTokenizerBase", prompt: str, chat: ChatSection) -> list[int]:
    if chat.system is not None:
        raise UserError("a system prompt needs a chat template", hint="leave --raw or --system away")
    bos = tokenizer.bos_token
    doubled = bool(bos) and prompt.startswith(str(bos))
    ids = list(tokenizer(prompt, add_special_tokens=not doubled)["input_ids"])
    if not ids:
        raise UserError("the prompt is empty", hint="give --prompt TEXT, --prompt-file FILE, or text on standard input")
    return ids


def template_text(chat: ChatSection) -> str | None:
    """The text of the user's own chat template, or None where the model's is used. Raises UserError."""
    if chat.template is None:
        return None
    file = Path(chat.template).expanduser()
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"chat.template: {file} cannot be read: {error}") from error


def _apply(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[dict[str, Any]],
    template: str | None,
    values: Mapping[str, Any],
) -> list[int]:
    arguments: dict[str, Any] = dict(values)
    if "sanitize_control_tokens" in inspect.signature(tokenizer.apply_chat_template).parameters:
        arguments["sanitize_control_tokens"] = True
    else:
        _refuse_control_tokens(tokenizer, messages)

    def render() -> list[int]:
        encoded = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=True, return_dict=True, **arguments
        )
        return list(encoded["input_ids"])

    try:
        return [int(token) for token in run_bounded(render)]
    except TooMuchError as error:
        raise ModelError(
            f"the chat template takes more than {SECONDS} seconds or {EXTRA_BYTES // 10**9} GB for this prompt",
            hint="it was stopped; --raw leaves the template away, --template FILE takes another",
        ) from error
    except FailedError as error:
        raise UserError(
            f"the chat template refuses this conversation: {(str(error).splitlines() or [error.kind])[0]}",
            hint="some models take no system prompt; --raw leaves the template away",
        ) from error


def _refuse_control_tokens(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, Any]]) -> None:
    """Before transformers could keep control tokens in a user's text apart, the honest answer is to refuse them."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for message in messages:
        text = str(message.get("content", ""))
        found = next((token for token in special if token in text), None)
        if found is not None:
            raise UserError(
                f"the prompt contains the control token {found}, which this transformers takes for a real one",
                hint="pip install --upgrade transformers, or take it out of the text",
            )
