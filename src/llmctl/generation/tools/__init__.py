"""Tool calling as in OpenAI's API: told to the model in its template's own way, and read back from what it writes."""

from llmctl.generation.tools.calls import Arguments, Call, CallSplitter, Piece, Said, ToolCall, whole
from llmctl.generation.tools.choice import Choice, ToolUse, tool_use
from llmctl.generation.tools.format import ToolFormat, tool_format

__all__ = [
    "Arguments",
    "Call",
    "CallSplitter",
    "Choice",
    "Piece",
    "Said",
    "ToolCall",
    "ToolFormat",
    "ToolUse",
    "tool_format",
    "tool_use",
    "whole",
]
