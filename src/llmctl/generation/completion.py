"""The results of generation: pieces of text, and complete answers with their measurements."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from llmctl.generation.logprobs import TokenLogprob
from llmctl.generation.pieces import Piece, ToolCall, reasoning_of, text_of
from llmctl.generation.prompt import Prompt

if TYPE_CHECKING:
    from llmctl.errors import LlmctlError

FinishReason = Literal["stop", "length", "stop_string", "cancelled"]
LengthLimit = Literal["max_new_tokens", "context"]


@dataclass(frozen=True)
class DecodingStats:
    """The effect of faster decoding on one answer. A figure is None if its method was not requested.

    Attributes:
        forward_passes: Forward passes of the main model, including those for the prompt.
        drafted_tokens: Tokens proposed by a draft model or by prompt lookup.
        accepted_tokens: Proposed tokens that are part of the answer.
        cache_bytes: Size of the KV cache in memory at the end.
        dynamic_cache_bytes: Size that the default cache would have for the same tokens; 0 if unknown.
        compile_seconds: Time spent compiling; 0 if everything was already compiled.
    """

    forward_passes: int | None = None
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    cache_bytes: int | None = None
    dynamic_cache_bytes: int | None = None
    compile_seconds: float | None = None

    def document(self, token_count: int) -> dict[str, Any]:
        """Return the figures as JSON, with the rates over an answer of `token_count` tokens."""
        body = {name: value for name, value in asdict(self).items() if value is not None}
        if self.forward_passes:
            body["tokens_per_forward"] = round(token_count / self.forward_passes, 3)
        if self.drafted_tokens:
            body["acceptance_rate"] = round((self.accepted_tokens or 0) / self.drafted_tokens, 4)
        return body


@dataclass(frozen=True, repr=False)
class Completion:
    """One answer.

    Attributes:
        text: The answer, without reasoning, tool calls, special tokens and the stop string.
        token_ids: All generated ids, including the end token.
        finish_reason: `stop` (an end-of-sequence token, or the end of its structure), `length` (see `length_limit`),
            `stop_string`, or `cancelled`.
        stop_string: The stop string that ended the answer, or None.
        seed: The seed of the random generators, with which the answer can be repeated.
        first_token_seconds: Time from the call to the first token, which is the prefill.
        seconds: Time from the call to the last token.
        logprobs: The log-probability of each of `token_ids`; None if not requested.
        decoding_stats: The effect of faster decoding; None if it was not requested.
        first_pass_token_count: Tokens from the first forward pass; more than 1 if proposed tokens were accepted.
        is_json: True if a schema was enforced, so that the text is a complete JSON value.
        reasoning: The text that the model wrote for itself before its answer; empty if there is none.
        calls: The tool calls.
        length_limit: The limit that ended an answer with finish_reason `length`: `max_new_tokens`, or `context` if
            prompt and answer fill the model's context.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_string: str | None
    prompt: Prompt
    seed: int
    first_token_seconds: float
    seconds: float
    logprobs: tuple[TokenLogprob, ...] | None = None
    decoding_stats: DecodingStats | None = None
    is_json: bool = False
    first_pass_token_count: int = 1
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    length_limit: LengthLimit | None = None

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Completion({_short(self.text)}, {len(self.token_ids)} tokens, {self.finish_reason}, seed {self.seed})"

    @property
    def prompt_token_count(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt)

    @property
    def tokens_per_second(self) -> float | None:
        """Decoded tokens per second after the first pass; None if there was only one pass."""
        decoding, decoded = self.seconds - self.first_token_seconds, len(self.token_ids) - self.first_pass_token_count
        return decoded / decoding if decoded > 0 and decoding > 0 else None


@dataclass(frozen=True, repr=False)
class Chunk:
    """A piece of an answer.

    Attributes:
        pieces: New text, reasoning and tool calls; possibly empty.
        completion: The complete answer, in the last chunk only.
    """

    pieces: tuple[Piece, ...] = ()
    completion: Completion | None = None

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        ended = f", {self.completion!r}" if self.completion is not None else ""
        return f"Chunk({_short(self.text)}{ended})"

    @property
    def text(self) -> str:
        """The new text of the answer."""
        return text_of(self.pieces)

    @property
    def reasoning(self) -> str:
        """The new text of the reasoning."""
        return reasoning_of(self.pieces)


@dataclass(frozen=True)
class Event:
    """Progress of one request in an engine: new pieces, and at its end the completion or the error."""

    key: Any
    pieces: tuple[Piece, ...] = ()
    end: "Completion | LlmctlError | None" = None


def reasoning_document(completion: Completion) -> dict[str, str]:
    """Return the reasoning of an answer as JSON; empty if there is none."""
    return {"reasoning": completion.reasoning} if completion.reasoning else {}


def _short(text: str) -> str:
    """Return the beginning of a text for a representation."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
