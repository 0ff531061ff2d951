"""The body of `POST /v1/responses`, and the chat request that it means."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from llmctl.server.chat_body import ChatBody
from llmctl.server.fields import Body, Refused, WithoutEffect
from llmctl.server.schemas import (
    DETAIL_DESCRIPTION,
    MAX_MESSAGES,
    PARTS,
    URL_DESCRIPTION,
    Detail,
    ImageBody,
    ImagePart,
    ImageUrl,
    ImageUrlBody,
    Message,
    Metadata,
    ModelName,
    RefusalPart,
    Seed,
    ServiceFields,
    ShortText,
    Temperature,
    Text,
    TextPart,
    Tokens,
    TopP,
    check_streamed,
    kind_of_content,
    kind_of_part,
)
from llmctl.server.structure_fields import JsonSchemaBody, ResponseFormat, SchemaName
from llmctl.server.template_fields import Effort, TemplateVariables

_Id = Annotated[ShortText | None, WithoutEffect("the order of the items counts")]
_Status = Annotated[ShortText | None, WithoutEffect("the model sees the text as it is")]
_NO_TOOLS = "for tools, use /v1/chat/completions"


class InputPart(Body):
    """A text part of an input."""

    type: Literal["input_text", "output_text", "text"] = Field(description="Text; sound and files are not supported.")
    text: Text = Field(description="The text.")
    annotations: Annotated[list[Any] | None, WithoutEffect("citations; the model sees the text")] = None
    logprobs: Annotated[list[Any] | None, WithoutEffect("of an earlier answer; the model sees the text")] = None


class InputImagePart(ImageBody):
    """An image of an input."""

    type: Literal["input_image"] = Field(description="An image, in messages of the user.")
    image_url: ImageUrl = Field(description=URL_DESCRIPTION)
    detail: Detail | None = Field(None, description=DETAIL_DESCRIPTION)
    file_id: Annotated[None, Refused("nothing is stored: send the image in image_url")] = None

    @property
    def source(self) -> str:
        return self.image_url

    @property
    def chosen_detail(self) -> Detail | None:
        return self.detail


_Part = Annotated[
    Annotated[InputPart, Tag("input_text part")]
    | Annotated[InputPart, Tag("output_text part")]
    | Annotated[InputPart, Tag("text part")]
    | Annotated[RefusalPart, Tag("refusal part")]
    | Annotated[InputImagePart, Tag("input_image part")],
    Discriminator(
        kind_of_part,
        custom_error_type="part_type",
        custom_error_message="a part is of the type input_text, output_text, input_image or refusal; "
        "sound and files are not supported",
    ),
]


_Content = Annotated[
    Annotated[Text, Tag("plain text")] | Annotated[list[_Part], PARTS, Tag("list of parts")],
    Discriminator(kind_of_content),
]


class InputMessage(Body):
    """A message of an input. Clients send back the items of earlier answers."""

    type: Literal["message"] | None = Field("message", description="A message.")
    role: Literal["system", "developer", "user", "assistant"] = Field(description="Author.")
    content: _Content = Field(description="The text, or parts: texts and images.")
    id: _Id = None
    status: _Status = None

    def message(self, *, reasoning: str | None) -> Message:
        """Return the equivalent chat message, with the reasoning before it."""
        content = self.content if isinstance(self.content, str) else [_chat_part(part) for part in self.content]
        return Message(role=self.role, content=content, reasoning_content=reasoning)


def _chat_part(part: InputPart | RefusalPart | InputImagePart) -> TextPart | RefusalPart | ImagePart:
    """Return the equivalent part of a chat message."""
    if isinstance(part, InputImagePart):
        return ImagePart(type="image_url", image_url=ImageUrlBody(url=part.image_url, detail=part.detail))
    return TextPart(type="text", text=part.text) if isinstance(part, InputPart) else part


class ReasoningPart(Body):
    """A part of a model's reasoning."""

    type: Literal["reasoning_text"] = Field(description="Reasoning.")
    text: Text = Field(description="The text.")


class ReasoningItem(Body):
    """The reasoning before an answer of the input."""

    type: Literal["reasoning"] = Field(description="Reasoning before the next message of the assistant.")
    content: Annotated[list[ReasoningPart], Field(max_length=1000)] | None = Field(
        None, description="For templates that show earlier reasoning to the model."
    )
    summary: Annotated[list[Any] | None, WithoutEffect("`content` has all of it")] = None
    encrypted_content: Annotated[None, Refused("reasoning is in `content`, in plain text")] = None
    id: _Id = None
    status: _Status = None

    @property
    def text(self) -> str:
        """The whole reasoning."""
        return "".join(part.text for part in self.content or ())


def _kind_of_item(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "reasoning" if kind == "reasoning" else "message"


Item = Annotated[
    Annotated[InputMessage, Tag("message")] | Annotated[ReasoningItem, Tag("reasoning")], Discriminator(_kind_of_item)
]


class TextFormat(Body):
    """The format of the text. Unlike in chat requests, the schema is beside its name."""

    type: Literal["text", "json_object", "json_schema"] = Field(
        "text", description="Text, any JSON object, or a schema."
    )
    name: Annotated[SchemaName | None, WithoutEffect("OpenAI's API requires it; any name")] = None
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="The schema, if `type` is json_schema.")
    strict: Annotated[bool | None, WithoutEffect("a schema is always enforced exactly")] = None
    description: Annotated[ShortText | None, WithoutEffect("the model does not see the schema")] = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if self.type == "json_schema" and (self.schema_ is None or self.name is None):
            raise ValueError("json_schema needs a name and a schema")
        return self

    def response_format(self) -> ResponseFormat:
        """Return the equivalent `response_format` of a chat request."""
        schema = None if self.schema_ is None else JsonSchemaBody(name=self.name or "schema", schema=self.schema_)
        return ResponseFormat(type=self.type, json_schema=schema)


class ResponseText(Body):
    """The `text` field."""

    format: TextFormat | None = Field(None, description="Structure of the answer.")
    verbosity: Annotated[Literal["medium"] | None, Refused("ask for it in the input")] = None


class ReasoningOptions(Body):
    """The `reasoning` field."""

    effort: Effort | None = Field(None, description="Like `reasoning_effort` in chat requests.")
    summary: Annotated[None, Refused("reasoning is returned whole")] = None
    generate_summary: Annotated[None, Refused("reasoning is returned whole")] = None


class ResponseStreamOptions(Body):
    """Options for a streamed answer."""

    include_obfuscation: Annotated[Literal[False] | None, Refused("events have no padding")] = None


class ResponseBody(ServiceFields):
    """`POST /v1/responses`. Nothing is stored, so each request contains its whole conversation."""

    model: ModelName = Field(description="Name of the served model.")
    # One message fewer than in a chat request, because the instructions become a message too.
    input: Text | Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES - 1)] = Field(
        description="A text, or the conversation. A final message of the assistant is continued."
    )
    instructions: Text | None = Field(None, description="System message.")
    max_output_tokens: Tokens | None = Field(None, description="Maximum tokens to generate.")
    temperature: Temperature | None = Field(None, description="Sampling temperature; 0 is greedy.")
    top_p: TopP | None = Field(None, description="Sample from the most likely tokens of this total probability.")
    seed: Seed | None = Field(None, description="Seed of the answer; by default a new one, which the response reports.")
    stream: bool | None = Field(False, description="Send the answer as server-sent events while it is generated.")
    stream_options: ResponseStreamOptions | None = Field(None, description="Options of the stream.")
    text: ResponseText | None = Field(None, description="Structure of the answer.")
    reasoning: ReasoningOptions | None = Field(None, description="Effort for thinking.")
    chat_template_kwargs: TemplateVariables | None = Field(
        None, description="Variables of the chat template. One that the template does not read is refused."
    )
    metadata: Metadata | None = Field(None, description="Returned with the answer.")
    include: Annotated[
        Annotated[list[Literal["reasoning.encrypted_content"]], Field(max_length=10)] | None,
        Refused("reasoning is returned in plain text, and nothing else is kept"),
    ] = None
    parallel_tool_calls: Annotated[bool | None, WithoutEffect("there are no tools")] = None
    tools: Annotated[Annotated[list[Any], Field(max_length=0)] | None, Refused(_NO_TOOLS)] = None
    tool_choice: Annotated[Literal["none", "auto"] | None, Refused(_NO_TOOLS)] = None
    max_tool_calls: Annotated[None, Refused(_NO_TOOLS)] = None
    top_logprobs: Annotated[Literal[0] | None, Refused("for log-probabilities, use /v1/chat/completions")] = None
    truncation: Annotated[Literal["disabled"] | None, Refused("a prompt that does not fit is an error")] = None
    background: Annotated[Literal[False] | None, Refused("nothing is stored, so that it could be fetched later")] = None
    previous_response_id: Annotated[None, Refused("nothing is stored: send the whole conversation")] = None
    conversation: Annotated[None, Refused("nothing is stored: send the whole conversation")] = None
    prompt: Annotated[None, Refused("nothing is stored: send the text as input")] = None
    context_management: Annotated[None, Refused("a prompt that does not fit is an error")] = None
    response_format: Annotated[None, Refused("use text.format")] = None

    _options_need_a_stream = field_validator("stream_options")(check_streamed)

    def chat(self) -> ChatBody:
        """Return the equivalent chat request."""
        text_format = self.text.format if self.text else None
        return ChatBody(
            model=self.model,
            messages=list(self._messages()),
            max_completion_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            response_format=None if text_format is None else text_format.response_format(),
            reasoning_effort=self.reasoning.effort if self.reasoning else None,
            chat_template_kwargs=self.chat_template_kwargs,
        )

    def _messages(self) -> Iterator[Message]:
        """Yield the messages, each with the reasoning before it."""
        if self.instructions is not None:
            yield Message(role="system", content=self.instructions)
        if isinstance(self.input, str):
            yield Message(role="user", content=self.input)
            return
        reasoning = ""
        for item in self.input:
            if isinstance(item, ReasoningItem):
                reasoning += item.text
                continue
            if reasoning and item.role != "assistant":
                yield Message(role="assistant", reasoning_content=reasoning)
                reasoning = ""
            yield item.message(reasoning=reasoning or None)
            reasoning = ""
        if reasoning:
            yield Message(role="assistant", reasoning_content=reasoning)
