"""Answers that consist of messages, each with a header that names a channel or a recipient.

The best-known format is harmony, of gpt-oss (github.com/openai/harmony):

    <|channel|>analysis<|message|>reasoning<|end|><|start|>assistant<|channel|>final<|message|>answer<|return|>
"""

import re
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from llmctl.generation.reasoning import Segment, first_of, overlap
from llmctl.generation.structured.lark import LarkWriter

_MAX_HEADER = 200  # characters
NAME = "\ue003"  # stands for the name of a tool in a header


@dataclass(frozen=True)
class Channels:
    """The format of messages with headers.

    Attributes:
        start: The text before each header. The prompt ends with that of the first message.
        bodies: Marks that end a header, and whose text is part of it.
        ends: Marks that end a message.
        header: A pattern that matches a whole header.
        header_begun: A pattern that matches the beginning of a header.
        recipient: A pattern whose first group is the name of the recipient.
        reasoning: A pattern that is in the header of reasoning.
        final_header: The header of the answer, for constrained answers.
        reasoning_header: The header of reasoning, for constrained answers.
        call_header: The part of a call's header that is not in the call's format.
        json_calls: True if the message to a tool is a JSON object; otherwise, calls are marked within the text.
    """

    start: str
    bodies: tuple[str, ...]
    ends: tuple[str, ...]
    header: str
    header_begun: str
    recipient: str
    reasoning: str
    final_header: str
    reasoning_header: str
    call_header: str = ""
    json_calls: bool = True

    @property
    def marks(self) -> Sequence[str]:
        """Texts that separate the parts."""
        return [self.start, *self.bodies, *self.ends, self.final_header, self.reasoning_header, "<|constrain|>"]

    def splitter(
        self, prompt_tail: str, interrupts: Sequence[str] = (), tools: Collection[str] = ()
    ) -> "ChannelSplitter":
        """Return a splitter for one answer. A message to any recipient but one of `tools` is text."""
        return ChannelSplitter(self, tools, prompt_tail.rpartition(self.start)[2])

    def prelude(self, prompt_tail: str, lark: LarkWriter, *, before_calls: bool = False) -> str:
        """Return the symbols for any reasoning and the header of the answer; empty within a message."""
        if first_of(prompt_tail.rpartition(self.start)[2], self.bodies)[1] is not None:
            return ""
        header = lark.literal(self.call_header if before_calls else self.final_header)
        if not self.reasoning_header:
            return header
        if not lark.has("reasoning"):
            lark.add_until("reasoning_body", self.ends[0] + self.start)
            lark.add(f"reasoning: {lark.literal(self.reasoning_header)} reasoning_body")
        return f"reasoning* {header}".strip()

    def recipient_of(self, header: str) -> str:
        """Return the name of a message's recipient, or an empty text."""
        found = re.search(self.recipient, header)
        return found[1] if found is not None else ""


class ChannelSplitter:
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
        self._name = ""
        self._held = header
        self._given = len(header)  # characters of the held text that are in the prompt
        if header:
            list(self._header(final=False))

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
        if self._part == "header":
            return (yield from self._header(final=final))
        if self._part == "body":
            return (yield from self._body(final=final))
        return self._between(final=final)

    def _header(self, *, final: bool) -> Generator[Segment, None, bool]:
        """Read a header. Text that is not a header is an answer without one."""
        at, mark = first_of(self._held, self._form.bodies)
        header = self._held[: at + len(mark or "")]
        if mark is not None and re.fullmatch(self._form.header, header):
            yield from self._enter(header)
            return True
        if mark is None and not final and len(header) <= _MAX_HEADER and re.fullmatch(self._form.header_begun, header):
            return False
        self._kind, self._held, self._part = "text", self._held[self._given :], "body"
        self._given = 0
        return True

    def _enter(self, header: str) -> Iterator[Segment]:
        """Begin the message of a header."""
        form, name = self._form, self._form.recipient_of(header)
        is_call = form.json_calls and name in self._tools
        self._kind = "call" if is_call else "reasoning" if re.search(form.reasoning, header) else "text"
        is_unknown = bool(name) and name not in (*self._tools, "all", "user", "self", "assistant")
        keeps_header = is_unknown and "<|" not in header  # without control tokens, it may be ordinary text
        self._name = name if is_call else ""
        self._held, self._given, self._part = self._held[0 if keeps_header else len(header) :], 0, "body"
        if is_call:
            yield Segment("call", "", name)

    def _body(self, *, final: bool) -> Generator[Segment, None, bool]:
        marks = (*self._form.ends, self._form.start)
        at, mark = first_of(self._held, marks)
        keep = 0 if final or mark is not None else max(overlap(self._held, one) for one in marks)
        end = at if mark is not None else len(self._held) - keep
        if self._held[:end]:
            yield Segment(self._kind, self._held[:end], self._name)
        self._held = self._held[end + len(mark or "") :]
        if mark is None:
            return False
        self._part = "header" if mark == self._form.start else "between"
        return True

    def _between(self, *, final: bool) -> bool:
        """Skip from the end of a message to the header of the next one."""
        text = self._held.lstrip()
        if text.startswith(self._form.start):
            self._held, self._part = text[len(self._form.start) :], "header"
            return True
        if not final and self._form.start.startswith(text):
            return False
        self._held, self._part = text, "header"
        return True


_HARMONY = Channels(
    start="<|start|>assistant",
    bodies=("<|message|>",),
    ends=("<|end|>", "<|call|>", "<|return|>"),
    header=r"\s*(?:to=\S+?)?\s*(?:<\|channel\|>\w+)?\s*(?:to=\S+)?\s*(?:<\|constrain\|>)?\s*\w*\s*<\|message\|>",
    header_begun=r"\s*(?:<.*|to=.*|to?)?",
    recipient=r"to=(?:functions\.)?([\w-]+)",
    reasoning=r"<\|channel\|>analysis",
    final_header="<|channel|>final<|message|>",
    reasoning_header="<|channel|>analysis<|message|>",
)
# Muse: recipients instead of channels, and calls in XML
_RECIPIENTS = Channels(
    start="<|start|>assistant",
    bodies=("<|message|>",),
    ends=("<|eom|>", "<|eot|>"),
    header=r"\s*(?:to=\S+?)?\s*<\|message\|>",
    header_begun=r"\s*(?:<.*|to=.*|to?)?",
    recipient=r"to=([\w-]+)",
    reasoning="to=self",
    final_header=" to=user<|message|>",
    reasoning_header=" to=self<|message|>",
    call_header=f" to={NAME}<|message|>",
    json_calls=False,
)
# Solar Open: the mark that ends the header names the kind
_SOLAR = Channels(
    start="<|begin|>assistant",
    bodies=("<|think|>", "<|content|>"),
    ends=("<|end|>", "<|calls|>"),
    header=r"\s*(?:<\|think\|>|<\|content\|>)",
    header_begun=r"\s*(?:<.*)?",
    recipient=r"(?!)",
    reasoning=r"<\|think\|>",
    final_header="<|content|>",
    reasoning_header="<|think|>",
    json_calls=False,
)
# Functionary 3.2: the header is a name on a line of its own
_NAMED_LINES = Channels(
    start=">>>",
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
        return _HARMONY
    if "to=self" in template and "<|message|>" in template:
        return _RECIPIENTS
    if "<|think|>" in template and "<|begin|>" in template:
        return _SOLAR
    if ">>>all" in template:
        return _NAMED_LINES
    return None
