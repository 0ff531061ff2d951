"""Request bodies that several routes share. Every field has a bound; names and meanings are those of OpenAI's API.

OpenAI's fields that have no meaning for a local model (user, store, metadata) are accepted and have no effect.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from llmctl.server.tool_calls import CallBody

MAX_CHOICES = 16
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20
MAX_TOKENS = 1_000_000
MAX_MESSAGES = 10_000

Text = Annotated[str, Field(max_length=4_000_000)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]
SchemaName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Body(BaseModel):
    """A request body: no type coercion, unknown keys accepted."""

    model_config = ConfigDict(extra="ignore", strict=True)


class StreamOptions(Body):
    """Options for a streamed answer."""

    include_usage: bool = False


class Sampling(Body):
    """Sampling and stop fields, shared by chat and plain completions."""

    model: Annotated[str, Field(max_length=500)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = 1
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Penalty | None = 0.0
    frequency_penalty: Penalty | None = 0.0
    logit_bias: Annotated[dict[str, Bias], Field(max_length=1000)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None

    @field_validator("logit_bias")
    @classmethod
    def _keys_are_token_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or ():
            if not (key.isascii() and key.isdecimal() and len(key) < 11):
                raise ValueError(f"{key[:20]!r} is not a token id")
        return value

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """True if a stream ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


class TextPart(Body):
    """A text part of a message."""

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

    def for_template(self) -> dict[str, Any]:
        """Return the message in the form that chat templates expect: content as text, `developer` as `system`."""
        content = self.content
        text = "".join(part.text for part in content) if isinstance(content, list) else content
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": text or "", "tool_call_id": self.tool_call_id}
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        return {key: value for key, value in message.items() if value is not None}
