"""The refusal of a prompt that cannot fit into the context, before all of it is tokenised.

Tokenising ten megabytes takes longer and more memory than a chat template may take. The text is counted in pieces, up
to the length of the context, which is enough to know that it does not fit.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from llmctl.errors import UserError
from llmctl.machine.sandbox import EXTRA_BYTES, SECONDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONG_CHARACTERS = 200_000  # shorter texts are tokenised in a fraction of a second
_PIECE_CHARACTERS = 50_000
_CHARACTERS_PER_SECOND = 100_000  # a tenth of what one core of 2024 tokenises
_BYTES_PER_CHARACTER = 1000  # the tokenizer keeps text, offsets and words of each token until all are there
_TOKENS_PER_CUT = 16  # a cut between two pieces can split a token into a few


def is_long(texts: Iterable[str]) -> bool:
    """Return True if tokenising the texts takes longer than a chat template should."""
    return sum(map(len, texts)) >= _LONG_CHARACTERS


def limits_for(texts: Iterable[str]) -> tuple[float, int]:
    """Return the seconds and the bytes in which a long prompt must be rendered and tokenised."""
    characters = sum(map(len, texts))
    return SECONDS + characters / _CHARACTERS_PER_SECOND, EXTRA_BYTES + characters * _BYTES_PER_CHARACTER


def check_length(
    tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str], context_length: int | None, *, source: str = "the model"
) -> None:
    """Raise UserError if the texts of one prompt are certainly longer than the context.

    Args:
        context_length: Maximum tokens of prompt and answer together; None if the model states none.
        source: The model, for the message.
    """
    parts = list(texts)
    characters = sum(map(len, parts))
    if context_length is None or characters < _LONG_CHARACTERS:
        return
    counted = tokens = 0
    for text in parts:
        for start in range(0, len(text), _PIECE_CHARACTERS):
            piece = text[start : start + _PIECE_CHARACTERS]
            tokens += max(len(tokenizer(piece, add_special_tokens=False)["input_ids"]) - _TOKENS_PER_CUT, 0)
            counted += len(piece)
            if tokens >= context_length:
                raise too_long(tokens * characters // counted, context_length, source=source, is_estimated=True)


def too_long(prompt_tokens: int, context_length: int, *, source: str, is_estimated: bool = False) -> UserError:
    """Return the error for a prompt that does not fit into the context."""
    about = "about " if is_estimated else ""
    return UserError(
        f"the prompt has {about}{prompt_tokens} tokens, the context of {source} holds {context_length}",
        hint="shorten the prompt, or use a model with a longer context",
        details={"prompt_tokens": prompt_tokens, "context_length": context_length, "is_estimated": is_estimated},
    )
