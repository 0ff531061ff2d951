"""The trial of an attention backend: a few sequences on the device, compared with torch's SDPA in float32.

What a kernel can compute depends on the card, on the releases of torch and flash-attn, and on how they were built. A
release may also compute wrong results silently (pytorch#194167). A trial of a few milliseconds answers all of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from llmctl.gpu.call import AttentionBackend, AttentionCall, key_slots
from llmctl.gpu.sdpa import SdpaAttention
from llmctl.loading.attention_mask import VisibleTokens
from llmctl.loading.device_memory import is_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor

_WINDOW = 33
_TOLERANCE = 0.05  # of each token's norm: of the order of bfloat16's rounding, and far below an error's
# New tokens of each sequence, and all of them: a prompt, a chunk and a decoding sequence; decoding sequences alone.
_PASSES = (((300, 37, 1), (300, 120, 270)), ((1, 1, 1), (1, 300, 40)))


@dataclass(frozen=True)
class TrialTables:
    """The tables of a trial; see `PackedTables`."""

    page_tokens: int
    page_table: "Tensor"
    query_start: "Tensor"
    kv_length: "Tensor"
    key_start: "Tensor"
    query_starts: tuple[int, ...]
    kv_lengths: tuple[int, ...]
    max_query: int
    max_kv: int
    visible_end: None = None
    window_visible_end: None = None

    @property
    def key_slots(self) -> "Tensor":
        """The slots of all tokens of all sequences."""
        return key_slots(self, sum(self.kv_lengths), self.page_tokens)


def failure_of_trial(backend: AttentionBackend, call: AttentionCall) -> str | None:
    """Return why a backend cannot compute calls of this kind on this device; None if it can."""
    import torch

    try:
        with torch.inference_mode():
            for queries, lengths in _PASSES:
                trial = _trial_call(call, queries, lengths)
                wanted = SdpaAttention().attend(_in_float32(trial))
                found = backend.attend(trial).float()
                error = torch.linalg.vector_norm(found - wanted, dim=-1)
                if not bool((error <= _TOLERANCE * torch.linalg.vector_norm(wanted, dim=-1) + 1e-4).all()):
                    return "it gives wrong results"
    except (RuntimeError, TypeError, ValueError, NotImplementedError, ImportError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return None


def _trial_call(call: AttentionCall, queries: Sequence[int], lengths: Sequence[int]) -> AttentionCall:
    """Return a call of the same kind with random numbers."""
    import torch

    device, generator = call.query.device, torch.Generator().manual_seed(0)

    def random(*shape: int) -> "Tensor":
        return torch.randn(shape, generator=generator).to(device, call.query.dtype)

    tables, pages = _tables(queries, lengths, call.keys.shape[1] if call.is_paged else max(lengths), device)
    rows = (pages, call.keys.shape[1]) if call.is_paged else (sum(lengths),)
    return replace(
        call,
        query=random(sum(queries), *call.query.shape[1:]),
        keys=random(*rows, *call.keys.shape[-2:]),
        values=random(*rows, *call.values.shape[-2:]),
        tables=tables,
        score=replace(call.score, visible=VisibleTokens(window=_WINDOW if call.score.visible.window else 0)),
    )


def _tables(queries: Sequence[int], lengths: Sequence[int], page_tokens: int, device: Any) -> tuple[TrialTables, int]:
    """Return tables whose pages are in no order, and the number of pages."""
    import torch

    counts = [-(-length // page_tokens) for length in lengths]
    numbers = iter(reversed(range(sum(counts))))
    rows = [[next(numbers) for _ in range(count)] for count in counts]
    starts, key_starts = (0, *accumulate(queries)), (0, *accumulate(lengths))

    def table(values: Any) -> "Tensor":
        return torch.tensor(values, dtype=torch.int32, device=device)

    tables = TrialTables(
        page_tokens,
        page_table=table([[*row, *[0] * (max(counts) - len(row))] for row in rows]),
        query_start=table(starts),
        kv_length=table(lengths),
        key_start=table(key_starts),
        query_starts=starts,
        kv_lengths=tuple(lengths),
        max_query=max(queries),
        max_kv=max(lengths),
    )
    return tables, sum(counts)


def _in_float32(call: AttentionCall) -> AttentionCall:
    return replace(call, query=call.query.float(), keys=call.keys.float(), values=call.values.float())
