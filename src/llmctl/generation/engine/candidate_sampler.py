"""Sampling among the few tokens that can be chosen, without a pass over the whole vocabulary.

transformers sorts the vocabulary for top_p and draws an exponential random number for each token, which takes as long
as reading a small model's weights. Here the candidates are selected first. The choice between them uses the same random
numbers of the same generator, so a seed gives the same tokens as in `model.generate`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Generator, Tensor

_TOP_P_COUNTS = (1024, 16384)  # this many top tokens nearly always have a probability of at least top_p


class CandidateSampler:
    """Samples among the tokens that transformers' last warpers do not filter out.

    Args:
        warpers: transformers' warpers for temperature, top_k, top_p and min_p, in its order, as `split` returns them.
    """

    def __init__(self, warpers: Sequence[Any]) -> None:
        self._steps = [(type(warper).__name__, warper) for warper in warpers]

    def sample(self, scores: "Tensor", generator: "Generator") -> int:
        """Return a token, given scores [vocabulary] in float32 on the CPU."""
        import torch

        ids: Tensor | None = None  # the candidates in ascending order; None for the whole vocabulary
        values = scores
        for name, warper in self._steps:
            if name == "TemperatureLogitsWarper":
                values = values / warper.temperature
                continue
            kept = _FILTERS[name](warper, values)
            values, ids = values[kept], kept if ids is None else ids[kept]
        if ids is None:
            return int(torch.multinomial(torch.softmax(values, -1), 1, generator=generator))
        # torch.multinomial takes the largest of p / q, q from the exponential distribution: -log(1 - u) (ATen,
        # native/Distributions.cpp and core/TransformationHelper.h)
        uniform = torch.rand(scores.shape[-1], dtype=torch.float64, generator=generator)[ids]
        ratios = torch.softmax(values, -1) / -torch.log1p(-uniform).float()
        return int(ids[ratios.argmax()])


def split(processors: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Split processors into those that need the whole vocabulary, and the last, which CandidateSampler replaces."""
    end = len(processors)
    while end and _is_known(processors[end - 1]):
        end -= 1
    return list(processors[:end]), list(processors[end:])


def _is_known(processor: Any) -> bool:
    """Return True if it is a warper of transformers and keeps at least one token, not several as for beams."""
    cls = type(processor)
    if cls.__name__ == "TopKLogitsWarper":  # its top_k includes min_tokens_to_keep
        return cls.__module__.startswith("transformers.")
    known = cls.__name__ in ("TemperatureLogitsWarper", *_FILTERS) and cls.__module__.startswith("transformers.")
    return known and getattr(processor, "min_tokens_to_keep", 1) == 1


def _top_k(warper: Any, values: "Tensor") -> "Tensor":
    """Return the tokens that are at least as likely as the k-th."""
    import torch

    least = torch.topk(values, min(warper.top_k, len(values))).values[-1]
    return (values >= least).nonzero().flatten()


def _top_p(warper: Any, values: "Tensor") -> "Tensor":
    """Return the fewest top tokens whose probabilities add up to `top_p`, at least one."""
    import torch

    total = torch.logsumexp(values, -1)
    for count in sorted({min(count, len(values)) for count in (*_TOP_P_COUNTS, len(values))}):
        top = torch.topk(values, count)
        shares = torch.exp(top.values - total)
        before = shares.cumsum(-1) - shares  # the total probability of the likelier tokens
        is_kept = before < warper.top_p
        if count == len(values) or not is_kept[-1]:
            break
    is_kept[0] = True
    kept: Tensor = top.indices[is_kept].sort().values
    return kept


def _min_p(warper: Any, values: "Tensor") -> "Tensor":
    """Return the tokens that are at least `min_p` times as likely as the top token."""
    import torch

    shares = torch.softmax(values, -1)
    kept: Tensor = (shares >= warper.min_p * shares.max()).nonzero().flatten()
    return kept


_FILTERS = {"TopKLogitsWarper": _top_k, "TopPLogitsWarper": _top_p, "MinPLogitsWarper": _min_p}
