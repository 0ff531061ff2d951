"""The images of one sequence in packed passes: their rows, the positions around them, and which tokens see which."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from llmctl.generation.engine.layout import MediaRows
from llmctl.generation.media import Media
from llmctl.loading.image_encoder import ImageEncoder

if TYPE_CHECKING:
    from torch import Tensor


class SequenceMedia:
    """The images of a prompt, perhaps none.

    Args:
        media: The images, with their positions.
        prompt_tokens: Length of the prompt.
        encoder: Gives the features of images. They are computed when a pass first needs them.
        sees_prompt: All tokens of the prompt see each other, with images or without.
    """

    def __init__(
        self, media: Sequence[Media], prompt_tokens: int, encoder: ImageEncoder, *, sees_prompt: bool = False
    ) -> None:
        self._media, self._prompt_tokens, self._encoder = tuple(media), prompt_tokens, encoder
        self._images = [one.image for one in media if one.image is not None]
        shapes = [encoder.shape(image.key, image.inputs, image.token_id) for image in self._images]
        self._positions, self._shift = self._all_positions([(shape.positions, shape.advance) for shape in shapes])
        self._blocks = (any(shape.blocks[0] for shape in shapes), any(shape.blocks[1] for shape in shapes))
        self.sees_prompt = sees_prompt or any(shape.sees_prompt for shape in shapes)
        self._runs = [(0, prompt_tokens)] if self.sees_prompt else _runs([p for one in media for p in one.positions])

    def positions(self, begin: int, end: int) -> "Tensor | None":
        """Return the positions [axes, tokens] of the tokens begin..end; None if they are begin..end."""
        import torch

        if self._positions is None:
            return None
        known = self._positions[:, begin:end]
        later = torch.arange(max(begin, self._prompt_tokens), max(end, self._prompt_tokens)) + self._shift
        return torch.cat([known, later.expand(len(known), -1)], dim=1)

    def rows(self, begin: int, end: int) -> MediaRows | None:
        """Return the rows of the tokens begin..end, with indices that count from `begin`; None without any."""
        import torch

        tokens: list[int] = []
        embeddings: list[Tensor] = []
        deepstack: list[Sequence[Tensor]] = []
        for one, image in zip(self._media, self._images, strict=True):
            first, last = bisect_left(one.positions, begin), bisect_left(one.positions, end)
            if first == last:
                continue
            features = self._encoder.features(image.key, image.inputs, image.token_id)
            tokens += [position - begin for position in one.positions[first:last]]
            embeddings.append(features.embeddings[first:last])
            deepstack.append([rows[first:last] for rows in features.deepstack])
        if not tokens:
            return None
        layers = tuple(torch.cat(rows) for rows in zip(*deepstack, strict=True))
        return MediaRows(tuple(tokens), torch.cat(embeddings), layers)

    def visible_ends(self, begin: int, end: int) -> tuple[list[int] | None, list[int] | None]:
        """Return the end of the tokens that each of begin..end sees, for layers without and with a window."""
        if not (self.sees_prompt or any(self._blocks)):
            return None, None
        ends = list(range(begin + 1, end + 1))
        for first, last in self._runs:
            for position in range(max(first, begin), min(last, end)):
                ends[position - begin] = last
        whole, windowed = (ends if sees or self.sees_prompt else None for sees in self._blocks)
        return whole, windowed

    def uncut(self, begin: int, count: int) -> int:
        """Return the number of tokens of a pass that begins at `begin`: tokens that see each other stay together."""
        if not (self.sees_prompt or any(self._blocks)):
            return count
        for first, last in self._runs:
            if first < begin + count < last:
                return first - begin if first > begin else last - begin
        return count

    def _all_positions(self, shapes: "Sequence[tuple[Tensor | None, int]]") -> "tuple[Tensor | None, int]":
        """Return the positions of the prompt, and what is added to an index to get the position after the prompt."""
        import torch

        axes = next((len(positions) for positions, _ in shapes if positions is not None), 0)
        if not axes:
            return None, 0
        parts, index, position = [], 0, 0
        for one, (relative, advance) in zip(self._media, shapes, strict=True):
            first = one.positions[0]
            parts.append(torch.arange(position, position + first - index).expand(axes, -1))
            position += first - index
            count = len(one.positions)
            parts.append(torch.arange(count).expand(axes, -1) + position if relative is None else relative + position)
            position, index = position + advance, first + count
        parts.append(torch.arange(position, position + self._prompt_tokens - index).expand(axes, -1))
        return torch.cat(parts, dim=1), position - index


def _runs(positions: Sequence[int]) -> list[tuple[int, int]]:
    """Return the runs of consecutive positions, each with its end."""
    if not positions:
        return []
    cuts = [n for n, (a, b) in enumerate(pairwise(positions), 1) if b != a + 1]
    return [(positions[a], positions[b - 1] + 1) for a, b in pairwise([0, *cuts, len(positions)])]
