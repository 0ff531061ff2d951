"""Answers as Python objects: a type in, an instance of it out."""

from typing import TYPE_CHECKING, TypeVar

from llmctl.config import ChatSection
from llmctl.errors import UserError
from llmctl.generation.completion import Completion
from llmctl.generation.overrides import with_generation
from llmctl.generation.prompt import Messages
from llmctl.generation.stream import generate

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from llmctl.loading.model import LoadedModel

T = TypeVar("T")


def generate_object(
    loaded: "LoadedModel",
    prompt: "str | Messages",
    shape: type[T],
    *,
    seed: int | None = None,
    max_new_tokens: int | None = None,
    chat: ChatSection | None = None,
) -> T:
    """Generate one answer and return it as an object: `generate_object(loaded, "Who was Ada?", Person)`.

    The structure is not part of the prompt: describe in it what you want.

    Args:
        prompt: A text, or messages.
        shape: A pydantic model, or any type that pydantic knows: a dataclass, `list[int]`, `Literal["a", "b"]`.
        seed: Replaces the configuration's.
        max_new_tokens: Replaces the configuration's.
        chat: Replaces the configuration's chat section.

    Raises:
        UserError: the structure cannot be enforced, the answer was cut before its end (`error.details["text"]` holds
            its text), or the type's own validators refuse it.
    """
    from pydantic import PydanticInvalidForJsonSchema, TypeAdapter

    adapter = TypeAdapter(shape)
    try:
        schema = adapter.json_schema()
    except PydanticInvalidForJsonSchema as error:
        raise UserError(f"{shape} has no JSON schema: {error.message}") from error
    configured = with_generation(loaded, {}, structure={"json_schema": schema})
    return _read(adapter, generate(configured, prompt, seed=seed, max_new_tokens=max_new_tokens, chat=chat))


def _read(adapter: "TypeAdapter[T]", completion: Completion) -> T:
    """Return the object of a whole answer."""
    from pydantic import ValidationError

    details = {"text": completion.text, "finish_reason": completion.finish_reason}
    if completion.finish_reason != "stop":
        raise UserError(
            f"the answer was cut after {len(completion.token_ids)} tokens, before it was whole",
            hint="raise max_new_tokens, or bound the lengths of texts and lists in the model",
            details=details,
        )
    try:
        return adapter.validate_json(completion.text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = ".".join(map(str, first["loc"])) or "the value"
        raise UserError(
            f"the answer has the form, but {location} does not pass the model's own validation: {first['msg']}",
            details=details,
        ) from error
