"""The tools of a chat request and the calls in its answer, in the format of OpenAI's API."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llmctl.config import ChatSection
from llmctl.generation.pieces import ArgumentsDelta, CallStart, Piece, ReasoningDelta, TextDelta, ToolCall
from llmctl.generation.tools import Choice, ToolUse, tool_use
from llmctl.server.http_errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TOOLS = 128
_Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class FunctionBody(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(extra="ignore")

    name: _Name
    description: Annotated[str, Field(max_length=100_000)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(BaseModel):
    """A tool. Only functions are supported."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["function"]
    function: FunctionBody


class NameBody(BaseModel):
    """A function by its name."""

    name: _Name


class NamedToolBody(BaseModel):
    """A tool by its name."""

    type: Literal["function"] = "function"
    function: NameBody


class AllowedBody(BaseModel):
    """The allowed tools; the mode says if one of them must be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedToolBody], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedToolsBody(BaseModel):
    """A `tool_choice` that allows some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedBody


ToolsBody = Annotated[list[ToolBody], Field(max_length=MAX_TOOLS)]
ToolChoiceBody = Literal["none", "auto", "required"] | NamedToolBody | AllowedToolsBody


class CallFunctionBody(BaseModel):
    """The function of a call in an earlier answer. Its arguments were written by a model and may be malformed."""

    name: Annotated[str, Field(max_length=256)]
    arguments: str = "{}"


class CallBody(BaseModel):
    """A call in an earlier answer."""

    id: Annotated[str, Field(max_length=256)]
    type: Literal["function"] = "function"
    function: CallFunctionBody


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
