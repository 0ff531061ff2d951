"""The tools of a chat request and the calls in its answer, in the format of OpenAI's API."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from llmctl.config import ChatSection
from llmctl.generation.pieces import ArgumentsDelta, CallStart, Piece, ReasoningDelta, TextDelta, ToolCall
from llmctl.generation.tools import Choice, ToolUse, tool_use
from llmctl.server.fields import Body, Refused, WithoutEffect
from llmctl.server.http_errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TOOLS = 128
_Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class FunctionBody(Body):
    """A function that the model may call."""

    name: _Name = Field(description="Name of the function.")
    description: Annotated[str, Field(max_length=100_000)] | None = Field(None, description="Shown to the model.")
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of the arguments.")
    strict: bool | None = Field(None, description="Enforce the schema once the model calls the function.")


class ToolBody(Body):
    """A tool. Only functions are supported."""

    type: Literal["function"] = Field(description="Only functions.")
    function: FunctionBody = Field(description="The function.")
    defer_loading: Annotated[Literal[False] | None, Refused("every tool is described to the model")] = None


class NameBody(Body):
    """A function by its name."""

    name: _Name = Field(description="Name of the function.")


class NamedToolBody(Body):
    """A tool by its name."""

    type: Literal["function"] = Field("function", description="Only functions.")
    function: NameBody = Field(description="The function.")


class AllowedBody(Body):
    """The allowed tools; the mode says if one of them must be called."""

    mode: Literal["auto", "required"] = Field(description="Whether one of them must be called.")
    tools: Annotated[list[NamedToolBody], Field(min_length=1, max_length=MAX_TOOLS)] = Field(
        description="The allowed tools."
    )


class AllowedToolsBody(Body):
    """A `tool_choice` that allows some of the tools."""

    type: Literal["allowed_tools"] = Field(description="Some of the tools.")
    allowed_tools: AllowedBody = Field(description="Which, and whether one must be called.")


ToolsBody = Annotated[list[ToolBody], Field(max_length=MAX_TOOLS)]
ToolChoiceBody = Literal["none", "auto", "required"] | NamedToolBody | AllowedToolsBody


class CallFunctionBody(Body):
    """The function of a call in an earlier answer. Its arguments were written by a model and may be malformed."""

    name: Annotated[str, Field(max_length=256)] = Field(description="Name of the function.")
    arguments: str = Field("{}", description="Arguments as JSON text.")
    parsed_arguments: Annotated[Any, WithoutEffect("the client's own copy of the arguments")] = None


class CallBody(Body):
    """A call in an earlier answer."""

    id: Annotated[str, Field(max_length=256)] = Field(description="The id to which a tool's result refers.")
    type: Literal["function"] = Field("function", description="Only functions.")
    function: CallFunctionBody = Field(description="The function and its arguments.")
    index: Annotated[int | None, WithoutEffect("the position in a stream; the order is that of the list")] = None

    def for_template(self) -> dict[str, Any]:
        """Return the call without the fields that have no effect."""
        function = {"name": self.function.name, "arguments": self.function.arguments}
        return {"id": self.id, "type": self.type, "function": function}


def resolve_tool_use(
    tokenizer: "PreTrainedTokenizerBase",
    chat: ChatSection,
    tools: Sequence[ToolBody] | None,
    choice: ToolChoiceBody | None = None,
    *,
    parallel: bool | None = None,
) -> ToolUse:
    """Return the tool use of a request.

    Raises:
        RequestError: two tools have the same name, or a required choice has no tools.
        UserError: a schema cannot be enforced, or the choice names an unknown tool.
    """
    declared = [{"type": "function", "function": tool.function.model_dump(exclude_none=True)} for tool in tools or ()]
    names = [tool.function.name for tool in tools or ()]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise RequestError(f"two tools have the name {name}", param=f"tools[{index}].function.name")
    mode, only = _parse_choice(choice)
    if not declared and mode == "required":
        raise RequestError("tool_choice needs tools", param="tool_choice")
    return tool_use(tokenizer, chat, declared, choice=mode, only=only, parallel=parallel is not False)


def _parse_choice(choice: ToolChoiceBody | None) -> tuple[Choice, list[str] | None]:
    """Return the mode, and the names of the allowed tools; None for all."""
    if choice is None or isinstance(choice, str):
        return choice or "auto", None
    if isinstance(choice, NamedToolBody):
        return "required", [choice.function.name]
    return choice.allowed_tools.mode, [tool.function.name for tool in choice.allowed_tools.tools]


def openai_calls(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """Return complete calls in the format of an answer's message."""
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]


def openai_delta(piece: Piece) -> dict[str, Any]:
    """Return a piece of an answer as a streamed delta. A call's id and name come first, then its arguments."""
    if isinstance(piece, TextDelta):
        return {"content": piece.text}
    if isinstance(piece, ReasoningDelta):
        return {"reasoning_content": piece.text}
    if isinstance(piece, CallStart):
        call = {"id": piece.id, "type": "function", "function": {"name": piece.name, "arguments": ""}}
        return {"tool_calls": [{"index": piece.index, **call}]}
    assert isinstance(piece, ArgumentsDelta)  # noqa: S101
    return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.text}}]}
