"""What generating yields: pieces of text, and the whole answer with its figures."""

from dataclasses import dataclass
from typing import Literal

from llmctl.generation.scores import TokenLogprob

FinishReason = Literal["stop", "length", "stop_string", "cancelled"]


@dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        text: The answer, without special tokens and without the stop string.
        token_ids: Every generated id, the ending one included.
        finish_reason: `stop` (an end-of-sequence token), `length` (max_new_tokens, or the context is full),
            `stop_string`, or `cancelled`.
        stop_string: Which one ended it, if one did.
        prompt_token_count: Tokens of the prompt.
        seed: What the random generators were seeded with.
        first_token_seconds: From the call to the first token: the prefill.
        seconds: From the call to the last token.
        logprobs: What the model thought of each of `token_ids`, or None where that was not asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_string: str | None
    prompt_token_count: int
    seed: int
    first_token_seconds: float
    seconds: float
    logprobs: tuple[TokenLogprob, ...] | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """Decoded tokens per second after the first; None when there is only one."""
        decoding = self.seconds - self.first_token_seconds
        return (len(self.token_ids) - 1) / decoding if len(self.token_ids) > 1 and decoding > 0 else None


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer.

    Attributes:
        text: New text; it may be empty in the last chunk.
        completion: The whole answer, in the last chunk only.
    """

    text: str
    completion: Completion | None = None
