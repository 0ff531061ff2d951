"""The results of generating: pieces of text, and the whole answer with its figures."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from llmctl.generation.logprobs import TokenLogprob
from llmctl.generation.prompt import Prompt

if TYPE_CHECKING:
    from llmctl.errors import LlmctlError

FinishReason = Literal["stop", "length", "stop_string", "cancelled"]


@dataclass(frozen=True)
class DecodingStats:
    """The effect of faster decoding on one answer; None for each part that was not asked for.

    Attributes:
        forward_passes: Passes of the (large) model, the prompt included.
        drafted_tokens: Tokens proposed to it, by a draft model or from the text so far.
        accepted_tokens: Proposed tokens that are part of the answer.
        cache_bytes: Bytes of keys and values at the end, as they lie in memory.
        dynamic_cache_bytes: Bytes of the default cache for the same tokens; 0 where unknown.
        compile_seconds: Time spent compiling; 0 where everything was compiled before.
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


@dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        text: The answer, without special tokens and without the stop string.
        token_ids: Every generated id, the ending one included.
        finish_reason: `stop` (an end-of-sequence token, or the end of its structure), `length` (max_new_tokens, or the
            context is full), `stop_string`, or `cancelled`.
        stop_string: The stop string that ended it.
        seed: The seed of the random generators.
        first_token_seconds: From the call to the first token: the prefill.
        seconds: From the call to the last token.
        logprobs: The log-probability of each of `token_ids`, or None where not asked for.
        decoding_stats: The effect of faster decoding; None where none was asked for.
        first_pass_token_count: Tokens that came with the first one: more than 1 where tokens were proposed.
        is_json: Whether the text is a whole JSON value because a schema enforced it.
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

    @property
    def prompt_token_count(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt)

    @property
    def tokens_per_second(self) -> float | None:
        """Decoded tokens per second after the first pass; None when there is only one."""
        decoding, decoded = self.seconds - self.first_token_seconds, len(self.token_ids) - self.first_pass_token_count
        return decoded / decoding if decoded > 0 and decoding > 0 else None


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer.

    Attributes:
        text: New text; it may be empty in the last chunk.
        completion: The whole answer, in the last chunk only.
    """

    text: str
    completion: Completion | None = None


@dataclass(frozen=True)
class Event:
    """News of one request in an engine: text that can be shown; at its end, the completion or the error."""

    key: Any
    text: str
    end: "Completion | LlmctlError | None" = None
