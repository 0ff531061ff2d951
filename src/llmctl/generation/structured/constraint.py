"""Enforcement of a structure: the allowed next tokens, the end of the answer, and its exact text."""

import json
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from llmctl.errors import ModelError, UserError, first_line
from llmctl.generation.structured.structure import Structure, core_message
from llmctl.machine.sandbox import SECONDS, FailedError, LimitExceededError, run_bounded

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from llmctl.generation.request import Request

MAX_LEXER_STATES = 50_000  # of one to two kilobytes each
_vocabularies: "WeakKeyDictionary[Any, _Vocabulary]" = WeakKeyDictionary()


def processors(request: "Request", tokenizer: "PreTrainedTokenizerBase") -> list[Any]:
    """Return the logits processors of one answer: none, or the one that enforces its structure.

    It is called with (input_ids [1, length], scores [1, vocabulary]), returns scores of that shape, and is valid for
    this answer only.
    """
    if request.structure is None:
        return []
    return [StructureProcessor(_vocabulary(tokenizer), request.structure, len(request.prompt), request.eos_token_ids)]


def check_for(structure: Structure, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Compile a structure for a tokenizer, within limits of time and memory, and cache the result.

    Raises:
        UserError: the structure is too large, names a token that does not exist, or matches no text.
        ModelError: the tokenizer is not supported.
    """
    _vocabulary(tokenizer).matcher(structure)


class StructureProcessor:
    """Allows only tokens after which the answer can still match. Its state: the tokens it has followed.

    An answer may be shorter than in the previous call or differ from it, since tokens that a draft proposed may have
    been rejected.
    """

    def __init__(
        self, vocabulary: "_Vocabulary", structure: Structure, prompt_length: int, eos_token_ids: frozenset[int]
    ) -> None:
        self._vocabulary, self._structure = vocabulary, structure
        self._prompt_length = prompt_length
        self._ends = eos_token_ids
        self._matcher = vocabulary.matcher(structure)
        self._tokens: list[int] = []

    def __call__(self, input_ids: "Tensor", scores: "Tensor") -> "Tensor":
        """Return `scores` with minus infinity for every forbidden token."""
        if input_ids.shape[0] != 1:
            raise UserError("a structure is enforced for one answer at a time, not for beams")
        allowed = self._allowed_after(input_ids[0, self._prompt_length :].tolist(), scores.shape[-1])
        return scores if allowed is None else keep_allowed(scores, allowed.to(scores.device))

    def allowed_after(self, ids: Sequence[int], size: int) -> "Tensor | None":
        """Return the allowed next tokens as booleans [size] on the CPU; None if the answer has ended.

        Args:
            ids: The tokens of the prompt and of the answer so far.
        """
        return self._allowed_after(list(ids[self._prompt_length :]), size)

    def _allowed_after(self, answer: list[int], size: int) -> "Tensor | None":
        if not self._ends.isdisjoint(answer):  # tokens after the end are not constrained
            return None
        self._follow(answer)
        return self._allowed(size)

    def _follow(self, answer: list[int]) -> None:
        same = 0
        for ours, theirs in zip(self._tokens, answer, strict=False):
            if ours != theirs:
                break
            same += 1
        if same < len(self._tokens):
            self._matcher.rollback(len(self._tokens) - same)
        self._matcher.consume_tokens(answer[same:])
        self._tokens = answer
        _raise_on_error(self._matcher, self._structure)

    def _allowed(self, size: int) -> "Tensor":
        import torch

        bits = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8) != 0
        _raise_on_error(self._matcher, self._structure)
        bits[self._vocabulary.eos_token_id] = False
        allowed = torch.zeros(size, dtype=torch.bool)  # a model may have more rows than its tokenizer has tokens
        allowed[: len(bits)] = bits[:size]
        allowed[[token for token in self._ends if token < size]] = self._matcher.is_accepting()
        if not bool(allowed.any()):
            raise UserError("no token is allowed next: the structure needs an end token (generation.extra_eos_tokens)")
        return allowed


def keep_allowed(scores: "Tensor", allowed: "Tensor") -> "Tensor":
    """Return scores [rows, vocabulary] with minus infinity for every token that is not allowed.

    If earlier processors have excluded every allowed token of a row, the structure takes precedence.
    """
    masked = scores.masked_fill(~allowed, float("-inf"))
    return masked.where(masked.isfinite().any(-1, keepdim=True), scores.new_zeros(()).where(allowed, -float("inf")))


class Follower:
    """Follows an answer's tokens to detect the end of its structure."""

    def __init__(self, structure: Structure, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._matcher = _vocabulary(tokenizer).matcher(structure)

    def is_complete_after(self, token: int) -> bool:
        """Add the next token. Return True if the answer can only end now."""
        return bool(self._matcher.consume_token(token) and self._matcher.is_stopped())


def exact_decoder(
    tokenizer: "PreTrainedTokenizerBase", *, shown: Collection[int] = ()
) -> Callable[[Sequence[int]], str]:
    """Return a decoder to the exact text that the structure matched.

    The `decode` of a tokenizer may remove a leading space or spaces before punctuation, even inside a value.

    Args:
        shown: Special tokens to include in the text; all others are omitted.
    """
    return partial(_vocabulary(tokenizer).decode, shown=shown)


def tokens_named_by_id(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """Return the ids of the tokens that a grammar must name by id (`<[370]>`), by their text.

    llguidance treats added tokens that look like `<this>` as special even if the tokenizer does not. As text in a
    grammar, it would first require and then reject them (llguidance 1.9).
    """
    return _vocabulary(tokenizer).tokens_named_by_id()


class _Vocabulary:
    """A tokenizer for llguidance. Its state: compiled structures, of which every answer gets a copy."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        from llguidance import LLTokenizer

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError("structured output needs a tokenizer of the tokenizers library; this model has none")
        self.eos_token_id = 0 if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)
        try:
            self._inner = LLTokenizer(_description(backend), eos_token=self.eos_token_id)
        except ValueError as error:
            raise ModelError(
                f"structured output cannot read this model's tokenizer: {first_line(error)}",
                hint="omit --json-schema, --regex, --choices and --grammar",
            ) from error
        self._special = frozenset(tokenizer.all_special_ids)
        self._added = {number: str(token.content) for number, token in tokenizer.added_tokens_decoder.items()}
        self._compiled = lru_cache(maxsize=256)(self._compile)

    def matcher(self, structure: Structure) -> Any:
        """Return a new matcher for one answer."""
        return self._compiled(structure).deep_copy()

    def decode(self, token_ids: Sequence[int], *, shown: Collection[int] = ()) -> str:
        """Decode tokens, omitting special ones that are not in `shown`. An incomplete last character is U+FFFD."""
        kept = [token for token in token_ids if token in shown or token not in self._special]
        return self._inner.decode_bytes(kept).decode("utf-8", "replace")

    def tokens_named_by_id(self) -> dict[str, int]:
        """Return the ids of the tokens that a grammar must name by id, by their text."""
        added = self._added.items()
        return {content: number for number, content in added if self._inner.is_special_token(number)}

    def _compile(self, structure: Structure) -> Any:
        def trial() -> str:
            matcher = self._new(structure)
            matcher.compute_logit_bias()
            return str(matcher.get_error())

        try:
            problem = run_bounded(trial, seconds=SECONDS)
        except LimitExceededError as error:
            raise UserError(
                f"structure.{structure.kind}: preparing it takes more than {SECONDS} seconds, or too much memory",
                hint="large multiples, long lists of formats, and counted repetitions cost the most",
            ) from error
        except FailedError as error:
            raise UserError(f"structure.{structure.kind}: {error}") from error
        if problem:
            _raise_problem(problem, structure)
        return self._new(structure)

    def _new(self, structure: Structure) -> Any:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)
        return LLMatcher(self._inner, structure.grammar, log_level=0, limits=limits)


def _description(backend: Any) -> str:
    """Return a tokenizer's JSON for llguidance, with the decoder `Metaspace` replaced by three equivalent steps."""
    text = str(backend.to_str())
    if type(backend.decoder).__name__ != "Metaspace":
        return text
    mark = {"String": backend.decoder.replacement}
    steps = [{"type": "Replace", "pattern": mark, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    return json.dumps({**json.loads(text), "decoder": {"type": "Sequence", "decoders": steps}})


def _vocabulary(tokenizer: "PreTrainedTokenizerBase") -> _Vocabulary:
    """Return the vocabulary of a tokenizer. It is cached, since a large one takes one or two seconds."""
    if tokenizer not in _vocabularies:
        _vocabularies[tokenizer] = _Vocabulary(tokenizer)
    return _vocabularies[tokenizer]


def _raise_on_error(matcher: Any, structure: Structure) -> None:
    if matcher.is_error():
        _raise_problem(str(matcher.get_error()), structure)


def _raise_problem(problem: str, structure: Structure) -> None:
    first = core_message(problem)
    if "NoExtension" in first:
        first = "no text has this form"
    if first.startswith("panic: assertion failed: grammar.symbols.len()"):
        first = "it has too many rules"
    raise UserError(f"structure.{structure.kind}: {first}")
