"""The quantisation backends, and functions that try each of them."""

import importlib.util
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llmctl.quant import bitsandbytes, native, torch_packed
from llmctl.quant.backend import BackendPackage, QuantBackend, Quantization, WeightFormat
from llmctl.quant.checkpoint_formats import find_format
from llmctl.quant.mxfp4 import KEPT

if TYPE_CHECKING:
    from llmctl.config import Config
    from llmctl.machine.detection import Machine

# In the order in which `quantization.backend: auto` tries them; the last is the most general.
BACKENDS: tuple[QuantBackend, ...] = (native.BACKEND, torch_packed.BACKEND, bitsandbytes.BACKEND)
_IN_MODELS: tuple[WeightFormat, ...] = (*BACKENDS, KEPT)  # formats that know their layers in a loaded model


def preferred(config: "Config", machine: "Machine", *, devices: tuple[str, ...]) -> QuantBackend:
    """Return the backend that `quantization.backend` names; for `auto`, the first that can serve the configuration.

    A key that only one backend has selects it. If none can serve, the last one is returned; its refusal explains why.
    """
    section = config.quantization
    named = [backend for backend in BACKENDS if backend.name == section.backend]
    if named:
        return named[0]
    own_keys = section.model_fields_set & frozenset().union(*(backend.own_keys for backend in BACKENDS))
    candidates = [backend for backend in BACKENDS if own_keys <= backend.own_keys] or [BACKENDS[-1]]
    serving = (one for one in candidates if one.refusal(config, machine, devices=devices) is None)
    return next(serving, candidates[-1])


def stored_quantization(stored: Mapping[str, Any] | None) -> Quantization | None:
    """Return the quantisation that a `quantization_config` of config.json means."""
    if stored is None:
        return None
    for backend in BACKENDS:
        recognised = backend.recognise(stored)
        if recognised is not None:
            return recognised
    return find_format(stored)


def describe(model: Any) -> str:
    """Return the quantisation of a loaded model, read from its layers: `none`, `bitsandbytes 8-bit`, `gptq`."""
    described = next((text for backend in _IN_MODELS if (text := backend.describe(model)) is not None), None)
    method = getattr(getattr(model.config, "quantization_config", None), "quant_method", "none")
    return described or str(getattr(method, "value", method))


def parameter_count(model: Any) -> int:
    """Return the parameters of a loaded model, tied ones once, and each packed weight as one."""
    counts = (backend.parameter_count(model) for backend in BACKENDS)
    return next((count for count in counts if count is not None), None) or int(model.num_parameters())


def scales(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the scales of quantised weights by name."""
    for backend in _IN_MODELS:
        yield from backend.scales(model)


def tensors_of(parameter: Any) -> list[Any]:
    """Return the tensors that hold a parameter: itself and those beside it, or the parts of a wrapper (torchao)."""
    if hasattr(parameter, "__tensor_flatten__"):  # torch's protocol for tensors made of others
        return [getattr(parameter, name) for name in parameter.__tensor_flatten__()[0]]
    return [parameter, *(tensor for backend in BACKENDS for tensor in backend.extra_tensors(parameter))]


def check_saveable(model: Any) -> None:
    """Raise ValueError if a loaded model can no longer be saved."""
    for backend in BACKENDS:
        backend.check_saveable(model)


def backend_packages() -> Iterator[tuple[QuantBackend, BackendPackage]]:
    """Yield the backends that need a package, with it."""
    for backend in BACKENDS:
        if backend.package is not None:
            yield backend, backend.package


def import_packages() -> None:
    """Import the backends' installed packages before another library imports them without llmctl's precautions."""
    for backend, package in backend_packages():
        if importlib.util.find_spec(package.name) is not None:
            backend.import_package()
