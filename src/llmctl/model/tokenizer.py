"""The tokenizer, prepared for generation: left padding, a pad token, and all tokens that end an answer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.errors import ModelError, UserError, first_line
from llmctl.machine.sandbox import FailedError, LimitExceededError, run_bounded
from llmctl.transformers_compat import is_stateful

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Names of pad tokens, the most reliable first.
_PAD_TOKENS = ("<|finetune_right_pad_id|>", "<pad>", "<|pad|>", "[PAD]", "<|PAD_TOKEN|>", "<|vision_pad|>")
# Minimum share of equal ids: fine-tuned models rename a few reserved tokens, other families share almost no id.
_SAME_SHARE = 0.9
_PROBE = "llmctl-end-of-turn-probe"


def load_tokenizer(folder: Path, arguments: Mapping[str, Any], *, source: str) -> "PreTrainedTokenizerBase":
    """Load the tokenizer in `folder`, with left padding and a pad token.

    Raises:
        ModelError: its files are missing or damaged.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, **arguments)
    except Exception as error:  # the tokenizers library raises a bare Exception for a damaged file
        raise ModelError(
            f"the tokenizer of {source} cannot be read: {first_line(error)}",
            hint=f"are its files complete? They are in {folder}",
        ) from error
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = next((t for t in _PAD_TOKENS if _token_id(tokenizer, t) is not None), tokenizer.eos_token)
    return tokenizer


def _token_id(tokenizer: Any, token: str) -> int | None:
    """Return the id of a token, or None if the vocabulary lacks it."""
    token_id = tokenizer.get_added_vocab().get(token)
    if token_id is None and token in tokenizer.get_vocab():
        token_id = tokenizer.convert_tokens_to_ids(token)
    return token_id if isinstance(token_id, int) else None


def end_tokens(
    tokenizer: "PreTrainedTokenizerBase", stored: Sequence[int], extra: Sequence[int | str] = ()
) -> list[int]:
    """Return all tokens that end an answer: the tokenizer's, the model's, the template's end of turn, and `extra`.

    Args:
        stored: `eos_token_id` of the model's generation_config.json, checked.
        extra: Further tokens, as ids or as the text of one token.

    Raises:
        UserError: an extra token does not exist.
    """
    ends: list[int] = []
    if tokenizer.eos_token_id is not None:
        ends.append(tokenizer.eos_token_id)
    ends += stored
    end_of_turn = end_of_turn_token(tokenizer)
    if end_of_turn is not None:
        ends.append(end_of_turn)
    for token in extra:
        token_id = token if isinstance(token, int) else _token_id(tokenizer, token)
        if token_id is None or not 0 <= token_id < len(tokenizer):
            raise UserError(
                f"generation.extra_eos_tokens: {token!r} is not a token of this model",
                hint="give an id, or the exact text of one token",
            )
        ends.append(token_id)
    return list(dict.fromkeys(ends))


def check_draft(
    tokenizer: "PreTrainedTokenizerBase",
    draft_tokenizer: "PreTrainedTokenizerBase",
    *,
    model: "PreTrainedModel",
    draft: "PreTrainedModel",
    source: str,
) -> None:
    """Refuse a draft model that cannot propose tokens to `model`.

    If both vocabularies have the same size, transformers assumes that they are the same and passes ids on unchanged;
    wrong ids are then rejected token by token. With different sizes it passes text.

    Raises:
        UserError: the ids have other meanings, or one of the models cannot remove a token.
    """
    stateful = next((m for m in (model, draft) if is_stateful(m)), None)
    if stateful is not None:
        raise UserError(
            f"{type(stateful).__name__} keeps a state from which rejected tokens cannot be removed",
            hint="omit --draft; --prompt-lookup has the same limitation",
        )
    if model.config.get_text_config().vocab_size != draft.config.get_text_config().vocab_size:
        return
    vocabulary, draft_vocabulary = tokenizer.get_vocab(), draft_tokenizer.get_vocab()
    same = sum(draft_vocabulary.get(token) == token_id for token, token_id in vocabulary.items())
    if same < _SAME_SHARE * max(len(vocabulary), len(draft_vocabulary)):
        raise UserError(
            f"{source} cannot draft for this model: its vocabulary has the same size, but only {same} of "
            f"{len(vocabulary)} tokens have the same id",
            hint="choose a smaller model of the same family",
            details={"same_tokens": same, "tokens": len(vocabulary)},
        )


def end_of_turn_token(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Return the special token that the chat template writes after an assistant's message, or None.

    It is found by rendering a short conversation, so that no list of names is needed. A model whose eos_token is
    another one would otherwise never end (meta-llama/llama3#104).
    """
    if not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _PROBE}]
    try:
        text = run_bounded(lambda: tokenizer.apply_chat_template(messages, tokenize=False))
    except (LimitExceededError, FailedError):  # a template may refuse any conversation
        return None
    _, _, rest = str(text).partition(_PROBE)
    special = {token.content: token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    rest = rest.lstrip()
    match = max((token for token in special if rest.startswith(token)), key=len, default=None)
    return special[match] if match else None
