"""The fields of transformers' GenerationConfig: the use that llmctl makes of each, and the values it accepts.

The fields are the same in transformers 5.18 to 5.24 (generation/configuration_utils.py). A parser takes the value of a
JSON file and the size of the vocabulary, and raises UnusableError with the reason if it does not accept the value.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

Use = Literal["always", "sampling", "beams", "draft", "left out", "no effect"]
Parser = Callable[[Any, int | None], Any]
# The largest count that any setting may have.
_LARGEST = 1_000_000
_PAIR_KEY = re.compile(r"^\((\d+(?:, ?\d+)*),?\)$")  # how transformers writes a tuple that is a key of sequence_bias
_MAX_BIAS = 1e9  # larger numbers overflow in float32 at low temperatures


class UnusableError(Exception):
    """The value of a field cannot be used; the text is the reason."""


@dataclass(frozen=True)
class Field:
    """A field and its use.

    Attributes:
        use: `always`; `sampling`, `beams` or `draft` if it acts only together with these; `left out`; or `no effect` if
            no value can change an answer or its speed here.
        reason: The meaning, or the reason why it is left out.
        parse: Returns the checked value, or one item of a list; None for a field that is not used.
        is_list: True if the value is a list, whose items are checked one by one.
        neutral: Values that turn the field off; they are never reported.
        changes_text: True if leaving it out changes answers.
    """

    use: Use
    reason: str
    parse: Parser | None = None
    is_list: bool = False
    neutral: tuple[Any, ...] = ()
    changes_text: bool = True


# -- parsers


def number(value: Any) -> float:
    """Return a finite number, also if it is written as text."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise UnusableError("not a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnusableError("not a number")
    try:
        result = float(value)
    except OverflowError:
        raise UnusableError("too large") from None
    if not math.isfinite(result):
        raise UnusableError("not a finite number")
    return result


def integer(value: Any) -> int:
    """Return an integer, also if it is written as text or with a fraction of zero."""
    result = number(value)
    if not result.is_integer() or abs(result) > 2**53:
        raise UnusableError("not an integer")
    return int(result)


def _between(low: float, high: float, *, above_low: bool = False, below_high: bool = False) -> Parser:
    signs = f"{'above' if above_low else 'at least'} {low:g} and {'below' if below_high else 'at most'} {high:g}"

    def parse(value: Any, _: int | None) -> float:
        result = number(value)
        if not low <= result <= high or (above_low and result == low) or (below_high and result == high):
            raise UnusableError(f"not {signs}")
        return result

    return parse


def _count(low: int = 0, high: int = _LARGEST) -> Parser:
    def parse(value: Any, _: int | None) -> int:
        result = integer(value)
        if not low <= result <= high:
            raise UnusableError(f"not at least {low} and at most {high}")
        return result

    return parse


def _top_k(value: Any, _: int | None) -> int:
    result = integer(value)
    if result < -1:
        raise UnusableError("not at least 0")
    return min(max(result, 0), _LARGEST)  # vLLM and others write -1 for all tokens


def _top_p(value: Any, _: int | None) -> float:
    # transformers takes 0 for "the most likely token"; generation.top_p must be above 0
    return max(float(_between(0, 1)(value, None)), 1e-6)


def flag(value: Any, _: int | None = None) -> bool:
    """Return a boolean, also if it is written as 0, 1 or text."""
    if isinstance(value, str):
        value = {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower())
    if value in (0, 1) and not isinstance(value, float):
        return bool(value)
    raise UnusableError("not true or false")


def _early_stopping(value: Any, _: int | None) -> bool | str:
    return "never" if value == "never" else flag(value)


def token_id(value: Any, vocabulary: int | None) -> int:
    """Return an id inside the vocabulary."""
    result = integer(value)
    if not 0 <= result < (vocabulary or 2**31):
        raise UnusableError(f"{result} is not a token of this model")
    return result


def _listed_id(value: Any, vocabulary: int | None) -> int:
    """Return an id that the logits have: lists of tokens index them."""
    if vocabulary is None:
        raise UnusableError("config.json does not state vocab_size")
    return token_id(value, vocabulary)


def _sequence(value: Any, vocabulary: int | None) -> list[int]:
    if not isinstance(value, list) or not value:
        raise UnusableError("not a list of tokens")
    return [_listed_id(item, vocabulary) for item in value]


def _biased_sequence(value: Any, vocabulary: int | None) -> list[Any]:
    if not isinstance(value, list) or len(value) != 2:
        raise UnusableError("not a pair of a list of tokens and a bias")
    return [_sequence(value[0], vocabulary), _between(-_MAX_BIAS, _MAX_BIAS)(value[1], None)]


def _text(value: Any, _: int | None) -> str:
    if not isinstance(value, str) or not value:
        raise UnusableError("not a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UnusableError("it has half of a character (a lone surrogate)") from None
    return value


def items_of(value: Any) -> list[Any]:
    """Return the items of a list field; a single value is a list of one, a mapping a list of pairs."""
    if isinstance(value, dict):
        matches = [(_PAIR_KEY.match(key), bias) for key, bias in value.items()]
        return [[match[1].split(",") if match else None, bias] for match, bias in matches]
    return value if isinstance(value, list) else [value]


# -- the table

_CODE_ON_THE_HUB = "transformers moved it to code on the Hub, which llmctl does not run"
_ENCODER = "it is for encoder-decoder models, which llmctl does not load"
_PROPOSALS = "it tunes how fast tokens are proposed; the sections draft and generation have llmctl's keys"
_OUTPUT = "it adds tensors to the result of generate, which llmctl does not read"
_CACHE = "generation.cache_implementation chooses the KV cache (--cache)"
_FASTER = "it changes the speed, not the answer"


def _left_out(reason: str, *neutral: Any, changes_text: bool = True) -> Field:
    return Field("left out", reason, neutral=neutral, changes_text=changes_text)


def _all(names: str, field: Field) -> Iterable[tuple[str, Field]]:
    return ((name, field) for name in names.split())


_TOKENS = "tokens that end an answer, beside the tokenizer's and the chat template's; each must be in the vocabulary"
FIELDS: dict[str, Field] = {
    "eos_token_id": Field("always", _TOKENS, token_id, is_list=True),
    "stop_strings": Field("always", "as generation.stop_strings (--stop)", _text, is_list=True),
    "do_sample": Field("always", "sampling or greedy; greedy if the temperature is 0", flag),
    "repetition_penalty": Field("always", "as generation.repetition_penalty", _between(0.01, 100)),
    "no_repeat_ngram_size": Field("always", "as generation.no_repeat_ngram_size", _count()),
    "min_new_tokens": Field("always", "no end token before this many tokens; it replaces min_length", _count()),
    "min_length": Field("always", "no end token before this many tokens of prompt and answer", _count()),
    "bad_words_ids": Field("always", "sequences of tokens that are never generated", _sequence, is_list=True),
    "suppress_tokens": Field("always", "tokens that are never generated", _listed_id, is_list=True),
    "begin_suppress_tokens": Field("always", "tokens that do not begin an answer", _listed_id, is_list=True),
    "sequence_bias": Field("always", "biases of sequences of tokens", _biased_sequence, is_list=True),
    "remove_invalid_values": Field("always", "NaN and infinity in logits are replaced", flag, neutral=(False,)),
    "temperature": Field("sampling", "as generation.temperature", _between(0, 100)),
    "top_k": Field("sampling", "as generation.top_k; -1 means all tokens", _top_k),
    "top_p": Field("sampling", "as generation.top_p", _top_p),
    "min_p": Field("sampling", "as generation.min_p", _between(0, 1)),
    "typical_p": Field("sampling", "as generation.typical_p", _between(0, 1, above_low=True)),
    "top_h": Field("sampling", "an upper limit of the entropy", _between(0, 1, above_low=True)),
    "epsilon_cutoff": Field("sampling", "a lower limit of a token's probability", _between(0, 1, below_high=True)),
    "eta_cutoff": Field("sampling", "a lower limit that depends on the entropy", _between(0, 1, below_high=True)),
    "early_stopping": Field("beams", "the end of a beam search", _early_stopping),
    "length_penalty": Field("beams", "the weight of an answer's length", _between(-100, 100)),
    "renormalize_logits": Field("beams", "scores are normalised after all penalties", flag),
    "num_assistant_tokens": Field("draft", "of the draft model: as draft.num_assistant_tokens", _count(1, 100)),
    "assistant_confidence_threshold": Field(
        "draft", "of the draft model: as draft.assistant_confidence_threshold", _between(0, 1)
    ),
    "max_new_tokens": _left_out("generation.max_new_tokens is the limit (--max-new-tokens)", changes_text=False),
    "max_length": _left_out(
        "generation.max_new_tokens and the model's context are the limits (--max-new-tokens)", changes_text=False
    ),
    "max_time": _left_out("an answer would depend on the speed of the machine"),
    "num_beams": _left_out("beam search is used only if asked for: --set generation.num_beams=N", 1),
    "num_return_sequences": _left_out("the number of answers is asked for: --num-return N", 1),
    "forced_bos_token_id": _left_out(_ENCODER),
    "forced_eos_token_id": _left_out("an answer cut at its limit would look complete"),
    "exponential_decay_length_penalty": _left_out("the penalty can overflow in long answers"),
    "guidance_scale": _left_out("it needs a second pass of the model for each token", 1),
    "token_healing": _left_out("it would change the end of the prompt", False),
    "watermarking_config": _left_out("llmctl does not mark the text it generates", {}),
    **dict(_all("penalty_alpha dola_layers constraints force_words_ids", _left_out(_CODE_ON_THE_HUB, 0, []))),
    "num_beam_groups": _left_out(_CODE_ON_THE_HUB, 0, 1),
    "diversity_penalty": _left_out(_CODE_ON_THE_HUB, 0),
    "encoder_repetition_penalty": _left_out(_ENCODER, 1),
    "encoder_no_repeat_ngram_size": _left_out(_ENCODER, 0),
    "decoder_start_token_id": _left_out(_ENCODER, changes_text=False),
    "is_assistant": _left_out("draft.id makes a model a draft", False),
    "assistant_early_exit": _left_out("tokens are proposed by draft.id or generation.prompt_lookup_num_tokens"),
    "use_mtp": _left_out("tokens are proposed by draft.id or generation.prompt_lookup_num_tokens", False),
    "speculation_type": _left_out("tokens are proposed by draft.id or generation.prompt_lookup_num_tokens"),
    "assistant_ensemble_weight": _left_out("a draft must not change the answers of its model"),
    "prompt_lookup_num_tokens": _left_out(
        "it is used only if asked for: --set generation.prompt_lookup_num_tokens=N", changes_text=False
    ),
    **dict(
        _all(
            "num_assistant_tokens_schedule max_matching_ngram_size assistant_lookbehind target_lookbehind",
            _left_out(_PROPOSALS, changes_text=False),
        )
    ),
    "use_cache": _left_out("llmctl always caches keys and values", True, changes_text=False),
    **dict(_all("cache_implementation cache_config max_cache_len", _left_out(_CACHE, {}, changes_text=False))),
    "compile_config": _left_out("generation.compile turns compiling on (--compile)", {}, changes_text=False),
    "disable_compile": _left_out("generation.compile turns compiling on (--compile)", False, True, changes_text=False),
    **dict(
        _all(
            "continuous_batching_config low_memory prefill_chunk_size",
            _left_out(_FASTER, {}, False, changes_text=False),
        )
    ),
    **dict(
        _all(
            "output_attentions output_hidden_states output_scores output_logits return_dict_in_generate",
            _left_out(_OUTPUT, False, changes_text=False),
        )
    ),
    **dict(_all("bos_token_id pad_token_id", Field("no effect", "the tokenizer's are used"))),
    **dict(_all("transformers_version _from_model_config _commit_hash", Field("no effect", "about the file itself"))),
}
