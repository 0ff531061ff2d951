"""The memory of packed sequences: pages of keys and values, and slots of recurrent states."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llmctl.generation.engine.layer_states import LayerStates
from llmctl.generation.engine.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor

_FIRST_ROWS = 16  # of the states of a layer; more are added as more sequences run


class CachePool:
    """The paged KV cache and the recurrent states of all layers.

    Its state: tensors, allocated when a layer first uses them. On a CPU, pages and slots take memory only once written.

    Args:
        pages: Pages for sequences.
        slots: Slots of the recurrent states of running sequences.
        checkpoints: Further slots, for copies of states.
        pads: Allocate one page more, for the sequences that pad a batch. Their state has the slot 0.

    Attributes:
        page_tokens: Tokens of a page.
        kv: Keys and values by layer, each [pages, tokens of a page, heads, head size].
        states: The state tensors of a compiled model, each [slots, ...].
        moves: How often tensors have moved since the first pass, because more slots of states are used.
    """

    def __init__(
        self, pages: int, page_tokens: int, *, slots: int = 1, checkpoints: int = 0, pads: bool = False
    ) -> None:
        self._pages, self.page_tokens, self._slots, self._checkpoints = pages + pads, page_tokens, slots, checkpoints
        self.kv: dict[int, tuple[Tensor, Tensor]] = {}
        self.states: list[Tensor] = []
        self.moves = 0
        self._layer_states: dict[int, LayerStates] = {}  # of a model that runs module by module, by layer
        self._copies: dict[int, list[Tensor]] = {}  # of such states, by slot

    @property
    def padding_page(self) -> int:
        """The page for the sequences that pad a batch, the last one."""
        return self._pages - 1

    def kv_tensors(self, shapes: Sequence[tuple[int, int, int]], dtype: Any) -> "list[tuple[Tensor, Tensor]]":
        """Return the key and value tensors of all layers on the CPU, given heads, key size and value size of each."""
        import torch

        for layer, (heads, *sizes) in enumerate(shapes):
            if layer not in self.kv:
                keys, values = (torch.empty(self._pages, self.page_tokens, heads, n, dtype=dtype) for n in sizes)
                self.kv[layer] = (keys, values)
        return [self.kv[layer] for layer in range(len(shapes))]

    def state_tensors(self, shapes: Sequence[tuple[tuple[int, ...], Any]]) -> "list[Tensor]":
        """Return the state tensors [slots, *shape] on the CPU, given (shape, dtype) of each."""
        import torch

        if not self.states:
            self.states = [
                torch.empty((self._slots + self._checkpoints, *shape), dtype=dtype) for shape, dtype in shapes
            ]
        return self.states

    def copy_page(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` tokens of one page to another, in every layer."""
        import torch

        with torch.inference_mode():
            for pair in self.kv.values():
                for pages in pair:
                    pages[target, :tokens] = pages[source, :tokens]

    def write(self, layer: int, keys: "Tensor", values: "Tensor", layout: Layout) -> None:
        """Write the keys and values of this pass, [1, heads, tokens, head size], to their slots."""
        if layer not in self.kv:
            self.kv[layer] = (self._new(keys), self._new(values))
        slots = layout.on(keys.device).slots
        for pages, new in zip(self.kv[layer], (keys, values), strict=True):
            pages.view(-1, *pages.shape[2:]).index_copy_(0, slots, new[0].transpose(0, 1))

    def gather(self, layer: int, layout: Layout) -> "tuple[Tensor, Tensor]":
        """Return the keys and values [1, heads, tokens, size] of all sequences, one after the other."""
        keys, values = self.kv[layer]
        index = layout.on(keys.device).key_slots
        found = [
            pages.view(-1, *pages.shape[2:]).index_select(0, index).transpose(0, 1)[None] for pages in (keys, values)
        ]
        return found[0], found[1]

    def read_state(self, layer: int, slots: "Tensor") -> Any:
        """Return transformers' cache layer with a copy of the states of some slots."""
        return self._layer_states[layer].read(slots)

    def write_state(self, layer: int, slots: "Tensor", state: Any, *, highest: int) -> None:
        """Write the states of a cache layer of transformers to some slots, of which `highest` is the highest."""
        if layer not in self._layer_states:
            self._layer_states[layer] = LayerStates(state, min(max(highest + 1, _FIRST_ROWS), self._slots))
        states = self._layer_states[layer]
        if highest >= states.rows:
            states.grow(min(2 * highest, self._slots))
            self.moves += 1
        states.write(slots, state)

    def copy_state(self, source: int, target: int) -> None:
        """Copy the recurrent states of one slot to another."""
        import torch

        with torch.inference_mode():
            for tensor in self.states:
                tensor[target] = tensor[source]
            rows = self._rows(source)
            if target >= self._slots:
                self._copies[target] = [row.clone() for row in rows]
                return
            for states in self._layer_states.values():
                if target >= states.rows:
                    states.grow(min(2 * target, self._slots))
                    self.moves += 1
            for own, row in zip(self._rows(target), rows, strict=True):
                own.copy_(row)

    def state_bytes(self, slot: int) -> int:
        """Return the size of the recurrent state of one sequence; 0 without one."""
        return sum(tensor.nbytes for tensor in [*(tensor[slot] for tensor in self.states), *self._rows(slot)])

    def _rows(self, slot: int) -> "list[Tensor]":
        """Return the tensors of a slot, of all layers that run module by module."""
        if slot >= self._slots:
            return self._copies.get(slot, [])
        return [row for states in self._layer_states.values() for row in states.row(slot)]

    def _new(self, like: "Tensor") -> "Tensor":
        import torch

        _, heads, _, size = like.shape
        # a kernel may read what was never written and multiply it by 0, so it must not be NaN
        return torch.zeros(self._pages, self.page_tokens, heads, size, dtype=like.dtype, device=like.device)
