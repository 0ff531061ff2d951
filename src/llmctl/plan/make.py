"""Config x Machine x ModelInfo -> Plan."""

from dataclasses import replace
from typing import Any

from llmctl.config import Config
from llmctl.errors import LlmctlError, MachineError
from llmctl.machine.detection import Machine
from llmctl.machine.threads import THREAD_ENVIRONMENT
from llmctl.model.info import ModelInfo
from llmctl.plan.adapters import decide_adapters
from llmctl.plan.arrangement import arrange
from llmctl.plan.attention import decide_attention
from llmctl.plan.decision import Decision, GenerationChoice, Plan
from llmctl.plan.decoding import decide_decoding
from llmctl.plan.draft import remaining_machine, with_draft
from llmctl.plan.generation import decide_generation
from llmctl.plan.images import explain_towers, loads_towers
from llmctl.plan.kernels import decide_kernels
from llmctl.plan.options import hint_for
from llmctl.plan.placement import Placement
from llmctl.plan.quantization import as_decisions
from llmctl.plan.request import PlanRequest
from llmctl.quant.backend import Quantization

# The names under which torch reads the options of its GPU allocator; the user may have set any of them.
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


def make_plan(request: PlanRequest) -> Plan:
    """Decide how a model runs on a machine. A draft model is planned first; the model gets the memory that is left.

    Raises:
        UserError: the configuration contradicts itself or the model.
        MachineError: the machine cannot do what the configuration asks. If the model does not fit, the hint names the
            options with which it would.
    """
    try:
        return plan_without_advice(request)
    except MachineError as error:
        if "missing_bytes" not in error.details:
            raise
        hint = hint_for(request, has_plan, is_in_ram="ram_bytes" in error.details)
        raise MachineError(error.message, hint=hint, details=error.details) from error


def has_plan(request: PlanRequest) -> bool:
    """Return True if the model can run as requested."""
    try:
        plan_without_advice(request)
    except LlmctlError:
        return False
    return True


def plan_without_advice(request: PlanRequest) -> Plan:
    """Do the same as `make_plan`, without looking for options if the model does not fit."""
    if request.draft is None:
        return _plan_model(request)
    draft = _plan_model(request.for_draft(request.draft))
    machine = remaining_machine(request.machine, draft)
    return with_draft(_plan_model(replace(request, machine=machine)), draft)


def _plan_model(request: PlanRequest) -> Plan:
    config, machine, info = request.config, request.machine, request.info
    arrangement = arrange(request)
    devices, placement, dtype = arrangement.devices, arrangement.placement, arrangement.dtype
    attention = decide_attention(config, machine, info, devices=devices, dtype=dtype.value)
    generation = decide_generation(config, info, origins=request.origins)
    quantization, offload_decisions = _offload(arrangement.quantization, placement)
    trust = _decide_trust(config, info)
    decoding, decoding_decisions = decide_decoding(config, machine, info, devices=devices, quantization=quantization)
    adapters = decide_adapters(
        config, machine, info, request.adapters, placement=placement, quantized=_is_packed(quantization)
    )
    kernels, kernel_decisions = decide_kernels(config, machine, devices=devices)
    weights = (*arrangement.quantization_decisions, *offload_decisions)
    loading = (placement.decision, dtype, *kernel_decisions, attention, *weights)
    generating = (*generation.decisions(), *_decide_seed(request, generation), *decoding_decisions)
    return Plan(
        source=info.source,
        folder=info.folder,
        commit=info.commit,
        tokenizer_kwargs=_tokenizer_kwargs(config, trust_remote_code=trust.value),
        model_kwargs={
            "dtype": dtype.value,
            "device_map": dict(placement.device_map),
            "attn_implementation": attention.value,
            "use_safetensors": True,
            "trust_remote_code": trust.value,
            **_quantization_kwargs(quantization),
        },
        generation_kwargs={**generation.arguments, **decoding},
        generation=generation,
        devices=devices,
        memory=arrangement.memory,
        decisions=(
            *loading,
            *explain_towers(config, info, dtype=dtype.value),
            trust,
            *adapters,
            *_explain_use_fast(config),
            *generating,
        ),
        seed=config.seed,
        deterministic=config.deterministic,
        environment=_environment(config, machine, devices) | _stored_environment(quantization, devices),
        quantization=quantization,
        kernels=kernels,
        left_out={} if loads_towers(config, info) else info.towers,
        loads_towers=loads_towers(config, info),
    )


def _offload(
    quantization: Quantization | None, placement: Placement
) -> tuple[Quantization | None, tuple[Decision, ...]]:
    """Return the quantisation for a model that is partly in RAM beside a GPU. Raises MachineError if it cannot be."""
    devices = set(placement.device_map.values())
    if quantization is None or "cpu" not in devices or len(devices) == 1:
        return quantization, ()
    if quantization.is_stored:
        obstacle = quantization.backend.split_obstacle()
        if obstacle is not None:
            raise MachineError(obstacle, hint="use --device-map cpu, or a smaller model")
        return quantization, ()
    quantization, choices = quantization.backend.offloaded(quantization)
    return quantization, as_decisions(choices)


def _stored_environment(quantization: Quantization | None, devices: tuple[str, ...]) -> dict[str, str]:
    if quantization is None or not quantization.is_stored:
        return {}
    return dict(quantization.backend.environment(devices))


def _is_packed(quantization: Quantization | None) -> bool:
    """Return True if weights are quantised in memory: stored ones may be unpacked while they are loaded."""
    return quantization is not None and not (quantization.is_stored and quantization.backend.is_unpacked(quantization))


def _quantization_kwargs(quantization: Quantization | None) -> dict[str, Any]:
    if quantization is None or quantization.is_stored:
        return {}
    return {"quantization_config": dict(quantization.arguments)}


def _decide_trust(config: Config, info: ModelInfo) -> Decision:
    if not config.model.trust_remote_code:
        return Decision("trust_remote_code", False, "nothing from the model's repository is executed")
    if info.has_remote_code:
        return Decision("trust_remote_code", True, f"asked for: Python code of {info.source} will run")
    return Decision("trust_remote_code", False, "asked for, but the model has no code of its own")


def _tokenizer_kwargs(config: Config, *, trust_remote_code: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {"padding_side": "left", "trust_remote_code": trust_remote_code}
    if config.tokenizer.model_max_length is not None:
        arguments["model_max_length"] = config.tokenizer.model_max_length
    return arguments


def _explain_use_fast(config: Config) -> list[Decision]:
    """Return a decision that says that `tokenizer.use_fast` has no effect (transformers: tokenization_auto.py)."""
    if config.tokenizer.use_fast is None:
        return []
    return [Decision("use_fast", config.tokenizer.use_fast, "no effect: transformers 5 always uses the fast tokenizer")]


def _decide_seed(request: PlanRequest, generation: GenerationChoice) -> list[Decision]:
    if not generation.arguments["do_sample"]:
        return []
    if request.config.seed is None:
        return [Decision("seed", None, "each answer draws its own and reports it")]
    return [Decision("seed", request.config.seed, request.origins.get("seed", "configuration"))]


def _environment(config: Config, machine: Machine, devices: tuple[str, ...]) -> dict[str, str]:
    """Return the variables that the libraries read when they are imported."""
    environment = {"DISABLE_SAFETENSORS_CONVERSION": "1"}
    if any(device.startswith("cuda") for device in devices):
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the order in which the driver lists them, as planned
        if machine.system == "Linux" and machine.torch_cuda and not any(gpu.shares_ram for gpu in machine.gpus):
            # blocks that grow in place: less memory is lost between blocks of different sizes (torch, CUDA semantics)
            environment[ALLOCATOR_VARIABLES[0]] = "expandable_segments:True"
    if devices == ("cpu",):
        environment |= THREAD_ENVIRONMENT
    if config.deterministic:
        # as transformers' enable_full_determinism sets them, but before any library reads them
        environment |= {
            "CUBLAS_WORKSPACE_CONFIG": ":16:8",
            "CUDA_LAUNCH_BLOCKING": "1",
            "FLASH_ATTENTION_DETERMINISTIC": "1",
        }
    return environment
