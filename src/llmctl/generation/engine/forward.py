"""A forward pass over several sequences, packed one after the other without padding.

The model sees a single row of tokens with explicit positions. The attention separates the sequences: for each one, it
reads the pages of that sequence in the KV cache pool.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmctl.generation.engine.cache_pool import CachePool
from llmctl.loading.attention import packed_attention
from llmctl.transformers_compat import cache_argument

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """The tokens of one sequence in this pass.

    Attributes:
        ids: The new tokens.
        start: The position of the first new token, which equals the number of tokens in the pool.
        pages: The pages of the sequence, including those for the new tokens.
        slot: The slot of the sequence's recurrent state. Models without such a state do not use it.
    """

    ids: Sequence[int]
    start: int
    pages: Sequence[int]
    slot: int = 0


@dataclass(frozen=True)
class Layout:
    """The layout of one pass. Tensors are int32 or int64 on the CPU; `on` returns copies on other devices.

    Attributes:
        input_ids: [1, tokens].
        position_ids: [1, tokens].
        slots: [tokens], the position of each token's key and value in the pool, counted in tokens.
        query_start: [sequences + 1], the index of each sequence's first token.
        kv_length: [sequences], tokens of each sequence, including the new ones.
        page_table: [sequences, maximum pages of a sequence], padded with 0.
        last: [sequences], the index of each sequence's last token.
        state_slots: [sequences], the slot of each sequence's recurrent state. A sequence whose first token is in this
            pass begins without a state, whatever its slot holds.
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
    _placed: dict[Any, "Layout"] = field(default_factory=dict, repr=False, compare=False)

    def on(self, device: Any) -> "Layout":
        """Return the layout on another device."""
        if device not in self._placed:
            tables = ("slots", "query_start", "kv_length", "page_table", "last", "state_slots")
            names = ("input_ids", "position_ids", *tables)
            moved = {name: getattr(self, name).to(device) for name in names}
            self._placed[device] = Layout(**moved, query_starts=self.query_starts, kv_lengths=self.kv_lengths)
        return self._placed[device]


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
        position_ids=torch.tensor([positions]),
        slots=torch.tensor(slots),
        query_start=torch.tensor(starts, dtype=torch.int32),
        kv_length=torch.tensor(lengths, dtype=torch.int32),
        page_table=torch.tensor(table, dtype=torch.int32),
        last=torch.tensor([start - 1 for start in starts[1:]]),
        state_slots=torch.tensor([segment.slot for segment in segments], dtype=torch.int32),
        query_starts=tuple(starts),
        kv_lengths=tuple(lengths),
    )


def forward(model: Any, layout: Layout, pool: CachePool) -> "Tensor":
    """Run the model and return the logits [sequences, vocabulary] after the last token of each sequence.

    Raises:
        UnsupportedAttentionError: the model's attention cannot be packed.
    """
    import torch

    from llmctl.cpu.program import compiled

    model_program = compiled(model)
    if model_program is not None:
        program = model_program.program
        kv_cache = pool.kv_tensors(program.kv_shapes, program.dtype)
        return model_program.forward(layout, kv_cache, pool.state_tensors(program.state_shapes))
    moved = layout.on(model.device)
    with packed_attention(model, pool.kv, layout), torch.inference_mode():
        output = model(
            input_ids=moved.input_ids,
            position_ids=moved.position_ids,
            use_cache=True,
            logits_to_keep=moved.last,
            **{cache_argument(): _packed_cache(layout, pool)},
        )
    logits: Tensor = output.logits[0]
    return logits


def _packed_cache(layout: Layout, pool: CachePool) -> Any:
    """Return a transformers cache that writes new keys and values to the pool."""
    from transformers import Cache

    class PackedCache(Cache):
        def __init__(self) -> None:
            super().__init__(layers=[])

        def update(self, key_states: Any, value_states: Any, layer_idx: int, *_: Any, **__: Any) -> Any:
            pool.write(layer_idx, key_states, value_states, layout)
            return key_states, value_states

        def get_seq_length(self, layer_idx: int = 0) -> int:
            return 0

    return PackedCache()
