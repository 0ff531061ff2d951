"""The body of `POST /v1/chat/completions`."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from llmctl.server.fields import Refused, WithoutEffect
from llmctl.server.schemas import MAX_MESSAGES, MAX_TOP_LOGPROBS, Message, Sampling, Tokens
from llmctl.server.template_fields import TemplateFields
from llmctl.server.tool_calls import ToolChoiceBody, ToolsBody


class ChatBody(Sampling, TemplateFields):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] = Field(
        description="The conversation. A final message of the assistant is continued."
    )
    max_tokens: Tokens | None = Field(None, description="Maximum tokens to generate.")
    max_completion_tokens: Tokens | None = Field(None, description="The newer name of `max_tokens`.")
    logprobs: bool | None = Field(False, description="Return the log-probability of each token.")
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = Field(
        None, description="Return this many alternatives to each token; needs `logprobs`."
    )
    tools: ToolsBody | None = Field(None, description="Functions that the model may call.")
    tool_choice: ToolChoiceBody | None = Field(None, description="Whether tools may or must be called, and which.")
    parallel_tool_calls: bool | None = Field(None, description="False allows at most one call.")
    prediction: Annotated[
        dict[str, Any] | None, WithoutEffect("a hint for speed; set generation.prompt_lookup_num_tokens")
    ] = None
    functions: Annotated[
        Annotated[list[Any], Field(max_length=0)] | None, Refused("OpenAI's older form of tools: use tools")
    ] = None
    function_call: Annotated[None, Refused("OpenAI's older form of tool_choice: use tools and tool_choice")] = None
    modalities: Annotated[list[Literal["text"]] | None, Refused("answers are text")] = None
    audio: Annotated[None, Refused("answers are text")] = None
    web_search_options: Annotated[None, Refused("the server searches nothing: use tools")] = None
    verbosity: Annotated[Literal["medium"] | None, Refused("ask for it in a message")] = None
    reasoning: Annotated[None, Refused("use reasoning_effort")] = None
    include_reasoning: Annotated[Literal[True] | None, Refused("reasoning is always in reasoning_content")] = None
    echo: Annotated[Literal[False] | None, Refused("the answer excludes the message that it continues")] = None
    add_special_tokens: Annotated[Literal[False] | None, Refused("the chat template writes special tokens")] = None

    @field_validator("max_completion_tokens")
    @classmethod
    def _only_one_limit(cls, value: int | None, info: ValidationInfo) -> int | None:
        other = info.data.get("max_tokens")
        if value is not None and other is not None and value != other:
            raise ValueError("max_tokens has another value: set only one of them")
        return value

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self
