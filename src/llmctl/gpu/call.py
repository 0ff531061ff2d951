"""One attention call of a packed pass, and the interface of what computes it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from llmctl.cpu.tensors import PageTables
from llmctl.loading.attention_mask import Score

if TYPE_CHECKING:
    from torch import Tensor


class PackedTables(PageTables, Protocol):
    """The page tables of a packed pass on a device, and the tokens that see later ones."""

    @property
    def key_start(self) -> "Tensor":
        """int32 [sequences + 1], the index of each sequence's first key, if the keys lie one after the other."""

    @property
    def max_query(self) -> int:
        """Maximum new tokens of a sequence."""

    @property
    def max_kv(self) -> int:
        """Maximum tokens of a sequence, or more."""

    @property
    def visible_end(self) -> "Tensor | None":
        """int32 [tokens], the end of the tokens that each token sees in layers without a window; None for itself."""

    @property
    def window_visible_end(self) -> "Tensor | None":
        """The same in layers with a window."""

    @property
    def key_slots(self) -> "Tensor":
        """[key tokens], the slots of all tokens of all sequences, one sequence after the other."""


@dataclass(frozen=True)
class AttentionCall:
    """Attention from the new tokens of several sequences to the tokens of their own sequence, causally.

    Attributes:
        query: [tokens, heads, size].
        keys: In pages, [pages, tokens of a page, heads, size], or of all sequences one after the other,
            [key tokens, heads, size].
        values: The same with the size of values.
        tables: The sequences.
        score: The computation of scores.
        visible_end: int32 [tokens], the end of the tokens that each token sees; None for the token itself.
    """

    query: "Tensor"
    keys: "Tensor"
    values: "Tensor"
    tables: PackedTables
    score: Score
    visible_end: "Tensor | None" = None

    @property
    def is_paged(self) -> bool:
        """True if keys and values are in pages."""
        return self.keys.dim() == 4

    @property
    def is_grouped(self) -> bool:
        """True if several heads of the query share a head of the keys."""
        return self.query.shape[1] != self.keys.shape[-2]


class AttentionBackend(Protocol):
    """A way to compute an attention call.

    Attributes:
        name: Its name in reports.
        page_tokens: Tokens of a page that it needs to read pages; 0 if any size will do.
    """

    name: str
    page_tokens: int

    def supports(self, call: AttentionCall) -> bool:
        """Return True if it has everything that the call needs: windows, soft cap, sinks, and tokens that see later
        ones. Limits of a kernel (types, sizes, cards) are found by a trial."""

    def attend(self, call: AttentionCall) -> "Tensor":
        """Return [tokens, heads, value size]."""


def key_slots(tables: PackedTables, total: int, page_tokens: int) -> "Tensor":
    """Return the slots, counted in tokens, of all `total` tokens of all sequences, one sequence after the other."""
    import torch

    table, lengths = tables.page_table.long(), tables.kv_length.long()
    numbers = torch.arange(len(lengths), device=table.device)
    sequence = torch.repeat_interleave(numbers, lengths, output_size=total)
    position = torch.arange(total, device=table.device) - tables.key_start.long()[sequence]
    return table[sequence, position // page_tokens] * page_tokens + position % page_tokens
