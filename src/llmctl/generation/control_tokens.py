"""Control tokens: those that a tokenizer has added, and texts that contain them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from llmctl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class AddedTokens:
    """The added tokens of a tokenizer.

    Attributes:
        special: The ids of special tokens by their text. Decoders remove them.
        text: All added tokens, with a null character between two.
    """

    special: Mapping[str, int]
    text: str


_added_tokens: "WeakKeyDictionary[Any, tuple[int, AddedTokens]]" = WeakKeyDictionary()


def added_tokens(tokenizer: "PreTrainedTokenizerBase") -> AddedTokens:
    """Return the added tokens of a tokenizer. They are cached, since transformers collects them with every call."""
    size, tokens = _added_tokens.get(tokenizer, (0, None))
    if tokens is None or size != len(tokenizer):
        added = tokenizer.added_tokens_decoder
        special = {str(token.content): id_ for id_, token in added.items() if token.special}
        tokens = AddedTokens(special, "\0".join(str(token.content) for token in added.values()))
        _added_tokens[tokenizer] = (len(tokenizer), tokens)
    return tokens


def refuse_control_tokens(tokenizer: "PreTrainedTokenizerBase", given: Sequence[Mapping[str, Any]]) -> None:
    """Raise UserError for a control token in messages that are rendered where it would become a real one.

    Older transformers and vLLM cannot keep them apart from the template's own.
    """
    special = added_tokens(tokenizer).special
    for text in texts_in(given):
        token = next((token for token in special if token in text), None)
        if token is not None:
            raise UserError(
                f"the prompt contains the control token {token}, which would be taken for a real one here",
                hint="remove it from the text; --engine transformers with a newer transformers takes it as text",
            )


def texts_in(value: Any) -> Iterator[str]:
    """Yield every string in messages or tools, including argument names."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from texts_in([key, part])
    elif isinstance(value, Sequence):
        for part in value:
            yield from texts_in(part)
