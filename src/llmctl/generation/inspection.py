"""The prompt as the model sees it: text, ids, and warnings."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from llmctl.config import ChatSection
from llmctl.errors import UserError
from llmctl.generation.control_tokens import added_tokens
from llmctl.generation.image_processor import LazyImageProcessor
from llmctl.generation.media import Media
from llmctl.generation.prompt import Messages, Prompt, encode_prompt, rendering, uses_template
from llmctl.machine.sandbox import FailedError, LimitExceededError, run_bounded
from llmctl.model.tokenizer import in_parts
from llmctl.model.vocabulary import check_ids
from llmctl.transformers_compat import sanitising_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class InspectedImage:
    """An image of a prompt.

    Attributes:
        sha256: Hash of its pixels, in hexadecimal.
        tokens: Number of tokens that have its features.
        first: Position of the first of them in the prompt.
        last: Position of the last of them; tokens that separate its rows may stand between.
    """

    sha256: str
    width: int
    height: int
    tokens: int
    first: int
    last: int


@dataclass(frozen=True)
class Inspection:
    """A prompt and its properties.

    Attributes:
        text: The model's input, control tokens included; tokens that stand for an image are `<image: 64 tokens>`.
        tokens: The text of each id.
        bos_count: Number of beginning-of-sequence tokens in the prompt.
        templated: True if a chat template was applied.
        stop_tokens: The text of every token that ends an answer.
        warnings: Likely problems, as sentences for people.
        images: The images, in order.
        processed_with: The package that resizes images; None without any.
    """

    text: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    bos_count: int
    templated: bool
    stop_tokens: tuple[str, ...]
    warnings: tuple[str, ...]
    images: tuple[InspectedImage, ...] = ()
    processed_with: str | None = None


def inspect_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: "str | Messages",
    chat: ChatSection,
    *,
    eos_token_ids: Sequence[int],
    context_length: int | None,
    max_new_tokens: int,
    embedding_rows: int | None = None,
    processor: LazyImageProcessor | None = None,
) -> Inspection:
    """Encode a prompt like `generate`, and inspect the result.

    Args:
        context_length: Maximum tokens of the context, or None.
        embedding_rows: Number of token ids that the model has an embedding for, or None.

    Raises:
        UserError: the same errors as in `encode_prompt`.
    """
    encoded = encode_prompt(tokenizer, prompt, chat, context_length=context_length, processor=processor)
    ids = encoded.ids
    templated = uses_template(tokenizer, chat, prompt)
    bos = tokenizer.bos_token_id
    warnings = [
        *_template_warnings(tokenizer, prompt, chat, templated=templated),
        *_bos_warnings(tokenizer, ids),
        *_control_warnings(tokenizer, prompt, chat, templated=templated),
        *_length_warnings(len(ids), context_length, max_new_tokens),
        *_embedding_warnings(tokenizer, encoded.text_ids, embedding_rows),
    ]
    return Inspection(
        text=_shown(tokenizer, encoded),
        token_ids=ids,
        tokens=tuple(str(tokenizer.decode([token])) for token in ids),
        bos_count=ids.count(bos) if bos is not None else 0,
        templated=templated,
        stop_tokens=tuple(str(tokenizer.decode([token])) for token in eos_token_ids),
        warnings=tuple(warnings),
        images=tuple(_inspected(one) for one in encoded.media),
        processed_with=processor().backend if processor is not None and encoded.media else None,
    )


def _inspected(media: Media) -> InspectedImage:
    assert media.image is not None, "the prompt was encoded here"  # noqa: S101
    picture, places = media.image.picture, media.positions
    return InspectedImage(media.sha256, picture.width, picture.height, len(places), places[0], places[-1])


def _shown(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> str:
    """Return the text of a prompt, with one mark for each run of tokens that stand for an image."""
    text, end = "", 0
    for first, last in (run for one in prompt.media for run in _runs(one.positions)):
        text += _decode_part(tokenizer, prompt.ids, end, first) + f"<image: {last + 1 - first} tokens>"
        end = last + 1
    return text + _decode_part(tokenizer, prompt.ids, end, len(prompt))


def _runs(positions: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and last of each run of consecutive positions."""
    for _, run in groupby(enumerate(positions), lambda pair: pair[1] - pair[0]):
        places = [position for _, position in run]
        yield places[0], places[-1]


def _decode_part(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], begin: int, end: int) -> str:
    """Decode tokens as they stand after those before them, since some tokenizers drop the space of a first word."""
    before = str(tokenizer.decode(list(ids[:begin]))) if begin else ""
    return str(tokenizer.decode(list(ids[:end])))[len(before) :]


def _template_warnings(
    tokenizer: "PreTrainedTokenizerBase", prompt: "str | Messages", chat: ChatSection, *, templated: bool
) -> list[str]:
    if not templated:
        if chat.raw:
            return []
        return ["this model has no chat template: the prompt is given as it is, and it will be continued, not answered"]
    conversation = rendering(tokenizer, prompt, chat)
    if conversation.is_open:
        return []
    arguments = {
        name: value for name, value in conversation.arguments.items() if name not in sanitising_arguments(tokenizer)
    }

    def renders() -> list[str]:
        return [
            str(
                tokenizer.apply_chat_template(
                    in_parts(conversation.messages) if conversation.has_parts else list(conversation.messages),
                    chat_template=conversation.template,
                    tokenize=False,
                    **{**arguments, "add_generation_prompt": opening},
                )
            )
            for opening in (False, True)
        ]

    try:
        closed, opened = run_bounded(renders)
    except (LimitExceededError, FailedError):
        return []  # encoding has succeeded; only this check failed
    if closed == opened:
        return ["the template opens no turn for the assistant: the model may go on with the user's"]
    return []


def _bos_warnings(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> list[str]:
    bos = tokenizer.bos_token_id
    if bos is not None and len(ids) > 1 and ids[0] == ids[1] == bos:
        return [f"it begins with {tokenizer.bos_token} twice, which makes answers worse"]
    return []


def _control_warnings(
    tokenizer: "PreTrainedTokenizerBase", prompt: "str | Messages", chat: ChatSection, *, templated: bool
) -> list[str]:
    texts = [prompt] if isinstance(prompt, str) else [str(message.get("content", "")) for message in prompt]
    texts.append(chat.prefill or "")
    special = added_tokens(tokenizer).special
    present = sorted({token for token in special for text in texts if token in text})
    if not present:
        return []
    names = ", ".join(present)
    if templated:
        return [f"the text contains {names}: kept as ordinary text, not as control tokens"]
    return [f"the text contains {names}: in a raw prompt these are real control tokens"]


def _embedding_warnings(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], rows: int | None) -> list[str]:
    try:
        check_ids(ids, tokenizer, rows)
    except UserError as error:
        return [f"{error.message}: it will be refused"]
    return []


def _length_warnings(count: int, context_length: int | None, max_new_tokens: int) -> list[str]:
    if context_length is None:
        return []
    if count >= context_length:
        return [f"it has {count} tokens, the context holds {context_length}: it will be refused"]
    left = context_length - count
    if left < max_new_tokens:
        return [f"{left} tokens are left for the answer, fewer than max_new_tokens ({max_new_tokens})"]
    return []
