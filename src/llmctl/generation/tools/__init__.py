"""Tool calling as in OpenAI's API: tools are converted to the template's format, calls are parsed from answers."""

from llmctl.generation.tools.calls import CallSplitter
from llmctl.generation.tools.choice import Choice, ToolUse, tool_use
from llmctl.generation.tools.format import ToolFormat
from llmctl.generation.tools.recognition import tool_format

__all__ = ["CallSplitter", "Choice", "ToolFormat", "ToolUse", "tool_format", "tool_use"]
