"""The tool choice of one request: the tools that the model may call, and the grammar that enforces the choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llmctl.config import ChatSection
from llmctl.errors import UserError
from llmctl.generation.channels import Channels
from llmctl.generation.marks import ID, INDEX, NAME, TYPE
from llmctl.generation.prompt import as_messages
from llmctl.generation.reasoning import ReasoningFormat
from llmctl.generation.structured.lark import LarkWriter
from llmctl.generation.structured.structure import Structure, grammar_structure
from llmctl.generation.tools.calls import CallSplitter
from llmctl.generation.tools.format import ToolFormat
from llmctl.generation.tools.messages import for_template
from llmctl.generation.tools.parameter_check import argument_schema, check_parameters, function_of, is_strict
from llmctl.generation.tools.recognition import tool_format

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Choice = Literal["none", "auto", "required"]


@dataclass(frozen=True)
class ToolUse:
    """The tools of one request and the rules for calling them.

    Attributes:
        chat: The configuration's chat section.
        form: The template's tool-call format.
        tools: The tools described to the model, in OpenAI's format.
        choice: `auto` (may call), `required` (must call) or `none`.
        parallel: True if one answer may have several calls.
    """

    chat: ChatSection
    form: ToolFormat
    tools: tuple[Mapping[str, Any], ...]
    choice: Choice
    parallel: bool

    @property
    def is_exact(self) -> bool:
        """True if every call is constrained to the template's format."""
        return bool(self.tools) and (self.choice == "required" or any(is_strict(tool) for tool in self.tools))

    @property
    def names(self) -> list[str]:
        """The names of the tools."""
        return [str(function_of(tool)["name"]) for tool in self.tools]

    def conversation(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return the messages and the arguments for the chat template."""
        return for_template(as_messages(messages, self.chat), self.tools, self.form)

    def splitter(self) -> CallSplitter | None:
        """Return the splitter for an answer; None if it cannot have calls."""
        if not self.tools:
            return None
        return CallSplitter(
            self.form,
            {str(function_of(tool)["name"]): argument_schema(tool) for tool in self.tools},
            max_calls=None if self.parallel else 1,
            calls_only=self.choice == "required",
            exact=self.is_exact,
        )

    def structure(self, reasoning: ReasoningFormat, prompt_tail: str, special: Mapping[str, int]) -> Structure | None:
        """Return the structure that constrains the answer, or None.

        Args:
            reasoning: The format of reasoning, which is free.
            prompt_tail: The end of the prompt as text.
            special: The ids of the tokens that a grammar must name by id, by their text.
        """
        if not self.is_exact:
            return None
        names = "|".join(self.names)
        lark = LarkWriter(special, {ID: "[a-zA-Z0-9]{9}", INDEX: "[0-9]{1,3}", TYPE: "[a-z]{4,9}", NAME: f"({names})"})
        try:
            return grammar_structure(lark.text(_Rules(self, lark).start(reasoning, prompt_tail)))
        except UserError as error:
            raise UserError(
                f"the tools are too large for enforced calls: {error}",
                hint="give fewer tools or smaller schemas, or omit strict and a required tool_choice",
                details={**error.details, "param": "tools"},
            ) from error


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
    names = [function_of(tool)["name"] for tool in tools]
    for name in only or ():
        if name not in names:
            raise UserError(f"tool_choice names {name}, which is not in tools", details={"param": "tool_choice"})
    chosen = () if choice == "none" else tuple(t for t in tools if only is None or function_of(t)["name"] in only)
    for index, tool in enumerate(tools):
        if tool in chosen and (choice == "required" or is_strict(tool)):
            check_parameters(tool, index, form)
    return ToolUse(chat, form, chosen, choice, parallel and form.between is not None)


class _Rules:
    """Writes the rules of a grammar for calls."""

    def __init__(self, use: ToolUse, lark: LarkWriter) -> None:
        self._use, self._lark, self._form = use, lark, use.form

    def start(self, reasoning: ReasoningFormat, prompt_tail: str) -> str:
        """Return the body of the first rule."""
        self._add_tools()
        form, lark, calls = self._form, self._lark, self._calls(self._form.begin)
        if self._use.choice == "required":
            end = reasoning.postlude(lark, after_calls=True)
            return f"{reasoning.prelude(prompt_tail, lark, before_calls=True)} {calls} {end}"
        text = reasoning.free_text(lark)
        if isinstance(reasoning, Channels):
            before_calls = reasoning.prelude(prompt_tail, lark, before_calls=True, with_preamble=True)
            return f"({before_calls} {calls} | {reasoning.prelude(prompt_tail, lark)} {text})"
        before = reasoning.prelude(prompt_tail, lark, before_calls=True)
        if not form.open:
            lark.add(r"FREE: /[^{](.|\n)*/")
            return f"{before} ({calls} | FREE?)"
        if text != "TEXT" and lark.begins_with_special(form.begin):
            return f"{before} ({text} {calls})* {text}"
        opened = lark.until(form.open)
        return f"{before} ({opened} {self._calls(form.begin.removeprefix(form.open))})* TEXT"

    def _calls(self, begin: str) -> str:
        """Return the symbols for `begin` followed by one or several calls."""
        form, lark = self._form, self._lark
        further = f"({lark.literal(form.between)} call)*" if self._use.parallel and form.between is not None else ""
        return f"{lark.literal(begin)} call {further} {lark.literal(form.end)}"

    def _add_tools(self) -> None:
        """Add a rule for each tool."""
        tools, form, lark = self._use.tools, self._form, self._lark
        lark.add(f"call: {' | '.join(f'call_{n}' for n in range(len(tools)))}")
        for number, tool in enumerate(tools):
            is_enforced = self._use.choice == "required" or is_strict(tool)
            head = lark.literal(function_of(tool)["name"] + form.middle)
            arguments = form.syntax.rule(lark, f"call_{number}", argument_schema(tool), is_enforced=is_enforced)
            lark.add(f"call_{number}: {head} {arguments}")
