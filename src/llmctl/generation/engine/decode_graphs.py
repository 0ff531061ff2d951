"""Decode steps by recorded graphs: one for each size of batch and number of axes, over tables that stay in place.

A step with one new token for each sequence is padded to the next size by sequences of one token that have a page of
their own. The tables of the step are copied, in one piece, to where the graph reads them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmctl.generation.engine.cache_pool import CachePool
from llmctl.generation.engine.layout import Layout, Segment, lay_out
from llmctl.generation.engine.packed_modules import forward_modules, why_not_recorded
from llmctl.gpu.graphs import GraphRecorder, Recording
from llmctl.gpu.paged_attention import attention_of_model

if TYPE_CHECKING:
    from torch import Tensor


_Kind = tuple[int, int]  # the size of the batch, and the axes of its positions


class DecodeGraphs:
    """Runs decode steps. Its state: the graph of each kind of step, and why there are none.

    Args:
        pool: The KV cache. Its last page belongs to the sequences that pad a batch.
        sequences: Maximum sequences of a step.
        pages: Maximum pages of a sequence.

    Attributes:
        failure: Why steps are not recorded; None as long as they are.
    """

    def __init__(self, model: Any, pool: CachePool, recorder: GraphRecorder, *, sequences: int, pages: int) -> None:
        self._model, self._pool, self._recorder = model, pool, recorder
        self._pages, self._sizes = pages, batch_sizes(sequences)
        self._recorded: dict[_Kind, tuple[Layout, Recording]] = {}
        self._moves = pool.moves
        self._seen: set[_Kind] = set()
        self.failure: str | None = None

    @property
    def sizes(self) -> list[int]:
        """The sizes of batch that have a graph."""
        return sorted({size for size, _ in self._recorded})

    def run(self, segments: Sequence[Segment]) -> "Tensor | None":
        """Return the logits [sequences, vocabulary] of a step; None if it has to run without a graph."""
        if self.failure is not None or not all(_is_decoding(one) for one in segments):
            return None
        if self._pool.moves != self._moves:
            self._recorded, self._moves = {}, self._pool.moves
        axes = next((len(one.positions) for one in segments if one.positions is not None), 0)
        kind = next(size for size in self._sizes if size >= len(segments)), axes
        if kind not in self._recorded and not self._record(kind):
            return None
        static, recording = self._recorded[kind]
        self._padded(kind, segments).copy_to(static)
        return recording.replay()[: len(segments)]

    def _record(self, kind: "_Kind") -> bool:
        """Record the graph of a kind of step. Return False if the step has to run without one.

        The first step of a kind runs without: a short answer would not gain what the recording costs. The recorded step
        has padding only: recording repeats it, and a recurrent state must not see a token twice.
        """
        import torch

        if kind not in self._seen:
            self._seen.add(kind)
            return False
        self.failure = why_not_recorded(self._model)
        if self.failure is not None:
            return False
        layout = self._padded(kind, []).on(self._model.device)
        static = replace(layout, packed=layout.packed.clone(), _placed={})
        attention = attention_of_model(self._model)
        try:
            with attention.watched():
                recording = self._recorder.record(lambda: forward_modules(self._model, static, self._pool))
                is_single_call = attention.is_single_call
        except torch.OutOfMemoryError:
            self.failure = "there is no memory for graphs"
        except RuntimeError as error:
            self.failure = str(error).strip().partition("\n")[0]
        else:
            if is_single_call:
                self._recorded[kind] = (static, recording)
                return True
            self.failure = "its attention goes from sequence to sequence"
        return False

    def _padded(self, kind: "_Kind", segments: Sequence[Segment]) -> Layout:
        """Return the layout of a step of a kind. A padding sequence has two tokens, so that it does not begin."""
        import torch

        size, axes = kind
        positions = torch.ones(axes, 1, dtype=torch.int64) if axes else None
        padding = Segment([0], 1, [self._pool.padding_page], positions=positions)
        segments = [*segments, *[padding] * (size - len(segments))]
        return lay_out(segments, page_tokens=self._pool.page_tokens, pages=self._pages)


def batch_sizes(sequences: int) -> list[int]:
    """Return the sizes of batch that are recorded for at most so many sequences: 1, 2, 4, 8, …"""
    sizes = [1]
    while sizes[-1] < sequences:
        sizes.append(2 * sizes[-1])
    return sizes


def _is_decoding(segment: Segment) -> bool:
    """Return True if a segment adds one token of text to earlier ones."""
    return len(segment.ids) == 1 and segment.start > 0 and segment.media is None
