"""The format of tool calls: how a template gets tools, and how a model writes calls."""

import re
from dataclasses import dataclass
from typing import Literal

from llmctl.generation.tools.arguments import ArgumentSyntax, JsonArguments

Placement = Literal["argument", "message", "system", "user"]


_JSON = JsonArguments()


@dataclass(frozen=True)
class ToolFormat:
    """The format in which a template describes tools and a model writes calls.

    Calls are `begin` name `middle` arguments, then `between` name `middle` arguments for each further call, then `end`.

    Attributes:
        name: The family; `guess` if the format was guessed.
        syntax: The syntax of arguments.
        open: The marker that opens calls; empty if there is none.
        close: The marker that closes a call; empty if there is none.
        begin: The part before the first name.
        middle: The part between a name and its arguments.
        between: The part between arguments and the next name; None if an answer can have one call only.
        end: The part after the last arguments.
        others: Other formats with the same opening marker, which the family's models also write.
        is_fixed: True if renderings do not change the format, because the template renders it otherwise.
        placement: The way in which the template gets tools: `argument` (its argument `tools`), `message` (the key
            `tools` of the system message), `system` (the text of the system message), or `user` (the text of the first
            user message, if the template has no system message).
        renders_calls: True if the template renders the calls of earlier turns; otherwise, they become text.
        text_arguments: True if the template expects arguments as JSON text.
        no_content: True if the template renders calls only in messages whose content is None.
        short_ids: True if the template accepts only ids of nine letters and digits.
        reasoning_key: The key under which the template takes the reasoning of earlier turns; None if it takes none.
    """

    name: str = "hermes"
    syntax: ArgumentSyntax = _JSON
    open: str = "<tool_call>"
    close: str = "</tool_call>"
    begin: str = '<tool_call>\n{"name": "'
    middle: str = '", "arguments": '
    between: str | None = '}\n</tool_call>\n<tool_call>\n{"name": "'
    end: str = "}\n</tool_call>"
    others: tuple["ToolFormat", ...] = ()
    is_fixed: bool = False
    placement: Placement = "argument"
    renders_calls: bool = True
    text_arguments: bool = False
    no_content: bool = False
    short_ids: bool = False
    reasoning_key: str | None = None

    @property
    def template_lacks_tools(self) -> bool:
        """True if the template has no tool support, so that tools and results must be plain text."""
        return self.placement in ("system", "user")

    @property
    def is_guess(self) -> bool:
        """True if the family is not known."""
        return self.name == "guess"

    @property
    def is_json_object(self) -> bool:
        """True if a call is one JSON object with a name and arguments."""
        return re.search(r'"(tool_)?name":\s*"$', self.begin) is not None

    @property
    def marks(self) -> tuple[str, ...]:
        """All parts that mark calls. Special tokens in them must not be removed from the answer."""
        fixed = (self.open, self.close, self.begin, self.middle, self.between or "", self.end, "<|python_tag|>")
        return (*fixed, *self.syntax.marks, *(mark for other in self.others for mark in other.marks))


HERMES = ToolFormat()


def between_marks(name: str, opened: str, closed: str) -> ToolFormat:
    """Return the format of JSON objects between two marks."""
    begin, end = f'{opened}{{"name": "', f"}}{closed}"
    return ToolFormat(name, open=opened, close=closed, begin=begin, between=end + begin, end=end)
