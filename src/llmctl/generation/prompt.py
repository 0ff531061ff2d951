"""From a prompt to token ids: through the chat template, or as it is."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.config import ChatSection
from llmctl.errors import LlmctlError, ModelError, UserError, first_line
from llmctl.loading.transformers_compat import template_arguments
from llmctl.machine.sandbox import EXTRA_BYTES, SECONDS, TooMuchError, run_bounded_each

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, Any]]


def uses_template(tokenizer: "PreTrainedTokenizerBase", chat: ChatSection, prompt: "str | Messages") -> bool:
    """Whether the prompt goes through a chat template."""
    return not isinstance(prompt, str) or (not chat.raw and bool(chat.template or tokenizer.chat_template))


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: "str | Messages",
    chat: ChatSection,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[int]:
    """The ids of a prompt.

    Control tokens in the user's text stay text: only the template writes real ones. A raw prompt is taken literally,
    and gets the beginning-of-sequence token once.

    Args:
        tokenizer: The tokenizer.
        prompt: A text, or messages. `generation.tools` brings those with tool calls into a template's form.
        chat: The configuration's chat section.
        tools: Tools for the template, as in OpenAI's API.

    Raises:
        UserError: the prompt is empty, there is no template for messages, or the template refuses them.
    """
    [ids] = encode_prompts(tokenizer, [(prompt, chat)], tools=tools)
    if isinstance(ids, LlmctlError):
        raise ids
    return ids


def encode_prompts(
    tokenizer: "PreTrainedTokenizerBase",
    prompts: "Sequence[tuple[str | Messages, ChatSection]]",
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[list[int] | LlmctlError]:
    """The ids of many prompts as `encode_prompt` gives them, or why one has none; templates run in one child."""
    found: list[list[int] | LlmctlError | None] = [None] * len(prompts)
    renders: dict[int, Callable[[], list[int]]] = {}
    for place, (prompt, chat) in enumerate(prompts):
        try:
            if uses_template(tokenizer, chat, prompt):
                renders[place] = rendering(tokenizer, prompt, chat, tools)
            else:
                found[place] = _encode_raw(tokenizer, str(prompt), chat)
        except LlmctlError as error:
            found[place] = error
    for place, outcome in zip(renders, run_bounded_each(list(renders.values())), strict=True):
        found[place] = template_trouble(outcome) if isinstance(outcome, Exception) else outcome
    return [ids for ids in found if ids is not None]


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


def rendering(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: "str | Messages",
    chat: ChatSection,
    tools: Sequence[Mapping[str, Any]] | None,
) -> Callable[[], list[int]]:
    """What renders a conversation and gives its ids: untrusted work, to be run with limits."""
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


def template_trouble(error: Exception) -> LlmctlError:
    """Why a template gave no prompt, in words."""
    explained: LlmctlError
    if isinstance(error, TooMuchError):
        explained = ModelError(
            f"the chat template takes more than {SECONDS} seconds or {EXTRA_BYTES // 10**9} GB for this prompt",
            hint="it was stopped; --raw leaves the template away, --template FILE takes another",
        )
    else:
        explained = UserError(
            f"the chat template refuses this conversation: {first_line(error)}",
            hint="some models take no system prompt; --raw leaves the template away",
        )
    explained.__cause__ = error
    return explained


def _refuse_control_tokens(tokenizer: "PreTrainedTokenizerBase", given: Sequence[Mapping[str, Any]]) -> None:
    """Before transformers could keep control tokens in a user's text apart, the honest answer is to refuse them."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for text in _texts(given):
        found = next((token for token in special if token in text), None)
        if found is not None:
            raise UserError(
                f"the prompt contains the control token {found}, which this transformers takes for a real one",
                hint="pip install --upgrade transformers, or take it out of the text",
            )


def _texts(value: Any) -> Iterator[str]:
    """Every text in messages or tools, names of arguments included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _texts([key, part])
    elif isinstance(value, Sequence):
        for part in value:
            yield from _texts(part)
