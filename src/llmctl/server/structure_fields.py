"""The fields of a request that determine the form of its answer: OpenAI's `response_format`, and vLLM's."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from llmctl.config.structure import is_grammar_text
from llmctl.server.fields import Body, Refused, WithoutEffect
from llmctl.server.http_errors import RequestError

_MAX_LENGTH = 1_000_000
_ALWAYS_THE_SAME = "the rules and the white space of schemas are always the same"
_ANY_OBJECT = {"type": "object"}


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        value = json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("the schema is not JSON") from None
    if not isinstance(value, dict):
        raise ValueError("the schema is not an object")  # noqa: TRY004 (pydantic takes ValueErrors)
    return value


def _a_grammar(value: str) -> str:
    if not is_grammar_text(value):  # a configuration would take it for the path of a file
        raise ValueError("the grammar has no rule start")
    return value


SchemaName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Schema = Annotated[dict[str, Any] | Annotated[str, Field(max_length=_MAX_LENGTH)], AfterValidator(_parsed)]
Pattern = Annotated[str, Field(min_length=1, max_length=_MAX_LENGTH)]
Grammar = Annotated[Pattern, AfterValidator(_a_grammar)]
Choices = Annotated[list[Pattern], Field(min_length=1, max_length=1000)]


class JsonSchemaBody(Body):
    """A schema and its name."""

    name: Annotated[SchemaName, WithoutEffect("OpenAI's API requires it; any name")]
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema", description="The schema.")
    strict: Annotated[bool | None, WithoutEffect("a schema is always enforced exactly")] = None
    description: Annotated[Pattern | None, WithoutEffect("the model does not see the schema")] = None


class ResponseFormat(Body):
    """The structure of the answer."""

    type: Literal["text", "json_object", "json_schema"] = Field(description="Text, any JSON object, or a schema.")
    json_schema: JsonSchemaBody | None = Field(None, description="The schema, if `type` is json_schema.")

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema is missing")
        return self

    def structure_section(self) -> dict[str, Any]:
        """Return the equivalent `structure` section of a configuration."""
        if self.type == "json_schema" and self.json_schema is not None:
            return {"json_schema": self.json_schema.schema_}
        return {"json_schema": _ANY_OBJECT} if self.type == "json_object" else {}


class StructuredOutputs(Body):
    """vLLM's field for the structure of the answer."""

    json_: Schema | None = Field(None, alias="json", description="JSON schema, or its text.")
    regex: Pattern | None = Field(None, description="Regular expression that the whole answer matches.")
    choice: Choices | None = Field(None, description="Possible answers.")
    grammar: Grammar | None = Field(None, description="Grammar in llguidance's variant of Lark.")
    json_object: bool | None = Field(None, description="Any JSON object.")
    structural_tag: Annotated[None, Refused("use grammar")] = None
    whitespace_pattern: Annotated[None, Refused(_ALWAYS_THE_SAME)] = None
    disable_any_whitespace: Annotated[Literal[False] | None, Refused(_ALWAYS_THE_SAME)] = None
    disable_additional_properties: Annotated[Literal[False] | None, Refused(_ALWAYS_THE_SAME)] = None
    disable_fallback: Annotated[bool | None, WithoutEffect("there is nothing to fall back to")] = None

    def sections(self) -> dict[str, dict[str, Any]]:
        """Return the equivalent `structure` section of each field that is set."""
        given = {
            "json": ("json_schema", self.json_),
            "regex": ("regex", self.regex),
            "choice": ("choices", self.choice),
            "grammar": ("grammar", self.grammar),
            "json_object": ("json_schema", _ANY_OBJECT if self.json_object else None),
        }
        return {name: {key: value} for name, (key, value) in given.items() if value is not None}


class StructureFields(Body):
    """Fields for the structure of the answer. At most one of them can be set."""

    response_format: ResponseFormat | None = Field(None, description="Structure of the answer.")
    structured_outputs: StructuredOutputs | None = Field(None, description="Structure of the answer.")
    guided_json: Schema | None = Field(None, description="JSON schema, or its text.")
    guided_regex: Pattern | None = Field(None, description="Regular expression that the whole answer matches.")
    guided_choice: Choices | None = Field(None, description="Possible answers.")
    guided_grammar: Grammar | None = Field(None, description="Grammar in llguidance's variant of Lark.")
    guided_decoding_backend: Annotated[None, Refused("llguidance enforces every structure")] = None
    guided_whitespace_pattern: Annotated[None, Refused(_ALWAYS_THE_SAME)] = None

    def structure(self) -> tuple[str | None, dict[str, Any] | None]:
        """Return the field that determines the structure, and the `structure` section of a configuration that it means.

        An empty section turns the configured structure off; None keeps it.

        Raises:
            RequestError: several fields determine it.
        """
        outputs = StructuredOutputs(
            json=self.guided_json, regex=self.guided_regex, choice=self.guided_choice, grammar=self.guided_grammar
        )
        sections = {f"guided_{name}": section for name, section in outputs.sections().items()}
        if self.structured_outputs is not None:
            inner = self.structured_outputs.sections()
            sections |= {f"structured_outputs.{name}": section for name, section in inner.items()}
        if self.response_format is not None and (section := self.response_format.structure_section()):
            sections["response_format"] = section
        if len(sections) > 1:
            first, second, *_ = sections
            raise RequestError(f"{first} and {second} cannot both be set", param=second)
        if not sections:
            return None, None if self.response_format is None else {}
        return next(iter(sections.items()))
