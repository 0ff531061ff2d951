"""Answers as Python objects of a given type."""

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

    The structure is not added to the prompt, so the prompt should describe the expected answer.

    Args:
        prompt: A text, or messages.
        shape: A pydantic model, or any type that pydantic supports: a dataclass, `list[int]`, `Literal["a", "b"]`.
        seed: Replaces the configuration's.
        max_new_tokens: Replaces the configuration's.
        chat: Replaces the configuration's chat section.

    Raises:
        UserError: the structure cannot be enforced, the answer was cut off before its end (`error.details["text"]` has
            its text), or the type's validators reject it.
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
    """Return the object of a complete answer."""
    from pydantic import ValidationError

    details = {"text": completion.text, "finish_reason": completion.finish_reason}
    if completion.finish_reason != "stop":
        raise UserError(
            f"the answer was cut off after {len(completion.token_ids)} tokens, before it was complete",
            hint="raise max_new_tokens, or limit the lengths of strings and lists in the type",
            details=details,
        )
    try:
        return adapter.validate_json(completion.text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = ".".join(map(str, first["loc"])) or "the value"
        raise UserError(
            f"the answer matches the structure, but {location} does not pass the type's validation: {first['msg']}",
            details=details,
        ) from error
