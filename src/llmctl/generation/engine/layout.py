"""The layout of a packed pass: tokens of several sequences, one after the other without padding."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

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
class Layout:
    """The layout of one pass. Tensors are int32 or int64 on the CPU; `on` returns copies on other devices.

    Attributes:
        input_ids: [1, tokens].
        position_ids: [1, tokens], or [axes, 1, tokens] if a sequence has positions with several axes.
        slots: [tokens], the position of each token's key and value in the pool, counted in tokens.
        query_start: [sequences + 1], the index of each sequence's first token.
        kv_length: [sequences], tokens of each sequence, including the new ones.
        page_table: [sequences, maximum pages of a sequence], padded with 0.
        last: [sequences], the index of each sequence's last token.
        state_slots: [sequences], the slot of each sequence's recurrent state. A sequence whose first token is in this
            pass begins without a state, whatever its slot holds.
        media: The rows of tokens of images, of all sequences; None without any.
        visible_end: [tokens], the end of the tokens of its sequence that each token sees in layers without a window;
            None if that is the token itself everywhere.
        window_visible_end: The same in layers with a window.
    """

    input_ids: "Tensor"
    position_ids: "Tensor"
    slots: "Tensor"
    query_start: "Tensor"
    kv_length: "Tensor"
    page_table: "Tensor"
    last: "Tensor"
    state_slots: "Tensor"
    query_starts: tuple[int, ...]
    kv_lengths: tuple[int, ...]
    slot_numbers: tuple[int, ...]
    rope_lengths: tuple[int, ...]
    media: MediaRows | None = None
    visible_end: "Tensor | None" = None
    window_visible_end: "Tensor | None" = None
    _placed: dict[Any, "Layout"] = field(default_factory=dict, repr=False, compare=False)

    def on(self, device: Any) -> "Layout":
        """Return the layout on another device."""
        if device not in self._placed:
            tables = ("slots", "query_start", "kv_length", "page_table", "last", "state_slots")
            names = ("input_ids", "position_ids", *tables)
            moved = {name: getattr(self, name).to(device) for name in names}
            for name in ("visible_end", "window_visible_end"):
                tensor = getattr(self, name)
                moved[name] = None if tensor is None else tensor.to(device)
            self._placed[device] = replace(self, **moved, _placed={})
        return self._placed[device]

    def cached_slots(self, page_tokens: int) -> "Tensor":
        """Return the slots of all tokens of all sequences, the earlier ones included."""
        import torch

        places = []
        for pages, length in zip(self.page_table.long(), self.kv_lengths, strict=True):
            position = torch.arange(length, device=pages.device)
            places.append(pages[position // page_tokens] * page_tokens + position % page_tokens)
        return torch.cat(places)


def lay_out(segments: Sequence[Segment], *, page_tokens: int) -> Layout:
    """Pack segments into one row."""
    import torch

    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    starts, lengths = [0], []
    for segment in segments:
        ids += segment.ids
        end = segment.start + len(segment.ids)
        positions += range(segment.start, end)
        slots += [segment.pages[p // page_tokens] * page_tokens + p % page_tokens for p in range(segment.start, end)]
        starts.append(len(ids))
        lengths.append(end)
    widest = max(len(segment.pages) for segment in segments)
    table = [[*segment.pages, *[0] * (widest - len(segment.pages))] for segment in segments]
    return Layout(
        input_ids=torch.tensor([ids]),
        position_ids=_position_ids(segments, positions),
        slots=torch.tensor(slots),
        query_start=torch.tensor(starts, dtype=torch.int32),
        kv_length=torch.tensor(lengths, dtype=torch.int32),
        page_table=torch.tensor(table, dtype=torch.int32),
        last=torch.tensor([start - 1 for start in starts[1:]]),
        state_slots=torch.tensor([segment.slot for segment in segments], dtype=torch.int32),
        query_starts=tuple(starts),
        kv_lengths=tuple(lengths),
        slot_numbers=tuple(segment.slot for segment in segments),
        rope_lengths=tuple(max(s.rope_length, length) for s, length in zip(segments, lengths, strict=True)),
        media=_join_media(segments, starts),
        visible_end=_visible_end(segments, 0),
        window_visible_end=_visible_end(segments, 1),
    )


def _position_ids(segments: Sequence[Segment], positions: list[int]) -> "Tensor":
    import torch

    ordinary = torch.tensor([positions])
    axes = next((len(one.positions) for one in segments if one.positions is not None), 0)
    if not axes:
        return ordinary
    begin, parts = 0, []
    for segment in segments:
        end = begin + len(segment.ids)
        parts.append(ordinary[:, begin:end].expand(axes, -1) if segment.positions is None else segment.positions)
        begin = end
    return torch.cat(parts, dim=1)[:, None]


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


def _visible_end(segments: Sequence[Segment], kind: int) -> "Tensor | None":
    import torch

    if all(segment.visible_ends[kind] is None for segment in segments):
        return None
    ends: list[int] = []
    for segment in segments:
        own = segment.visible_ends[kind]
        ends += range(segment.start + 1, segment.start + len(segment.ids) + 1) if own is None else own
    return torch.tensor(ends, dtype=torch.int32)
