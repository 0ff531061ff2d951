"""What one request may do with tools: which ones, whether it must, and the form that its answer is held to."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llmctl.config import ChatSection, StructureSection
from llmctl.errors import UserError
from llmctl.generation.prompt import as_messages
from llmctl.generation.reasoning import closing_of
from llmctl.generation.structured.constraint import own_tokens
from llmctl.generation.structured.structure import Structure, make_structure
from llmctl.generation.tools.calls import CallSplitter
from llmctl.generation.tools.format import ToolFormat, shown_tokens, tool_format
from llmctl.generation.tools.messages import for_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Choice = Literal["none", "auto", "required"]
_TEXT = r"/(.|\n)*/"


@dataclass(frozen=True)
class ToolUse:
    """What one request may do with tools.

    Attributes:
        chat: The configuration's chat section.
        form: How the model's template writes calls.
        tools: As in OpenAI's API; those that the model is told of.
        choice: Whether it may call, must, or must not.
        parallel: Whether it may call several at once.
        shown: Special tokens that stay in the text of the answer.
    """

    chat: ChatSection
    form: ToolFormat
    tools: tuple[Mapping[str, Any], ...]
    choice: Choice
    parallel: bool
    shown: frozenset[int]

    @property
    def is_exact(self) -> bool:
        """Whether every call is held to its form."""
        return bool(self.tools) and (self.choice == "required" or any(_is_strict(tool) for tool in self.tools))

    def conversation(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Messages as the template takes them, and the arguments for it."""
        return for_template(as_messages(messages, self.chat), self.tools, self.form)

    def splitter(self) -> CallSplitter | None:
        """What finds the calls in an answer; None where there can be none."""
        if not self.tools:
            return None
        return CallSplitter(
            self.form,
            {_function(tool)["name"]: _parameters(tool) for tool in self.tools},
            most=None if self.parallel else 1,
            calls_only=self.choice == "required",
            exact=self.is_exact,
        )

    def structure(self, tokenizer: "PreTrainedTokenizerBase", *, prompt_tail: str = "") -> Structure | None:
        """The form that the answer is held to, or None.

        Args:
            tokenizer: The tokenizer.
            prompt_tail: The end of the prompt as text. Where it opens reasoning, that comes first and is free.
        """
        if not self.is_exact:
            return None
        grammar = _Grammar(tokenizer, self)
        return make_structure(StructureSection(grammar=grammar.text(prompt_tail)))


def tool_use(
    tokenizer: "PreTrainedTokenizerBase",
    chat: ChatSection,
    tools: Sequence[Mapping[str, Any]],
    *,
    choice: Choice = "auto",
    only: Sequence[str] | None = None,
    parallel: bool = True,
) -> ToolUse:
    """What a request may do with tools.

    Args:
        tokenizer: The tokenizer.
        chat: The configuration's chat section: its template is the one in use.
        tools: As in OpenAI's API: {"type": "function", "function": {"name", "description", "parameters", "strict"}}.
        choice: `none`, `auto` or `required`.
        only: Of these tools alone; None for all of them.
        parallel: Whether there may be several calls in an answer.

    Raises:
        UserError: a schema cannot be enforced and would have to be, or `only` names no tool. Its details have `param`.
    """
    form = tool_format(tokenizer, chat)
    names = [_function(tool)["name"] for tool in tools]
    for name in only or ():
        if name not in names:
            raise UserError(f"tool_choice names {name}, which is none of the tools", details={"param": "tool_choice"})
    chosen = () if choice == "none" else tuple(t for t in tools if only is None or _function(t)["name"] in only)
    for place, tool in enumerate(tools):
        if tool in chosen and (choice == "required" or _is_strict(tool)):
            _check_parameters(tool, place)
    shown = shown_tokens(tokenizer, form) if chosen else frozenset()
    return ToolUse(chat, form, chosen, choice, parallel and form.between is not None, shown)


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function: Mapping[str, Any] = tool["function"]
    return function


def _is_strict(tool: Mapping[str, Any]) -> bool:
    return bool(_function(tool).get("strict"))


def _parameters(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a tool's arguments, which are an object."""
    schema = _function(tool).get("parameters")
    if not schema:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if schema.get("properties") == {} and not {"additionalProperties", "patternProperties", "$ref"} & schema.keys():
        schema = {**schema, "additionalProperties": False}  # it lists its properties, and there are none
    return {"type": "object", **schema}


def _check_parameters(tool: Mapping[str, Any], place: int) -> None:
    param = f"tools[{place}].function.parameters"
    schema = _parameters(tool)
    if schema["type"] != "object":
        raise UserError(f"{param}: the arguments of a tool are an object", details={"param": param})
    try:
        make_structure(StructureSection(json_schema=schema))
    except UserError as error:
        raise UserError(
            str(error).replace("structure.json_schema:", f"{param}:"),
            hint=error.hint,
            details={**error.details, "param": param},
        ) from error


class _Grammar:
    """Writes the form of an answer in the engine's words (Lark). Its state: the special tokens by their text."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", use: ToolUse) -> None:
        self._use, self._form = use, use.form
        self._special = own_tokens(tokenizer)

    def text(self, prompt_tail: str) -> str:
        """The whole grammar."""
        form, calls = self._form, self._calls(self._form.begin)
        opened = closing_of(prompt_tail)
        think = "" if opened is None else "think "
        lines = []
        if self._use.choice == "required":
            lines.append(f"start: {think}{calls}")
        elif not form.open:
            lines += [f"start: {think}({calls} | FREE?)", r"FREE: /[^{](.|\n)*/"]
        else:
            after = self._calls(form.begin.removeprefix(form.open))
            lines += [f"start: {think}(opened {after})* text", "text: TEXT", self._until("opened", form.open)]
        if opened is not None:
            lines += [self._until("think", opened), r"space: /\n{0,4}/"]
            lines[0] = lines[0].replace("think ", "think space ")
        return "\n".join([*lines, f"TEXT: {_TEXT}", *self._each()])

    def _calls(self, begin: str) -> str:
        """One call or several, from the text that begins them on."""
        form = self._form
        more = f"({self._literal(form.between)} call)*" if self._use.parallel and form.between is not None else ""
        return f"{self._literal(begin)} call {more} {self._literal(form.end)}"

    def _each(self) -> list[str]:
        """A rule for each tool."""
        tools = self._use.tools
        rules = [f"call: {' | '.join(f'call_{n}' for n in range(len(tools)))}"]
        for number, tool in enumerate(tools):
            held = self._use.choice == "required" or _is_strict(tool)
            schema = json.dumps(_parameters(tool) if held else {"type": "object"}, ensure_ascii=False)
            head = self._literal(_function(tool)["name"] + self._form.middle)
            rules.append(f"call_{number}: {head} %json {schema}")
        return rules

    def _until(self, rule: str, text: str) -> str:
        """A rule for any text up to and with `text`."""
        if text in self._special:
            return f"{rule}: TEXT {self._literal(text)}"
        return f"{rule}[lazy]: TEXT {self._literal(text)}"

    def _literal(self, text: str) -> str:
        """Exactly this text, its special tokens as such."""
        if not text:
            return ""
        pattern = "|".join(re.escape(content) for content in sorted(self._special, key=len, reverse=True)) or "(?!)"
        parts = []
        for part in re.split(f"({pattern})", text):
            if part in self._special:
                parts.append(f"<[{self._special[part]}]>")
            elif part:
                parts.append(json.dumps(part, ensure_ascii=False))
        return " ".join(parts)
