"""Token ids for which a model has no embedding.

A tokenizer may have such ids: text-only Gemma models have the token of an image, and fine-tuned models have tokens that
were added without new embeddings. They matter only where they occur. An id that ordinary text, the tokenizer itself or
the chat template produces is refused when the model is loaded; any other one, in the prompt that has it.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from llmctl.errors import ModelError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TRIED = 1000


def check_vocabulary(
    tokenizer: "PreTrainedTokenizerBase", rows: int | None, *, source: str, turn: str | None = None
) -> None:
    """Refuse a tokenizer that produces ids beyond the embedding.

    Args:
        rows: Number of rows of the embedding; None if it is unknown.
        turn: A conversation as the chat template writes it.

    Raises:
        ModelError: naming the highest such id, and how it is produced.
    """
    if rows is None:
        return
    produced = {
        "occurs in ordinary text": _from_text(tokenizer, rows),
        "is added to every text": tokenizer("")["input_ids"],
        "is written by the chat template": tokenizer(turn or "", add_special_tokens=False)["input_ids"],
    }
    for origin, ids in produced.items():
        highest = max(ids, default=-1)
        if highest >= rows:
            raise ModelError(
                f"{source}: the token id {highest} ({_text(tokenizer, highest)}) {origin}, but the model's embedding "
                f"has {rows} rows",
                hint="the tokenizer's files are another model's, or tokens were added to them without embeddings",
                details={"token_id": highest, "embedding_rows": rows},
            )


def check_ids(ids: Iterable[int], tokenizer: "PreTrainedTokenizerBase", rows: int | None) -> None:
    """Refuse a prompt with an id beyond the embedding. Raises UserError."""
    wrong = max(ids, default=-1)
    if rows is not None and wrong >= rows:
        raise UserError(
            f"the prompt contains {_text(tokenizer, wrong)}, token id {wrong}, for which this model has no embedding",
            hint="remove it from the prompt",
            details={"token_id": wrong, "embedding_rows": rows},
        )


def _text(tokenizer: "PreTrainedTokenizerBase", token_id: int) -> str:
    """Return the text of a token; ids have 32 bits in the tokenizers library."""
    text = str(tokenizer.decode([token_id])) if token_id < 2**32 else ""
    return repr(text) if text else "an unknown token"


def _from_text(tokenizer: "PreTrainedTokenizerBase", rows: int) -> Sequence[int]:
    """Return ids from `rows` on that the texts of such tokens are encoded to. Many tokens cannot occur in any text."""
    beyond = [token_id for token_id in _base_ids(tokenizer, rows) if token_id >= rows]
    texts = [tokenizer.decode([token_id]) for token_id in sorted(beyond)[-_TRIED:]]
    produced = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    return [token_id for ids in produced for token_id in ids if token_id >= rows]


def _base_ids(tokenizer: "PreTrainedTokenizerBase", rows: int) -> Iterable[int]:
    """Return the ids of the vocabulary without added tokens, or nothing if all of them are below `rows`.

    Reading a vocabulary takes a quarter of a second. It is not needed if the ids have no gaps, as usual.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        added = set(tokenizer.get_added_vocab())
        return [token_id for token, token_id in tokenizer.get_vocab().items() if token not in added]
    size = backend.get_vocab_size(with_added_tokens=False)
    behind = sum(token_id >= size for token_id in backend.get_added_tokens_decoder())
    has_gaps = behind != backend.get_vocab_size() - size or None in map(backend.id_to_token, range(size))
    if size <= rows and not has_gaps:
        return ()
    return list(backend.get_vocab(with_added_tokens=False).values())
