"""The scores of an attention layer, and the tokens that it sees, read from the mask functions of transformers.

A packed pass has no mask tensor. transformers describes every mask by a function of two positions; in a packed pass
that function becomes a `VisibleTokens`, which the layers receive in place of a mask, or an `UnknownMask`, which no
layer may use: some models make masks for kinds of layers that they do not have.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class UnsupportedAttentionError(Exception):
    """The attention of a model needs something that a packed pass cannot do."""


def sees_whole_prompt(model: Any) -> bool:
    """Return True if all tokens of a prompt see each other, as in PaliGemma, also without images.

    transformers leaves the causal mask out there (`is_causal` of GemmaAttention, 5.24).
    """
    return getattr(model.config.get_text_config(), "use_bidirectional_attention", None) is True


@dataclass(frozen=True)
class VisibleTokens:
    """The earlier tokens that a token sees: all, those in a sliding window, or those in the same chunk.

    Attributes:
        window: Number of visible tokens, including the token itself; 0 means no window.
        chunk: Tokens of a chunk, counted from the beginning of the sequence; 0 means no chunks.
    """

    window: int = 0
    chunk: int = 0

    def mask(self, tokens: int, key_count: int, device: Any = None) -> "Tensor":
        """Return the mask [tokens, key_count] of the last tokens of a sequence; True means visible."""
        import torch

        positions = torch.arange(key_count, device=device)
        return self.between(positions[key_count - tokens :, None], positions)

    def between(self, queries: "Tensor", keys: "Tensor") -> "Tensor":
        """Return True where a query's position sees a key's position; the tensors broadcast."""
        distance = queries - keys
        visible = distance >= 0
        if self.window:
            visible = visible & (distance < self.window)
        if self.chunk:
            visible = visible & (queries // self.chunk == keys // self.chunk)
        return visible

    def hides_any(self, key_count: int) -> bool:
        """Return True if some token of a sequence does not see all tokens before it."""
        sizes = [size for size in (self.window, self.chunk) if size]
        return bool(sizes) and key_count > min(sizes)

    def first_visible(self, position: int) -> int:
        """Return the first position that a token at `position`, or any later one, sees."""
        first = max(0, position - self.window + 1) if self.window else 0
        return max(first, position // self.chunk * self.chunk) if self.chunk else first


@dataclass(frozen=True)
class Score:
    """The computation of scores from q·k.

    Attributes:
        scale: The factor of q·k.
        visible: The tokens that each token sees.
        softcap: Scores become softcap * tanh(score / softcap); 0 leaves them unchanged.
        sinks: [heads], further logits in the softmax, which take no value; None for none.
    """

    scale: float
    visible: VisibleTokens
    softcap: float = 0.0
    sinks: "Tensor | None" = None


@dataclass(frozen=True)
class UnknownMask:
    """A mask that packed passes cannot apply.

    Attributes:
        description: The kind of mask.
    """

    description: str


def visible_tokens(
    *, mask_function: Callable[..., Any], local_size: int | None = None, use_vmap: bool = False, **_: Any
) -> VisibleTokens | UnknownMask:
    """Return the meaning of a mask function; transformers calls it as a mask interface in packed passes.

    Args:
        mask_function: Takes indices of batch, head, query and key, as in transformers' masking_utils.
        local_size: The sliding window or the chunk size of the layers, if they have one.
        use_vmap: True if a model adds a function of its own, which may depend on more than positions.
    """
    import torch

    if use_vmap:
        return UnknownMask("a mask with a function of the model")
    size = int(local_size or 0)
    edges = {0, 1, 2, 17, *(n * size + d for n in (1, 2, 3) for d in (-1, 0, 1) if size)}
    queries = torch.tensor(sorted(edges))[:, None]
    keys = torch.arange(max(edges) + 2)[None]
    try:
        actual = torch.as_tensor(mask_function(0, 0, queries, keys)).expand(len(queries), keys.shape[1])
    except (IndexError, TypeError, RuntimeError):  # it reads a tensor of this pass
        return UnknownMask("a mask that depends on the tokens")
    for known in (VisibleTokens(), VisibleTokens(window=size), VisibleTokens(chunk=size)):
        if torch.equal(actual, known.between(queries, keys)):
            return known
    return UnknownMask("an unknown mask")
