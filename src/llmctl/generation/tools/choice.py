"""The tool choice of one request: the tools that the model may call, and the grammar that enforces the choice."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llmctl.config import ChatSection, StructureSection
from llmctl.errors import UserError
from llmctl.generation.prompt import as_messages
from llmctl.generation.reasoning import closing_of
from llmctl.generation.structured.constraint import tokens_named_by_id
from llmctl.generation.structured.structure import Structure, make_structure
from llmctl.generation.tools.calls import CallSplitter
from llmctl.generation.tools.format import ToolFormat, shown_tokens, tool_format
from llmctl.generation.tools.messages import for_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Choice = Literal["none", "auto", "required"]
_ANY_TEXT = r"/(.|\n)*/"


@dataclass(frozen=True)
class ToolUse:
    """The tools of one request and the rules for calling them.

    Attributes:
        chat: The configuration's chat section.
        form: The template's tool-call format.
        tools: The tools described to the model, in OpenAI's format.
        choice: `auto` (may call), `required` (must call) or `none`.
        parallel: True if one answer may have several calls.
        shown_tokens: Special tokens that stay in the text of the answer.
    """

    chat: ChatSection
    form: ToolFormat
    tools: tuple[Mapping[str, Any], ...]
    choice: Choice
    parallel: bool
    shown_tokens: frozenset[int]

    @property
    def is_exact(self) -> bool:
        """True if every call is constrained to the template's format."""
        return bool(self.tools) and (self.choice == "required" or any(_is_strict(tool) for tool in self.tools))

    def conversation(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return the messages and the arguments for the chat template."""
        return for_template(as_messages(messages, self.chat), self.tools, self.form)

    def splitter(self) -> CallSplitter | None:
        """Return the splitter for an answer; None if it cannot have calls."""
        if not self.tools:
            return None
        return CallSplitter(
            self.form,
            {_function(tool)["name"]: _parameters(tool) for tool in self.tools},
            max_calls=None if self.parallel else 1,
            calls_only=self.choice == "required",
            exact=self.is_exact,
        )

    def structure(self, tokenizer: "PreTrainedTokenizerBase", *, prompt_tail: str = "") -> Structure | None:
        """Return the structure that constrains the answer, or None.

        Args:
            prompt_tail: The end of the prompt as text. If it opens reasoning, the answer may begin with free reasoning.
        """
        if not self.is_exact:
            return None
        return make_structure(StructureSection(grammar=_GrammarWriter(tokenizer, self).text(prompt_tail)))


def tool_use(
    tokenizer: "PreTrainedTokenizerBase",
    chat: ChatSection,
    tools: Sequence[Mapping[str, Any]],
    *,
    choice: Choice = "auto",
    only: Sequence[str] | None = None,
    parallel: bool = True,
) -> ToolUse:
    """Return the tool use of a request.

    Args:
        chat: The configuration's chat section, which may set a template.
        tools: Tools in OpenAI's format: {"type": "function", "function": {"name", "description", "parameters",
            "strict"}}.
        only: Names of the tools to allow; None for all.
        parallel: True to allow several calls in one answer.

    Raises:
        UserError: a schema cannot be enforced although that is required, or `only` contains an unknown tool. The
            details have `param`.
    """
    form = tool_format(tokenizer, chat)
    names = [_function(tool)["name"] for tool in tools]
    for name in only or ():
        if name not in names:
            raise UserError(f"tool_choice names {name}, which is not in tools", details={"param": "tool_choice"})
    chosen = () if choice == "none" else tuple(t for t in tools if only is None or _function(t)["name"] in only)
    for index, tool in enumerate(tools):
        if tool in chosen and (choice == "required" or _is_strict(tool)):
            _check_parameters(tool, index)
    shown = shown_tokens(tokenizer, form) if chosen else frozenset()
    return ToolUse(chat, form, chosen, choice, parallel and form.between is not None, shown)


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function: Mapping[str, Any] = tool["function"]
    return function


def _is_strict(tool: Mapping[str, Any]) -> bool:
    return bool(_function(tool).get("strict"))


def _parameters(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a tool's arguments, whose type is object."""
    schema = _function(tool).get("parameters")
    if not schema:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if schema.get("properties") == {} and not {"additionalProperties", "patternProperties", "$ref"} & schema.keys():
        schema = {**schema, "additionalProperties": False}  # explicitly empty properties allow no arguments
    return {"type": "object", **schema}


def _check_parameters(tool: Mapping[str, Any], index: int) -> None:
    param = f"tools[{index}].function.parameters"
    schema = _parameters(tool)
    if schema["type"] != "object":
        raise UserError(f"{param}: the schema must describe an object", details={"param": param})
    try:
        make_structure(StructureSection(json_schema=schema))
    except UserError as error:
        raise UserError(
            str(error).replace("structure.json_schema:", f"{param}:"),
            hint=error.hint,
            details={**error.details, "param": param},
        ) from error


class _GrammarWriter:
    """Writes the grammar of an answer in Lark's syntax."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", use: ToolUse) -> None:
        self._use, self._form = use, use.form
        self._special = tokens_named_by_id(tokenizer)

    def text(self, prompt_tail: str) -> str:
        """Return the whole grammar."""
        form, calls = self._form, self._calls_rule(self._form.begin)
        opened = closing_of(prompt_tail)
        think = "" if opened is None else "think "
        lines = []
        if self._use.choice == "required":
            lines.append(f"start: {think}{calls}")
        elif not form.open:
            lines += [f"start: {think}({calls} | FREE?)", r"FREE: /[^{](.|\n)*/"]
        else:
            after = self._calls_rule(form.begin.removeprefix(form.open))
            lines += [f"start: {think}(opened {after})* text", "text: TEXT", self._until("opened", form.open)]
        if opened is not None:
            lines += [self._until("think", opened), r"space: /\n{0,4}/"]
            lines[0] = lines[0].replace("think ", "think space ")
        return "\n".join([*lines, f"TEXT: {_ANY_TEXT}", *self._tool_rules()])

    def _calls_rule(self, begin: str) -> str:
        """Return a rule for `begin` followed by one or several calls."""
        form = self._form
        further = f"({self._literal(form.between)} call)*" if self._use.parallel and form.between is not None else ""
        return f"{self._literal(begin)} call {further} {self._literal(form.end)}"

    def _tool_rules(self) -> list[str]:
        """Return a rule for each tool."""
        tools = self._use.tools
        rules = [f"call: {' | '.join(f'call_{n}' for n in range(len(tools)))}"]
        for number, tool in enumerate(tools):
            is_enforced = self._use.choice == "required" or _is_strict(tool)
            schema = json.dumps(_parameters(tool) if is_enforced else {"type": "object"}, ensure_ascii=False)
            head = self._literal(_function(tool)["name"] + self._form.middle)
            rules.append(f"call_{number}: {head} %json {schema}")
        return rules

    def _until(self, rule: str, text: str) -> str:
        """Return a rule for any text up to and including `text`."""
        if text in self._special:
            return f"{rule}: TEXT {self._literal(text)}"
        return f"{rule}[lazy]: TEXT {self._literal(text)}"

    def _literal(self, text: str) -> str:
        """Return a literal for a text; special tokens in it become token literals."""
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
