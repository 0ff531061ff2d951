"""Config x Machine x ModelInfo -> Plan."""

from collections.abc import Sequence
from typing import Any, Literal

from llmctl.config import Config
from llmctl.machine.detection import Machine
from llmctl.machine.threads import THREAD_ENVIRONMENT
from llmctl.model.adapters import AdapterInfo
from llmctl.model.info import ModelInfo
from llmctl.plan.adapters import decide_adapters
from llmctl.plan.attention import decide_attention
from llmctl.plan.decision import Decision, Plan
from llmctl.plan.decoding import decide_faster
from llmctl.plan.draft import beside, draft_config, with_draft
from llmctl.plan.dtype import decide_dtype
from llmctl.plan.generation import decide_generation
from llmctl.plan.memory import Memory, activation_bytes, kv_cache_bytes, mapped_bytes, module_bytes
from llmctl.plan.placement import Placement, candidate_devices, place
from llmctl.plan.quantization import as_decisions, decide_quantization

# Room that is kept for a prompt when nothing is known about it, in tokens.
PROMPT_ALLOWANCE = 2048


def make_plan(
    config: Config,
    machine: Machine,
    info: ModelInfo,
    *,
    context: int | None = None,
    batch: int = 1,
    draft: ModelInfo | None = None,
    adapters: Sequence[AdapterInfo] = (),
) -> Plan:
    """Decide how `info` runs on `machine` as `config` asks.

    Args:
        config: What was asked.
        machine: What is here.
        info: What the model is.
        context: Tokens to keep room for; by default a prompt of `PROMPT_ALLOWANCE` and the answer.
        batch: Sequences at a time.
        draft: The model that `config.draft` names.
        adapters: Those that `config.model.adapters` names.

    Raises:
        UserError: what was asked contradicts itself or the model.
        MachineError: what was asked is not possible here.
    """
    if draft is None:
        return _make_plan(config, machine, info, context=context, batch=batch, adapters=adapters)
    assistant = _make_plan(draft_config(config), machine, draft, context=context)
    left = beside(machine, assistant)
    return with_draft(_make_plan(config, left, info, context=context, batch=batch, adapters=adapters), assistant)


def _make_plan(
    config: Config,
    machine: Machine,
    info: ModelInfo,
    *,
    context: int | None,
    batch: int = 1,
    adapters: Sequence[AdapterInfo] = (),
) -> Plan:
    devices = candidate_devices(config, machine)
    dtype = decide_dtype(config, machine, info, devices=devices)
    quantization, quantization_decisions = decide_quantization(
        config, machine, info, dtype=dtype.value, devices=devices
    )
    stored = quantization if quantization is not None and quantization.is_stored else None
    quantizes = quantization is not stored
    sizes = module_bytes(info, dtype=dtype.value, quantization=quantization)
    context = min(context or config.generation.max_new_tokens + PROMPT_ALLOWANCE, info.context_length or 2**62)
    cache = kv_cache_bytes(info, context=context, batch=batch, dtype=dtype.value)
    activations = activation_bytes(info, context=context, batch=batch, dtype=dtype.value)
    placement = place(
        config,
        machine,
        sizes,
        ram_sizes=module_bytes(info, dtype=dtype.value, quantization=stored),
        reserved_bytes=cache + activations + sum(adapter.size_bytes for adapter in adapters),
        quantized=quantizes,
    )
    used = tuple(placement.weights) or devices
    attention = decide_attention(config, machine, info, devices=used, dtype=dtype.value)
    generation, generation_decisions = decide_generation(config, info)
    if quantization is not None and quantizes and _is_split(placement):
        quantization, choices = quantization.backend.offloaded(quantization)
        quantization_decisions += as_decisions(choices)
    trust, trust_decision = _trust(config, info)
    model_kwargs: dict[str, Any] = {
        "dtype": dtype.value,
        "device_map": dict(placement.device_map),
        "attn_implementation": attention.value,
        "use_safetensors": True,
        "trust_remote_code": trust,
    }
    if quantization is not None and quantizes:
        model_kwargs["quantization_config"] = dict(quantization.arguments)
    tokenizer_kwargs: dict[str, Any] = {"padding_side": "left", "trust_remote_code": trust}
    if config.tokenizer.model_max_length is not None:
        tokenizer_kwargs["model_max_length"] = config.tokenizer.model_max_length
    faster, faster_decisions = decide_faster(config, machine, info, devices=used, quantization=quantization)
    adapted = decide_adapters(config, machine, info, adapters, placement=placement, quantized=quantization is not None)
    kernels, kernel_decisions = _decide_kernels(config, machine, dtype=dtype.value, devices=used)
    order = [placement.decision, dtype, *kernel_decisions, attention]
    order += [*quantization_decisions, trust_decision, *adapted]
    return Plan(
        source=info.source,
        folder=info.folder,
        commit=info.commit,
        tokenizer_kwargs=tokenizer_kwargs,
        model_kwargs=model_kwargs,
        generation_kwargs=generation | faster,
        devices=used,
        memory=Memory(
            weights=placement.weights,
            kv_cache_bytes=cache,
            activation_bytes=activations,
            context=context,
            batch=batch,
            mapped_bytes=mapped_bytes(info, dtype=dtype.value, quantization=quantization),
            adapter_bytes=0 if config.model.merge_adapters else sum(adapter.size_bytes for adapter in adapters),
        ),
        decisions=(*order, *_tokenizer(config), *generation_decisions, *faster_decisions),
        seed=config.seed,
        deterministic=config.deterministic,
        environment=_environment(config, used),
        kernels=kernels,
        quantization=quantization,
    )


def _decide_kernels(
    config: Config, machine: Machine, *, dtype: str, devices: tuple[str, ...]
) -> tuple[Literal["llmctl", "torch"], list[Decision]]:
    """Choose the kernels that multiply bfloat16 weights on a CPU and compute its attention."""
    key = "linear_kernels"
    if devices != ("cpu",) or dtype != "bfloat16" or machine.kernels is None:
        return "torch", []
    if config.generation.compile:
        return "torch", [Decision(key, "torch", "generation.compile: torch compiles only its own operations")]
    if not config.load.cpu_kernels:
        return "torch", [Decision(key, "torch", "load.cpu_kernels is false")]
    reason = "weights and attention: a result does not depend on its batch"
    return "llmctl", [Decision(key, f"llmctl ({machine.kernels})", reason)]


def _is_split(placement: Placement) -> bool:
    """Return whether part of the model lies in RAM beside a GPU."""
    return "cpu" in placement.device_map.values() and len(set(placement.device_map.values())) > 1


def _trust(config: Config, info: ModelInfo) -> tuple[bool, Decision]:
    asked = config.model.trust_remote_code
    if asked and info.has_remote_code:
        return True, Decision("trust_remote_code", True, f"asked for: Python code of {info.source} will run")
    if asked:
        return False, Decision("trust_remote_code", False, "asked for, but the model brings no code of its own")
    return False, Decision("trust_remote_code", False, "nothing from the model's repository is executed")


def _tokenizer(config: Config) -> list[Decision]:
    if config.tokenizer.use_fast is None:
        return []
    return [Decision("use_fast", config.tokenizer.use_fast, "no effect: transformers 5 always uses the fast tokenizer")]


def _environment(config: Config, devices: tuple[str, ...]) -> dict[str, str]:
    """Variables that the libraries read when they are imported."""
    environment = {"DISABLE_SAFETENSORS_CONVERSION": "1"}
    if sum(device.startswith("cuda") for device in devices) > 0:
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the order in which the driver lists them, as planned
    if devices == ("cpu",):
        environment |= THREAD_ENVIRONMENT
    if config.deterministic:
        # as transformers' enable_full_determinism sets them, but before any library is there to read them
        environment |= {
            "CUBLAS_WORKSPACE_CONFIG": ":16:8",
            "CUDA_LAUNCH_BLOCKING": "1",
            "FLASH_ATTENTION_DETERMINISTIC": "1",
        }
    return environment
