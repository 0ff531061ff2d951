"""Logits processors of single answers: OpenAI's penalties and logit biases, and vLLM's minimum length.

https://platform.openai.com/docs/guides/advanced-usage: logits[j] -= count[j] * frequency + (count[j] > 0) * presence.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class Penalties:
    """A logits processor for one answer.

    Args:
        prompt_tokens: Length of the prompt, which is not penalised.
        presence: Value to subtract from the logit of every generated token.
        frequency: Value to subtract for every occurrence of a generated token.
        bias: Values to add to the logits of token ids.
    """

    def __init__(self, prompt_tokens: int, *, presence: float, frequency: float, bias: Mapping[int, float]) -> None:
        self._prompt_tokens, self._presence, self._frequency = prompt_tokens, presence, frequency
        self._tokens, self._biases = list(bias), list(bias.values())

    def __call__(self, ids: "Tensor", scores: "Tensor") -> "Tensor":
        """Modify the logits [1, vocabulary] that follow the ids [1, tokens]."""
        generated: Any = ids[0, self._prompt_tokens :]
        if len(generated):
            tokens, counts = generated.unique(return_counts=True)
            scores[0, tokens] -= self._presence + self._frequency * counts.to(scores.dtype)
        if self._tokens:
            scores[0, self._tokens] += scores.new_tensor(self._biases)
        return scores


class MinimumLength:
    """A logits processor that allows no end token before an answer has a number of tokens.

    Args:
        prompt_tokens: Length of the prompt.
        tokens: The minimum number of tokens.
        end_tokens: The tokens that end an answer.
    """

    def __init__(self, prompt_tokens: int, *, tokens: int, end_tokens: Collection[int]) -> None:
        self._end, self._end_tokens = prompt_tokens + tokens, sorted(end_tokens)

    def __call__(self, ids: "Tensor", scores: "Tensor") -> "Tensor":
        """Modify the logits [1, vocabulary] that follow the ids [1, tokens]."""
        if ids.shape[1] < self._end:
            scores[0, self._end_tokens] = float("-inf")
        return scores
