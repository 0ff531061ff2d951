"""Separate the reasoning that a model writes before its answer from the answer, as the text arrives."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

# the tags of reasoning models; an opening tag is recognised only at the beginning of an answer
TAGS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
}


class Piece(NamedTuple):
    """A piece of an answer's text or of its reasoning."""

    kind: Literal["answer", "reasoning"]
    text: str


class ReasoningSplitter:
    """Separates the reasoning of one answer. Its state: the text held back, and the open tag.

    Args:
        prompt_tail: The end of the prompt as text, since some templates write the opening tag.
    """

    def __init__(self, prompt_tail: str = "") -> None:
        self._closing = closing_of(prompt_tail)
        self._at_start = self._closing is None
        self._held = ""
        self._strip = False

    def add(self, text: str) -> Iterator[Piece]:
        """Add text and yield the pieces that are known to be answer or reasoning."""
        self._held += text
        if self._at_start:
            self._open()
        if self._at_start:
            return
        if self._closing is not None:
            before, tag, after = self._held.partition(self._closing)
            keep = 0 if tag else overlap(before, self._closing)
            if before[: len(before) - keep]:
                yield Piece("reasoning", before[: len(before) - keep])
            self._held = after if tag else before[len(before) - keep :]
            if not tag:
                return
            self._closing, self._strip = None, True
        yield from self._answer()

    def finish(self) -> Iterator[Piece]:
        """End the text and yield the part that was held back."""
        rest, self._held = self._held, ""
        if rest:
            yield Piece("reasoning" if self._closing else "answer", rest)

    def _open(self) -> None:
        """Detect an opening tag at the beginning of the answer as soon as it is complete."""
        text = self._held.lstrip()
        opening = next((tag for tag in TAGS if text.startswith(tag)), None)
        if opening is not None:
            self._closing, self._held = TAGS[opening], text[len(opening) :]
        self._at_start = opening is None and any(tag.startswith(text) for tag in TAGS)

    def _answer(self) -> Iterator[Piece]:
        text = self._held.lstrip() if self._strip else self._held
        self._held = ""
        if text:
            self._strip = False
            yield Piece("answer", text)


def closing_of(prompt_tail: str) -> str | None:
    """Return the closing tag of the reasoning that a prompt opens, or None."""
    return next((end for start, end in TAGS.items() if prompt_tail.rstrip().endswith(start)), None)


def overlap(text: str, tag: str) -> int:
    """Return the length of the longest end of `text` that could be the beginning of `tag`."""
    return next((n for n in range(min(len(text), len(tag) - 1), 0, -1) if tag.startswith(text[-n:])), 0)
