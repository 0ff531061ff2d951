"""Recurrent states of one layer, as transformers keeps them: a cache layer that holds tensors [sequences, ...].

The names of these tensors differ between releases and kinds of layers, so these functions handle all tensors that a
cache layer holds, in its attributes or in dicts there.
"""

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from typing import Any


def new_layer_state(config: Any, layer: int) -> Any:
    """Return an empty cache layer of transformers for the recurrent state of a layer."""
    from transformers import DynamicCache

    return DynamicCache(config=config).layers[layer]


def join_layer_states(layers: Sequence[Any]) -> Any:
    """Return one cache layer with the states of several sequences, whose tensors are [1, ...]."""
    import torch

    return _rebuilt(layers[0], [_tensors_of(layer) for layer in layers], lambda tensors: torch.cat(tensors))


def split_layer_state(layer: Any, count: int) -> list[Any]:
    """Return a cache layer for each of `count` sequences; no tensor is shared with `layer`."""
    tensors = [_tensors_of(layer)]
    return [_rebuilt(layer, tensors, partial(_row, n)) for n in range(count)]


def layer_tensors(layer: Any) -> list[Any]:
    """Return the tensors that a cache layer holds."""
    return list(_tensors_of(layer).values())


def _row(number: int, tensors: list[Any]) -> Any:
    return tensors[0][number : number + 1].clone()


def _tensors_of(layer: Any) -> dict[tuple[str, Any], Any]:
    """Return the tensors in the attributes of a cache layer, and in dicts there, by attribute and key."""
    import torch

    found = {}
    for name, value in vars(layer).items():
        for key, one in value.items() if isinstance(value, dict) else [(None, value)]:
            if isinstance(one, torch.Tensor):
                found[name, key] = one
    return found


def _rebuilt(layer: Any, tensors: Sequence[dict[tuple[str, Any], Any]], combine: Callable[[list[Any]], Any]) -> Any:
    """Return a copy of a cache layer whose tensors are combined from those of several layers."""
    copied = copy(layer)
    for name, value in vars(copied).items():
        if isinstance(value, dict):
            vars(copied)[name] = dict(value)
    for name, key in tensors[0]:
        one = combine([each[name, key] for each in tensors])
        if key is None:
            vars(copied)[name] = one
        else:
            vars(copied)[name][key] = one
    return copied
