"""What generating yields: pieces of text, and the whole answer with its figures."""

from dataclasses import dataclass
from typing import Literal

from llmctl.generation.logprobs import TokenLogprob

FinishReason = Literal["stop", "length", "stop_string", "cancelled"]


@dataclass(frozen=True)
class Gains:
    """What faster decoding brought to one answer; None for what was not asked for.

    Attributes:
        forward_passes: How often the (large) model computed, the prompt included.
        drafted_tokens: Tokens proposed to it, by a draft model or from the text so far.
        accepted_tokens: How many of them stand in the answer.
        cache_bytes: Keys and values at the end, as they lie in memory.
        dynamic_cache_bytes: What the default cache would have held for the same tokens; 0 where it is not known.
        compile_seconds: Spent compiling; 0 where everything was compiled before.
    """

    forward_passes: int | None = None
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    cache_bytes: int | None = None
    dynamic_cache_bytes: int | None = None
    compile_seconds: float | None = None


@dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        text: The answer, without special tokens and without the stop string.
        token_ids: Every generated id, the ending one included.
        finish_reason: `stop` (an end-of-sequence token, or nothing can follow in its structure), `length`
            (max_new_tokens, or the context is full), `stop_string`, or `cancelled`.
        stop_string: Which one ended it, if one did.
        prompt_token_count: Tokens of the prompt.
        seed: What the random generators were seeded with.
        first_token_seconds: From the call to the first token: the prefill.
        seconds: From the call to the last token.
        logprobs: What the model thought of each of `token_ids`, or None where that was not asked for.
        gains: What faster decoding brought; None where none was asked for.
        prompt_ids: The prompt, as token ids.
        first_pass_token_count: How many tokens came with the first one: more than 1 where tokens were proposed.
        is_json: Whether the text is a whole JSON value because a schema saw to it.
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
    gains: Gains | None = None
    prompt_ids: tuple[int, ...] = ()
    is_json: bool = False
    first_pass_token_count: int = 1

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
