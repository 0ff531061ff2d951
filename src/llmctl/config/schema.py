"""The schema of a configuration: every key with its default, its unit, its meaning and its bound.

Names are transformers' own where it has one. Unknown keys are errors. Nothing here imports torch or transformers.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator

from llmctl.config.section import Section as _Section
from llmctl.config.serve import ServeSection
from llmctl.config.structure import StructureSection
from llmctl.config.vllm import VllmSection
from llmctl.units import parse_bytes

DtypeName = Literal["auto", "float32", "float16", "bfloat16"]
AttentionName = Literal["auto", "flash_attention_2", "sdpa", "eager", "flex_attention"]

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
_DEVICE = re.compile(r"^(auto|balanced|balanced_low_0|sequential|cpu|mps|cuda|cuda:\d+)$")
_PLACE = re.compile(r"^(cpu|mps|cuda|cuda:\d+|\d+)$")


def _dtype(value: Any) -> Any:
    if isinstance(value, str):
        value = value.lower().removeprefix("torch.")
        return DTYPE_ALIASES.get(value, value)
    return value


def _attention(value: Any) -> Any:
    return _ATTENTION_ALIASES.get(value, value) if isinstance(value, str) else value


def _bits(value: Any) -> Any:
    if isinstance(value, str):
        text = value.lower().replace("-", "").removesuffix("bit")
        return {"none": None, "no": None, "4": 4, "8": 8, "int8": 8, "nf4": 4}.get(text, value)
    return None if value is False else value


def _draft_bits(value: Any) -> Any:
    """As `_bits`, but none is 0: here null means to follow the model."""
    return value if value is None else _bits(value) or 0


def _adapters(value: Any) -> Any:
    """Adapters may be said by their names alone, one of them without a list."""
    return [{"id": one} if isinstance(one, str) else one for one in (value if isinstance(value, list) else [value])]


def _list(value: Any) -> Any:
    return [value] if isinstance(value, str | int) and not isinstance(value, bool) else value


# What an editor should accept as well: the schema printed by `llmctl config schema` lists the short names too.
_DTYPE_NAMES = ["auto", "float32", "float16", "bfloat16", *DTYPE_ALIASES]
_ATTENTION_NAMES = ["auto", "flash_attention_2", "sdpa", "eager", "flex_attention", *_ATTENTION_ALIASES]
_BITS_NAMES = [None, 4, 8, "4bit", "8bit", "none"]
Dtype = Annotated[DtypeName, BeforeValidator(_dtype), WithJsonSchema({"enum": _DTYPE_NAMES})]
Attention = Annotated[AttentionName, BeforeValidator(_attention), WithJsonSchema({"enum": _ATTENTION_NAMES})]
Bits = Annotated[Literal[4, 8] | None, BeforeValidator(_bits), WithJsonSchema({"enum": _BITS_NAMES})]
CacheName = Literal["dynamic", "static", "offloaded", "offloaded_static", "quantized"]


class AdapterSpec(_Section):
    """One adapter: small weights on top of the model's."""

    id: str = Field(min_length=1, description="A Hub id (org/name) or the path of a folder.")
    revision: str | None = Field(None, min_length=1, description="A branch, tag or commit on the Hub.")
    scale: float = Field(1.0, ge=-100, le=100, description="What its effect is multiplied with.")


class ModelSection(_Section):
    """Which model."""

    id: str | None = Field(
        None,
        min_length=1,
        description="A Hub id (org/name) or the path of a folder. A relative path in a file starts at that file.",
    )
    revision: str | None = Field(
        None, min_length=1, description="A branch, tag or commit on the Hub. Default: the main branch."
    )
    trust_remote_code: bool = Field(
        False,
        description="Run Python code that the model's repository carries. Only for repositories you have read.",
    )
    adapters: Annotated[list[AdapterSpec], BeforeValidator(_adapters)] = Field(
        [],
        description="LoRA adapters on top of the model: ids or paths, or {id, revision, scale}. Needs peft.",
    )
    merge_adapters: bool = Field(
        False, description="Add the adapters to the model's own weights: faster, and exact only in float32."
    )
    use_safetensors: bool = Field(
        True, description="Load safetensors only. It cannot be turned off: pickled weights can run code."
    )

    @field_validator("use_safetensors")
    @classmethod
    def _no_pickles(cls, value: bool) -> bool:
        if not value:
            raise ValueError("pickled weights can run code when they are read; convert them to safetensors instead")
        return value


class LoadSection(_Section):
    """How it is placed and computed."""

    device_map: str | dict[str, int | str] = Field(
        "auto",
        description=(
            "auto, cpu, cuda, cuda:N, mps, balanced, sequential, or a map from module names to devices. "
            "auto takes the GPUs that are there and spills to RAM only when it must."
        ),
    )
    max_memory: dict[int | str, int | str] | None = Field(
        None,
        description="Most bytes to use per device, for example {0: 20GiB, cpu: 48GiB}. Default: what is free.",
    )
    dtype: Dtype = Field(
        "auto",
        description=(
            "auto, float32, float16 or bfloat16 (fp32, fp16, bf16, half also work). auto: what the weights are "
            "stored in, where this machine computes that well."
        ),
    )
    attn_implementation: Attention = Field(
        "auto",
        description=(
            "auto, flash_attention_2, sdpa, eager or flex_attention. auto takes FlashAttention-2 where it can run "
            "and SDPA elsewhere; asked for by name, it is that or an error."
        ),
    )

    cpu_kernels: bool = Field(
        True,
        description="Compute in bfloat16 on a CPU with llmctl's own kernels: results do not depend on the batch.",
    )
    overcommit: bool = Field(
        False, description="Load even when the RAM does not seem to suffice: the system may then kill the process."
    )

    @field_validator("device_map")
    @classmethod
    def _known_device(cls, value: str | dict[str, int | str]) -> str | dict[str, int | str]:
        if isinstance(value, str):
            if not _DEVICE.match(value):
                raise ValueError(
                    "use auto, cpu, cuda, cuda:N, mps, balanced, sequential or a map of modules to devices"
                )
            return value
        wrong = [str(place) for place in value.values() if not _PLACE.match(str(place))]
        if wrong:
            raise ValueError(f"no such device: {', '.join(wrong)} (use a GPU number, cuda:N, cpu or mps; not disk)")
        return value

    @field_validator("max_memory")
    @classmethod
    def _known_sizes(cls, value: dict[int | str, int | str] | None) -> dict[int | str, int | str] | None:
        for device, size in (value or {}).items():
            if not re.match(r"^(\d+|cpu|mps)$", str(device)):
                raise ValueError(f"{device!r} is not a GPU number, cpu or mps")
            parse_bytes(size)
        return value


class TokenizerSection(_Section):
    """How text becomes token ids."""

    use_fast: bool | None = Field(
        None, description="Accepted and without effect: transformers 5 always uses the fast tokenizer."
    )
    model_max_length: int | None = Field(
        None, ge=1, description="Most tokens of a prompt. Default: the model's context length."
    )


class QuantizationSection(_Section):
    """Weights in 8 or 4 bits, quantised while loading."""

    backend: Literal["auto", "bitsandbytes", "llmctl", "torch"] = Field(
        "auto",
        description="What quantises: bitsandbytes, or on a CPU llmctl's own kernels, which are the fastest there, or "
        "torch's packed ones, which need no compiler.",
    )
    bits: Bits = Field(None, description="8, 4, or null for none (8bit and 4bit also work).")
    head_bits: Bits = Field(
        8,
        description="llmctl's kernels: bits of the output head, and of an embedding tied to it; null leaves them. "
        "torch's take 8 for 4.",
    )
    quant_type: Literal["nf4", "fp4"] = Field("nf4", description="The 4-bit code: nf4 suits trained weights better.")
    use_double_quant: bool = Field(
        False, description="Quantise the scales of the 4-bit blocks too: saves about 0.4 bits a weight."
    )
    compute_dtype: Dtype = Field(
        "auto",
        description="What 4-bit weights are multiplied in. auto: the half-precision dtype of the model.",
    )
    llm_int8_threshold: float = Field(
        6.0,
        ge=0,
        le=1000,
        description="8-bit: activations beyond this stay in half precision (LLM.int8, section 3).",
    )
    skip_modules: list[str] | None = Field(
        None, description="Modules kept as they are. Default: lm_head and what the architecture needs."
    )
    enable_fp32_cpu_offload: bool = Field(
        False,
        description="Let the part that does not fit on the GPU lie in RAM, unquantised. Set by itself when needed.",
    )
    cache: bool = Field(
        True,
        description="Keep a quantised copy of the weights on disk: the next start reads it and need not quantise.",
    )
    cache_size: int | str = Field(
        "20GiB",
        description="Most disk for all quantised copies together; the least recently used go first.",
    )

    @field_validator("cache_size")
    @classmethod
    def _known_size(cls, value: int | str) -> int | str:
        parse_bytes(value)
        return value


class GenerationSection(_Section):
    """How tokens are chosen, and when to stop. Keys left empty follow the model's generation_config.json."""

    max_new_tokens: int = Field(512, ge=1, le=1_000_000, description="Most tokens to generate.")
    do_sample: bool | None = Field(
        None,
        description="Sample (true) or take the likeliest token (false). Set by a temperature when left empty.",
    )
    temperature: float | None = Field(None, ge=0, le=100, description="Flattens the distribution; 0 means greedy.")
    top_k: int | None = Field(None, ge=0, description="Sample among this many tokens; 0 means all.")
    top_p: float | None = Field(None, gt=0, le=1, description="Sample among the likeliest tokens of this total mass.")
    min_p: float | None = Field(
        None, ge=0, le=1, description="Drop tokens less likely than this share of the likeliest."
    )
    typical_p: float | None = Field(None, gt=0, le=1, description="Locally typical sampling of this total mass.")
    repetition_penalty: float | None = Field(
        None, gt=0, le=100, description="Above 1 discourages tokens that have appeared."
    )
    no_repeat_ngram_size: int | None = Field(None, ge=0, description="No n-gram of this size twice; 0 means off.")
    num_beams: int = Field(1, ge=1, le=64, description="Beam search with this many beams; 1 means none.")
    stop_strings: Annotated[list[str], BeforeValidator(_list)] = Field(
        [], description="End before any of these texts. They are not part of the answer."
    )
    extra_eos_tokens: Annotated[list[int | str], BeforeValidator(_list)] = Field(
        [], description="More tokens (ids, or special tokens by name) that end the answer."
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=1000,
        description=(
            "Note each token's log-probability in the model's own distribution (raw logits, before penalties and "
            "temperature), with this many of the likeliest beside it; 0 means only the chosen one."
        ),
    )

    prompt_lookup_num_tokens: int | None = Field(
        None,
        ge=1,
        le=100,
        description="Propose up to this many tokens from the text so far and let the model check them in one pass.",
    )
    cache_implementation: CacheName | None = Field(
        None,
        description=(
            "How keys and values are kept: dynamic (the default), static, quantized; offloaded and offloaded_static "
            "keep them in RAM beside a GPU."
        ),
    )
    cache_config: dict[str, int | str] = Field(
        {},
        description="Of a quantized cache: backend (fp8, quanto or hqq), nbits, axis_key, axis_value, q_group_size, "
        "residual_length. Default: the first backend that is installed; fp8 needs no package.",
    )
    compile: bool = Field(
        False, description="Compile the decoding step with torch.compile, once a process; takes a static cache."
    )

    @field_validator("cache_config")
    @classmethod
    def _known_cache_keys(cls, value: dict[str, int | str]) -> dict[str, int | str]:
        known = ("backend", "nbits", "axis_key", "axis_value", "q_group_size", "residual_length")
        if wrong := [key for key in value if key not in known]:
            raise ValueError(f"unknown key {wrong[0]}; there are {', '.join(known)}")
        if value.get("backend", "fp8") not in ("fp8", "quanto", "hqq"):
            raise ValueError("backend must be fp8, quanto or hqq")
        if text := [key for key in known[1:] if not isinstance(value.get(key, 0), int)]:
            raise ValueError(f"{text[0]} must be a number")
        return value

    @field_validator("stop_strings")
    @classmethod
    def _not_empty(cls, value: list[str]) -> list[str]:
        if any(not text for text in value):
            raise ValueError("an empty stop string would end every answer at once")
        return value


class DraftSection(_Section):
    """A smaller model that proposes tokens, which the model checks several at a time (assisted generation)."""

    id: str | None = Field(
        None,
        min_length=1,
        description="A Hub id (org/name) or the path of a folder. A relative path in a file starts at that file.",
    )
    revision: str | None = Field(
        None, min_length=1, description="A branch, tag or commit on the Hub. Default: the main branch."
    )
    dtype: Dtype | None = Field(None, description="Its dtype. Default: as load.dtype.")
    bits: Annotated[Literal[0, 4, 8] | None, BeforeValidator(_draft_bits)] = Field(
        None, description="8, 4, or 0 for none. Default: as quantization.bits."
    )
    num_assistant_tokens: int | None = Field(
        None, ge=1, le=100, description="Most tokens that it proposes at a time. Default: transformers', 20."
    )
    assistant_confidence_threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="It stops proposing after a token less likely than this. Default: transformers', 0.4.",
    )


class ChatSection(_Section):
    """How a prompt becomes a conversation."""

    raw: bool = Field(False, description="Give the prompt to the model as it is, without the chat template.")
    system: str | None = Field(None, description="The system prompt.")
    template: str | None = Field(
        None, description="A Jinja chat template instead of the model's: a path, which in a file starts at that file."
    )
    template_kwargs: dict[str, Any] = Field(
        {}, description="Values for the template, for example {enable_thinking: false}."
    )


class Config(_Section):
    """Everything a user can ask for. Frozen; every value has a default."""

    model: ModelSection = Field(default_factory=ModelSection, description="Which model.")
    load: LoadSection = Field(default_factory=LoadSection, description="How it is placed and computed.")
    tokenizer: TokenizerSection = Field(default_factory=TokenizerSection, description="How text becomes token ids.")
    quantization: QuantizationSection = Field(
        default_factory=QuantizationSection, description="Weights in 8 or 4 bits, quantised while loading."
    )
    generation: GenerationSection = Field(
        default_factory=GenerationSection, description="How tokens are chosen, and when to stop."
    )
    draft: DraftSection = Field(
        default_factory=DraftSection, description="A smaller model that proposes tokens, which the model checks."
    )
    structure: StructureSection = Field(default_factory=StructureSection, description="What form the answer must have.")
    chat: ChatSection = Field(default_factory=ChatSection, description="How a prompt becomes a conversation.")
    serve: ServeSection = Field(
        default_factory=ServeSection, description="Where the server listens, who may use it, and how much it takes on."
    )
    vllm: VllmSection = Field(default_factory=VllmSection, description="What only vLLM has.")
    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="What computes for llmctl serve and generate --input: transformers here, or vLLM."
    )
    seed: int = Field(42, ge=0, le=2**32 - 1, description="The seed of everything random (transformers.set_seed).")
    deterministic: bool = Field(
        False,
        description="Ask torch for deterministic algorithms: slower, and repeatable on the same machine.",
    )


def sections() -> dict[str, type[_Section]]:
    """The sections by name, in the order of the schema."""
    found = {}
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, _Section):
            found[name] = field.annotation
    return found


def all_keys() -> list[str]:
    """Every key as a dotted path, in the order of the schema."""
    nested = sections()
    keys: list[str] = []
    for name in Config.model_fields:
        keys += [f"{name}.{inner}" for inner in nested[name].model_fields] if name in nested else [name]
    return keys


def default_of(key: str) -> Any:
    """Return the default of a dotted key."""
    return field_of(key).get_default(call_default_factory=True)


def field_of(key: str) -> Any:
    """The pydantic field behind a dotted key. Raises KeyError for an unknown one."""
    section, _, inner = key.partition(".")
    return sections()[section].model_fields[inner] if inner else Config.model_fields[section]
