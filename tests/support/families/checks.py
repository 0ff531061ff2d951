"""Checks of llmctl against what a family's model writes, one for each column of a table."""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from llmctl.config import StructureSection
from llmctl.generation.structured.structure import Structure, make_structure
from support.families.reader import (
    ANSWER,
    JSON,
    JSON_SCHEMA,
    REASON,
    RESULT,
    STRICT,
    SYSTEM,
    TEXT,
    TIME,
    TOOLS,
    UNKNOWN,
    USER,
    WEATHER,
    WRONG,
    CheckError,
    Reader,
    expect,
    tool,
)
from support.families.table import Family, Mode
from support.families.writing import Call, Writer, hermes, python

COLUMNS = (
    "renders",
    "system",
    "tools",
    "one",
    "two",
    "before",
    "after",
    "stream",
    "marks",
    "other",
    "reasoning",
    "json",
    "turn2",
    "required",
    "named",
    "strict",
)


class NotApplicableError(Exception):
    """A check does not apply to a family."""


class Checks:
    """The checks of one template.

    Args:
        tokenizer: A tokenizer with the template.
        family: What the template's models write.
    """

    def __init__(self, tokenizer: Any, family: Family) -> None:
        self._tokenizer, self._family = tokenizer, family
        self._readers: dict[str, Reader] = {}

    def outcomes(self, columns: Sequence[str] = COLUMNS) -> dict[str, str]:
        """Return the outcome of each column: `ok`, `-` with a reason, or what is wrong."""
        return {column: self._outcome(getattr(self, column)) for column in columns}

    def _outcome(self, check: Callable[[], str | None]) -> str:
        try:
            return check() or "ok"
        except NotApplicableError as reason:
            return f"- {reason}"
        except CheckError as error:
            return f"wrong: {error}"
        except Exception as error:  # noqa: BLE001 (it is the outcome)
            return f"{type(error).__name__}: {error}"

    # -- what the model writes

    @cached_property
    def _spoken(self) -> Mode:
        """The mode for calls without reasoning, or with it where the model always reasons."""
        return self._family.modes[0]

    @property
    def _no_tools(self) -> Sequence[Any]:
        """The tools of a conversation that needs none."""
        return TOOLS if self._family.only_with_tools else ()

    def _reader(self, mode: Mode, tools: Sequence[Any] = (), **options: Any) -> Reader:
        key = repr((mode.arguments, tools, options))
        if key not in self._readers:
            arguments = {**self._family.arguments, **mode.arguments}
            self._readers[key] = Reader(self._tokenizer, arguments, tools=tools, **options)
        return self._readers[key]

    def _said(self, mode: Mode, calls: Sequence[Call], text: str = "", write: Writer | None = None) -> str:
        """Return a turn with calls."""
        before = mode.before.replace("{}", text) if text and mode.before is not None else mode.bare
        return mode.think.replace("{}", REASON) + before + (write or self._family.write)(calls)

    def _answered(self, mode: Mode, answer: str) -> str:
        """Return a turn without calls."""
        return mode.think.replace("{}", REASON) + mode.answer.replace("{}", answer)

    def _expect(self, reader: Reader, said: str, *, text: str = "", reasoning: str = "", calls: Any = ()) -> None:
        answer = reader.read(said)
        expect(answer.calls == tuple(calls), f"calls {answer.calls} of {said!r}, text {answer.text!r}")
        expect(answer.text.strip() == text, f"text {answer.text!r} of {said!r}")
        read = answer.reasoning.strip().removeprefix("Here are my reasoning steps:").strip()
        expect(read == reasoning, f"reasoning {answer.reasoning!r} of {said!r}")

    def _expect_calls(self, mode: Mode, calls: Sequence[Call], text: str = "", write: Writer | None = None) -> None:
        reasoning = REASON if mode.think else ""
        said = self._said(mode, calls, text, write)
        self._expect(self._reader(mode, TOOLS), said, text=text, reasoning=reasoning, calls=calls)

    def _expect_accepted(self, reader: Reader, said: str, structure: Structure | None = None) -> None:
        rest = reader.refused(said, structure)
        expect(rest is None, f"the grammar refuses {rest!r} in {said!r}")

    # -- the columns

    def renders(self) -> None:
        """A conversation is rendered in each mode."""
        for mode in self._family.modes:
            expect(
                USER["content"] in self._reader(mode, self._no_tools).prompt, "the user's message is not in the prompt"
            )

    def system(self) -> None:
        """The system message is in the prompt, also with tools."""
        arguments = {**self._family.arguments, **self._spoken.arguments}
        messages = [{"role": "system", "content": SYSTEM}, USER]
        if not self._family.has_system:
            raise NotApplicableError("the template refuses a system message")
        for tools in (self._no_tools, TOOLS):
            reader = Reader(self._tokenizer, arguments, messages, tools)
            expect(SYSTEM in reader.prompt, "the system message is not in the prompt")

    def tools(self) -> None:
        """Every tool is described with its parameters."""
        prompt = self._reader(self._spoken, TOOLS).prompt
        for word in ("get_weather", "get_time", "city", "days", "The tool get_time."):
            expect(word in prompt, f"{word} is not in the prompt")

    def one(self) -> None:
        """One call is recognised, in each way in which the model writes it."""
        for write in (self._family.write, *self._family.also):
            self._expect_calls(self._spoken, [WEATHER], write=write)

    def two(self) -> str | None:
        """Two calls are recognised."""
        if self._family.one_call:
            raise NotApplicableError(self._family.one_call)
        for write in (self._family.write, *self._family.also):
            self._expect_calls(self._spoken, [WEATHER, TIME], write=write)
        return None

    def before(self) -> None:
        """Text before a call is content."""
        if self._spoken.before is None:
            raise NotApplicableError("a turn is text or calls")
        self._expect_calls(self._spoken, [WEATHER], TEXT)

    def after(self) -> None:
        """A call is recognised after reasoning, and after empty reasoning."""
        thinking = self._thinking()
        self._expect_calls(thinking, [WEATHER])
        if self._family.empty:
            said = self._family.empty + self._family.write([WEATHER])
            self._expect(self._reader(thinking, TOOLS), said, calls=[WEATHER])

    def stream(self) -> None:
        """Every answer is the same at once, by token and by character."""
        for mode in self._family.modes:
            calls = [WEATHER] if self._family.one_call else [WEATHER, TIME]
            for said in (
                self._said(mode, calls, TEXT),
                self._answered(mode, ANSWER),
                self._said(mode, [self._marked()]),
            ):
                reader = self._reader(mode, TOOLS)
                by_token, (whole, by_character) = reader.read(said), reader.read_whole_and_by_character(said)
                expect(whole == by_character, f"{whole} but by character {by_character}")
                expect(whole == by_token, f"{whole} but by token {by_token}")

    def marks(self) -> None:
        """A string may contain quotes, braces, newlines and the marks of the format, and look like another type."""
        self._expect_calls(self._spoken, [self._marked()])
        for value in ("75001", "null", "[1]", "", " ", "def f():\n    return 1\n"):
            self._expect_calls(self._spoken, [("get_weather", {"city": value, "days": 3})])

    def other(self) -> None:
        """A call without arguments is recognised; a call of an unknown tool stays text."""
        reader = self._reader(self._spoken, [*TOOLS, tool("stop", {"type": "object", "properties": {}})])
        reasoning = REASON if self._spoken.think else ""
        self._expect(reader, self._said(self._spoken, [("stop", {})]), reasoning=reasoning, calls=[("stop", {})])
        said = self._said(self._spoken, [UNKNOWN])
        answer = reader.read(said)
        expect(not answer.calls and "Rome" in answer.text, f"{answer} of {said!r}")

    def _marked(self) -> Call:
        text = 'a "b" {c} \\ d\'s\n' + "".join(f"e {mark} f\n" for mark in self._family.marks) + "g"
        return ("get_weather", {"city": text, "days": 3})

    def _thinking(self) -> Mode:
        if self._family.thinking is None:
            raise NotApplicableError("the model does not reason")
        return self._family.thinking

    def reasoning(self) -> None:
        """Reasoning, which may quote a call, is separate from the answer; an answer without it is whole."""
        for mode in self._family.modes:
            for tools in (self._no_tools, TOOLS):
                said, reasoning = self._answered(mode, ANSWER), REASON if mode.think else ""
                self._expect(self._reader(mode, tools), said, text=ANSWER, reasoning=reasoning)
        thinking, call = self._thinking(), self._family.write([TIME])
        if not call.lstrip().startswith(("<|", "<｜", "[")):  # a control token that opens a call ends reasoning
            quoted = f"I could write {call} here."
            said = thinking.think.replace("{}", quoted) + thinking.answer.replace("{}", ANSWER)
            self._expect(self._reader(thinking, TOOLS), said, text=ANSWER, reasoning=quoted)

    def json(self) -> None:
        """A structured answer is content, reasoning before it is free, and the grammar enforces it."""
        structure = make_structure(StructureSection(json_schema=JSON_SCHEMA))
        for mode in self._family.modes:
            reader, said = self._reader(mode, self._no_tools), self._answered(mode, JSON)
            self._expect(reader, said, text=JSON, reasoning=REASON if mode.think else "")
            self._expect_accepted(reader, said[: said.index(JSON) + len(JSON)], structure)  # it ends the answer
            expect(reader.refused(self._answered(mode, ANSWER), structure), "the grammar accepts any text")

    def turn2(self) -> None:
        """The calls, results and reasoning of an earlier turn are in the prompt."""
        mode = self._family.thinking or self._spoken
        calls = [WEATHER] if self._family.one_call else [WEATHER, TIME]
        assistant = {
            "role": "assistant",
            "content": None,
            "reasoning_content": REASON,
            "tool_calls": [
                {"id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
                for n, (name, arguments) in enumerate(calls)
            ],
        }
        results = [{"role": "tool", "tool_call_id": f"call_{n}", "content": f"{RESULT}{n}"} for n in range(len(calls))]
        arguments = {**self._family.arguments, **mode.arguments}
        prompt = Reader(self._tokenizer, arguments, [USER, assistant, *results], TOOLS).prompt
        prompt = prompt.rpartition(USER["content"])[2]
        for name, given in calls:
            expect(name in prompt and given["city"] in prompt, f"the call of {name} is not in the prompt")
        for result in results:
            expect(result["content"] in prompt, "a result is not in the prompt")
        if self._family.keeps_reasoning:
            expect("I should look." in prompt, "the reasoning is not in the prompt")

    # -- constrained calls

    def _constrained(self, tools: Sequence[Any], good: Call, bad: Sequence[Call], **options: Any) -> None:
        for mode in self._family.modes:
            reader = self._reader(mode, tools, **options)
            said = self._said(mode, [good])
            self._expect_accepted(reader, said)
            self._expect(reader, said, reasoning=REASON if mode.think else "", calls=[good])
            for call in bad:
                wrong = self._said(mode, [call])
                expect(reader.refused(wrong), f"the grammar accepts {wrong!r}")

    def required(self) -> None:
        """With a required call, exactly calls in the family's format are accepted."""
        self._constrained(TOOLS, WEATHER, [WRONG, UNKNOWN], choice="required")
        for mode in self._family.modes:
            reader = self._reader(mode, TOOLS, choice="required")
            expect(reader.refused(self._answered(mode, ANSWER)), "the grammar accepts an answer without a call")
            other = python if self._family.write is hermes or hermes in self._family.also else hermes
            wrong = self._said(mode, [WEATHER], write=other)
            expect(reader.refused(wrong), "the grammar accepts another family's format")
            if not self._family.one_call:
                said = self._said(mode, [WEATHER, TIME])
                self._expect_accepted(reader, said)

    def named(self) -> None:
        """With a named tool, only that one can be called."""
        self._constrained(TOOLS, TIME, [WEATHER], choice="required", only=["get_time"])

    def strict(self) -> None:
        """With strict tools, an answer is free and a call is enforced."""
        self._constrained(STRICT, WEATHER, [WRONG])
        for mode in self._family.modes:
            reader, said = self._reader(mode, STRICT), self._answered(mode, ANSWER)
            self._expect_accepted(reader, said)
            if mode.before is not None:
                said = self._said(mode, [WEATHER], TEXT)
                self._expect_accepted(reader, said)
