"""The reading of weights with `from_pretrained`, from the model's own files or from the quantised cache."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from traceback import walk_tb
from typing import Any

from llmctl import transformers_compat as compat
from llmctl.errors import LlmctlError, MachineError, ModelError, first_line
from llmctl.gpu.sdpa import repeat_heads_where_needed
from llmctl.loading.checks import check_finite, check_keys
from llmctl.loading.composite import model_loader, text_generator
from llmctl.loading.device_map import with_complete_device_map
from llmctl.loading.device_memory import is_out_of_memory
from llmctl.loading.prepare import Prepared
from llmctl.loading.quantized_cache import fill_cache, refill_cache
from llmctl.plan import Plan
from llmctl.plan.memory_advice import out_of_memory_error
from llmctl.quant import cache


def load_weights(prepared: Prepared) -> tuple[Prepared, Any]:
    """Load the model from the quantised cache if the plan says so, else from its own files; fill the cache if planned.

    Returns:
        The inputs with the plan that was followed (a damaged entry of the cache changes it), and the model.
    """
    if len(prepared.plan.devices) > 1:
        with translated_errors(prepared):
            prepared = with_complete_device_map(prepared, empty_model(prepared))
    plan = prepared.plan
    if plan.quantized_cache is not None:
        try:
            model = _load(prepared, plan.quantized_cache)
            cache.mark_used(plan.quantized_cache)
            return prepared, text_generator(model)
        except ModelError as error:  # whatever is wrong with an entry, the original is still available
            cache.remove(plan.quantized_cache)
            plan = refill_cache(plan, f"the cached weights are damaged: {error.message}")
            prepared = replace(prepared, plan=plan)
    model = _load(prepared)
    if plan.fills_quantized_cache:
        plan = fill_cache(model, plan, prepared.config, prepared.info, prepared.machine)
        prepared = replace(prepared, plan=plan)
    return prepared, text_generator(model)


def empty_model(prepared: Prepared) -> Any:
    """Return the model without memory for its weights."""
    trusted = bool(prepared.plan.model_kwargs["trust_remote_code"])
    loader = model_loader(prepared.info.model_type, trust_remote_code=trusted)
    return compat.empty_model(loader, read_config(prepared), trust_remote_code=trusted)


def _load(prepared: Prepared, cache_folder: Path | None = None) -> Any:
    """Load the model, refuse weights that transformers only warns about, and install llmctl's kernels if planned."""
    plan = prepared.plan
    with nullcontext() if plan.stored_quantization is None else compat.quiet_packages():
        model = _from_pretrained(prepared, cache_folder)
    check_finite(plan.source, model)
    repeat_heads_where_needed()
    if plan.kernels == "llmctl":
        from llmctl.cpu.layers import use_kernels
        from llmctl.loading.attention import use_attention

        use_kernels(model)
        use_attention(model, is_requested=prepared.config.load.attn_implementation != "auto")
    model.eval()
    return model


def _from_pretrained(prepared: Prepared, cache_folder: Path | None) -> Any:
    """Return the model with its weights, checked to be complete."""
    with translated_errors(prepared):
        return _read_weights(prepared, cache_folder)


@contextmanager
def translated_errors(prepared: Prepared, *, part: str = "") -> Iterator[None]:
    """Translate every error of the libraries while weights are loaded.

    Args:
        part: What is loaded if not the model itself, as it stands before the model's name: `the towers of `.
    """
    from safetensors import SafetensorError

    plan = prepared.plan
    try:
        with translated_out_of_memory(prepared, doing=f"loading {part}".strip()):
            yield
    except LlmctlError:
        raise
    except ImportError as error:
        raise _not_importable(plan, error) from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _not_loadable(plan, error, part) from error
    except Exception as error:
        failure = _package_failure(plan, error)
        if failure is None and not _comes_from_libraries(error):
            raise
        raise failure or _not_loadable(plan, error, part) from error


@contextmanager
def translated_out_of_memory(prepared: Prepared, *, doing: str) -> Iterator[None]:
    """Raise MachineError with advice if memory runs out.

    Args:
        doing: What is done with the model: `loading`.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_out_of_memory(error):
            raise
        raise out_of_memory_error(
            prepared.plan, prepared.info, prepared.machine, prepared.config, doing=doing
        ) from error


def _not_loadable(plan: Plan, error: Exception, part: str) -> ModelError:
    """Return the error for a model that transformers cannot build from its config.json, or cannot load."""
    first, *rest = str(error).strip().splitlines() or [""]
    # the checks of a config have the reason in the second line
    reason = f"{first} {rest[0].strip()}" if first.endswith(":") and rest else first_line(error)
    named = not isinstance(error, OSError | ValueError | RuntimeError) or " " not in reason
    return ModelError(
        f"{part}{plan.source} cannot be loaded: {f'{type(error).__name__}: ' if named else ''}{reason}",
        hint="are its files complete, and does this transformers know it? --debug shows the cause",
    )


_LIBRARIES = {"transformers", "torch", "accelerate", "huggingface_hub", "safetensors", "tokenizers"}


def _comes_from_libraries(error: Exception) -> bool:
    """Return True if an exception was raised in the code of transformers or below: other faults stay visible as such.

    A missing attribute is the fault of the code that asks for it, not of `__getattr__`.
    """
    frames = [frame for frame, _ in walk_tb(error.__traceback__) if frame.f_code.co_name != "__getattr__"]
    package = str(frames[-1].f_globals.get("__name__", "")).partition(".")[0]
    return package in _LIBRARIES


def _read_weights(prepared: Prepared, cache_folder: Path | None) -> Any:
    """Call `from_pretrained`, check its report, and complete a model of a pre-quantised format.

    Only the weights are read from the quantised cache; the configuration is the model's own.
    """
    from transformers import GenerationConfig

    plan = prepared.plan
    if plan.quantization is not None:
        plan.quantization.backend.import_package()
    arguments = _model_arguments(plan)
    quantization = arguments.pop("quantization_config") if cache_folder is not None else None
    loader = model_loader(prepared.info.model_type, trust_remote_code=bool(arguments["trust_remote_code"]))
    model, report = loader.from_pretrained(
        str(cache_folder or prepared.resolved.folder),
        config=read_config(prepared, quantization),
        generation_config=GenerationConfig(),  # the model's own is read and checked in model/generation_config.py
        local_files_only=True,
        output_loading_info=True,
        **arguments,
    )
    check_keys(prepared.info, report)
    if plan.stored_quantization is not None:
        plan.stored_quantization.backend.complete(model)
    return model


def _not_importable(plan: Plan, error: ImportError) -> MachineError:
    """Return the error for a package that is missing or broken, with the packages of the checkpoint's format."""
    stored = plan.stored_quantization
    packages = stored.backend.needed_packages(plan.devices) if stored is not None else ()
    needed = f"; its format needs {', '.join(package.name for package in packages)}" if packages else ""
    return MachineError(
        f"loading {plan.source} needs a package that cannot be imported: {first_line(error)}{needed}",
        hint=f"llmctl doctor --model {plan.source}",
    )


def _package_failure(plan: Plan, error: Exception) -> MachineError | None:
    """Return the error of a package that reads the checkpoint's format; None if the format needs no package."""
    stored = plan.stored_quantization
    names = [package.name for package in stored.backend.needed_packages(plan.devices)] if stored is not None else []
    if not names:
        return None
    return MachineError(
        f"loading {plan.source} with {', '.join(names)} fails: {type(error).__name__}: {first_line(error)}",
        hint=f"another version may work: pip install --upgrade --no-deps {' '.join(names)}; --debug shows the cause",
    )


def _model_arguments(plan: Plan) -> dict[str, Any]:
    """Return the arguments of `from_pretrained`, with transformers' objects; `read_config` sets the attention."""
    arguments = {name: value for name, value in plan.model_kwargs.items() if name != "attn_implementation"}
    if plan.quantization is not None and plan.quantizes:
        arguments["quantization_config"] = plan.quantization.backend.transformers_config(plan.quantization)
    return arguments


def read_config(prepared: Prepared, quantization_config: Any = None) -> Any:
    """Read config.json with transformers, and set the planned attention in it.

    `_attn_implementation` in a config.json wins over the argument of the same meaning unless the configuration is read
    first, and can name a kernel that transformers would fetch from the Hub and run.
    """
    from transformers import AutoConfig

    arguments = prepared.plan.model_kwargs
    config = AutoConfig.from_pretrained(
        str(prepared.resolved.folder), local_files_only=True, trust_remote_code=arguments["trust_remote_code"]
    )
    compat.set_attention(config, arguments["attn_implementation"])
    compat.use_default_experts(config)
    if quantization_config is not None:
        config.quantization_config = quantization_config.to_dict()
    stored = prepared.plan.stored_quantization
    if stored is not None:
        for part in (config, config.get_text_config(decoder=True)):
            settings = getattr(part, "quantization_config", None)
            if isinstance(settings, dict):
                stored.backend.adapt_config(settings)
    return config
