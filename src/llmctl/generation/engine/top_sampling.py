"""Sampling that looks at the few tokens that can be chosen rather than at the whole vocabulary.

transformers sorts the vocabulary for top_p and draws a random number of the exponential distribution for each of its
tokens, which takes as long as reading a small model's weights. Here the tokens that stay are found first, and the same
numbers of the same generator decide between them, so a seed chooses the tokens that it chooses in `model.generate`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Generator, Tensor

_ENOUGH = (1024, 16384)  # so many of the likeliest tokens nearly always hold the share that top_p asks for


class Sampler:
    """Chooses among the tokens that transformers' last processors leave.

    Args:
        warpers: Temperature, top_k, top_p and min_p as transformers' objects, in its order: what `split` returns.
    """

    def __init__(self, warpers: Sequence[Any]) -> None:
        self._steps = [(type(warper).__name__, warper) for warper in warpers]

    def choose(self, scores: "Tensor", generator: "Generator") -> int:
        """A token, given scores [vocabulary] in float32 on the CPU."""
        import torch

        ids: Tensor | None = None  # those that are left, rising; None for all
        values = scores
        for name, warper in self._steps:
            if name == "TemperatureLogitsWarper":
                values = values / warper.temperature
                continue
            kept = _KEPT[name](warper, values)
            values, ids = values[kept], kept if ids is None else ids[kept]
        if ids is None:
            return int(torch.multinomial(torch.softmax(values, -1), 1, generator=generator))
        # torch.multinomial takes the largest of p / q, q from the exponential distribution: -log(1 - u) (ATen,
        # native/Distributions.cpp and core/TransformationHelper.h)
        uniform = torch.rand(scores.shape[-1], dtype=torch.float64, generator=generator)[ids]
        shares = torch.softmax(values, -1) / -torch.log1p(-uniform).float()
        return int(ids[shares.argmax()])


def split(processors: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """The processors that need the whole vocabulary, and those at the end that a `Sampler` does."""
    end = len(processors)
    while end and _is_known(processors[end - 1]):
        end -= 1
    return list(processors[:end]), list(processors[end:])


def _is_known(processor: Any) -> bool:
    """Whether it is transformers' own, and leaves one token at the least rather than several (as for beams)."""
    kind = type(processor)
    if kind.__name__ == "TopKLogitsWarper":  # it has put its min_tokens_to_keep into top_k
        return kind.__module__.startswith("transformers.")
    known = kind.__name__ in ("TemperatureLogitsWarper", *_KEPT) and kind.__module__.startswith("transformers.")
    return known and getattr(processor, "min_tokens_to_keep", 1) == 1


def _top_k(warper: Any, values: "Tensor") -> "Tensor":
    """Those as likely as the k-th."""
    import torch

    least = torch.topk(values, min(warper.top_k, len(values))).values[-1]
    return (values >= least).nonzero().flatten()


def _top_p(warper: Any, values: "Tensor") -> "Tensor":
    """The likeliest that together hold `top_p`, and at least one."""
    import torch

    whole = torch.logsumexp(values, -1)
    for count in sorted({min(count, len(values)) for count in (*_ENOUGH, len(values))}):
        found = torch.topk(values, count)
        shares = torch.exp(found.values - whole)
        before = shares.cumsum(-1) - shares  # what the likelier ones hold
        stays = before < warper.top_p
        if count == len(values) or not stays[-1]:
            break
    stays[0] = True
    kept: Tensor = found.indices[stays].sort().values
    return kept


def _min_p(warper: Any, values: "Tensor") -> "Tensor":
    """Those at least `min_p` times as likely as the likeliest."""
    import torch

    shares = torch.softmax(values, -1)
    kept: Tensor = (shares >= warper.min_p * shares.max()).nonzero().flatten()
    return kept


_KEPT = {"TopKLogitsWarper": _top_k, "TopPLogitsWarper": _top_p, "MinPLogitsWarper": _min_p}
