"""The schema of a configuration: every key with its default, unit, meaning and bounds.

Keys have the names that transformers uses, where it has one. The descriptions make the reference page, the starter
file and the JSON schema. Nothing here imports torch or transformers.
"""

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from llmctl.config.fields import Attention, Bits, CacheName, DraftBits, Dtype, Section, Texts, TokensOrIds
from llmctl.config.serve import ServeSection
from llmctl.config.structure import StructureSection
from llmctl.config.vllm import VllmSection
from llmctl.quant.registry import BACKENDS
from llmctl.units import parse_bytes

if TYPE_CHECKING:
    Backend = str
else:
    Backend = Literal["auto", *sorted(backend.name for backend in BACKENDS)]
_DEVICE_MAP = re.compile(r"^(auto|balanced|balanced_low_0|sequential|cpu|mps|(cuda|xpu)(:\d+)?)$")
_DEVICE = re.compile(r"^(cpu|mps|(cuda|xpu)(:\d+)?|\d+)$")
_MODEL_HELP = "Hub id (org/name) or path of a folder. A relative path in a file is relative to that file."
_REVISION_HELP = "Branch, tag or commit on the Hub. Default: the main branch."


def _adapters(value: Any) -> Any:
    """Return adapters as mappings: a name alone, or one adapter without a list, is accepted."""
    return [{"id": one} if isinstance(one, str) else one for one in (value if isinstance(value, list) else [value])]


class AdapterSpec(Section):
    """A LoRA adapter: small weights on top of the model's."""

    id: str = Field(min_length=1, description="Hub id (org/name) or path of a folder.")
    revision: str | None = Field(None, min_length=1, description="Branch, tag or commit on the Hub.")
    scale: float = Field(1.0, ge=-100, le=100, description="Factor of the adapter's effect.")


class ModelSection(Section):
    """The model and its adapters."""

    id: str | None = Field(None, min_length=1, description=_MODEL_HELP)
    revision: str | None = Field(None, min_length=1, description=_REVISION_HELP)
    trust_remote_code: bool = Field(
        False, description="Run Python code from the model's repository. Only for repositories that you have read."
    )
    adapters: Annotated[list[AdapterSpec], BeforeValidator(_adapters)] = Field(
        [], description="LoRA adapters on top of the model: ids or paths, or {id, revision, scale}. Needs peft."
    )
    merge_adapters: bool = Field(
        False, description="Merge the adapters into the model's weights: faster, and exact only in float32."
    )
    use_safetensors: bool = Field(
        True, description="Load only safetensors. Cannot be turned off: pickled weights can run code."
    )

    @field_validator("use_safetensors")
    @classmethod
    def _no_pickles(cls, value: bool) -> bool:
        if not value:
            raise ValueError("pickled weights can run code when they are read; convert them to safetensors instead")
        return value


class LoadSection(Section):
    """Placement, data type and attention of the model."""

    device_map: str | dict[str, int | str] = Field(
        "auto",
        description=(
            "auto, cpu, cuda, cuda:N, xpu, xpu:N, mps, balanced, sequential, or a map from module names to devices. "
            "auto uses the GPUs, and RAM only for weights that do not fit on them. AMD GPUs are cuda, too; Intel's "
            "are xpu."
        ),
    )
    max_memory: dict[int | str, int | str] | None = Field(
        None,
        description="Maximum memory per device, for example {0: 20GiB, cpu: 48GiB}. Default: the free memory.",
    )
    dtype: Dtype = Field(
        "auto",
        description=(
            "auto, float32, float16 or bfloat16 (fp32, fp16, bf16 and half also work). auto uses the data type of "
            "the stored weights if this machine computes it well."
        ),
    )
    attn_implementation: Attention = Field(
        "auto",
        description=(
            "auto, flash_attention_2, sdpa, eager or flex_attention. auto uses FlashAttention-2 where it can run, and "
            "SDPA elsewhere. A named implementation that cannot run is an error."
        ),
    )
    cpu_kernels: bool = Field(
        True,
        description="Compute on a CPU with llmctl's own kernels: results do not depend on the batch.",
    )
    images: Literal["auto", "always", "never"] = Field(
        "auto",
        description=(
            "When the vision tower of a model is loaded: auto, with the first image; always, at the start, so that the "
            "plan counts it; never, so that images are refused."
        ),
    )
    max_image_tokens: int | None = Field(
        None,
        ge=1,
        description=(
            "Maximum tokens of an image in a prompt; larger images are shrunk. Default: the limits of the model's "
            "image processor."
        ),
    )
    overcommit: bool = Field(
        False, description="Load even if the RAM seems too small. The system may then kill the process."
    )

    @field_validator("device_map")
    @classmethod
    def _check_device_map(cls, value: str | dict[str, int | str]) -> str | dict[str, int | str]:
        if isinstance(value, str):
            if not _DEVICE_MAP.match(value):
                raise ValueError(
                    "use auto, cpu, cuda, cuda:N, xpu, mps, balanced, sequential or a map of modules to devices"
                )
            return value
        wrong = [str(device) for device in value.values() if not _DEVICE.match(str(device))]
        if wrong:
            raise ValueError(
                f"no such device: {', '.join(wrong)} (use a GPU number, cuda:N, xpu:N, cpu or mps; not disk)"
            )
        return value

    @field_validator("max_memory")
    @classmethod
    def _check_max_memory(cls, value: dict[int | str, int | str] | None) -> dict[int | str, int | str] | None:
        for device, size in (value or {}).items():
            if not re.match(r"^(\d+|cpu|mps)$", str(device)):
                raise ValueError(f"{device!r} is not a GPU number, cpu or mps")
            parse_bytes(size)
        return value


class TokenizerSection(Section):
    """The tokenizer."""

    source: Literal["file", "class"] = Field(
        "file",
        description="file: tokenizer.json as it is. class: what transformers makes of the class that "
        "tokenizer_config.json names, with its add_bos_token and add_eos_token.",
    )
    fix_mistral_regex: bool | None = Field(
        None,
        description="Replace the first pattern of the pre-tokenizer by the one of Mistral's tokenizers. Default: only "
        "where it is known to be wrong, in older files of Mistral's models.",
    )
    use_fast: bool | None = Field(
        None, description="Accepted and without effect: transformers 5 always uses the fast tokenizer."
    )
    model_max_length: int | None = Field(
        None, ge=1, description="Maximum tokens of a prompt. Default: the model's context length."
    )


class QuantizationSection(Section):
    """Weights in 8 or 4 bits, quantised while loading."""

    backend: Backend = Field(
        "auto",
        description="Implementation: bitsandbytes; or on a CPU llmctl's own kernels, the fastest there, or torch's "
        "packed kernels, which need no compiler.",
    )
    bits: Bits = Field(None, description="8, 4, or null for no quantisation (8bit and 4bit also work).")
    head_bits: Bits = Field(
        8,
        description="Bits of the output head, and of an embedding tied to it, with llmctl's kernels; null keeps them "
        "unquantised. With torch's kernels, 4 means 8.",
    )
    quant_type: Literal["nf4", "fp4"] = Field("nf4", description="4-bit code; nf4 suits trained weights better.")
    use_double_quant: bool = Field(
        False, description="Also quantise the scales of the 4-bit blocks; saves about 0.4 bits per weight."
    )
    compute_dtype: Dtype = Field(
        "auto", description="Data type for products with 4-bit weights. auto: the model's half-precision type."
    )
    llm_int8_threshold: float = Field(
        6.0,
        ge=0,
        le=1000,
        description="8-bit: activations above this value stay in half precision (LLM.int8, section 3).",
    )
    skip_modules: list[str] | None = Field(
        None, description="Modules to keep unquantised. Default: lm_head and what the architecture requires."
    )
    enable_fp32_cpu_offload: bool = Field(
        False,
        description="Keep weights that do not fit on the GPU in RAM, unquantised. Set automatically when needed.",
    )
    cache: bool = Field(
        True, description="Keep quantised weights on disk; later starts read them instead of quantising again."
    )
    cache_size: int | str = Field(
        "20GiB",
        description="Maximum disk space for quantised weights; the least recently used are deleted first.",
    )

    @field_validator("cache_size")
    @classmethod
    def _check_size(cls, value: int | str) -> int | str:
        parse_bytes(value)
        return value


class GenerationSection(Section):
    """Sampling and stopping. Empty keys follow the model's generation_config.json."""

    max_new_tokens: int = Field(
        512,
        ge=1,
        le=1_000_000,
        description="Maximum tokens to generate. In a chat, the default is the rest of the context.",
    )
    do_sample: bool | None = Field(
        None,
        description="Sample (true) or always choose the most likely token (false). Default: true if a temperature is "
        "set.",
    )
    temperature: float | None = Field(
        None, ge=0, le=100, description="Sampling temperature: higher values flatten the distribution; 0 is greedy."
    )
    top_k: int | None = Field(None, ge=0, description="Sample from this many most likely tokens; 0 means all.")
    top_p: float | None = Field(
        None, gt=0, le=1, description="Sample from the most likely tokens of this total probability."
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Exclude tokens less likely than this fraction of the most likely token."
    )
    typical_p: float | None = Field(
        None, gt=0, le=1, description="Locally typical sampling with this total probability."
    )
    repetition_penalty: float | None = Field(
        None, gt=0, le=100, description="Penalty for tokens that have appeared; above 1 discourages repetition."
    )
    no_repeat_ngram_size: int | None = Field(
        None, ge=0, description="Size of n-grams that must not repeat; 0 means no limit."
    )
    num_beams: int = Field(1, ge=1, le=64, description="Number of beams of a beam search; 1 means none.")
    stop_strings: Texts = Field(
        [],
        description="Texts that end the answer and are not part of it. Default: the model's own; an empty list turns "
        "these off.",
    )
    extra_eos_tokens: TokensOrIds = Field(
        [], description="Further tokens that end the answer: ids, or special tokens by name."
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=1000,
        description=(
            "Record the log-probability of each token, and of this many top tokens, in the model's own distribution "
            "(raw logits, before penalties and temperature). 0 records only the chosen token."
        ),
    )
    prompt_lookup_num_tokens: int | None = Field(
        None,
        ge=1,
        le=100,
        description="Propose up to this many tokens copied from the text so far; the model checks them in one pass.",
    )
    cache_implementation: CacheName | None = Field(
        None,
        description=(
            "KV cache: dynamic (the default), static or quantized; offloaded and offloaded_static keep it in RAM "
            "beside a GPU."
        ),
    )
    cache_config: dict[str, int | str] = Field(
        {},
        description="Options of a quantized cache: backend (fp8, quanto or hqq), nbits, axis_key, axis_value, "
        "q_group_size, residual_length. Default: the first installed backend; fp8 needs no package.",
    )
    compile: bool = Field(
        False, description="Compile the decoding step with torch.compile, once per process; uses a static cache."
    )

    @field_validator("cache_config")
    @classmethod
    def _check_cache_config(cls, value: dict[str, int | str]) -> dict[str, int | str]:
        known = ("backend", "nbits", "axis_key", "axis_value", "q_group_size", "residual_length")
        if wrong := [key for key in value if key not in known]:
            raise ValueError(f"unknown key {wrong[0]}; the keys are {', '.join(known)}")
        if value.get("backend", "fp8") not in ("fp8", "quanto", "hqq"):
            raise ValueError("backend must be fp8, quanto or hqq")
        if text := [key for key in known[1:] if not isinstance(value.get(key, 0), int)]:
            raise ValueError(f"{text[0]} must be a number")
        return value

    @field_validator("stop_strings")
    @classmethod
    def _check_stop_strings(cls, value: list[str]) -> list[str]:
        if any(not text for text in value):
            raise ValueError("an empty stop string would end every answer at once")
        return value


class DraftSection(Section):
    """A smaller model that proposes tokens; the model checks several in one pass (assisted generation)."""

    id: str | None = Field(None, min_length=1, description=_MODEL_HELP)
    revision: str | None = Field(None, min_length=1, description=_REVISION_HELP)
    dtype: Dtype | None = Field(None, description="Data type of the draft. Default: load.dtype.")
    bits: DraftBits = Field(None, description="8, 4, or 0 for no quantisation. Default: quantization.bits.")
    num_assistant_tokens: int | None = Field(
        None, ge=1, le=100, description="Maximum tokens to propose at a time. Default: 20, as in transformers."
    )
    assistant_confidence_threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Stop proposing after a token less likely than this. Default: 0.4, as in transformers.",
    )


class ChatSection(Section):
    """The system prompt and the chat template."""

    raw: bool = Field(False, description="Send the prompt to the model as it is, without the chat template.")
    system: str | None = Field(None, description="System prompt.")
    template: str | None = Field(
        None,
        description="Path of a Jinja chat template to use instead of the model's; in a file, relative to that file.",
    )
    thinking: bool | None = Field(
        None,
        description="Turn the model's thinking on or off, by whatever variable its template has for it. A template "
        "that has none is an error. Default: the template's.",
    )
    template_kwargs: dict[str, Any] = Field(
        {},
        description="Variables of the template, for example {reasoning_effort: low}. One that the template does not "
        "read is an error.",
    )
    prefill: str | None = Field(
        None,
        min_length=1,
        description="Beginning of every answer, which the model continues. It is not part of the answer's text. "
        "Conversations that end with a message of the assistant have their own.",
    )


class Config(Section):
    """A complete configuration. Immutable; every key has a default."""

    model: ModelSection = Field(default_factory=ModelSection, description="The model and its adapters.")
    load: LoadSection = Field(
        default_factory=LoadSection, description="Placement, data type and attention of the model."
    )
    tokenizer: TokenizerSection = Field(default_factory=TokenizerSection, description="The tokenizer.")
    quantization: QuantizationSection = Field(
        default_factory=QuantizationSection, description="Weights in 8 or 4 bits, quantised while loading."
    )
    generation: GenerationSection = Field(default_factory=GenerationSection, description="Sampling and stopping.")
    draft: DraftSection = Field(default_factory=DraftSection, description="A smaller model that proposes tokens.")
    structure: StructureSection = Field(
        default_factory=StructureSection, description="The form that the answer must have."
    )
    chat: ChatSection = Field(default_factory=ChatSection, description="The system prompt and the chat template.")
    serve: ServeSection = Field(default_factory=ServeSection, description="Address, access and capacity of the server.")
    vllm: VllmSection = Field(default_factory=VllmSection, description="Options that only vLLM has.")
    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="Inference engine of llmctl serve and generate --input: transformers or vllm."
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=2**32 - 1,
        description="Seed of all random numbers (transformers.set_seed). Default: each sampled answer draws its own "
        "and reports it.",
    )
    deterministic: bool = Field(
        False,
        description="Use torch's deterministic algorithms: slower, and repeatable on the same machine.",
    )


def sections() -> dict[str, type[Section]]:
    """Return the sections by name, in the order of the schema."""
    by_name = {}
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            by_name[name] = field.annotation
    return by_name


def all_keys() -> list[str]:
    """Return every key as a dotted path, in the order of the schema."""
    nested = sections()
    keys: list[str] = []
    for name in Config.model_fields:
        keys += [f"{name}.{inner}" for inner in nested[name].model_fields] if name in nested else [name]
    return keys


def field_of(key: str) -> Any:
    """Return the pydantic field of a dotted key. Raises KeyError for an unknown one."""
    section, _, inner = key.partition(".")
    return sections()[section].model_fields[inner] if inner else Config.model_fields[section]


def default_of(key: str) -> Any:
    """Return the default of a dotted key."""
    return field_of(key).get_default(call_default_factory=True)
