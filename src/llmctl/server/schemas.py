"""Parts of request bodies that several routes share. Every field has a bound; names and meanings are those of OpenAI's
API and, for what that lacks, of vLLM's."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from llmctl.server.fields import REFUSED, Body, Refused, WithoutEffect
from llmctl.server.structure_fields import StructureFields
from llmctl.server.tool_calls import CallBody

if TYPE_CHECKING:
    from llmctl.generation.pictures import Picture

MAX_CHOICES = 16
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20
MAX_TOKENS = 1_000_000
MAX_MESSAGES = 10_000

Text = Annotated[str, Field(max_length=4_000_000)]
ImageUrl = Annotated[str, Field(min_length=1, max_length=70_000_000)]  # 50 MB in base64
Detail = Literal["auto", "low", "high", "original"]
URL_DESCRIPTION = "A data URL, `data:image/png;base64,…`; with `serve.fetch_images` also an http or https URL."
DETAIL_DESCRIPTION = "`low` shrinks the image to 512 pixels on a side; otherwise the model's own processor decides."
ShortText = Annotated[str, Field(max_length=1000)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
ModelName = Annotated[str, Field(max_length=500)]
Metadata = Annotated[dict[str, Text], Field(max_length=16)]


class StreamOptions(Body):
    """Options for a streamed answer."""

    include_usage: bool | None = Field(False, description="End the stream with the token counts.")
    include_obfuscation: Annotated[Literal[False] | None, Refused("chunks have no padding")] = None
    continuous_usage_stats: Annotated[Literal[False] | None, Refused("only the last chunk has the token counts")] = None


def check_streamed(value: Any, info: ValidationInfo) -> Any:
    """Refuse options for a stream in a request for an answer in one piece."""
    if value is not None and not info.data.get("stream"):
        raise ValueError("only with stream: true")
    return value


class ServiceFields(Body):
    """Fields of OpenAI's service, about accounts and billing."""

    user: Annotated[ShortText | None, WithoutEffect("clients are told apart by their API keys")] = None
    safety_identifier: Annotated[ShortText | None, WithoutEffect("there is no moderation")] = None
    metadata: Annotated[Metadata | None, WithoutEffect("labels of stored answers; nothing is stored")] = None
    service_tier: Annotated[ShortText | None, WithoutEffect("all requests wait in one queue")] = None
    prompt_cache_key: Annotated[
        ShortText | None, WithoutEffect("prompts that begin alike share the prefix cache anyway")
    ] = None
    prompt_cache_retention: Annotated[
        ShortText | None, WithoutEffect("the prefix cache keeps what there is room for")
    ] = None
    prompt_cache_options: Annotated[
        dict[str, Any] | None, WithoutEffect("the prefix cache keeps what there is room for")
    ] = None
    store: Annotated[Literal[False] | None, Refused("nothing is stored, so that it cannot be retrieved later")] = None
    moderation: Annotated[None, Refused("there is no moderation")] = None


class Sampling(StructureFields, ServiceFields):
    """Sampling and stop fields, shared by chat and plain completions."""

    model: ModelName = Field(description="Name of the served model.")
    stream: bool | None = Field(False, description="Send the answer as server-sent events while it is generated.")
    stream_options: StreamOptions | None = Field(None, description="Options of the stream.")
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(
        1, description="Number of answers; each has the next seed."
    )
    best_of: Annotated[int | None, Refused("every answer is returned: use n; the same value as n is accepted")] = None
    seed: Seed | None = Field(
        None, description="Seed of the answer; by default a new one, which the answer's choice reports."
    )
    temperature: Temperature | None = Field(None, description="Sampling temperature; 0 is greedy.")
    top_p: TopP | None = Field(None, description="Sample from the most likely tokens of this total probability.")
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] | None = Field(
        None, description="Sample from this many tokens; 0 and -1 mean all."
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Exclude tokens less likely than this fraction of the most likely one."
    )
    typical_p: TopP | None = Field(None, description="Locally typical sampling with this total probability.")
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = Field(
        None, description="Penalty for tokens that have appeared."
    )
    presence_penalty: Penalty | None = Field(0.0, description="Lowers every token that the answer contains.")
    frequency_penalty: Penalty | None = Field(0.0, description="Lowers tokens by their number in the answer.")
    logit_bias: Annotated[dict[str, Bias], Field(max_length=1000)] | None = Field(
        None, description="Values to add to the logits of token ids."
    )
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = Field(
        None, description="Texts that end the answer and are not part of it."
    )
    stop_token_ids: Annotated[list[TokenId], Field(max_length=1000)] | None = Field(
        None, description="Further tokens that end the answer; they are not part of its text."
    )
    ignore_eos: bool | None = Field(False, description="Generate up to the token limit, whatever ends an answer.")
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = Field(
        0, description="Tokens before which no end token is generated. Stop strings still end the answer."
    )
    skip_special_tokens: bool | None = Field(True, description="False leaves special tokens in the text.")
    spaces_between_special_tokens: Annotated[Literal[True] | None, Refused("the tokenizer decides about spaces")] = None
    include_stop_str_in_output: Annotated[Literal[False] | None, Refused("the text ends before a stop string")] = None
    use_beam_search: Annotated[Literal[False] | None, Refused("set generation.num_beams for the server")] = None
    length_penalty: Annotated[Literal[1] | None, Refused("it belongs to a beam search")] = None
    prompt_logprobs: Annotated[None, Refused("use echo and logprobs in /v1/completions")] = None
    allowed_token_ids: Annotated[None, Refused("use logit_bias, or a structure")] = None
    bad_words: Annotated[Annotated[list[str], Field(max_length=0)] | None, Refused("use logit_bias")] = None
    truncate_prompt_tokens: Annotated[None, Refused("a prompt that does not fit is an error")] = None
    truncation_side: Annotated[None, Refused("a prompt that does not fit is an error")] = None
    return_token_ids: Annotated[Literal[False] | None, Refused("/tokenize gives the ids of a text")] = None
    return_tokens_as_token_ids: Annotated[Literal[False] | None, Refused("tokens are returned as text")] = None
    logits_processors: Annotated[None, Refused("requests cannot bring code")] = None
    priority: Annotated[Literal[0] | None, Refused("requests are answered in the order of their arrival")] = None
    request_id: Annotated[None, Refused("the server names each answer")] = None
    cache_salt: Annotated[None, Refused("the prefix cache is shared by all requests")] = None
    kv_transfer_params: Annotated[None, Refused("there is one engine")] = None

    _options_need_a_stream = field_validator("stream_options")(check_streamed)

    @field_validator("best_of")
    @classmethod
    def _best_of_is_n(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and value != (info.data.get("n") or 1):
            raise PydanticCustomError(REFUSED, "not supported: every answer is returned: use n")
        return value

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
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class TextPart(Body):
    """A text part of a message."""

    type: Literal["text"] = Field(description="Text; sound, video and files are not supported.")
    text: Text = Field(description="The text.")


class RefusalPart(Body):
    """A part of an earlier answer in which a model declined to answer."""

    type: Literal["refusal"] = Field(description="An earlier answer's refusal.")
    refusal: Text = Field(description="Its text, which the model sees as the answer's text.")


class ImageBody(Body):
    """An image of a message, in either API."""

    @property
    def source(self) -> str:
        """The URL."""
        raise NotImplementedError

    @property
    def chosen_detail(self) -> Detail | None:
        """How much of the image the model sees."""
        raise NotImplementedError


class ImageUrlBody(Body):
    """The address of an image, and the detail in which the model sees it."""

    url: ImageUrl = Field(description=URL_DESCRIPTION)
    detail: Detail | None = Field(None, description=DETAIL_DESCRIPTION)


class ImagePart(ImageBody):
    """An image of a message."""

    type: Literal["image_url"] = Field(description="An image, in messages of the user.")
    image_url: ImageUrlBody = Field(description="The image.")

    @property
    def source(self) -> str:
        return self.image_url.url

    @property
    def chosen_detail(self) -> Detail | None:
        return self.image_url.detail


def kind_of_part(value: Any) -> str | None:
    """Return the tag of a part, by which its class is chosen. A tag has a space, which tells it from a field."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"{kind} part" if isinstance(kind, str) else None


Part = Annotated[
    Annotated[TextPart, Tag("text part")]
    | Annotated[RefusalPart, Tag("refusal part")]
    | Annotated[ImagePart, Tag("image_url part")],
    Discriminator(
        kind_of_part,
        custom_error_type="part_type",
        custom_error_message="a part is of the type text, image_url or refusal; "
        "sound, video and files are not supported",
    ),
]
PARTS = Field(min_length=1, max_length=1000)


def kind_of_content(value: Any) -> str:
    """Return the tag of a content, so that errors in a part are not hidden behind "not a string"."""
    return "list of parts" if isinstance(value, list) else "plain text"


Content = Annotated[
    Annotated[Text, Tag("plain text")] | Annotated[list[Part], PARTS, Tag("list of parts")],
    Discriminator(kind_of_content),
]


class Message(Body):
    """A message of a conversation. Clients send back whole messages of earlier answers, with their empty fields."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="Author; `developer` is given to the template as `system`."
    )
    content: Content | None = Field(None, description="The text, or parts: texts and images.")
    name: Annotated[str, Field(max_length=256)] | None = Field(None, description="Given to the chat template.")
    tool_calls: Annotated[list[CallBody], Field(max_length=128)] | None = Field(
        None, description="Calls in an earlier answer."
    )
    tool_call_id: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="The call of which the message is the result."
    )
    reasoning_content: Text | None = Field(
        None, description="Reasoning before an earlier answer, for templates that show it to the model."
    )
    reasoning: Text | None = Field(None, description="Another name for `reasoning_content`.")
    refusal: Text | None = Field(None, description="The text of an earlier answer that has no other.")
    type: Annotated[Literal["text", "message"] | None, WithoutEffect("lm-eval sends it")] = None
    annotations: Annotated[list[Any] | None, WithoutEffect("citations; the model sees the text")] = None
    parsed: Annotated[Any, WithoutEffect("the client's own copy of the content")] = None
    audio: Annotated[None, Refused("only text and images")] = None
    function_call: Annotated[None, Refused("OpenAI's older form of tool calls: use tool_calls")] = None

    def for_template(self, pictures: "Iterator[Picture] | None" = None) -> dict[str, Any]:
        """Return the message in the form that chat templates expect: content as text, `developer` as `system`.

        Args:
            pictures: The pictures of the conversation that are still to come. Content with pictures stays in parts.
        """
        content: Any = self.refusal if self.content is None else self.content
        if isinstance(content, list):
            parts = [_template_part(part, pictures or iter(())) for part in content]
            is_text = all(part["type"] == "text" for part in parts)
            content = "".join(part["text"] for part in parts) if is_text else parts
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": content or "", "name": self.name}
        message["tool_call_id"] = self.tool_call_id
        if self.role == "assistant":
            message["reasoning_content"] = self.reasoning_content or self.reasoning or None
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        return {key: value for key, value in message.items() if value is not None}


def _template_part(part: TextPart | RefusalPart | ImagePart, pictures: "Iterator[Picture]") -> dict[str, Any]:
    if isinstance(part, ImagePart):
        return {"type": "image", "image": next(pictures)}
    return {"type": "text", "text": part.text if isinstance(part, TextPart) else part.refusal}


def template_messages(messages: Iterable[Message], pictures: "Iterable[Picture]") -> list[dict[str, Any]]:
    """Return the messages of a conversation for its template, with its pictures in place of its images."""
    remaining = iter(pictures)
    return [message.for_template(remaining) for message in messages]
