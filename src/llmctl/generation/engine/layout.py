"""The layout of a packed pass: tokens of several sequences, one after the other without padding."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Any

from llmctl.gpu.call import key_slots

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MediaRows:
    """Rows that stand for tokens of images.

    Attributes:
        tokens: The indices of these tokens, in ascending order.
        embeddings: [rows, hidden size], in place of the tokens' embeddings.
        deepstack: Rows of the same shape to add to the hidden states after the first, second, … layer.
    """

    tokens: tuple[int, ...]
    embeddings: "Tensor"
    deepstack: "tuple[Tensor, ...]" = ()


@dataclass(frozen=True)
class Segment:
    """The tokens of one sequence in this pass.

    Attributes:
        ids: The new tokens. Tokens of images have the id of any token that has an embedding.
        start: The position of the first new token, which equals the number of tokens in the pool.
        pages: The pages of the sequence, including those for the new tokens.
        slot: The slot of the sequence's recurrent state. Models without such a state do not use it.
        rope_length: Minimum length for which a RoPE that depends on the length is computed.
        positions: [axes, tokens] for a RoPE with several axes; None for the positions in the sequence.
        media: The rows of tokens of images; their indices are those in `ids`.
        visible_ends: For layers without and with a window, the end of the tokens that each token sees; None for the
            token itself.
    """

    ids: Sequence[int]
    start: int
    pages: Sequence[int]
    slot: int = 0
    rope_length: int = 0
    positions: "Tensor | None" = None
    media: MediaRows | None = None
    visible_ends: tuple[Sequence[int] | None, Sequence[int] | None] = (None, None)


@dataclass(frozen=True)
class Shape:
    """The sizes of a layout's tables.

    Attributes:
        tokens: Tokens of the pass.
        sequences: Sequences of the pass.
        pages: Columns of the page table.
        axes: Axes of the positions; 0 for ordinary ones.
        ends: True for each of `visible_end` and `window_visible_end` that exists.
    """

    tokens: int
    sequences: int
    pages: int
    axes: int = 0
    ends: tuple[bool, bool] = (False, False)

    @cached_property
    def long_sizes(self) -> dict[str, int]:
        """The sizes of the int64 tables, which come first."""
        tokens = self.tokens
        positions = tokens * max(1, self.axes)
        return {"input_ids": tokens, "position_ids": positions, "slots": tokens, "last": self.sequences}

    @cached_property
    def int_sizes(self) -> dict[str, int]:
        """The sizes of the int32 tables, which follow them."""
        sequences = self.sequences
        sizes = {"query_start": sequences + 1, "kv_length": sequences, "key_start": sequences + 1}
        sizes |= {"state_slots": sequences, "page_table": sequences * self.pages}
        ends = zip(("visible_end", "window_visible_end"), self.ends, strict=True)
        sizes |= {name: self.tokens for name, exists in ends if exists}
        return sizes | {"": sum(sizes.values()) % 2}  # to a whole number of int64


@dataclass(frozen=True)
class Layout:
    """The layout of one pass. Tensors are int32 or int64 on the CPU; `on` returns copies on other devices.

    All of its tables are parts of one tensor, so that one copy brings them to a device.

    Attributes:
        page_tokens: Tokens of a page.
        packed: int64 [n], the tables, as `shape` lists them.
        shape: The sizes of the tables.
        query_starts, kv_lengths, slot_numbers: The tables of these names, as integers.
        rope_lengths: Minimum lengths for which RoPEs that depend on the length are computed.
        media: The rows of tokens of images, of all sequences; None without any.
    """

    page_tokens: int
    packed: "Tensor"
    shape: Shape
    query_starts: tuple[int, ...]
    kv_lengths: tuple[int, ...]
    slot_numbers: tuple[int, ...]
    rope_lengths: tuple[int, ...]
    media: MediaRows | None = None
    _placed: dict[Any, "Layout"] = field(default_factory=dict, repr=False, compare=False)

    def on(self, device: Any) -> "Layout":
        """Return the layout on another device."""
        if device == self.packed.device:
            return self
        if device not in self._placed:
            packed = self._source(device).to(device, non_blocking=True)
            self._placed[device] = replace(self, packed=packed, _placed={})
        return self._placed[device]

    def copy_to(self, static: "Layout") -> None:
        """Write the tables over those of a layout of the same shape, whose tensors stay where they are."""
        if static.shape != self.shape:
            raise ValueError(f"tables of {self.shape} do not fit into those of {static.shape}")
        static.packed.copy_(self._source(static.packed.device), non_blocking=True)

    def _source(self, device: Any) -> "Tensor":
        """Return the tables where a copy to a device does not wait: in pinned memory."""
        from_cpu_to_gpu = device.type == "cuda" and self.packed.device.type == "cpu"
        return self.packed.pin_memory() if from_cpu_to_gpu else self.packed

    @property
    def input_ids(self) -> "Tensor":
        """[1, tokens]."""
        return self._tables["input_ids"]

    @property
    def position_ids(self) -> "Tensor":
        """[1, tokens], or [axes, 1, tokens] if a sequence has positions with several axes."""
        return self._tables["position_ids"]

    @property
    def slots(self) -> "Tensor":
        """[tokens], the position of each token's key and value in the pool, counted in tokens."""
        return self._tables["slots"]

    @property
    def last(self) -> "Tensor":
        """[sequences], the index of each sequence's last token."""
        return self._tables["last"]

    @property
    def query_start(self) -> "Tensor":
        """[sequences + 1], the index of each sequence's first token."""
        return self._tables["query_start"]

    @property
    def kv_length(self) -> "Tensor":
        """[sequences], tokens of each sequence, including the new ones."""
        return self._tables["kv_length"]

    @property
    def key_start(self) -> "Tensor":
        """[sequences + 1], the sums of `kv_length`."""
        return self._tables["key_start"]

    @property
    def state_slots(self) -> "Tensor":
        """[sequences], the slot of each sequence's recurrent state.

        A sequence whose first token is in this pass begins without a state, whatever its slot holds.
        """
        return self._tables["state_slots"]

    @property
    def page_table(self) -> "Tensor":
        """[sequences, maximum pages of a sequence], padded with 0."""
        return self._tables["page_table"]

    @property
    def visible_end(self) -> "Tensor | None":
        """[tokens], the end of the tokens of its sequence that each token sees in layers without a window.

        None if that is the token itself everywhere.
        """
        return self._tables.get("visible_end")

    @property
    def window_visible_end(self) -> "Tensor | None":
        """The same in layers with a window."""
        return self._tables.get("window_visible_end")

    @cached_property
    def max_query(self) -> int:
        """Maximum new tokens of a sequence."""
        return max(end - start for start, end in pairwise(self.query_starts))

    @property
    def max_kv(self) -> int:
        """Maximum tokens that the page table has room for."""
        return self.shape.pages * self.page_tokens

    @cached_property
    def key_slots(self) -> "Tensor":
        """The slots of all tokens of all sequences, the earlier ones included, one sequence after the other."""
        return key_slots(self, sum(self.kv_lengths), self.page_tokens)

    @cached_property
    def _tables(self) -> "dict[str, Tensor]":
        import torch

        shape = self.shape
        longs, ints = list(shape.long_sizes.values()), list(shape.int_sizes.values())
        parts = [
            *self.packed[: sum(longs)].split_with_sizes(longs),
            *self.packed[sum(longs) :].view(torch.int32).split_with_sizes(ints),
        ]
        tables = dict(zip((*shape.long_sizes, *shape.int_sizes), parts, strict=True))
        tables["input_ids"] = tables["input_ids"][None]
        tables["position_ids"] = tables["position_ids"].view(*([shape.axes] if shape.axes else []), 1, shape.tokens)
        tables["page_table"] = tables["page_table"].view(shape.sequences, shape.pages)
        return tables


def lay_out(segments: Sequence[Segment], *, page_tokens: int, pages: int = 0) -> Layout:
    """Pack segments into one row.

    Args:
        pages: Columns of the page table; 0 for as many as the longest sequence has.
    """
    ids = [token for segment in segments for token in segment.ids]
    ranges = [range(segment.start, segment.start + len(segment.ids)) for segment in segments]
    starts = [0, *accumulate(map(len, ranges))]
    lengths = [one.stop for one in ranges]
    slots = [segment.slot for segment in segments]
    axes = next((len(one.positions) for one in segments if one.positions is not None), 0)
    ends = [_visible_ends(segments, ranges, kind) for kind in (0, 1)]
    long = [
        *ids,
        *(_positions_with_axes(segments, ranges, axes) if axes else chain.from_iterable(ranges)),
        *_key_places(segments, ranges, page_tokens),
        *(start - 1 for start in starts[1:]),
    ]
    tables, small = [segment.pages for segment in segments], [starts, lengths, [0, *accumulate(lengths)], slots]
    pages = pages or max(map(len, tables))
    return Layout(
        page_tokens=page_tokens,
        packed=_pack(long, small, tables, pages, ends),
        shape=Shape(len(ids), len(segments), pages, axes, (ends[0] is not None, ends[1] is not None)),
        query_starts=tuple(starts),
        kv_lengths=tuple(lengths),
        slot_numbers=tuple(slots),
        rope_lengths=tuple(max(s.rope_length, length) for s, length in zip(segments, lengths, strict=True)),
        media=_join_media(segments, starts),
    )


def _key_places(segments: Sequence[Segment], ranges: Sequence[range], page_tokens: int) -> Iterator[int]:
    """Yield the position of each token's key and value in the pool, counted in tokens."""
    for segment, positions in zip(segments, ranges, strict=True):
        for position in positions:
            yield segment.pages[position // page_tokens] * page_tokens + position % page_tokens


def _pack(
    long: list[int],
    small: Sequence[list[int]],
    tables: Sequence[Sequence[int]],
    pages: int,
    ends: Sequence[list[int] | None],
) -> "Tensor":
    """Return all tables in one int64 tensor, in the order of `Shape`."""
    import torch

    packed = bytearray(array("q", long).tobytes())
    for one in small:
        packed += array("i", one).tobytes()
    for table in tables:
        packed += array("i", table).tobytes() + bytes(4 * (pages - len(table)))
    for end in ends:
        packed += array("i", end or ()).tobytes()
    return torch.frombuffer(packed + bytes(len(packed) % 8), dtype=torch.int64)


def _positions_with_axes(segments: Sequence[Segment], ranges: Sequence[range], axes: int) -> list[int]:
    """Return the positions of all tokens along the first axis, then along the second, …"""
    positions: list[int] = []
    for axis in range(axes):
        for segment, ordinary in zip(segments, ranges, strict=True):
            positions += ordinary if segment.positions is None else segment.positions[axis].tolist()
    return positions


def _visible_ends(segments: Sequence[Segment], ranges: Sequence[range], kind: int) -> list[int] | None:
    """Return the end of the tokens that each token sees; None if that is the token itself everywhere."""
    if all(segment.visible_ends[kind] is None for segment in segments):
        return None
    itself = [position + 1 for one in ranges for position in one]
    ends: list[int] = []
    for segment, positions in zip(segments, ranges, strict=True):
        own = segment.visible_ends[kind]
        ends += (position + 1 for position in positions) if own is None else own
    return None if ends == itself else ends


def _join_media(segments: Sequence[Segment], starts: Sequence[int]) -> MediaRows | None:
    import torch

    pairs = [(start, one.media) for one, start in zip(segments, starts, strict=False) if one.media is not None]
    if not pairs:
        return None
    tokens = tuple(start + token for start, media in pairs for token in media.tokens)
    layers = zip(*(media.deepstack for _, media in pairs), strict=True)
    return MediaRows(
        tokens,
        torch.cat([media.embeddings for _, media in pairs]),
        tuple(torch.cat(rows) for rows in layers),
    )
