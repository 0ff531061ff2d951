"""What clients send, with a bound on everything. Names and meanings are OpenAI's; what it knows and a model here has no
use for (user, store, metadata) is let through and has no effect."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from llmctl.server.tool_calls import CallBody, ToolChoiceBody, ToolsBody

MOST_CHOICES = 16
MOST_STOPS = 16
MOST_TOP_LOGPROBS = 20
MOST_TOKENS = 1_000_000
MOST_PROMPTS = 128
MOST_MESSAGES = 10_000
_LONGEST_STOP = 1000

Text = Annotated[str, Field(max_length=4_000_000)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Ids = Annotated[list[TokenId], Field(min_length=1, max_length=MOST_TOKENS)]
Stop = Annotated[str, Field(min_length=1, max_length=_LONGEST_STOP)]
Tokens = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]


class Body(BaseModel):
    """What every body has in common: bounds, no coercion, unknown keys let through."""

    model_config = ConfigDict(extra="ignore", strict=True)


class StreamOptions(Body):
    """What is streamed besides the answer."""

    include_usage: bool = False


class Sampling(Body):
    """How tokens are chosen, and when to stop: what chat and plain completions share."""

    model: Annotated[str, Field(max_length=500)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = 1
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Penalty | None = 0.0
    frequency_penalty: Penalty | None = 0.0
    logit_bias: Annotated[dict[str, Bias], Field(max_length=1000)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or ():
            if not (key.isascii() and key.isdecimal() and len(key) < 11):
                raise ValueError(f"{key[:20]!r} is not the id of a token")
        return value

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionBody(Sampling):
    """`POST /v1/completions`."""

    prompt: (
        Text
        | Ids
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_PROMPTS)]
        | Annotated[list[Ids], Field(min_length=1, max_length=MOST_PROMPTS)]
    )
    max_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None
    echo: bool | None = False

    @model_validator(mode="after")
    def _echo_whole(self) -> Self:
        if self.stream and self.echo:
            raise ValueError("echo cannot be streamed")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens has to be 1 or more, but with echo")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Every prompt, as text or as token ids."""
        prompt = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return [prompt]
        return list(prompt)  # type: ignore[arg-type]


class TextPart(Body):
    """A part of a message: text is the only kind."""

    type: Literal["text"]
    text: Text


Content = Text | Annotated[list[TextPart], Field(min_length=1, max_length=1000)]


class Message(Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    tool_calls: Annotated[list[CallBody], Field(max_length=128)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None

    def plain(self) -> dict[str, Any]:
        """As a template takes it: contents as text, `developer` as `system`."""
        content = self.content
        text = "".join(part.text for part in content) if isinstance(content, list) else content
        role = "system" if self.role == "developer" else self.role
        plain: dict[str, Any] = {"role": role, "content": text or "", "tool_call_id": self.tool_call_id}
        if self.tool_calls:
            plain["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        return {key: value for key, value in plain.items() if value is not None}


class JsonSchemaBody(Body):
    """A schema and its name."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaBody | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema is missing")
        return self


class ChatBody(Sampling):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: ToolsBody | None = None
    tool_choice: ToolChoiceBody | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _logprobs_first(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self


class InputPart(Body):
    """A part of an input: text is the only kind."""

    type: Literal["input_text", "output_text", "text"]
    text: Text


class InputMessage(Body):
    """A message of an input."""

    type: Literal["message"] | None = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[InputPart], Field(min_length=1, max_length=1000)]

    def message(self) -> Message:
        """The same for the chat."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role=self.role, content=text)


class ResponseText(Body):
    """The form of the answer: here the schema lies beside its name."""

    class Format(Body):
        """Of the text."""

        type: Literal["text", "json_object", "json_schema"] = "text"
        name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")] | None = None
        schema_: dict[str, Any] | None = Field(None, alias="schema")
        strict: bool | None = None

        @model_validator(mode="after")
        def _whole(self) -> Self:
            if self.type == "json_schema" and (self.schema_ is None or self.name is None):
                raise ValueError("json_schema needs a name and a schema")
            return self

    format: Format | None = None


class ResponseBody(Body):
    """`POST /v1/responses`, for text. Nothing is stored: each request carries its whole conversation."""

    model: Annotated[str, Field(max_length=500)]
    # one less than a chat has: the instructions become a message too
    input: Text | Annotated[list[InputMessage], Field(min_length=1, max_length=MOST_MESSAGES - 1)]
    instructions: Text | None = None
    max_output_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = False
    text: ResponseText | None = None
    metadata: Annotated[dict[str, Text], Field(max_length=16)] | None = None
    previous_response_id: None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None

    def chat(self) -> ChatBody:
        """The same for the chat's route."""
        messages = [Message(role="system", content=self.instructions)] if self.instructions is not None else []
        if isinstance(self.input, str):
            messages.append(Message(role="user", content=self.input))
        else:
            messages += [item.message() for item in self.input]
        form = self.text.format if self.text else None
        schema = None
        if form is not None and form.schema_ is not None:
            schema = JsonSchemaBody(name=form.name or "", schema=form.schema_, strict=form.strict)
        return ChatBody(
            model=self.model,
            messages=messages,
            max_completion_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            response_format=None if form is None else ResponseFormat(type=form.type, json_schema=schema),
        )


class TokenizeBody(Body):
    """`POST /tokenize`: a text, or a conversation."""

    model: Annotated[str, Field(max_length=500)] | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)] | None = None
    add_special_tokens: bool | None = True

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give prompt or messages")
        return self


class DetokenizeBody(Body):
    """`POST /detokenize`."""

    model: Annotated[str, Field(max_length=500)] | None = None
    tokens: Annotated[list[TokenId], Field(max_length=MOST_TOKENS)]
