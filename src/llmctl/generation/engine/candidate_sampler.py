"""Sampling among the few tokens that can be chosen, without a pass over the whole vocabulary.

transformers sorts the vocabulary for top_p and draws an exponential random number for each of its tokens, which takes
as long as reading a small model's weights. Here the candidates are found first, and the same numbers of the same
generator decide between them, so a seed chooses the tokens that it chooses in `model.generate`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Generator, Tensor

_ENOUGH = (1024, 16384)  # this many top tokens nearly always hold the mass that top_p asks for


class CandidateSampler:
    """Samples among the tokens that transformers' last warpers leave.

    Args:
        warpers: Temperature, top_k, top_p and min_p as transformers' objects, in its order, as `split` returns them.
    """

    def __init__(self, warpers: Sequence[Any]) -> None:
        self._steps = [(type(warper).__name__, warper) for warper in warpers]

    def sample(self, scores: "Tensor", generator: "Generator") -> int:
        """Return a token, given scores [vocabulary] in float32 on the CPU."""
        import torch

        ids: Tensor | None = None  # the candidates in rising order; None for the whole vocabulary
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
    """Split processors into those that need the whole vocabulary, and the last ones, which a CandidateSampler does."""
    end = len(processors)
    while end and _is_known(processors[end - 1]):
        end -= 1
    return list(processors[:end]), list(processors[end:])


def _is_known(processor: Any) -> bool:
    """Whether it is transformers' own and keeps at least one token, not several as for beams."""
    cls = type(processor)
    if cls.__name__ == "TopKLogitsWarper":  # it has put its min_tokens_to_keep into top_k
        return cls.__module__.startswith("transformers.")
    known = cls.__name__ in ("TemperatureLogitsWarper", *_FILTERS) and cls.__module__.startswith("transformers.")
    return known and getattr(processor, "min_tokens_to_keep", 1) == 1


def _top_k(warper: Any, values: "Tensor") -> "Tensor":
    """Return the tokens at least as likely as the k-th."""
    import torch

    least = torch.topk(values, min(warper.top_k, len(values))).values[-1]
    return (values >= least).nonzero().flatten()


def _top_p(warper: Any, values: "Tensor") -> "Tensor":
    """Return the top tokens that together hold `top_p`, at least one."""
    import torch

    total = torch.logsumexp(values, -1)
    for count in sorted({min(count, len(values)) for count in (*_ENOUGH, len(values))}):
        top = torch.topk(values, count)
        shares = torch.exp(top.values - total)
        before = shares.cumsum(-1) - shares  # the mass of the likelier tokens
        stays = before < warper.top_p
        if count == len(values) or not stays[-1]:
            break
    stays[0] = True
    kept: Tensor = top.indices[stays].sort().values
    return kept


def _min_p(warper: Any, values: "Tensor") -> "Tensor":
    """Return the tokens at least `min_p` times as likely as the top one."""
    import torch

    shares = torch.softmax(values, -1)
    kept: Tensor = (shares >= warper.min_p * shares.max()).nonzero().flatten()
    return kept


_FILTERS = {"TopKLogitsWarper": _top_k, "TopPLogitsWarper": _top_p, "MinPLogitsWarper": _min_p}
