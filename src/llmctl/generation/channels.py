"""Answers that consist of messages, each with a header that names a channel or a recipient.

The best-known format is harmony, of gpt-oss (github.com/openai/harmony):

    <|channel|>analysis<|message|>reasoning<|end|><|start|>assistant<|channel|>final<|message|>answer<|return|>
"""

import re
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llmctl.generation.marks import NAME, ObjectScanner, first_of, overlap
from llmctl.generation.reasoning import Segment, Splitter
from llmctl.generation.structured.lark import LarkWriter

_MAX_HEADER = 200  # characters


@dataclass(frozen=True)
class Channels:
    """The format of messages with headers.

    Attributes:
        starts: The texts before each header. The prompt ends with one.
        bodies: Marks that end a header, and whose text is part of it.
        ends: Marks that end a message.
        header: A pattern that matches a whole header.
        header_begun: A pattern that matches the beginning of a header.
        recipient: A pattern whose first group is the name of the recipient.
        reasoning: A pattern that is in the header of reasoning.
        final_header: The header of the answer, for constrained answers.
        reasoning_header: The header of reasoning, for constrained answers.
        preamble_header: The header of text before calls.
        call_header: The part of a call's header that is not in the call's format.
        is_spaced: True if the tokenizer writes a space after control tokens.
        json_calls: True if the message to a tool is a JSON object; otherwise, calls are marked within the text.
    """

    starts: tuple[str, ...]
    bodies: tuple[str, ...]
    ends: tuple[str, ...]
    header: str
    header_begun: str
    recipient: str
    reasoning: str
    final_header: str
    reasoning_header: str
    preamble_header: str = ""
    call_header: str = ""
    is_spaced: bool = False
    json_calls: bool = True

    @property
    def marks(self) -> Sequence[str]:
        """Texts that separate the parts."""
        return [*self.starts, *self.bodies, *self.ends, self.final_header, self.reasoning_header, "<|constrain|>"]

    def splitter(
        self, prompt_tail: str, interrupts: Sequence[str] = (), tools: Collection[str] = ()
    ) -> "ChannelSplitter":
        """Return a splitter for one answer. A message to any recipient but one of `tools` is text."""
        return ChannelSplitter(self, tools, self._header_of(prompt_tail))

    def _header_of(self, prompt_tail: str) -> str:
        """Return the beginning of the first message, which is in the prompt."""
        return min((prompt_tail.rpartition(start)[2] for start in self.starts), key=len)

    def prelude(
        self, prompt_tail: str, lark: LarkWriter, *, before_calls: bool = False, with_preamble: bool = False
    ) -> str:
        """Return the symbols for any reasoning and the header of the answer; empty within a message.

        Args:
            with_preamble: True to allow text before calls.
        """
        if first_of(self._header_of(prompt_tail), self.bodies)[1] is not None:
            return ""
        header = lark.literal(self.call_header if before_calls else self.final_header)
        header += f" {lark.space}" if self.is_spaced and not before_calls else ""
        if not self.reasoning_header:
            return header
        message = lark.until(self.ends[0] + self.starts[0])
        thought = f"{lark.literal(self.reasoning_header)} {message}"
        if with_preamble and self.preamble_header:
            return f"({thought} | {lark.literal(self.preamble_header)} {message})* {header}"
        return f"({thought})* {header}"

    def postlude(self, lark: LarkWriter, *, after_calls: bool = False) -> str:
        """Return an empty text: the answer ends with an end token."""
        return ""

    def free_text(self, lark: LarkWriter) -> str:
        """Return the symbol for the body of the answer."""
        return "TEXT"

    def recipient_of(self, header: str) -> str:
        """Return the name of a message's recipient, or an empty text."""
        found = re.search(self.recipient, header)
        return found[1] if found is not None else ""


class ChannelSplitter(Splitter):
    """Splits one answer into messages. Its state: the text held back, the current header, and the kind of its message.

    Args:
        form: The format.
        tools: The names of the tools.
        header: The part of the first header that is in the prompt.
    """

    def __init__(self, form: Channels, tools: Collection[str], header: str = "") -> None:
        self._form, self._tools = form, tools
        self._part: Literal["header", "body", "between"] = "header"
        self._kind: Literal["reasoning", "text", "call"] = "text"
        self._name, self._has_body = "", False  # the recipient of the current message, and True if text has come
        self._scanner, self._scanned = ObjectScanner(), 0  # the arguments of a call, and how much of the held text
        self._start = ""  # the mark before the header, if it may be text
        self._held = header
        self._given = len(header)  # characters of the held text that are in the prompt
        if header:
            list(self._header(final=False))

    def _step(self, *, final: bool) -> Generator[Segment, None, bool]:
        """Process the held text in the current part. Return True if the next part begins."""
        if self._part == "header":
            return (yield from self._header(final=final))
        if self._part == "body":
            return (yield from self._body(final=final))
        return self._between(final=final)

    def _header(self, *, final: bool) -> Generator[Segment, None, bool]:
        """Read a header. Text that is not a header is an answer without one."""
        at, mark = first_of(self._held[:_MAX_HEADER], self._form.bodies)
        header = self._held[: at + len(mark or "")]
        if mark is not None and re.fullmatch(self._form.header, header):
            yield from self._enter(header)
            return True
        if mark is None and len(header) < _MAX_HEADER and re.fullmatch(self._form.header_begun, header):
            if not final:
                return False
            if "<|" in header:  # the answer ends within a header
                self._held = ""
                return False
        yield from self._restore_start()
        self._kind, self._held, self._given, self._part = "text", self._held[self._given :], 0, "body"
        self._has_body = False
        return True

    def _enter(self, header: str) -> Iterator[Segment]:
        """Begin the message of a header."""
        form, name = self._form, self._form.recipient_of(header)
        is_call = form.json_calls and name in self._tools
        is_unknown = bool(name) and name not in (*self._tools, "all", "user", "self", "assistant")
        keeps_header = is_unknown and "<|" not in header  # without control tokens, it may be ordinary text
        if keeps_header:
            yield from self._restore_start()
        self._kind = "call" if is_call else "reasoning" if re.search(form.reasoning, header) else "text"
        self._held, self._given = self._held[self._given if keeps_header else len(header) :], 0
        self._name, self._part, self._start, self._has_body = (name if is_call else ""), "body", "", False
        self._scanner, self._scanned = ObjectScanner(), 0
        if is_call:
            yield Segment("recipient", "" if "<|" in header else header, name)

    def _restore_start(self) -> Iterator[Segment]:
        """Yield the mark before what turned out not to be a header."""
        if self._start:
            yield Segment("text", self._start)
        self._start = ""

    def _body(self, *, final: bool) -> Generator[Segment, None, bool]:
        marks = (*self._form.ends, *self._form.starts)
        at, mark = self._next_mark(marks)
        keep = 0 if final or mark is not None else max(overlap(self._held, one) for one in marks)
        end = at if mark is not None else len(self._held) - keep
        if text := self._unspaced(self._held[:end]):
            yield Segment(self._kind, text, self._name)
        self._has_body, self._scanned = self._has_body or end > 0, max(self._scanned - end, 0)
        self._held = self._held[end + len(mark or "") :]
        if mark is None:
            return False
        self._part = "header" if mark in self._form.starts else "between"
        self._start = mark if self._part == "header" and "<|" not in mark else ""
        return True

    def _next_mark(self, marks: Sequence[str]) -> tuple[int, str | None]:
        """Return the position and text of the first mark.

        A mark in a string of a call's arguments is text, and so is one anywhere in them that is not a control token.
        """
        start = 0
        while True:
            at, mark = first_of(self._held, marks, start)
            if self._kind == "call" and at > self._scanned and not self._scanner.is_whole:
                self._scanner.take(self._held[self._scanned : at])
                self._scanned = at
            is_text = self._scanner.is_in_string or (self._scanner.is_open and "<|" not in (mark or ""))
            if mark is None or self._kind != "call" or not is_text:
                return at, mark
            start = at + len(mark)

    def _unspaced(self, text: str) -> str:
        """Remove the space that some tokenizers write after the header."""
        return text.removeprefix(" ") if self._form.is_spaced and not self._has_body else text

    def _between(self, *, final: bool) -> bool:
        """Skip from the end of a message to the header of the next one."""
        text, starts = self._held.lstrip(), self._form.starts
        start = next((start for start in starts if text.startswith(start)), None)
        if start is not None:
            self._held, self._part = text[len(start) :], "header"
            return True
        if not final and any(start.startswith(text) for start in starts):
            return False
        self._held, self._part = text, "header"
        return True


def _begun(*literals: str) -> str:
    """Return a pattern for the beginnings of literals."""
    return "|".join(re.escape(literal[:end]) for literal in literals for end in range(1, len(literal)))


# Parts of headers. Each takes all it can, so that matching takes linear time.
_TO, _WORD = r"to=[^\s<]+(?![^\s<])\s*", r"\w+(?!\w)\s*"
_CHANNEL = rf"<\|channel\|>\s*{_WORD}"
_PARTS = rf"\s*(?:(?:{_TO}|{_CHANNEL})(?:{_TO}|{_CHANNEL}|<\|constrain\|>\s*|{_WORD})*)?"
_HARMONY = Channels(
    starts=("<|start|>assistant", "<|start|> assistant"),
    bodies=("<|message|>",),
    ends=("<|end|>", "<|call|>", "<|return|>"),
    header=rf"{_PARTS}<\|message\|>",
    header_begun=rf"{_PARTS}(?:{_begun('to=.', '<|channel|>', '<|constrain|>', '<|message|>')}|<\|channel\|>\s*)?",
    recipient=r"to=(?:functions\.)?([\w-]+)",
    reasoning=r"<\|channel\|>\s*analysis",
    final_header="<|channel|>final<|message|>",
    reasoning_header="<|channel|>analysis<|message|>",
    preamble_header="<|channel|>commentary<|message|>",
)
# LLM-jp: its tokenizer decodes control tokens with a space after them
_HARMONY_SPACED = replace(
    _HARMONY,
    starts=("<|start|> assistant", "<|start|>assistant"),
    final_header="<|channel|> final<|message|>",
    reasoning_header="<|channel|> analysis<|message|>",
    preamble_header="<|channel|> commentary<|message|>",
    is_spaced=True,
)
# Muse: recipients instead of channels, and calls in XML
_RECIPIENTS = Channels(
    starts=("<|start|>assistant",),
    bodies=("<|message|>",),
    ends=("<|eom|>", "<|eot|>"),
    header=rf"\s*(?:{_TO})?<\|message\|>",
    header_begun=rf"\s*(?:{_TO})?(?:{_begun('to=.', '<|message|>')})?",
    recipient=r"to=([\w-]+)",
    reasoning="to=self",
    final_header=" to=user<|message|>",
    reasoning_header=" to=self<|message|>",
    preamble_header=" to=user<|message|>",
    call_header=f" to={NAME}<|message|>",
    json_calls=False,
)
# Solar Open: the mark that ends the header names the kind
_SOLAR = Channels(
    starts=("<|begin|>assistant",),
    bodies=("<|think|>", "<|content|>"),
    ends=("<|end|>", "<|calls|>"),
    header=r"\s*(?:<\|think\|>|<\|content\|>)",
    header_begun=rf"\s*(?:{_begun('<|think|>', '<|content|>')})?",
    recipient=r"(?!)",
    reasoning=r"<\|think\|>",
    final_header="<|content|>",
    reasoning_header="<|think|>",
    json_calls=False,
)
# Functionary 3.2: the header is a name on a line of its own
_NAMED_LINES = Channels(
    starts=(">>>",),
    bodies=("\n",),
    ends=("<|eot_id|>",),
    header=r"[\w-]{1,64}\n",
    header_begun=r"[\w-]{0,64}",
    recipient=r"^([\w-]+)",
    reasoning=r"(?!)",
    final_header="all\n",
    reasoning_header="",
)


def channels_of(template: str) -> Channels | None:
    """Return the format of messages that the source of a template shows, or None."""
    if "<|channel|>" in template and "<|message|>" in template:
        return _HARMONY_SPACED if "<|constrain|> json" in template else _HARMONY
    if "to=self" in template and "<|message|>" in template:
        return _RECIPIENTS
    if "<|think|>" in template and "<|begin|>" in template:
        return _SOLAR
    if ">>>all" in template:
        return _NAMED_LINES
    return None
