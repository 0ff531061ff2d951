"""Sampling of the next tokens of many sequences on the device: one chain of operations, and one copy of tokens back.

A token is the argmax of log p - log(-log(1 - u)), where u is uniform noise (the Gumbel trick), which draws from p. u is
a hash of the seed of the sequence, the position and the token, so that a text depends neither on what runs beside it
nor on how often it is computed. The hash is MurmurHash3's finaliser, twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_MASK = 0xFFFFFFFF
_FEWEST_CANDIDATES = 64


@dataclass(frozen=True)
class Warping:
    """The settings of one sequence for sampling.

    Attributes:
        temperature: Divides the scores.
        top_k: Number of top tokens that can be chosen; 0 for all.
        top_p: The top tokens whose probabilities add up to this can be chosen.
        min_p: Tokens with at least this share of the top token's probability can be chosen.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @classmethod
    def of(cls, warpers: Sequence[Any]) -> "Warping":
        """Return the settings of transformers' warpers, as `split` returns them."""
        values = {}
        for warper in warpers:
            setting, name = _SETTINGS[type(warper).__name__]
            values[name] = getattr(warper, setting)
        return cls(**values)


_SETTINGS = {
    "TemperatureLogitsWarper": ("temperature", "temperature"),
    "TopKLogitsWarper": ("top_k", "top_k"),
    "TopPLogitsWarper": ("top_p", "top_p"),
    "MinPLogitsWarper": ("min_p", "min_p"),
}


def sample_rows(scores: "Tensor", warpings: Sequence[Warping], keys: Sequence[tuple[int, int]]) -> "Tensor":
    """Return the next token of each row of scores [sequences, vocabulary], as int64 [sequences] on their device.

    Args:
        keys: The noise of each row, as `noise_key` returns it.
    """
    import torch

    tokens = torch.empty(len(warpings), dtype=torch.int64, device=scores.device)
    groups: dict[int, list[int]] = {}
    for row, warping in enumerate(warpings):
        groups.setdefault(_candidates(warping, scores.shape[-1]), []).append(row)
    for count, rows in groups.items():
        settings = _settings([warpings[row] for row in rows], [keys[row] for row in rows], rows, scores.device)
        part = scores if len(rows) == len(warpings) else scores.index_select(0, settings.rows)
        kept, ids = warp(part.float(), settings, count)
        chosen = (kept + _gumbel(ids, settings.keys)).argmax(-1, keepdim=True)
        tokens.index_copy_(0, settings.rows, ids.expand_as(kept).gather(1, chosen)[:, 0])
    return tokens


@dataclass(frozen=True)
class Settings:
    """The settings of some rows on the device: columns [rows, 1] for warping, keys [rows, 2], and the rows [rows]."""

    temperature: "Tensor"
    top_k: "Tensor"
    top_p: "Tensor"
    min_p: "Tensor"
    keys: "Tensor"
    rows: "Tensor"


def _candidates(warping: Warping, vocabulary: int) -> int:
    """Return the number of top tokens to look at; 0 for the vocabulary in its own order.

    It depends on the sequence's own settings alone, so that its sums are the same beside other sequences.
    """
    if 0 < warping.top_k < vocabulary:
        return min(max(_FEWEST_CANDIDATES, 1 << (warping.top_k - 1).bit_length()), vocabulary)
    return vocabulary if warping.top_p < 1 else 0


def _settings(
    warpings: Sequence[Warping], keys: Sequence[tuple[int, int]], rows: Sequence[int], device: Any
) -> Settings:
    """Bring the settings of rows to the device in one copy."""
    import torch

    floats = torch.tensor([[one.temperature, one.top_p, one.min_p, 0] for one in warpings], dtype=torch.float32)
    whole = [[one.top_k or _MASK, *key, row] for one, key, row in zip(warpings, keys, rows, strict=True)]
    table = to_device(torch.cat([floats.view(torch.int64), torch.tensor(whole)], dim=1), device)
    numbers = table[:, :2].contiguous().view(torch.float32)
    temperature, top_p, min_p = (numbers[:, n : n + 1] for n in range(3))
    return Settings(temperature, table[:, 2:3], top_p, min_p, table[:, 3:5], table[:, 5].contiguous())


def to_device(tensor: "Tensor", device: Any) -> "Tensor":
    """Return a tensor of the CPU on a device; the copy to a CUDA device does not wait."""
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)


def warp(scores: "Tensor", settings: Settings, count: int) -> "tuple[Tensor, Tensor]":
    """Return the scores of tokens, minus infinity for those that cannot be chosen, and the tokens [rows or 1, tokens].

    The order and the meaning of the settings are those of transformers' warpers.

    Args:
        scores: [rows, vocabulary] in float32.
        count: Number of top tokens to look at; 0 for the vocabulary in its own order.
    """
    import torch

    scores = scores / settings.temperature
    ids = torch.arange(scores.shape[-1], device=scores.device)[None]
    if count:
        whole = count == scores.shape[-1]
        scores, ids = torch.sort(scores, descending=True) if whole else torch.topk(scores, count)
        least = scores.gather(1, settings.top_k.clamp(max=count) - 1)
        scores = scores.masked_fill(scores < least, -torch.inf)
        shares = torch.softmax(scores, -1)
        hidden = shares.cumsum(-1) - shares >= settings.top_p  # the total probability of the likelier tokens
        hidden[:, 0] = False
        scores = scores.masked_fill(hidden, -torch.inf)
    shares = torch.softmax(scores, -1)
    return scores.masked_fill(shares < settings.min_p * shares.amax(-1, keepdim=True), -torch.inf), ids


def noise_key(seed: int, position: int) -> tuple[int, int]:
    """Return two integers of 32 bits that determine the noise of a sequence at a position."""
    first = _mix(seed & _MASK)
    return _mix(first ^ _mix((seed >> 32) & _MASK) ^ 0x5BD1E995), _mix(first + position * 0x9E3779B1 & _MASK)


def _gumbel(ids: "Tensor", keys: "Tensor") -> "Tensor":
    """Return noise in float32 for tokens [rows or 1, tokens], given the keys [rows, 2].

    It is -log(-log1p(-u)): small values of u, which are the ones that win, keep all their digits in float32.
    """
    import torch

    mixed = _mix(_mix(ids * 0x9E3779B1 + keys[:, :1] & _MASK) ^ keys[:, 1:])
    uniform = ((mixed.to(torch.float32) + 0.5) / 2**32).clamp(max=1 - 2**-24)
    return -torch.log(-torch.log1p(-uniform))


def _mix(value: Any) -> Any:
    """Mix the bits of integers of 32 bits, alone or in a tensor of int64 (MurmurHash3's fmix32)."""
    value = value ^ (value >> 16)
    value = value * 0x85EBCA6B & _MASK
    value = value ^ (value >> 13)
    value = value * 0xC2B2AE35 & _MASK
    return value ^ (value >> 16)
