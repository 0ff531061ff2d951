"""The devices, the dtype and the quantisation of a model, which depend on each other.

The dtype and the backend of quantised weights depend on the devices that hold layers, and the devices on the bytes of
the weights. So both are decided for the devices that the model may use, the model is placed, and they are decided again
for the devices that it got, until those stay the same. Otherwise a card that holds nothing would choose the dtype.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llmctl.errors import LlmctlError, MachineError
from llmctl.plan.cache_memory import kv_cache_bytes, state_bytes
from llmctl.plan.decision import Decision
from llmctl.plan.devices import DeviceChoice, device_choices
from llmctl.plan.dtype import decide_dtype
from llmctl.plan.images import image_memory, loads_towers
from llmctl.plan.kernels import kernels_obstacle
from llmctl.plan.memory import (
    ImageMemory,
    Memory,
    activation_bytes,
    mapped_bytes,
    module_bytes,
    tied_modules,
)
from llmctl.plan.placement import ModuleSizes, Placement, Reserved, place
from llmctl.plan.quantization import decide_quantization
from llmctl.plan.request import PlanRequest
from llmctl.quant.backend import Quantization

# Devices become fewer from round to round, or the CPU is added; more rounds change nothing.
_ROUNDS = 4
_KEPT_ON_CPU = "llmctl's own kernels keep the weights packed there; unpacked, they have no room on the GPUs"


@dataclass(frozen=True)
class Arrangement:
    """The devices, the dtype and the quantisation of a model.

    Attributes:
        dtype: The dtype, with its reason.
        quantization: The quantisation, or None.
        quantization_decisions: The reasons for it.
        placement: The devices of the modules.
        memory: The memory, with the weights of each device.
    """

    dtype: Decision
    quantization: Quantization | None
    quantization_decisions: tuple[Decision, ...]
    placement: Placement
    memory: Memory

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that hold weights."""
        return tuple(self.memory.weights)


def arrange(request: PlanRequest) -> Arrangement:
    """Decide the devices, the dtype and the quantisation of a model.

    Of several choices of devices and dtypes, the first one is taken with which no part of the model is in RAM beside a
    GPU, or else the first choice of devices with which the model fits at all.

    Raises:
        UserError: the configuration contradicts itself or the model.
        MachineError: the model does not fit, or the machine lacks something.
    """
    alternatives = list(_alternatives(request))
    first, _ = alternatives[0]
    spilling: tuple[DeviceChoice, Arrangement] | None = None
    errors: list[MachineError] = []
    for choice, instead_of_float16 in alternatives:
        try:
            found = _arrange_on(request, choice, instead_of_float16)
        except MachineError as error:
            if "missing_bytes" not in error.details:
                raise
            errors.append(error)
            continue
        if not found.placement.spilled:
            is_first_with_gpus = choice is first or choice.devices == ("cpu",)
            return found if is_first_with_gpus else _with_reason(found, "the GPUs with bfloat16 alone have no room")
        if spilling is None or spilling[0] is choice:  # a smaller dtype on the same devices
            spilling = choice, found
    if spilling is None:
        raise errors[-1]
    return spilling[1]


def _with_reason(arrangement: Arrangement, more: str) -> Arrangement:
    """Return an arrangement with an addition to the reason for its dtype."""
    dtype = arrangement.dtype
    return replace(arrangement, dtype=replace(dtype, reason=f"{dtype.reason}; {more}"))


def required_memory(request: PlanRequest) -> Memory:
    """Return the memory that a model needs, whether there is so much or not; all weights on the first device."""
    choice, instead_of_float16 = list(_alternatives(request))[-1]
    dtype = _dtype(request, choice, instead_of_float16).value
    quantization, _ = _quantization(request, dtype=dtype, devices=choice.devices)
    total = sum(module_bytes(request.info, dtype=dtype, quantization=quantization).values())
    memory = _memory_without_weights(request, dtype=dtype, quantization=quantization)
    return replace(memory, weights={**dict.fromkeys(choice.devices, 0), choice.devices[0]: total})


def _alternatives(request: PlanRequest) -> Iterator[tuple[DeviceChoice, str]]:
    """Yield choices of devices, each with the dtypes that replace float16 where a model overflows in it."""
    config, machine, info = request.config, request.machine, request.info
    quantizes = config.quantization.bits is not None and info.stored_quantization is None
    *preferred, last = device_choices(config, machine, quantizes=quantizes)

    def dtypes(choice: DeviceChoice) -> dict[str, str]:
        """Return the dtypes that replace float16, by the dtype that each leads to."""
        return {_dtype(request, choice, dtype).value: dtype for dtype in ("bfloat16", "float32")}

    for choice in (*(one for one in preferred if dtypes(one) != dtypes(last)), last):
        for dtype in sorted(dtypes(choice).values(), reverse=True):  # float32 before bfloat16
            yield choice, dtype
    if last.devices != ("cpu",) and config.load.device_map == "auto" and _cpu_keeps_packed(request):
        yield DeviceChoice(("cpu",), _KEPT_ON_CPU), "float32"


def _dtype(request: PlanRequest, choice: DeviceChoice, instead_of_float16: str) -> Decision:
    """Return the decision on the dtype for a choice of devices."""
    return decide_dtype(
        request.config,
        request.machine,
        request.info,
        devices=choice.devices,
        instead_of_float16=instead_of_float16,
    )


def _cpu_keeps_packed(request: PlanRequest) -> bool:
    """Return True if a checkpoint is unpacked on a GPU, and multiplied as it is by llmctl's own kernels on the CPU."""
    stored = request.info.stored_quantization
    if stored is None or not stored.backend.is_unpacked(stored):
        return False
    obstacle = kernels_obstacle(request.config, request.machine, devices=("cpu",))
    kept = stored.backend.loaded_as(stored, request.config, obstacle=obstacle)
    return not kept.backend.is_unpacked(kept)


def _arrange_on(request: PlanRequest, choice: DeviceChoice, instead_of_float16: str) -> Arrangement:
    is_full = False
    for _ in range(_ROUNDS):
        dtype = _dtype(request, choice, instead_of_float16)
        try:
            quantization, decisions = _quantization(request, dtype=dtype.value, devices=choice.devices)
        except LlmctlError as error:
            raise _on_full_gpus(error, choice) if is_full else error from None
        memory = _memory_without_weights(request, dtype=dtype.value, quantization=quantization)
        placement = _place(request, memory, choice, dtype=dtype.value, quantization=quantization)
        used = tuple(placement.weights)
        if {*used, "cpu"} == {*choice.devices, "cpu"}:
            break  # RAM beside the same GPUs changes no decision
        is_full = used == ("cpu",)
        choice = DeviceChoice(used, placement.decision.reason if is_full else choice.reason)
    return Arrangement(dtype, quantization, decisions, placement, replace(memory, weights=placement.weights))


def _on_full_gpus(error: LlmctlError, choice: DeviceChoice) -> MachineError:
    """Return the error for a model that the CPU cannot run, and that has no room on the GPUs."""
    return MachineError(f"{choice.reason}, and {error.message}", hint="close other programs that use the GPU")


def _quantization(
    request: PlanRequest, *, dtype: str, devices: tuple[str, ...]
) -> tuple[Quantization | None, tuple[Decision, ...]]:
    return decide_quantization(
        request.config,
        request.machine,
        request.info,
        dtype=dtype,
        devices=devices,
        is_asked=not request.proposes_quantization,
    )


def _memory_without_weights(request: PlanRequest, *, dtype: str, quantization: Quantization | None) -> Memory:
    info, context, batch = request.info, request.context_tokens, request.batch
    return Memory(
        weights={},
        kv_cache_bytes=kv_cache_bytes(info, context=context, batch=batch, dtype=dtype),
        state_bytes=state_bytes(info, batch=batch, dtype=dtype),
        activation_bytes=activation_bytes(info, context=context, batch=batch, dtype=dtype),
        context=context,
        batch=batch,
        mapped_bytes=mapped_bytes(info, dtype=dtype, quantization=quantization),
        adapter_bytes=0 if request.config.model.merge_adapters else _adapter_bytes(request),
        images=image_memory(info, request.images, dtype=dtype)
        if request.images is not None or loads_towers(request.config, info)
        else ImageMemory(),
    )


def _adapter_bytes(request: PlanRequest) -> int:
    return sum(adapter.size_bytes for adapter in request.adapters)


def _place(
    request: PlanRequest, memory: Memory, choice: DeviceChoice, *, dtype: str, quantization: Quantization | None
) -> Placement:
    stored = quantization if quantization is not None and quantization.is_stored else None
    on_gpu = module_bytes(request.info, dtype=dtype, quantization=quantization)
    return place(
        request.config,
        request.machine,
        ModuleSizes(
            on_gpu,
            on_gpu if quantization is stored else module_bytes(request.info, dtype=dtype),
            tied_modules(request.info),
        ),
        choice=choice,
        # merging needs memory for adapters as well
        reserved=Reserved(
            memory.kv_cache_bytes + memory.state_bytes + _adapter_bytes(request),
            memory.activation_bytes + memory.images.total_bytes,
        ),
        quantized=quantization is not stored,
    )
