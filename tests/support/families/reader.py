"""Sample requests, and how llmctl reads and constrains their answers with a family's template."""

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher

from llmctl.config import ChatSection
from llmctl.generation.detokenizer import TextAssembler
from llmctl.generation.pieces import Piece, assemble
from llmctl.generation.prompt import encode_prompt
from llmctl.generation.response import ResponseRules, response_rules
from llmctl.generation.structured.constraint import _vocabulary, exact_decoder
from llmctl.generation.structured.structure import Structure
from llmctl.generation.tools import tool_use
from support.families.table import Family
from support.families.writing import Call

OPTIONS = {
    "type": "object",
    "description": "Options",
    "properties": {
        "unit": {"type": "string", "description": "The unit"},
        "hours": {"type": "array", "description": "The hours", "items": {"type": "integer"}},
    },
    "additionalProperties": False,
}
WEATHER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "The city"},
        "days": {"type": "integer", "description": "The number of days"},
        "opts": OPTIONS,
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TIME_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "The city"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Call = ("get_weather", {"city": "Rome", "days": 3, "opts": {"unit": "C", "hours": [9, 15]}})
TIME: Call = ("get_time", {"city": "Oslo"})
WRONG: Call = ("get_weather", {"city": "Rome", "days": "soon"})
UNKNOWN: Call = ("get_money", {"city": "Rome"})
REASON = "The user asks about Rome.\nI should look."
TEXT = "One moment, please."
ANSWER = "It is sunny: 21 degrees."
SYSTEM = "Be kind to everyone."
USER = {"role": "user", "content": "How is Rome?"}
RESULT = "sunny and 21"
JSON = '{"answer": 42}'
JSON_SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "integer"}},
    "required": ["answer"],
    "additionalProperties": False,
}
_SPECIAL = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>\s]{1,40}｜>|<\|[a-z_\"]{1,20}\|?>|<[a-z_]{1,20}\|>|\[/?[A-Z_]{3,20}\]"
)
_ADDED = re.compile(r"</?(?:think|tool_call|tool_response|arg_key|arg_value)>")


class CheckError(AssertionError):
    """A check failed."""


def expect(condition: object, message: str) -> None:
    """Raise CheckError if a condition does not hold."""
    if not condition:
        raise CheckError(message)


def tool(name: str, parameters: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return a tool in OpenAI's format."""
    function = {"name": name, "description": f"The tool {name}.", "parameters": dict(parameters), **more}
    return {"type": "function", "function": function}


TOOLS = [tool("get_weather", WEATHER_SCHEMA), tool("get_time", TIME_SCHEMA)]
STRICT = [tool("get_weather", WEATHER_SCHEMA, strict=True), tool("get_time", TIME_SCHEMA, strict=True)]


def with_template(tokenizer: Any, template: str, family: Family) -> Any:
    """Return a tokenizer with a template, and with the special tokens that a real tokenizer of the family has."""
    written = [family.write([WEATHER, TIME]), *(text for mode in family.modes for text in (mode.think, mode.answer))]
    text = "\n".join([template, *written])
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    changed.add_special_tokens(
        {"additional_special_tokens": sorted({*_SPECIAL.findall(text), *family.special} - set(_ADDED.findall(text)))}
    )
    changed.add_tokens(sorted(set(_ADDED.findall(text))))
    return changed


@dataclass(frozen=True)
class Answer:
    """The parts into which llmctl split an answer."""

    text: str
    reasoning: str
    calls: tuple[Call, ...]


class Reader:
    """One request: its prompt, and how its answers are read and constrained.

    Args:
        arguments: The arguments of the template.
        messages: The conversation.
        tools: The tools; empty for a request without tools.
    """

    def __init__(
        self,
        tokenizer: Any,
        arguments: Mapping[str, Any],
        messages: Sequence[Mapping[str, Any]] = (USER,),
        tools: Sequence[Mapping[str, Any]] = (),
        **options: Any,
    ) -> None:
        self.tokenizer, chat = tokenizer, ChatSection(template_kwargs=dict(arguments))
        use = tool_use(tokenizer, chat, tools, **options)
        conversation, more = use.conversation(messages)
        prompt = encode_prompt(tokenizer, conversation, chat, **more)
        self.prompt = str(tokenizer.decode(list(prompt.ids)))
        self.rules: ResponseRules = response_rules(tokenizer, chat, prompt, use if tools else None)

    def read(self, text: str) -> Answer:
        """Return the parts of an answer, streamed by token."""
        return _answer(self._pieces(self._tokens(text)))

    def read_whole_and_by_character(self, text: str) -> tuple[Answer, Answer]:
        """Return the parts of an answer that arrives at once, and by character."""
        shown = "".join(self._tokens(text))
        return _answer(self._pieces([shown])), _answer(self._pieces(shown))

    def _tokens(self, text: str) -> Iterator[str]:
        """Yield the text as it is decoded."""
        decode = exact_decoder(self.tokenizer, shown=self.rules.shown_tokens)
        assembler = TextAssembler(self.tokenizer, decode=decode)
        for token in self.tokenizer(text, add_special_tokens=False)["input_ids"]:
            yield assembler.add(token)
        yield assembler.finish()

    def _pieces(self, texts: Iterator[str] | Sequence[str]) -> list[Piece]:
        splitter = self.rules.splitter()
        pieces = [piece for text in texts for piece in splitter.add(text)]
        return [*pieces, *splitter.finish()]

    def refused(self, text: str, structure: Structure | None = None) -> str | None:
        """Return None if the grammar of the answer accepts a whole text, otherwise the text that it refuses."""
        grammar = self.rules.structure(self.tokenizer, structure)
        expect(grammar is not None, "the answer is not constrained")
        assert grammar is not None
        matcher = LLMatcher(_vocabulary(self.tokenizer)._inner, grammar.grammar, log_level=0)
        expect(not matcher.is_error(), f"grammar: {matcher.get_error()[:200]}")
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        count = matcher.try_consume_tokens(ids)
        if count == len(ids) and matcher.is_accepting():
            return None
        return str(self.tokenizer.decode(ids[count:]))


def _answer(pieces: Sequence[Piece]) -> Answer:
    assembled = assemble(pieces)
    calls = tuple((call.name, json.loads(call.arguments)) for call in assembled.calls)
    return Answer(assembled.text, assembled.reasoning, calls)
