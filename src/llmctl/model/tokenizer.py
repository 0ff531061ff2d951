"""The tokenizer, prepared for generation: left padding, a pad token, and all tokens that end an answer."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from llmctl.config.schema import TokenizerSection
from llmctl.errors import ModelError, UserError, first_line
from llmctl.machine.sandbox import FailedError, LimitExceededError, run_bounded
from llmctl.model.info import ModelInfo
from llmctl.model.mistral_pattern import correct_pattern
from llmctl.model.tokenizer_class import ClassTokenizer, compare_class
from llmctl.model.tokenizer_file import (
    FILE,
    TokenizerChoice,
    added_tokens,
    end_arguments,
    end_choices,
    is_failure,
    is_read_from_file,
    processor_template,
)
from llmctl.transformers_compat import is_stateful

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Names of pad tokens, the most reliable first.
_PAD_TOKENS = ("<|finetune_right_pad_id|>", "<pad>", "<|pad|>", "[PAD]", "<|PAD_TOKEN|>", "<|vision_pad|>")
# Minimum share of equal ids: fine-tuned models rename a few reserved tokens, other families share almost no id.
_SAME_SHARE = 0.9
_PROBE = "llmctl-end-of-turn-probe"
_UNUSUAL = "a é 你 🙂 \ue000"


class _Turn(NamedTuple):
    """A short conversation as a chat template writes it; None if it refuses it, and True if it reads lists of parts."""

    text: str | None
    has_parts: bool


# Tokenizer -> its chat templates, and those configured for it, with a conversation in each.
_turns: "WeakKeyDictionary[PreTrainedTokenizerBase, dict[str, _Turn]]" = WeakKeyDictionary()


def load_tokenizer(
    folder: Path,
    arguments: Mapping[str, Any],
    *,
    source: str,
    section: TokenizerSection | None = None,
    info: ModelInfo | None = None,
    report: Callable[[TokenizerChoice], object] = lambda _: None,
) -> "PreTrainedTokenizerBase":
    """Load the tokenizer in `folder`, with left padding and a pad token.

    Args:
        arguments: Keyword arguments of `from_pretrained`.
        source: The model, for errors.
        section: The configuration's section `tokenizer`; None for the defaults.
        info: The model that the tokenizer belongs to, if there is one.
        report: Receives each decision about the tokenizer.

    Raises:
        ModelError: its files are missing or damaged.
        UserError: `tokenizer.fix_mistral_regex` is set for a tokenizer that has no pattern to correct.
    """
    section, config = section or TokenizerSection(), info.config if info else {}
    trusted = bool(arguments.get("trust_remote_code"))
    if is_read_from_file(folder, section, trust_remote_code=trusted):
        tokenizer, choices = _from_file(folder, arguments, source)
    else:
        tokenizer, choices = _from_class(folder, arguments, source)
    choices += correct_pattern(tokenizer, config, wanted=section.fix_mistral_regex, source=source)
    for choice in choices:
        report(choice)
    tokenizer.padding_side = "left"
    if tokenizer.chat_template is None:
        tokenizer.chat_template = processor_template(folder)
    _set_pad_token(tokenizer, info.embedding_rows if info else None)
    return tokenizer


def _from_file(
    folder: Path, arguments: Mapping[str, Any], source: str
) -> tuple["PreTrainedTokenizerBase", list[TokenizerChoice]]:
    """Load tokenizer.json as it is, with the default special tokens of its class that it has."""
    from transformers import PreTrainedTokenizerFast

    tokens = added_tokens(folder)
    # False: mistral_pattern.py decides, and transformers need not warn
    extra = {"fix_mistral_regex": False, **({} if tokens is None else {"added_tokens_decoder": tokens})}
    tokenizer = _load(PreTrainedTokenizerFast, folder, {**arguments, **extra}, source)
    backend = tokenizer.backend_tokenizer
    other = compare_class(folder, backend)
    for name in ("bos_token", "eos_token"):
        default = other.special_tokens.get(name)
        if getattr(tokenizer, name) is None and default is not None and backend.token_to_id(default) is not None:
            setattr(tokenizer, name, default)
    return tokenizer, [_file_choice(other), *end_choices(folder, tokenizer)]


def _file_choice(other: ClassTokenizer) -> TokenizerChoice:
    if other.obstacle:
        return TokenizerChoice(
            "tokenizer", FILE, f"used as it is, without {other.name}: {other.obstacle}", is_note=True
        )
    if other.differences:
        kinds = ", ".join(other.differences)
        reason = f"used as it is; {other.name} of transformers would split these differently: {kinds}"
        return TokenizerChoice("tokenizer", FILE, f"{reason} (tokenizer.source: class uses it)", is_note=True)
    return TokenizerChoice("tokenizer", FILE, "used as it is")


def _from_class(
    folder: Path, arguments: Mapping[str, Any], source: str
) -> tuple["PreTrainedTokenizerBase", list[TokenizerChoice]]:
    """Load what transformers makes of the files: of tokenizer_config.json, of other formats, of trusted Python code."""
    from transformers import AutoTokenizer

    tokenizer = _load(AutoTokenizer, folder, {**arguments, **end_arguments(folder)}, source)
    reason = "made by transformers from its class" if (folder / FILE).is_file() else f"there is no {FILE}"
    return tokenizer, [TokenizerChoice("tokenizer", type(tokenizer).__name__, reason)]


def _load(loader: Any, folder: Path, arguments: Mapping[str, Any], source: str) -> Any:
    """Call `from_pretrained`, and try the result on unusual text. Raise ModelError if it fails.

    A tokenizer whose unknown token is missing fails on a character that its vocabulary lacks, and not before.
    """
    try:
        tokenizer = loader.from_pretrained(str(folder), local_files_only=True, **arguments)
        tokenizer(_UNUSUAL)
    except BaseException as error:
        if not is_failure(error):
            raise
        hint = f"are its files complete, and does tokenizer.source suit them? They are in {folder}"
        if not (folder / FILE).is_file() and any(folder.glob("*.model")):
            hint = f"there is no {FILE}; other formats need packages: pip install sentencepiece protobuf tiktoken"
        raise ModelError(f"the tokenizer of {source} cannot be used: {first_line(error)}", hint=hint) from error
    return tokenizer


def _set_pad_token(tokenizer: "PreTrainedTokenizerBase", rows: int | None) -> None:
    """Choose a pad token if there is none for which the model has an embedding. Which one it is changes no answer."""
    if tokenizer.pad_token_id is not None and (rows is None or tokenizer.pad_token_id < rows):
        return
    usable = (t for t in _PAD_TOKENS if (number := _token_id(tokenizer, t)) is not None and (not rows or number < rows))
    tokenizer.pad_token = next(usable, tokenizer.eos_token)


def _token_id(tokenizer: Any, token: str) -> int | None:
    """Return the id of a token, or None if the vocabulary lacks it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    token_id = tokenizer.get_vocab().get(token) if backend is None else backend.token_to_id(token)
    return token_id if isinstance(token_id, int) else None


def end_tokens(
    tokenizer: "PreTrainedTokenizerBase",
    stored: Sequence[int],
    extra: Sequence[int | str] = (),
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


def render_turn(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return a short conversation as the tokenizer's chat template writes it, or None. The result is cached."""
    return _turn(tokenizer, None).text


def reads_parts(tokenizer: "PreTrainedTokenizerBase", template: str | None = None) -> bool:
    """Return True if a chat template ignores contents that are texts: it reads lists of parts, texts among images.

    Args:
        template: The text of a configured template; None for the tokenizer's own.
    """
    return _turn(tokenizer, template).has_parts


def in_parts(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages whose contents are lists of parts."""
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else dict(message)
        for message in messages
    ]


def _turn(tokenizer: "PreTrainedTokenizerBase", template: str | None) -> _Turn:
    source = str(template or tokenizer.chat_template or "")
    if not source:
        return _Turn(None, has_parts=False)
    known = _turns.setdefault(tokenizer, {})
    if source not in known:
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _PROBE}]
        text = _render(tokenizer, messages, template)
        parts = None if text is not None and _PROBE in text else _render(tokenizer, in_parts(messages), template)
        known[source] = _Turn(parts, has_parts=True) if parts and _PROBE in parts else _Turn(text, has_parts=False)
    return known[source]


def _render(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, Any]], template: str | None) -> str | None:
    try:
        return str(run_bounded(lambda: tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)))
    except (LimitExceededError, FailedError):  # a template may refuse any conversation
        return None


def end_of_turn_token(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Return the special token that the chat template writes after an assistant's message, or None.

    It is found in a rendered conversation, so that no list of names is needed. A model whose eos_token is another one
    would otherwise never end (meta-llama/llama3#104).
    """
    _, _, rest = (render_turn(tokenizer) or "").partition(_PROBE)
    special = {token.content: token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    rest = rest.lstrip()
    match = max((token for token in special if rest.startswith(token)), key=len, default=None)
    return special[match] if match else None
