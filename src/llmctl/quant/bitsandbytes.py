"""bitsandbytes: 8-bit (LLM.int8) and 4-bit (nf4, fp4) weights on GPUs and CPUs."""

import importlib
import logging
import sys
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from llmctl.errors import LlmctlError, MachineError, UserError
from llmctl.quant.backend import (
    STORED,
    BackendPackage,
    Choice,
    Finding,
    QuantBackend,
    Quantization,
    ScriptLines,
    Variant,
    is_skipped,
)
from llmctl.quant.precision import Kind, kind_of
from llmctl.quant.stored_weights import use_requested_dtype

if TYPE_CHECKING:
    from llmctl.config import Config
    from llmctl.machine.detection import Machine
    from llmctl.model.checkpoint import Tensor

_SKIPPED = "llm_int8_skip_modules"
_OFFLOAD = "llm_int8_enable_fp32_cpu_offload"
_SCALES = (".absmax", ".nested_absmax", ".quant_map", ".nested_quant_map", ".SCB")  # in a checkpoint, in float32
_CPU_WITH_AVX512 = "cpu with AVX-512"
# Share of the memory bandwidth while decoding, by device and bits.
_DECODE_SHARES = {
    ("cuda", 8): (0.08, 0.3),
    ("cuda", 4): (0.2, 0.55),
    ("cpu", 8): (0.01, 0.03),
    ("cpu", 4): (0.01, 0.03),
    (_CPU_WITH_AVX512, 8): (0.12, 0.4),
    (_CPU_WITH_AVX512, 4): (0.1, 0.35),
}


class BitsAndBytes(QuantBackend):
    """The backend `bitsandbytes`.

    It leaves experts unquantised: transformers 5 keeps those of a layer in one three-dimensional parameter.
    """

    name = "bitsandbytes"
    own_keys = frozenset({"quant_type", "use_double_quant", "llm_int8_threshold", "compute_dtype"})
    slows_prompts = True
    cache_versions = MappingProxyType({"bitsandbytes": 2, "transformers": 1})
    vllm_method = "bitsandbytes"
    package = BackendPackage("bitsandbytes", tested_up_to="0.50", probe="llmctl.quant.bitsandbytes:probe")

    def refusal(self, config: "Config", machine: "Machine", *, devices: tuple[str, ...]) -> LlmctlError | None:
        if "mps" in devices:
            return UserError(
                "bitsandbytes has no kernels for Apple GPUs but those that it fetches from the Hub",
                hint="use --device-map cpu, where llmctl's own kernels compute with weights in 4 and 8 bits",
            )
        if "bitsandbytes" in machine.packages:
            return None
        bits = config.quantization.bits
        what = "weights in its format" if bits is None else f"{bits}-bit weights"
        return MachineError(
            f"{what} need the package bitsandbytes, which is not installed", hint="pip install bitsandbytes"
        )

    def plan(
        self, config: "Config", machine: "Machine", *, devices: tuple[str, ...], product_dtype: str
    ) -> tuple[Quantization, tuple[Choice, ...]]:
        section = config.quantization
        kept: dict[str, Any] = {}
        if section.skip_modules is not None:
            kept[_SKIPPED] = list(section.skip_modules)
        if section.enable_fp32_cpu_offload:
            kept[_OFFLOAD] = True
        if section.bits == 8:
            quantization = _eight_bits({"llm_int8_threshold": section.llm_int8_threshold, **kept})
            reason = "LLM.int8 of bitsandbytes" + _cpu_warning(machine, devices)
            return quantization, (Choice("quantization", quantization.label, reason),)
        compute: str = section.compute_dtype
        compute_reason = "asked for"
        if compute == "auto":
            # BitsAndBytesConfig's own default is float32, which makes every product of a half-precision model slow.
            compute = product_dtype
            compute_reason = "half precision; the library's default, float32, is several times slower"
            if compute == "float32":
                compute_reason = "the model overflows in float16, and the GPU computes no bfloat16"
        quantization = _four_bits(
            {
                "bnb_4bit_quant_type": section.quant_type,
                "bnb_4bit_use_double_quant": section.use_double_quant,
                "bnb_4bit_compute_dtype": compute,
                **kept,
            }
        )
        return quantization, (
            Choice(
                "quantization",
                quantization.label,
                f"{section.quant_type} of bitsandbytes" + _cpu_warning(machine, devices),
            ),
            Choice("bnb_4bit_compute_dtype", compute, compute_reason),
        )

    def keep(
        self,
        quantization: Quantization,
        *,
        heads: tuple[str, ...],
        read_directly: tuple[str, ...],
        kept: tuple[str, ...],
    ) -> Quantization:
        modules = (*quantization.arguments.get(_SKIPPED, ()), *read_directly, *kept)
        if not modules:
            return quantization
        # a list replaces transformers' own, which has the head
        skipped = list(dict.fromkeys((*heads, *modules)))
        return replace(quantization, arguments={**quantization.arguments, _SKIPPED: skipped})

    def scheme(self, bits: int) -> Quantization:
        return _eight_bits({}) if bits == 8 else _four_bits({"bnb_4bit_quant_type": "nf4"})

    def variants(self) -> tuple[Variant, ...]:
        return (
            Variant("8-bit", {"bits": 8}),
            Variant("4-bit nf4", {"bits": 4}),
            Variant("4-bit nf4 double", {"bits": 4, "use_double_quant": True}),
        )

    def recognise(self, stored: Mapping[str, Any]) -> Quantization | None:
        if not str(stored.get("quant_method", "")).startswith("bitsandbytes"):
            return None
        recognised = _four_bits(stored) if stored.get("load_in_4bit") else _eight_bits(stored)
        return replace(recognised, arguments=stored, is_stored=True)

    def explain_stored(self, quantization: Quantization, *, dtype: str, devices: tuple[str, ...]) -> tuple[Choice, ...]:
        choice = Choice("quantization", quantization.label, STORED)
        if quantization.bits != 4:
            return (choice,)
        compute = str(quantization.arguments.get("bnb_4bit_compute_dtype", "float32")).removeprefix("torch.")
        return choice, Choice("bnb_4bit_compute_dtype", compute, "as stored in the checkpoint")

    def offloaded(self, quantization: Quantization) -> tuple[Quantization, tuple[Choice, ...]]:
        arguments = {**quantization.arguments, _OFFLOAD: True}
        choice = Choice(
            _OFFLOAD, True, "part of the model is in RAM, unquantised (--device-map cpu quantises all of it)"
        )
        return replace(quantization, arguments=arguments), (choice,)

    def weight_bytes(self, tensor: "Tensor", quantization: Quantization, *, is_tied: bool) -> int | None:
        """Return the bytes of a tensor once it is loaded, or None if it gets the model's dtype.

        8-bit weights have one float32 scale per row, 4-bit weights one float32 scale per block of 64. Double
        quantisation stores those scales in 8 bits, with one float32 per 256 of them (QLoRA, arXiv:2305.14314,
        section 3).
        """
        arguments = quantization.arguments
        if kind_of(tensor.name, tensor.shape) is not Kind.LINEAR or is_skipped(tensor, arguments.get(_SKIPPED) or ()):
            return None
        if quantization.bits == 8:
            return tensor.numel + 4 * tensor.shape[0]
        blocks = -(-tensor.numel // 64)
        double = bool(arguments.get("bnb_4bit_use_double_quant"))
        return -(-tensor.numel // 2) + (blocks + 4 * -(-blocks // 256) if double else 4 * blocks)

    def stored_bytes(self, tensor: "Tensor", quantization: Quantization, *, dtype_bytes: int) -> int:
        if tensor.name.endswith(_SCALES):
            return tensor.size_bytes
        return super().stored_bytes(tensor, quantization, dtype_bytes=dtype_bytes)

    def stored_parameters(self, tensor: "Tensor", quantization: Quantization) -> int:
        if tensor.name.endswith(_SCALES) or ".quant_state." in tensor.name:
            return 0
        return tensor.numel * 2 if tensor.dtype == "U8" else tensor.numel

    def decode_share(self, quantization: Quantization, device: str, machine: "Machine") -> tuple[float, float] | None:
        fast_cpu = device == "cpu" and "avx512f" in machine.cpu_features
        kind = _CPU_WITH_AVX512 if fast_cpu else "cuda" if device == "xpu" else device
        return _DECODE_SHARES[kind, quantization.bits or 8]

    def script(self, quantization: Quantization) -> ScriptLines:
        if quantization.is_stored:
            return ScriptLines()
        shown = [
            f"{name}=torch.{value}" if name == "bnb_4bit_compute_dtype" else f"{name}={value!r}"
            for name, value in quantization.arguments.items()
        ]
        return ScriptLines(classes=("BitsAndBytesConfig",), config=f"BitsAndBytesConfig({', '.join(shown)})")

    def examine(self, facts: Mapping[str, Any], *, cuda: str | None, cuda_works: bool) -> tuple[Finding | None, str]:
        library, reinstall = facts.get("library"), "pip install --upgrade --force-reinstall --no-deps bitsandbytes"
        is_amd = facts.get("backend") == "ROCm"
        if (cuda_works and library != "cuda") or (is_amd and library is None):
            why = facts.get("library_error") or "only the one for CPUs is there"
            wanted = "ROCm" if is_amd else f"CUDA {cuda}"
            return Finding(True, f"it has no native library for {wanted} ({why})", reinstall), ""
        if library is None:
            return Finding(False, "its native library is missing: on this CPU it computes slowly", reinstall), ""
        names = {"cuda": f"CUDA {cuda}", "rocm": "ROCm", "xpu": "Intel's GPUs"}
        return None, f", native library for {names.get(library, 'CPUs')}"

    def import_package(self) -> None:
        """Import bitsandbytes without letting it fetch code.

        If the package `kernels` is installed, bitsandbytes 0.50 downloads compiled code from the Hub and runs it: on a
        CPU with AVX512-BF16 even during its import (backends/cpu/ops.py), on an Apple GPU at the first product
        (backends/mps/ops.py). Nothing from the Hub is executed here, so `kernels` is hidden from it.

        Raises:
            ImportError: bitsandbytes is not installed or is broken.
        """
        # its loggers report every cast of every product; the 8-bit path casts by design
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        if "bitsandbytes" in sys.modules:
            return
        hidden = sys.modules.get("kernels")
        sys.modules["kernels"] = None  # type: ignore[assignment] # an import of it now raises ImportError
        try:
            import bitsandbytes  # noqa: F401
        finally:
            if hidden is not None:
                sys.modules["kernels"] = hidden
            else:
                del sys.modules["kernels"]
        metal = sys.modules.get("bitsandbytes.backends.mps.ops")
        if metal is not None:
            metal._kernel_load_failed = True  # type: ignore[attr-defined] # its own flag for "do not try again"

    def transformers_config(self, quantization: Quantization) -> Any:
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(**quantization.arguments)

    def complete(self, model: Any) -> None:
        use_requested_dtype(model)

    def describe(self, model: Any) -> str | None:
        descriptions: dict[str, None] = {}
        for module in model.modules():
            if not type(module).__module__.startswith("bitsandbytes"):
                continue  # an adapter's layer has the same class name and contains this one
            name = type(module).__name__
            if name == "Linear4bit":
                state = getattr(module.weight, "quant_state", None)
                compute = str(module.compute_dtype).removeprefix("torch.")
                double = " double" if getattr(state, "nested", False) else ""
                descriptions[f"bitsandbytes 4-bit {module.weight.quant_type}{double}, computing in {compute}"] = None
            elif name == "Linear8bitLt":
                descriptions["bitsandbytes 8-bit"] = None
        return "; ".join(descriptions) or None

    def extra_tensors(self, parameter: Any) -> list[Any]:
        state = getattr(parameter, "quant_state", None)
        nested = getattr(state, "state2", None)
        parts = (getattr(state, "absmax", None), getattr(nested, "absmax", None), getattr(parameter, "SCB", None))
        return [part for part in parts if part is not None]

    def check_saveable(self, model: Any) -> None:
        if is_repacked(model):
            raise ValueError("bitsandbytes cannot save 4-bit weights that have been used on a CPU")


def probe() -> dict[str, Any]:
    """Import bitsandbytes and return its version and its native library. Runs in a child process of `llmctl doctor`."""
    BACKEND.import_package()
    extension: Any = importlib.import_module("bitsandbytes.cextension")
    is_missing = isinstance(extension.lib, extension.ErrorHandlerMockBNBNativeLibrary)
    backend = extension.BNB_BACKEND  # CPU, CUDA, ROCm or XPU
    library = backend.lower() if extension.lib.compiled_with_cuda or backend == "XPU" else "cpu"
    return {
        "version": importlib.import_module("bitsandbytes").__version__,
        "backend": backend,
        "library": None if is_missing else library,
        "library_error": str(extension.lib.error_msg)[:300] if is_missing else None,
    }


def is_repacked(model: Any) -> bool:
    """Return True if 4-bit weights are in the order of bitsandbytes' CPU kernels, which it cannot undo.

    On a CPU with AVX512-BF16 the first product repacks the weights and rounds the scales to bfloat16, transposed;
    `_convert_weight_packed_for_cpu_inverse` (bitsandbytes 0.50) does not undo this, so the saved scales would be wrong.
    """
    states = (getattr(parameter, "quant_state", None) for parameter in model.parameters())
    return any(getattr(state, "packing_format_for_cpu", False) for state in states)


def _eight_bits(arguments: Mapping[str, Any]) -> Quantization:
    return Quantization(BACKEND, 8, "bitsandbytes 8-bit", {"load_in_8bit": True, **arguments})


def _four_bits(arguments: Mapping[str, Any]) -> Quantization:
    code = arguments.get("bnb_4bit_quant_type", "fp4")  # the default of BitsAndBytesConfig
    double = " double" if arguments.get("bnb_4bit_use_double_quant") else ""
    return Quantization(BACKEND, 4, f"bitsandbytes 4-bit {code}{double}", {"load_in_4bit": True, **arguments})


def _cpu_warning(machine: "Machine", devices: tuple[str, ...]) -> str:
    if devices != ("cpu",):
        return ""
    faster = "torch" if machine.kernels is None else "llmctl"
    return f"; on a CPU it saves memory but is slow, unlike quantization.backend: {faster}"


BACKEND = BitsAndBytes()
