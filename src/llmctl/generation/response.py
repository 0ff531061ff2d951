"""The rules by which one answer is split into reasoning, text and tool calls, and constrained.

All paths use them: generate, chat, batches and the server.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmctl.config import ChatSection
from llmctl.generation.channels import channels_of
from llmctl.generation.control_tokens import added_tokens
from llmctl.generation.pieces import Piece, ReasoningDelta, TextDelta
from llmctl.generation.prompt import Prompt, template_source
from llmctl.generation.reasoning import ReasoningFormat, Segment, tagged_reasoning
from llmctl.generation.structured.constraint import tokens_named_by_id
from llmctl.generation.structured.lark import LarkWriter
from llmctl.generation.structured.structure import Structure
from llmctl.generation.tools import ToolUse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TAIL_TOKENS = 32  # enough to detect that the template opens reasoning or the header of a message


@dataclass(frozen=True)
class ResponseRules:
    """The rules for one answer.

    Attributes:
        reasoning: The format of reasoning.
        prompt_tail: The end of the prompt as text.
        prefill: The beginning of the answer, which is in the prompt.
        tools: The tools of the request, or None.
        shown_tokens: Special tokens that mark the parts of an answer, so that they must stay in its text.
    """

    reasoning: ReasoningFormat
    prompt_tail: str
    prefill: str
    tools: ToolUse | None
    shown_tokens: frozenset[int]

    def splitter(self) -> "ResponseSplitter":
        """Return a splitter for the answer."""
        splitter = ResponseSplitter(self)
        if self.prefill:
            splitter.add(self.prefill)
        return splitter

    def structure(self, tokenizer: "PreTrainedTokenizerBase", structure: Structure | None) -> Structure | None:
        """Return the structure of the whole answer: reasoning, which is free, then tool calls or `structure`.

        Args:
            structure: The structure of the text after reasoning, or None.
        """
        special = tokens_named_by_id(tokenizer) if structure or (self.tools and self.tools.is_exact) else {}
        if self.tools is not None and self.tools.is_exact:
            return self.tools.structure(self.reasoning, self.prompt_tail, special)
        if structure is None or self.prefill:
            return structure
        lark = LarkWriter(special)
        before, after = self.reasoning.prelude(self.prompt_tail, lark), self.reasoning.postlude(lark)
        return structure.after(lark.text(f"{before} @answer {after}")) if before or after else structure


def response_rules(
    tokenizer: "PreTrainedTokenizerBase", chat: ChatSection, prompt: Prompt, tools: ToolUse | None = None
) -> ResponseRules:
    """Return the rules for the answer to a prompt that a chat template wrote.

    Raises:
        UserError: the template's file cannot be read.
    """
    ids = list(prompt.ids[-_TAIL_TOKENS - len(prompt.prefill) :])
    tail, prefill = str(tokenizer.decode(ids)).rstrip(), prompt.prefill.strip()  # templates may strip messages
    tail = tail.removesuffix(prefill) if prefill else str(tokenizer.decode(ids))
    tools = tools if tools is not None and tools.tools else None
    source, tokens = template_source(tokenizer, chat, with_tools=tools is not None), added_tokens(tokenizer)
    reasoning: ReasoningFormat = channels_of(source) or tagged_reasoning(source + tail, tokens.text)
    marks = "\0".join([*reasoning.marks, *(tools.form.marks if tools else ())])
    shown = frozenset(id_ for content, id_ in tokens.special.items() if content in marks)
    return ResponseRules(reasoning, tail, prefill, tools, shown)


class ResponseSplitter:
    """Splits one answer into pieces while it arrives. Its state: the text held back, and the current call."""

    def __init__(self, rules: ResponseRules) -> None:
        tools = rules.tools
        self._calls = tools.splitter() if tools else None
        # Kimi's models may call a tool without closing their reasoning; others may quote a call in it
        interrupts = [tools.form.open] if tools and tools.form.name == "kimi" else []
        names = tools.names if tools else []
        self._segments = rules.reasoning.splitter(rules.prompt_tail, interrupts, names)
        self._call: Segment | None = None  # the header of a call in a message of its own
        self._arguments: list[str] = []

    @property
    def call_count(self) -> int:
        """The number of calls so far."""
        return 0 if self._calls is None else self._calls.call_count

    def add(self, text: str) -> list[Piece]:
        """Add new text. Return the pieces that are final."""
        return [piece for segment in self._segments.add(text) for piece in self._pieces(segment)]

    def finish(self) -> list[Piece]:
        """End the answer. Return the pieces of the text held back."""
        pieces = [piece for segment in self._segments.finish() for piece in self._pieces(segment)]
        pieces += self._end_of_call()
        return pieces + (self._calls.finish() if self._calls is not None else [])

    def _pieces(self, segment: Segment) -> Iterator[Piece]:
        if segment.kind == "call":
            self._arguments.append(segment.text)
            return
        yield from self._end_of_call()
        if segment.kind == "recipient":
            self._call = segment
        elif segment.kind == "reasoning":
            yield ReasoningDelta(segment.text)
        elif self._calls is None:
            yield TextDelta(segment.text)
        else:
            yield from self._calls.add(segment.text)

    def _end_of_call(self) -> Iterator[Piece]:
        """Yield the call whose message has ended."""
        if self._call is not None and self._calls is not None:
            yield from self._calls.add_call(self._call.name, "".join(self._arguments), header=self._call.text)
        self._call, self._arguments = None, []
