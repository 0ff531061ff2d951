"""The wrong pre-tokenizer pattern in older tokenizer.json files of Mistral's models, and its correction.

They were converted with the pattern of other tokenizers, which keeps up to three digits together and a quotation mark
apart from the word (huggingface/transformers#42299). transformers corrects it only with `fix_mistral_regex=True`, and
otherwise warns (_patch_mistral_regex in tokenization_utils_tokenizers.py).
"""

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmctl.errors import UserError
from llmctl.model.tokenizer_file import FILE, TokenizerChoice

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

KEY = "fix_mistral_regex"
_FAMILIES = ("mistral", "ministral", "pixtral", "voxtral")
_SMALLEST_VOCABULARY = 100_000  # the older tokenizers of these families have 32 000 tokens and no pattern
RIGHT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WRONG = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def correct_pattern(
    tokenizer: "PreTrainedTokenizerBase", config: Mapping[str, Any], *, wanted: bool | None, source: str
) -> list[TokenizerChoice]:
    """Correct the pattern of a Mistral tokenizer in place, and return the decision, if there is anything to decide.

    Args:
        config: Content of config.json.
        wanted: `tokenizer.fix_mistral_regex`; None corrects the pattern that is known to be wrong.

    Raises:
        UserError: the correction was asked for, and the tokenizer has no pattern to replace.
    """
    backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    pattern = _pattern(backend)
    if wanted and pattern is None:
        raise UserError(
            f"tokenizer.{KEY}: the tokenizer of {source} has no pattern to correct",
            hint="omit the key; it is for Mistral's models",
        )
    if backend is None or pattern in (None, RIGHT) or not (wanted or _is_suspect(config, backend)):
        return []
    if wanted is False:
        return [TokenizerChoice(KEY, False, f"asked for: the pattern in {FILE} is kept")]
    if wanted is None and pattern != WRONG:
        reason = f"the pattern in {FILE} is not the one of Mistral's tokenizers; tokenizer.{KEY}: true replaces it"
        return [TokenizerChoice(KEY, False, reason, is_note=_is_old(config))]
    _replace(backend)
    if wanted:
        return [TokenizerChoice(KEY, True, f"asked for: the pattern in {FILE} is replaced")]
    reason = f"the pattern in {FILE} is wrong (huggingface/transformers#42591); tokenizer.{KEY}: false keeps it"
    return [TokenizerChoice(KEY, True, reason, is_note=True)]


def _pattern(backend: "Tokenizer | None") -> str | None:
    """Return the pattern that comes first in the pre-tokenizer, or None."""
    if backend is None or backend.pre_tokenizer is None:
        return None
    first: Any = json.loads(backend.pre_tokenizer.__getstate__()).get("pretokenizers") or [{}]
    pattern = first[0].get("pattern", {}).get("Regex")
    return pattern if isinstance(pattern, str) else None


def _replace(backend: "Tokenizer") -> None:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    backend.pre_tokenizer[0] = Split(Regex(RIGHT), "isolated")


def _is_suspect(config: Mapping[str, Any], backend: "Tokenizer") -> bool:
    """Return True for a model of a family and size of vocabulary in which the wrong pattern occurs."""
    family = str(config.get("model_type")).startswith(_FAMILIES)
    return family and backend.get_vocab_size() > _SMALLEST_VOCABULARY


def _is_old(config: Mapping[str, Any]) -> bool:
    """Return True if transformers before 5.0 wrote the files, or an unknown release: it then warns."""
    major = re.match(r"\d+", str(config.get("transformers_version")))
    return major is None or int(major[0]) < 5
