"""The tokenizer, made ready for generating: left padding, a pad token, every token that ends an answer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.errors import ModelError, UserError, first_line
from llmctl.machine.sandbox import FailedError, TooMuchError, run_bounded
from llmctl.transformers_compat import is_stateful

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Pad tokens that models bring under a name of their own, the surest first.
_PAD_TOKENS = ("<|finetune_right_pad_id|>", "<pad>", "<|pad|>", "[PAD]", "<|PAD_TOKEN|>", "<|vision_pad|>")
# Fine-tuned models rename a few reserved tokens; a vocabulary of another family shares almost no id.
_SAME_SHARE = 0.9
_MARK = "llmctl-end-of-turn-probe"


def load_tokenizer(folder: Path, arguments: Mapping[str, Any], *, source: str) -> "PreTrainedTokenizerBase":
    """The tokenizer in `folder`, with left padding and a pad token.

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
    """The id of a token that exists as one, or None."""
    found = tokenizer.get_added_vocab().get(token)
    if found is None and token in tokenizer.get_vocab():
        found = tokenizer.convert_tokens_to_ids(token)
    return found if isinstance(found, int) else None


def end_tokens(
    tokenizer: "PreTrainedTokenizerBase", stored: int | Sequence[int] | None, extra: Sequence[int | str] = ()
) -> list[int]:
    """Every token that ends an answer: the tokenizer's, the model's, the chat template's end of turn, and `extra`.

    Args:
        tokenizer: The tokenizer.
        stored: `eos_token_id` of the model's generation_config.
        extra: More of them, as ids or as the text of one token.

    Raises:
        UserError: an extra token does not exist.
    """
    found: list[int] = []
    if tokenizer.eos_token_id is not None:
        found.append(tokenizer.eos_token_id)
    found += [stored] if isinstance(stored, int) else list(stored or ())
    turn = end_of_turn_token(tokenizer)
    if turn is not None:
        found.append(turn)
    for token in extra:
        number = token if isinstance(token, int) else _token_id(tokenizer, token)
        if number is None or not 0 <= number < len(tokenizer):
            raise UserError(
                f"generation.extra_eos_tokens: {token!r} is not a token of this model",
                hint="give an id, or the exact text of one token",
            )
        found.append(number)
    return list(dict.fromkeys(found))


def check_pair(
    tokenizer: "PreTrainedTokenizerBase",
    drafting: "PreTrainedTokenizerBase",
    *,
    model: "PreTrainedModel",
    draft: "PreTrainedModel",
    source: str,
) -> None:
    """Refuse a draft model that cannot propose tokens to `model`.

    Where both vocabularies have one size, transformers takes them for the same and hands ids over as they are; what
    other ids mean is then refused token by token. Another size makes it hand over text.

    Raises:
        UserError: the ids mean something else, or one of the models cannot take a token back.
    """
    stateful = next((m for m in (model, draft) if is_stateful(m)), None)
    if stateful is not None:
        raise UserError(
            f"{type(stateful).__name__} keeps a state from which refused tokens cannot be taken back",
            hint="leave --draft away; --prompt-lookup has the same need",
        )
    if model.config.get_text_config().vocab_size != draft.config.get_text_config().vocab_size:
        return
    ours, theirs = tokenizer.get_vocab(), drafting.get_vocab()
    same = sum(theirs.get(token) == number for token, number in ours.items())
    if same < _SAME_SHARE * max(len(ours), len(theirs)):
        raise UserError(
            f"{source} cannot draft here: its vocabulary has the same size, but only {same} of {len(ours)} tokens "
            "have the same id",
            hint="take a smaller model of the same family",
            details={"same_tokens": same, "tokens": len(ours)},
        )


def end_of_turn_token(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The special token that the chat template writes after an assistant's words, or None.

    Found by rendering a short conversation with the template and looking, so that no list of names has to be kept:
    models whose eos_token is another one would otherwise never end (meta-llama/llama3#104).
    """
    if not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _MARK}]
    try:
        text = run_bounded(lambda: tokenizer.apply_chat_template(messages, tokenize=False))
    except (TooMuchError, FailedError):  # a template may refuse any conversation; it then has no say here
        return None
    _, _, rest = str(text).partition(_MARK)
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    ahead = rest.lstrip()
    match = max((token for token in added if ahead.startswith(token)), key=len, default=None)
    return added[match] if match else None
