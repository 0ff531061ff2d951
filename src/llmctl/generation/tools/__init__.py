"""Tool calling as in OpenAI's API: tools are converted to the template's format, calls are parsed from answers."""

from llmctl.generation.tools.calls import ArgumentsDelta, CallSplitter, CallStart, Piece, TextDelta, ToolCall, assemble
from llmctl.generation.tools.choice import Choice, ToolUse, tool_use
from llmctl.generation.tools.format import ToolFormat, tool_format

__all__ = [
    "ArgumentsDelta",
    "CallSplitter",
    "CallStart",
    "Choice",
    "Piece",
    "TextDelta",
    "ToolCall",
    "ToolFormat",
    "ToolUse",
    "assemble",
    "tool_format",
    "tool_use",
]
