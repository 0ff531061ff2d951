"""Forward passes of a finished program."""

import ctypes
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from llmctl.cpu.operations import Kernels
from llmctl.cpu.program.writer import ProgramWriter, StateShape
from llmctl.cpu.structs import Operation, Pass
from llmctl.cpu.tensors import PageTables, check_visible_end, dtype_codes

if TYPE_CHECKING:
    from torch import Tensor

Pair = tuple["Tensor", "Tensor"]


class MediaRows(Protocol):
    """Rows that stand for tokens of images."""

    @property
    def tokens(self) -> Sequence[int]:
        """The indices of these tokens."""

    @property
    def embeddings(self) -> "Tensor":
        """[rows, hidden size], in place of the tokens' embeddings."""

    @property
    def deepstack(self) -> "Sequence[Tensor]":
        """Rows of the same shape to add to the hidden states after the first, second, … layer."""


class Layout(PageTables, Protocol):
    """The packed tokens of several sequences."""

    @property
    def input_ids(self) -> "Tensor":
        """int64 [1, tokens]."""

    @property
    def position_ids(self) -> "Tensor":
        """int64 [1, tokens], or [axes, 1, tokens] for a RoPE with several axes."""

    @property
    def slots(self) -> "Tensor":
        """int64 [tokens], the slot of each token in the KV cache: page * tokens per page + position in the page."""

    @property
    def last(self) -> "Tensor":
        """int64 [sequences], the index of each sequence's last token."""

    @property
    def rope_lengths(self) -> Sequence[int]:
        """The length for which a RoPE that depends on the length is computed, for each sequence."""

    @property
    def media(self) -> MediaRows | None:
        """The rows of tokens of images."""

    @property
    def visible_end(self) -> "Tensor | None":
        """int32 [tokens], the end of the tokens that each token sees in layers without a window; None for itself."""

    @property
    def window_visible_end(self) -> "Tensor | None":
        """The same in layers with a window."""

    @property
    def state_slots(self) -> "Tensor":
        """int32 [sequences], the slot of each sequence in every state. Only programs with states read it."""


class Program:
    """A finished program, which runs forward passes. Its state: the buffers, which grow with the largest pass.

    Attributes:
        dtype: The dtype of activations, keys and values.
        kv_shapes: The number of key heads, their size and the size of a value, for each layer with attention.
        state_shapes: The shape and the dtype of a sequence's part of each state.
    """

    def __init__(self, kernels: Kernels, written: ProgramWriter) -> None:
        self.dtype, self.kv_shapes = written.dtype, tuple(written.kv_shapes)
        self.state_shapes = tuple(written.state_shapes)
        self._kernels, self._written = kernels, written
        self._operations = (Operation * len(written.operations))(*written.operations)
        self._buffers: list[Tensor] = []
        self._rows = 0
        self._lock = threading.Lock()  # one pass at a time uses the buffers

    def run(
        self,
        layout: Layout,
        ropes: Sequence[Pair],
        kv_cache: Sequence[Pair],
        states: "Sequence[Tensor]" = (),
        token_factors: "Sequence[Tensor]" = (),
        media: "Sequence[Tensor]" = (),
    ) -> "Tensor":
        """Run one pass.

        Args:
            layout: The tokens.
            ropes: Cosines and sines [tokens, rotary size] of each RoPE.
            kv_cache: Keys and values of each layer with attention, [pages, tokens per page, heads, size] in `dtype`.
            states: One tensor [slots, *shape] for each of `state_shapes`. Each sequence's slot is updated; its old
                content is ignored when the sequence begins, that is, when all its tokens are in this pass.
            token_factors: The factors [tokens] of the queries of each token.
            media: Rows in `dtype` for the tokens of `layout.media`: embeddings, then what is added after each layer.

        Returns:
            Logits in float32 [sequences, vocabulary] after each sequence's last token.

        Raises:
            ValueError: a token id is outside of the vocabulary, or a table refers to anything outside of the KV cache
                or the states.
        """
        import torch

        tokens, sequences = layout.input_ids.numel(), layout.kv_length.numel()
        pages, page_tokens = kv_cache[0][0].shape[:2]
        check_layout(layout, pages=pages, page_tokens=page_tokens, vocabulary=self._written.embedding_rows)
        check_states(layout, states, self.state_shapes)
        check_media(layout, media, width=self._written.operations[0].n, dtype=self.dtype)
        logits = torch.empty((sequences, self._written.vocabulary_size), dtype=torch.float32)
        with self._lock:
            self._grow_buffers(max(tokens, sequences))
            cosines, sines = ([rope[part].float().contiguous() for rope in ropes] for part in (0, 1))
            factors = [factor.float().contiguous() for factor in token_factors]
            keys, values = zip(*kv_cache, strict=True)
            media_rows = _media_rows(layout) if media else None
            groups = (self._buffers, cosines, sines, factors, keys, values, states, media)
            lists = [_pointers(tensors) for tensors in groups]
            names = ("buffers", "rope_cos", "rope_sin", "token_factors", "keys", "values", "states", "media")
            data = Pass(
                dtype=dtype_codes()[self.dtype],
                tokens=tokens,
                sequences=sequences,
                logits=logits.data_ptr(),
                max_pages=layout.page_table.shape[1],
                page_tokens=page_tokens,
                threads=self._kernels.threads(),
                **{name: ctypes.addressof(pointers) for name, pointers in zip(names, lists, strict=True)},
                state_slots=layout.state_slots.data_ptr() if states else None,
                media_count=len(media),
                media_rows=_pointer(media_rows),
                visible_end=_pointer(layout.visible_end),
                window_visible_end=_pointer(layout.window_visible_end),
                **_table_pointers(layout),
            )
            self._kernels.run_program(self._operations, data)
        return logits

    def _grow_buffers(self, rows: int) -> None:
        import torch

        if rows <= self._rows:
            return
        self._rows = max(rows, min(2 * self._rows, 64))
        widths = self._written.buffer_widths
        self._buffers = [torch.empty(self._rows * width, dtype=self.dtype) for width in widths]


def check_layout(layout: Layout, *, pages: int, page_tokens: int, vocabulary: int) -> None:
    """Raise ValueError if a table refers to anything outside of its tensors: the library does not check them."""
    tables = (layout.input_ids, layout.slots, layout.last, layout.page_table, layout.query_start, layout.kv_length)
    if not all(table.is_contiguous() and table.device.type == "cpu" for table in tables):
        raise ValueError("tables must be contiguous tensors on the CPU")
    ids, slots, starts = layout.input_ids.flatten().tolist(), layout.slots.tolist(), layout.query_start.tolist()
    if not 0 <= min(ids) <= max(ids) < vocabulary:
        raise ValueError(f"a token id is outside of the vocabulary of {vocabulary}")
    if not 0 <= min(slots) <= max(slots) < pages * page_tokens or len(slots) != len(ids):
        raise ValueError(f"a slot is outside of the KV cache of {pages * page_tokens} tokens")
    lengths, page_table = layout.kv_length.tolist(), layout.page_table.tolist()
    if starts[0] != 0 or starts[-1] != len(ids) or len(starts) != len(lengths) + 1 != len(page_table) + 1:
        raise ValueError("query_start must run from 0 to the number of tokens, with one end per sequence")
    if not all(0 <= last < len(ids) for last in layout.last.tolist()) or layout.last.numel() != len(lengths):
        raise ValueError("every sequence needs a last token")
    for first, end, length, table in zip(starts, starts[1:], lengths, page_table, strict=False):
        used = table[: -(-length // page_tokens)]
        if not 0 < end - first <= length <= len(table) * page_tokens or not 0 <= min(used) <= max(used) < pages:
            raise ValueError("a page table refers to a page outside of the KV cache")


def check_states(layout: Layout, states: "Sequence[Tensor]", shapes: Sequence[StateShape]) -> None:
    """Raise ValueError if the states or their slots do not match."""
    if len(states) != len(shapes):
        raise ValueError(f"the program has {len(shapes)} states, not {len(states)}")
    if not shapes:
        return
    slots = layout.state_slots.tolist()
    for state, (shape, dtype) in zip(states, shapes, strict=True):
        if state.shape[1:] != shape or state.dtype != dtype or not state.is_contiguous() or state.device.type != "cpu":
            raise ValueError(f"a state must be a contiguous CPU tensor of {dtype} with slots of the shape {shape}")
        if not 0 <= min(slots) <= max(slots) < len(state) or len(set(slots)) != layout.kv_length.numel():
            raise ValueError(f"every sequence needs a slot of its own among the {len(state)} of the states")
    if str(layout.state_slots.dtype) != "torch.int32" or not layout.state_slots.is_contiguous():
        raise ValueError("state_slots must be a contiguous int32 tensor")


def check_media(layout: Layout, media: "Sequence[Tensor]", *, width: int, dtype: Any) -> None:
    """Raise ValueError if the rows of media, or the ends of visible tokens, do not match the layout."""
    starts, lengths = layout.query_start.tolist(), layout.kv_length.tolist()
    for ends in (layout.visible_end, layout.window_visible_end):
        check_visible_end(ends, starts, lengths)
    if not media:
        return
    tokens = () if layout.media is None else layout.media.tokens
    if not tokens or not 0 <= min(tokens) <= max(tokens) < starts[-1]:
        raise ValueError("media must belong to tokens of the pass")
    for rows in media:
        right = rows.shape == (len(tokens), width) and rows.dtype == dtype and rows.is_contiguous()
        if not right or rows.device.type != "cpu":
            raise ValueError(f"media must be contiguous CPU tensors of {dtype} with {len(tokens)} rows of {width}")


def _media_rows(layout: Layout) -> "Tensor":
    """Return the row of each token's media, or -1."""
    import torch

    rows = torch.full((layout.input_ids.numel(),), -1, dtype=torch.int32)
    tokens = () if layout.media is None else tuple(layout.media.tokens)
    rows[list(tokens)] = torch.arange(len(tokens), dtype=torch.int32)
    return rows


def _pointer(tensor: "Tensor | None") -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _table_pointers(layout: Layout) -> dict[str, int]:
    tables = {
        "token_ids": layout.input_ids,
        "slots": layout.slots,
        "last_tokens": layout.last,
        "page_table": layout.page_table,
        "query_start": layout.query_start,
        "kv_length": layout.kv_length,
    }
    return {name: table.data_ptr() for name, table in tables.items()}


def _pointers(tensors: Iterable["Tensor"]) -> Any:
    pointers = [tensor.data_ptr() for tensor in tensors]
    return (ctypes.c_void_p * max(len(pointers), 1))(*pointers)
