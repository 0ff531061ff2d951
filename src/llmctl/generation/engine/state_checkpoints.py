"""Copies of recurrent states, so that a later sequence with the same prefix need not compute it again.

Keys and values can be cut back to any token, a recurrent state cannot. So copies of it are kept at the ends of
messages, of passes and of answers. A sequence continues from the last copy whose tokens all match its own.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

_MESSAGE_ENDS = 2  # of the last messages of a prompt: an edited or repeated turn begins after one of them


@dataclass(frozen=True)
class Checkpoint:
    """A copy of a sequence's recurrent state.

    Attributes:
        tokens: Number of tokens that the state has seen.
        slot: The slot that holds the copy.
    """

    tokens: int
    slot: int


class StateCheckpoints:
    """The checkpoints of an engine. Its state: the checkpoints by a digest of their tokens, least recently used first.

    Args:
        slots: The slots for copies.
    """

    def __init__(self, slots: Sequence[int]) -> None:
        self._free = list(slots)
        self._kept: OrderedDict[bytes, Checkpoint] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def limit(self, count: int) -> None:
        """Keep at most `count` checkpoints from now on. Call it before the first one is kept."""
        del self._free[max(1, count) :]

    def find(self, ids: Sequence[int], *, salt: bytes = b"") -> Iterator[Checkpoint]:
        """Yield the checkpoints of prefixes of `ids`, the longest first."""
        lengths = {checkpoint.tokens for checkpoint in self._kept.values() if checkpoint.tokens <= len(ids)}
        for digest in reversed(_digests(ids, sorted(lengths), salt)):
            if digest in self._kept:
                self._kept.move_to_end(digest)
                yield self._kept[digest]

    def keep(self, ids: Sequence[int], *, salt: bytes = b"") -> int | None:
        """Record a checkpoint after `ids` and return its slot, to which the caller copies the state.

        Return None if there is one already. The least recently used checkpoint makes room.
        """
        digest = _digests(ids, [len(ids)], salt)[0]
        if digest in self._kept:
            self._kept.move_to_end(digest)
            return None
        slot = self._free.pop() if self._free else self._kept.popitem(last=False)[1].slot
        self._kept[digest] = Checkpoint(len(ids), slot)
        return slot


def checkpoint_positions(ids: Sequence[int], end_tokens: Collection[int]) -> tuple[int, ...]:
    """Return the numbers of tokens of a prompt after which its state is kept: the ends of its last messages.

    A prompt without messages is kept up to its last token, whose logits a repetition needs again.

    Args:
        end_tokens: The tokens that end a message.
    """
    ends = [n for n, token in enumerate(ids[:-1], 1) if token in end_tokens]
    return tuple(ends[-_MESSAGE_ENDS:]) or ((len(ids) - 1,) if len(ids) > 1 else ())


def _digests(ids: Sequence[int], lengths: Sequence[int], salt: bytes) -> list[bytes]:
    """Return a digest of the salt and the first tokens for each length, in ascending order."""
    digests, start, hasher = [], 0, hashlib.blake2b(salt, digest_size=16)
    for length in lengths:
        hasher.update(array("q", ids[start:length]).tobytes())
        digests.append(hasher.copy().digest())
        start = length
    return digests
