"""Separate the reasoning that a model writes before its answer from the answer, as the text arrives.

The tokens in a chat template select the format: reasoning between two tags, or messages whose headers name a channel
or a recipient (`channels`).
"""

from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from llmctl.generation.marks import first_of, overlap
from llmctl.generation.structured.lark import LarkWriter

_MAX_SPACE = 8  # characters of white space before an opening tag


class Segment(NamedTuple):
    """A piece of an answer.

    Attributes:
        kind: Reasoning, text that may contain calls, the header of a call, or a piece of its arguments.
        text: The text of the piece. That of a header is empty if the header cannot be ordinary text.
        name: The name of the tool, for the parts of a call.
    """

    kind: Literal["reasoning", "text", "recipient", "call"]
    text: str
    name: str = ""


class Splitter:
    """Splits one answer into segments, part by part. Its state: the text held back."""

    _held = ""

    def add(self, text: str) -> Iterator[Segment]:
        """Add text and yield the segments that are final."""
        self._held += text
        while self._held and (yield from self._step(final=False)):
            pass

    def finish(self) -> Iterator[Segment]:
        """End the text and yield the part that was held back."""
        while self._held and (yield from self._step(final=True)):
            pass

    def _step(self, *, final: bool) -> Generator[Segment, None, bool]:
        """Process the held text in the current part. Return True if the next part begins."""
        raise NotImplementedError


class ReasoningFormat(Protocol):
    """The format in which a model separates reasoning from its answer."""

    @property
    def marks(self) -> Sequence[str]:
        """Texts that separate the parts. Special tokens in them must not be removed from the answer."""

    def splitter(self, prompt_tail: str, interrupts: Sequence[str] = (), tools: Collection[str] = ()) -> Splitter:
        """Return a splitter for one answer.

        Args:
            prompt_tail: The end of the prompt as text, since some templates open the reasoning.
            interrupts: Control tokens that end reasoning without its closing mark: those that open calls.
            tools: The names of the tools that the model may call.
        """

    def prelude(self, prompt_tail: str, lark: LarkWriter, *, before_calls: bool = False) -> str:
        """Add rules for everything before a constrained answer. Return their symbols; empty if there is nothing.

        Args:
            prompt_tail: The end of the prompt as text.
            lark: The grammar.
            before_calls: True if tool calls follow, and not text.
        """

    def postlude(self, lark: LarkWriter, *, after_calls: bool = False) -> str:
        """Return the symbols for what may follow a constrained answer; empty if there is nothing.

        Args:
            after_calls: True if the answer is tool calls.
        """

    def free_text(self, lark: LarkWriter) -> str:
        """Return the symbols for an answer without a structure, after `prelude`."""


@dataclass(frozen=True)
class Tags:
    """Reasoning between two tags, followed by the answer.

    Attributes:
        open: The opening tag. Unless it is a control token, it is recognised only at the beginning of an answer.
        close: The closing tag.
        is_control: True if the tags are control tokens, which ordinary text cannot contain.
        wrapper: Marks before and after the answer, which are not part of it.
        dropped: Other marks that are not part of the answer.
    """

    open: str
    close: str
    is_control: bool = False
    wrapper: tuple[str, str] = ("", "")
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaggedReasoning:
    """Reasoning between tags: one pair if the template shows which, otherwise all known pairs."""

    tags: tuple[Tags, ...]

    @property
    def marks(self) -> Sequence[str]:
        """Texts that separate the parts."""
        return [mark for tags in self.tags for mark in (tags.open, tags.close, *tags.wrapper, *tags.dropped) if mark]

    def splitter(self, prompt_tail: str, interrupts: Sequence[str] = (), tools: Collection[str] = ()) -> "TagSplitter":
        """Return a splitter for one answer."""
        opened = self._opened_by(prompt_tail)
        end = prompt_tail.rstrip()
        is_after = opened is None and any(end.endswith(tags.close.rstrip()) for tags in self.tags)
        wrappers = [tags.wrapper for tags in self.tags if tags.wrapper[0] and end.endswith(tags.wrapper[0])]
        wrapper = wrappers[0] if wrappers else None
        return TagSplitter(self.tags, opened, interrupts, is_after=is_after, wrapper=wrapper)

    def prelude(self, prompt_tail: str, lark: LarkWriter, *, before_calls: bool = False) -> str:
        """Return the symbols for reasoning and for the mark before the answer.

        Reasoning is optional unless the prompt opens it. It is not allowed after a prompt that ends it, and if the
        template does not show its tags.
        """
        opened = self._opened_by(prompt_tail)
        tags, end = opened or self.tags[0], prompt_tail.rstrip()
        if len(self.tags) > 1 and opened is None:
            return lark.space if before_calls else ""
        is_in_wrapper = bool(tags.wrapper[0]) and end.endswith(tags.wrapper[0])
        mark = tags.wrapper[int(before_calls)] if is_in_wrapper == before_calls else ""
        wrapper = f"({lark.literal(mark)})?" if mark else ""
        if before_calls and tags.dropped and not is_in_wrapper:  # an empty answer before the calls
            wrapper = f"({lark.literal(tags.wrapper[0])} {lark.literal(tags.wrapper[1])})?"
        if is_in_wrapper or (opened is None and end.endswith(tags.close.rstrip())):
            return f"{lark.space} {wrapper}"
        reasoning = lark.until(tags.close)
        thought = reasoning if opened else f"({lark.space} {lark.literal(tags.open)} {reasoning})?"
        return f"{thought} {lark.space} {wrapper}"

    def postlude(self, lark: LarkWriter, *, after_calls: bool = False) -> str:
        """Return the symbols for the marks after the answer."""
        tags = self.tags[0]
        marks = (*([] if after_calls else [tags.wrapper[1]]), *tags.dropped)
        return " ".join(f"({lark.literal(mark)})?" for mark in marks if mark)

    def free_text(self, lark: LarkWriter) -> str:
        """Return the symbols for an answer without a structure."""
        opened = self.tags[0].wrapper[0]
        return f"({lark.literal(opened)})? TEXT {self.postlude(lark)}" if opened else "TEXT"

    def _opened_by(self, prompt_tail: str) -> Tags | None:
        """Return the tags whose reasoning a prompt has opened, or None."""
        end = prompt_tail.rstrip()
        return next((tags for tags in self.tags if end.endswith(tags.open.rstrip())), None)


class TagSplitter(Splitter):
    """Splits one answer at tags. Its state: the text held back, and the part of the answer that it belongs to.

    Args:
        tags: The possible tags.
        opened: The tags that the prompt has opened, or None.
        interrupts: Control tokens that end reasoning without its closing tag.
        is_after: True if the prompt ends after the reasoning.
        wrapper: The wrapper that the prompt has opened, or None.
    """

    def __init__(
        self,
        tags: Sequence[Tags],
        opened: Tags | None,
        interrupts: Sequence[str],
        *,
        is_after: bool = False,
        wrapper: tuple[str, str] | None = None,
    ) -> None:
        self._interrupts = tuple(interrupts)
        self._reopening = {one.open: one for one in tags if one.is_control}
        self._wrappers = {one.wrapper[0]: one.wrapper[1] for one in tags if one.wrapper[0]}
        self._opening = {one.open: one for one in tags}  # tags that may open reasoning at the beginning
        self._closing: tuple[str, ...] = () if is_after else tuple(one.close for one in tags)
        self._opened = opened
        self._part: Literal["start", "reasoning", "answer"] = "start" if opened is None else "reasoning"
        self._held = ""
        self._drops_space = is_after  # white space between reasoning and answer is dropped
        self._wrapper_end = ""
        wrapping = [mark for one in tags if one.is_control for mark in one.wrapper if mark]
        self._dropped = (*wrapping, *(mark for one in tags for mark in one.dropped))
        if wrapper is not None:
            self._part, self._wrapper_end = "answer", wrapper[1]

    def _step(self, *, final: bool) -> Generator[Segment, None, bool]:
        """Process the held text in the current part. Return True if the next part begins."""
        if self._part == "start":
            return self._start(final=final)
        if self._part == "reasoning":
            return (yield from self._reasoning(final=final))
        return (yield from self._answer(final=final))

    def _start(self, *, final: bool) -> bool:
        """Detect a mark at the beginning of the answer as soon as it is complete."""
        text, marks = self._held.lstrip(), [*self._opening, *self._closing, *self._wrappers]
        mark = next((mark for mark in marks if text.startswith(mark)), None)
        if mark is not None:
            self._held = text[len(mark) :]
            self._enter(mark)
            return True
        may_begin = any(mark.startswith(text) for mark in marks) and len(self._held) - len(text) <= _MAX_SPACE
        if not final and (may_begin or (self._drops_space and not text)):
            return False
        if self._drops_space:
            self._held = text
        self._part = "answer"
        return True

    def _enter(self, mark: str) -> None:
        """Begin the part that a mark opens. A closing tag alone ends empty reasoning."""
        if mark in self._closing:
            self._closing, self._opening, self._drops_space = (), {}, True
            return
        if mark in self._wrappers:
            self._part, self._wrapper_end = "answer", self._wrappers[mark]
        else:
            self._part, self._opened = "reasoning", self._opening.get(mark) or self._reopening[mark]

    def _reasoning(self, *, final: bool) -> Generator[Segment, None, bool]:
        assert self._opened is not None  # noqa: S101
        mark = yield from self._release("reasoning", (self._opened.close, *self._interrupts), final=final)
        if mark is None:
            return False
        if mark != self._opened.close:
            self._held = mark + self._held
        self._part, self._drops_space, self._opening, self._closing = "start", True, {}, ()
        if not self._opened.wrapper[0]:
            self._wrapper_end = self._opened.wrapper[1]
        return True

    def _answer(self, *, final: bool) -> Generator[Segment, None, bool]:
        marks = (*self._reopening, *self._dropped, *([self._wrapper_end] if self._wrapper_end else []))
        mark = yield from self._release("text", marks, final=final)
        if mark is None:
            return False
        if mark in self._reopening:
            self._enter(mark)
        return True

    def _release(
        self, kind: Literal["reasoning", "text"], marks: Sequence[str], *, final: bool
    ) -> Generator[Segment, None, str | None]:
        """Yield the held text up to the first mark. Return the mark, which is removed; None if there is none yet."""
        at, mark = first_of(self._held, marks)
        keep = 0 if final or mark is not None else max((overlap(self._held, mark) for mark in marks), default=0)
        end = at if mark is not None else len(self._held) - keep
        if self._held[:end]:
            yield Segment(kind, self._held[:end])
        self._held = self._held[end + len(mark or "") :]
        return mark


_KIMI_K3 = Tags(
    "<|open|>think<|sep|>",
    "<|close|>think<|sep|>",
    True,
    ("<|open|>response<|sep|>", "<|close|>response<|sep|>"),
    ("<|close|>message<|sep|>",),
)
# The tags of families, by a token that is in their templates. The first row that matches is used.
_FAMILIES: tuple[tuple[str, Tags], ...] = (
    (
        "<|START_RESPONSE|>",
        Tags("<|START_THINKING|>", "<|END_THINKING|>", True, ("<|START_RESPONSE|>", "<|END_RESPONSE|>")),
    ),
    ("<|START_THINKING|>", Tags("<|START_THINKING|>", "<|END_THINKING|>", True, ("<|START_TEXT|>", "<|END_TEXT|>"))),
    (
        "[BEGIN FINAL RESPONSE]",
        Tags("Here are my reasoning steps:\n", "[BEGIN FINAL RESPONSE]", False, ("", "[END FINAL RESPONSE]")),
    ),
    ("<|open|>think<|sep|>", _KIMI_K3),
    ("<|open|>response<|sep|>", _KIMI_K3),
    ("<|channel>", Tags("<|channel>thought\n", "<channel|>", True)),
    ("<|inner_prefix|>", Tags("<|inner_prefix|>", "<|inner_suffix|>", True)),
    ("[THINK]", Tags("[THINK]", "[/THINK]", True)),
    (":opensource", Tags("<think:opensource>", "</think:opensource>")),
    ("<seed:think>", Tags("<seed:think>", "</seed:think>")),
    ("<mm:think>", Tags("<mm:think>", "</mm:think>")),
    ("<response></response>", Tags("<think>", "</think>", False, ("<response>", "</response>"))),
    ("</thinking>", Tags("<thinking>", "</thinking>")),
    ("</think>", Tags("<think>", "</think>")),
)
# Templates that do not mention reasoning may belong to models that reason nevertheless.
_ANY = TaggedReasoning(
    tuple(Tags(f"<{name}>", f"</{name}>") for name in ("think", "thinking", "thought", "reasoning", "seed:think"))
)


def tagged_reasoning(*sources: str) -> TaggedReasoning:
    """Return the tags that the first of several texts shows: a template's source, a prompt's end, a vocabulary."""
    for source in sources:
        for token, tags in _FAMILIES:
            if token in source:
                return TaggedReasoning((tags,))
    return _ANY
