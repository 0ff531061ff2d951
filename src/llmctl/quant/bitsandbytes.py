"""bitsandbytes: 8-bit (LLM.int8) and 4-bit (nf4, fp4) weights on GPUs and CPUs."""

import logging
import sys
from typing import Any


def import_bitsandbytes() -> None:
    """Import bitsandbytes without letting it fetch code.

    Where the package `kernels` is installed, bitsandbytes 0.50 downloads compiled code from the Hub and runs it: on a
    CPU with AVX512-BF16 already while it is imported (backends/cpu/ops.py), on an Apple GPU at the first product
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
        metal._kernel_load_failed = True  # type: ignore[attr-defined] # its own mark for "do not try again"


def describe(model: Any) -> str | None:
    """What the layers of a loaded model really are: `bitsandbytes 4-bit nf4, computing in bfloat16`, or None."""
    kinds: dict[str, None] = {}
    for module in model.modules():
        if not type(module).__module__.startswith("bitsandbytes"):
            continue  # an adapter's layer has the same name, and this one inside
        name = type(module).__name__
        if name == "Linear4bit":
            state = getattr(module.weight, "quant_state", None)
            compute = str(module.compute_dtype).removeprefix("torch.")
            double = " double" if getattr(state, "nested", False) else ""
            kinds[f"bitsandbytes 4-bit {module.weight.quant_type}{double}, computing in {compute}"] = None
        elif name == "Linear8bitLt":
            kinds["bitsandbytes 8-bit"] = None
    return "; ".join(kinds) or None


def is_repacked(model: Any) -> bool:
    """Whether 4-bit weights lie in the order that bitsandbytes' CPU kernels want, which it cannot turn back.

    On a CPU with AVX512-BF16 the first product repacks the weights and rounds the scales to bfloat16, transposed;
    `_convert_weight_packed_for_cpu_inverse` (bitsandbytes 0.50) leaves the scales so, and what is saved is wrong.
    """
    states = (getattr(parameter, "quant_state", None) for parameter in model.parameters())
    return any(getattr(state, "packing_format_for_cpu", False) for state in states)


def scale_tensors(parameter: Any) -> list[Any]:
    """The tensors that a quantised weight keeps beside itself: scales, and the scales of scales."""
    state = getattr(parameter, "quant_state", None)
    nested = getattr(state, "state2", None)
    parts = (getattr(state, "absmax", None), getattr(nested, "absmax", None), getattr(parameter, "SCB", None))
    return [part for part in parts if part is not None]
