"""The base of every section of the configuration, and the value types that several of them share."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, WithJsonSchema, field_validator

DtypeName = Literal["auto", "float32", "float16", "bfloat16"]
AttentionName = Literal["auto", "flash_attention_2", "sdpa", "eager", "flex_attention"]
CacheName = Literal["dynamic", "static", "offloaded", "offloaded_static", "quantized"]

DTYPE_ALIASES = {
    "fp32": "float32",
    "f32": "float32",
    "float": "float32",
    "full": "float32",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
}
_ATTENTION_ALIASES = {
    "fa2": "flash_attention_2",
    "flash": "flash_attention_2",
    "flash_attn": "flash_attention_2",
}
_BITS_ALIASES = {"none": None, "no": None, "4": 4, "8": 8, "int4": 4, "int8": 8, "nf4": 4}


class Section(BaseModel):
    """A section of the configuration: immutable; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_value_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true where a number is expected: pydantic would take it for 1."""
        if isinstance(value, bool) and _is_number(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("must be a number")
        return value


def _is_number(annotation: Any) -> bool:
    return set(get_args(annotation) or (annotation,)) <= {int, float, type(None)}


def _dtype(value: Any) -> Any:
    if isinstance(value, str):
        value = value.lower().removeprefix("torch.")
        return DTYPE_ALIASES.get(value, value)
    return value


def _attention(value: Any) -> Any:
    return _ATTENTION_ALIASES.get(value, value) if isinstance(value, str) else value


def _bits(value: Any) -> Any:
    if isinstance(value, str):
        return _BITS_ALIASES.get(value.lower().replace("-", "").removesuffix("bit"), value)
    return None if value is False else value


def _draft_bits(value: Any) -> Any:
    """Return 0 for "not quantised", because None means that the draft follows the model."""
    return value if value is None else _bits(value) or 0


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | int) and not isinstance(value, bool) else value


# The JSON schema of `llmctl config schema` lists the aliases too, so that editors accept them.
_DTYPE_NAMES = ["auto", "float32", "float16", "bfloat16", *DTYPE_ALIASES]
_ATTENTION_NAMES = ["auto", "flash_attention_2", "sdpa", "eager", "flex_attention", *_ATTENTION_ALIASES]
_BITS_NAMES = [None, 4, 8, "4bit", "8bit", "none"]
Dtype = Annotated[DtypeName, BeforeValidator(_dtype), WithJsonSchema({"enum": _DTYPE_NAMES})]
Attention = Annotated[AttentionName, BeforeValidator(_attention), WithJsonSchema({"enum": _ATTENTION_NAMES})]
Bits = Annotated[Literal[4, 8] | None, BeforeValidator(_bits), WithJsonSchema({"enum": _BITS_NAMES})]
DraftBits = Annotated[Literal[0, 4, 8] | None, BeforeValidator(_draft_bits)]
Texts = Annotated[list[str], BeforeValidator(_as_list)]
TokensOrIds = Annotated[list[int | str], BeforeValidator(_as_list)]
