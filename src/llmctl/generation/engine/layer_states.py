"""Recurrent states of one layer, as transformers keeps them: a cache layer that holds tensors [sequences, ...].

The names of these tensors differ between releases and kinds of layers, so these functions handle all tensors that a
cache layer holds, in its attributes or in dicts there.
"""

from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_Name = tuple[str, Any]  # an attribute, and a key if that is a dict


def new_layer_state(config: Any, layer: int) -> Any:
    """Return an empty cache layer of transformers for the recurrent state of a layer."""
    from transformers import DynamicCache

    return DynamicCache(config=config).layers[layer]


class LayerStates:
    """The states of one layer for many sequences. Its state: tensors [rows, ...], and a cache layer that held such.

    Args:
        layer: A cache layer of transformers with the states of some sequences.
    """

    def __init__(self, layer: Any, rows: int) -> None:
        self._layer = layer
        self._tensors = {name: _zeros(rows, tensor) for name, tensor in _tensors_of(layer).items()}

    @property
    def rows(self) -> int:
        """The number of rows."""
        return next((len(tensor) for tensor in self._tensors.values()), 0)

    def read(self, rows: "Tensor") -> Any:
        """Return a cache layer with a copy of the states of some rows."""
        found = {name: tensor.index_select(0, rows.to(tensor.device)) for name, tensor in self._tensors.items()}
        return _with_tensors(self._layer, found)

    def write(self, rows: "Tensor", layer: Any) -> None:
        """Write the states of a cache layer to some rows."""
        for name, tensor in _tensors_of(layer).items():
            own = self._tensors[name]
            own.index_copy_(0, rows.to(own.device), tensor.to(own.dtype))

    def grow(self, rows: int) -> None:
        """Make room for more rows. The tensors move."""
        for name, tensor in self._tensors.items():
            grown = _zeros(rows, tensor)
            grown[: len(tensor)] = tensor
            self._tensors[name] = grown

    def row(self, number: int) -> "list[Tensor]":
        """Return the tensors of one row."""
        return [tensor[number] for tensor in self._tensors.values()]


def _zeros(rows: int, like: "Tensor") -> "Tensor":
    return like.new_zeros((rows, *like.shape[1:]))


def _tensors_of(layer: Any) -> "dict[_Name, Tensor]":
    """Return the tensors in the attributes of a cache layer, and in dicts there, by attribute and key."""
    import torch

    found = {}
    for name, value in vars(layer).items():
        for key, one in value.items() if isinstance(value, dict) else [(None, value)]:
            if isinstance(one, torch.Tensor):
                found[name, key] = one
    return found


def _with_tensors(layer: Any, tensors: "Mapping[_Name, Tensor]") -> Any:
    """Return a copy of a cache layer with other tensors."""
    copied = copy(layer)
    for name, value in vars(copied).items():
        if isinstance(value, dict):
            vars(copied)[name] = dict(value)
    for (name, key), tensor in tensors.items():
        if key is None:
            vars(copied)[name] = tensor
        else:
            vars(copied)[name][key] = tensor
    return copied
