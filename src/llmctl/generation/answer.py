"""One answer as it grows, token by token, independent of what computes the tokens."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llmctl.generation.completion import Completion, DecodingStats, FinishReason
from llmctl.generation.detokenizer import TextAssembler
from llmctl.generation.logprobs import TokenLogprob
from llmctl.generation.pieces import Piece, TextDelta, assemble
from llmctl.generation.request import Request
from llmctl.generation.structured.constraint import Follower, exact_decoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENS_BEFORE = 8  # of an open prompt: enough for a whole character


def _decoder(tokenizer: "PreTrainedTokenizerBase", request: Request) -> Callable[[Sequence[int]], str] | None:
    """Return the decoder of the answer's ids; None to use the tokenizer's default."""
    shown = request.response.shown_tokens if request.response is not None else frozenset()
    if request.shows_special_tokens:
        shown = frozenset(tokenizer.all_special_ids)
    if request.structure is not None:
        return exact_decoder(tokenizer, shown=shown)
    if not shown:
        return None
    hidden = frozenset(tokenizer.all_special_ids) - shown
    return lambda ids: str(tokenizer.decode([token for token in ids if token not in hidden]))


class Answer:
    """The answer to one request. Its state: the tokens and text so far, and the finish reason."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", request: Request) -> None:
        self.request = request
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: FinishReason | None = None
        structure = request.structure
        self._follower = Follower(structure, tokenizer) if structure else None
        # a structure's decoder writes every space, whatever is before it
        before = request.prompt.ids[-_TOKENS_BEFORE:] if request.prompt.is_open and structure is None else ()
        self._text = TextAssembler(tokenizer, request.stop_strings, decode=_decoder(tokenizer, request), before=before)
        self._splitter = request.response.splitter() if request.response is not None else None
        self._pieces: list[Piece] = []
        self._ends = request.eos_token_ids
        self._started = time.perf_counter()
        self._first = self._last = self._started
        self._first_pass = 0

    def take(self, token: int, logprob: TokenLogprob | None = None) -> list[Piece]:
        """Add the next token and return the pieces that can be shown now. The last token sets `finish_reason`."""
        self._last = time.perf_counter()
        if not self.token_ids:
            self._first = self._last
        self.token_ids.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        if token in self._ends:
            self.finish_reason = "stop"
            return []
        text = self._text.add(token)
        if self._text.stopped_by is not None:
            self.finish_reason = "stop_string"
        elif self._follower is not None and self._follower.is_complete_after(token):
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.request.budget:
            self.finish_reason = "length"
        return self._split(text)

    def _split(self, text: str) -> list[Piece]:
        if not text:
            return []
        pieces: list[Piece] = [TextDelta(text)] if self._splitter is None else self._splitter.add(text)
        self._pieces += pieces
        return pieces

    def end_pass(self) -> None:
        """Record the end of a forward pass, which produced the tokens since the last call."""
        self._first_pass = self._first_pass or len(self.token_ids)

    def cancel(self) -> None:
        """Set the finish reason to cancelled, unless the answer has ended already."""
        self.finish_reason = self.finish_reason or "cancelled"

    def finish(self) -> list[Piece]:
        """End the answer and return the pieces that were held back."""
        tail = self._text.finish()
        if self._text.stopped_by is not None and self.finish_reason != "stop":
            self.finish_reason = "stop_string"
        pieces = self._split(tail)
        if self._splitter is not None:
            held = self._splitter.finish()
            self._pieces += held
            pieces = [*pieces, *held]
        return pieces

    def completion(self, *, decoding_stats: DecodingStats | None = None) -> Completion:
        """Return the answer with its measurements."""
        structure, reason = self.request.structure, self.finish_reason or "length"
        assembled = assemble(self._pieces)
        return Completion(
            text=assembled.text,
            reasoning=assembled.reasoning,
            calls=assembled.calls,
            token_ids=tuple(self.token_ids),
            finish_reason=reason,
            stop_string=self._text.stopped_by,
            prompt=self.request.prompt,
            seed=self.request.seed,
            first_token_seconds=self._first - self._started,
            seconds=self._last - self._started,
            logprobs=None if self.request.logprobs is None else tuple(self.logprobs),
            decoding_stats=decoding_stats,
            first_pass_token_count=self._first_pass or 1,
            is_json=reason == "stop" and structure is not None and structure.is_json,
            length_limit=self.request.length_limit if reason == "length" else None,
        )
