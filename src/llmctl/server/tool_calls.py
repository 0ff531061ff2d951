"""Tools of a chat request, and the calls in its answer, in OpenAI's shape."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llmctl.config import ChatSection
from llmctl.generation.tools import Arguments, Call, Choice, Piece, Said, ToolCall, ToolUse, tool_use
from llmctl.server.http_errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_TOOLS = 128
_Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class FunctionBody(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(extra="ignore")

    name: _Name
    description: Annotated[str, Field(max_length=100_000)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(BaseModel):
    """A tool: functions are the only kind."""

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
    """Which of the tools may be called, and whether one must be."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedToolBody], Field(min_length=1, max_length=MOST_TOOLS)]


class AllowedToolsBody(BaseModel):
    """`tool_choice` that allows some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedBody


ToolsBody = Annotated[list[ToolBody], Field(max_length=MOST_TOOLS)]
ToolChoiceBody = Literal["none", "auto", "required"] | NamedToolBody | AllowedToolsBody


class CallFunctionBody(BaseModel):
    """The function of a call in an earlier answer; what a model wrote as its arguments may be anything."""

    name: Annotated[str, Field(max_length=256)]
    arguments: str = "{}"


class CallBody(BaseModel):
    """A call in an earlier answer."""

    id: Annotated[str, Field(max_length=256)]
    type: Literal["function"] = "function"
    function: CallFunctionBody


def asked_use(
    tokenizer: "PreTrainedTokenizerBase",
    chat: ChatSection,
    tools: Sequence[ToolBody] | None,
    choice: ToolChoiceBody | None = None,
    *,
    parallel: bool | None = None,
) -> ToolUse:
    """What a request may do with its tools.

    Raises:
        RequestError: two tools have one name, or there is a choice and no tool.
        UserError: a schema cannot be enforced, or the choice names none of the tools.
    """
    given = [{"type": "function", "function": tool.function.model_dump(exclude_none=True)} for tool in tools or ()]
    names = [tool.function.name for tool in tools or ()]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise RequestError(f"two tools are called {name}", param=f"tools[{place}].function.name")
    mode, only = _choice(choice)
    if not given and mode == "required":
        raise RequestError("tool_choice needs tools", param="tool_choice")
    return tool_use(tokenizer, chat, given, choice=mode, only=only, parallel=parallel is not False)


def _choice(choice: ToolChoiceBody | None) -> tuple[Choice, list[str] | None]:
    """Whether the model may call, must, or must not; and which tools alone, where not all of them."""
    if choice is None or isinstance(choice, str):
        return choice or "auto", None
    if isinstance(choice, NamedToolBody):
        return "required", [choice.function.name]
    return choice.allowed_tools.mode, [tool.function.name for tool in choice.allowed_tools.tools]


def calls_in_shape(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """Whole calls, as in the message of an answer."""
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]


def delta_in_shape(piece: Piece) -> dict[str, Any]:
    """A piece of an answer, as in the delta of a streamed one: first a call's id and name, then its arguments."""
    if isinstance(piece, Said):
        return {"content": piece.text}
    if isinstance(piece, Call):
        call = {"id": piece.id, "type": "function", "function": {"name": piece.name, "arguments": ""}}
        return {"tool_calls": [{"index": piece.index, **call}]}
    assert isinstance(piece, Arguments)  # noqa: S101
    return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.text}}]}
