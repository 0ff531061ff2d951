"""The core: a configuration becomes a model in memory.

`load` = locate the files, read what they are, decide (plan), then do exactly what the plan says and check the outcome.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.config import Config, Settings
from llmctl.cpu.program import compile_model
from llmctl.errors import MachineError, ModelError, UserError
from llmctl.loading.adapters import apply_adapters
from llmctl.loading.imports import lean_imports, without_peft
from llmctl.loading.quiet import quiet_libraries
from llmctl.machine.detection import Machine, read_machine
from llmctl.model.adapters import AdapterInfo
from llmctl.model.info import ModelInfo, is_packed, read_model_info
from llmctl.model.resolve import Located, draft_settings, locate, locate_adapters
from llmctl.model.tokenizer import check_pair, end_tokens, load_tokenizer
from llmctl.plan import Decision, Plan, make_plan
from llmctl.plan.make import check_remote_code
from llmctl.plan.memory_advice import explain_out_of_memory
from llmctl.platform_support import peak_memory_bytes
from llmctl.quant import bitsandbytes as bnb
from llmctl.quant import cache as copies
from llmctl.quant import packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmctl.hub.progress import Progress


@dataclass(frozen=True)
class Measured:
    """What was found once the model was loaded.

    Attributes:
        model_class: The Python class of the model.
        parameters: Its parameters, tied ones once. Packed 4-bit weights count as the weights they stand for.
        dtype: The dtype of what is not quantised.
        attn_implementation: The attention really in use.
        quantization: `bitsandbytes 4-bit nf4, computing in bfloat16`, or `none`.
        device_map: Where each part lies.
        device_bytes: Bytes of parameters and buffers by device.
        load_seconds: From the first import of transformers to a model ready to generate.
        peak_memory_bytes: The largest resident memory of this process so far.
    """

    model_class: str
    parameters: int
    dtype: str
    attn_implementation: str
    quantization: str
    device_map: Mapping[str, str]
    device_bytes: Mapping[str, int]
    load_seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode with its tokenizer, the plan it was loaded by, and what was measured.

    Attributes:
        model: The transformers model.
        tokenizer: Its tokenizer: left padding, a pad token set.
        plan: What was decided.
        config: What was asked.
        info: What the files say.
        located: Where the files are.
        machine: What this computer was when it was planned.
        eos_token_ids: Every token that ends an answer.
        measured: What was found after loading.
        draft: The draft model, loaded the same way, or None.
        adapters: Those that are on it, or merged into it.
    """

    model: "PreTrainedModel" = field(repr=False)
    tokenizer: "PreTrainedTokenizerBase" = field(repr=False)
    plan: Plan
    config: Config
    info: ModelInfo = field(repr=False)
    located: Located
    machine: Machine = field(repr=False)
    eos_token_ids: tuple[int, ...]
    measured: Measured
    draft: "LoadedModel | None" = None
    adapters: tuple[AdapterInfo, ...] = ()

    @property
    def context_length(self) -> int | None:
        """The most tokens of prompt and answer together, or None where the model does not say."""
        return self.config.tokenizer.model_max_length or self.info.context_length


@dataclass(frozen=True)
class Prepared:
    """Everything that is known before weights are read.

    Attributes:
        located: Where the files are, and why this model.
        info: What they say.
        machine: This computer.
        plan: What was decided.
        config: What was asked.
        draft: The same of the draft model, or None.
        adapters: Those that will be put on the model.
    """

    located: Located
    info: ModelInfo = field(repr=False)
    machine: Machine
    plan: Plan
    config: Config
    draft: "Prepared | None" = None
    adapters: tuple[AdapterInfo, ...] = ()


def prepare(
    settings: Settings,
    *,
    machine: Machine | None = None,
    offline: bool = False,
    progress: "Progress | None" = None,
    context: int | None = None,
    batch: int = 1,
) -> Prepared:
    """Locate the model, read its files' headers, and decide. No torch, no weights.

    `context` and `batch` are what room is kept for, see `make_plan`; the other arguments are those of `load`.

    Raises:
        LlmctlError: whatever stands in the way, see `locate`, `read_model_info` and `make_plan`.
    """
    located = locate(settings, offline=offline, progress=progress)
    info = read_model_info(located.folder, source=located.source, commit=located.commit)
    machine, config = machine or read_machine(), settings.config
    adapters = locate_adapters(config, offline=offline, progress=progress)
    if config.draft.id is None:
        plan = make_plan(config, machine, info, context=context, batch=batch, adapters=adapters)
        plan = copies.consider(plan, config, info, machine)
        return Prepared(located, info, machine, plan, config, adapters=adapters)
    assisting = draft_settings(settings)
    beside = locate(assisting, offline=offline, progress=progress)
    draft_info = read_model_info(beside.folder, source=beside.source, commit=beside.commit)
    plan = make_plan(config, machine, info, context=context, batch=batch, draft=draft_info, adapters=adapters)
    plan = copies.consider(plan, config, info, machine)
    assert plan.draft is not None  # noqa: S101 (it was given one)
    draft_plan = copies.consider(plan.draft, assisting.config, draft_info, machine)
    draft = Prepared(beside, draft_info, machine, draft_plan, assisting.config)
    return Prepared(located, info, machine, plan, config, draft, adapters)


def load(
    config: Config | Settings,
    *,
    machine: Machine | None = None,
    offline: bool = False,
    progress: "Progress | None" = None,
) -> LoadedModel:
    """Load the model that a configuration asks for.

    Args:
        config: A `Config`, or `Settings` with the origin of each value.
        machine: This computer; read when left away.
        offline: Never touch the network.
        progress: Told about a download.

    Returns:
        The model in eval mode, with its tokenizer.

    Raises:
        UserError: the configuration or the model cannot be used as asked.
        MachineError: this machine lacks something, memory included.
        RemoteError: the model has to be fetched and cannot be.
    """
    settings = config if isinstance(config, Settings) else Settings(config)
    return load_prepared(prepare(settings, machine=machine, offline=offline, progress=progress))


def load_prepared(prepared: Prepared) -> LoadedModel:
    """Do what the plan says. Errors are those of `load`."""
    started = time.perf_counter()
    apply_environment(prepared.plan)
    with lean_imports(), quiet_libraries(), without_peft():
        prepared = settle(prepared)
        _seed(prepared.plan)
        tokenizer, eos = ready_tokenizer(prepared)
        prepared, model = _load_weights(prepared)
    if prepared.adapters:
        with quiet_libraries():
            model = apply_adapters(model, prepared.adapters, merge=prepared.config.model.merge_adapters)
    if prepared.plan.uses_kernels:
        compile_model(model)
    measured = _measure(model, time.perf_counter() - started)
    loaded = loaded_model(prepared, model=model, tokenizer=tokenizer, eos_token_ids=eos, measured=measured)
    if prepared.draft is None:
        return loaded
    return replace(loaded, draft=load_draft(prepared.draft, loaded))


def loaded_model(
    prepared: Prepared,
    *,
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    eos_token_ids: tuple[int, ...],
    measured: Measured,
) -> LoadedModel:
    """What was prepared, with what came of it."""
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        plan=prepared.plan,
        config=prepared.config,
        info=prepared.info,
        located=prepared.located,
        machine=prepared.machine,
        eos_token_ids=eos_token_ids,
        measured=measured,
        adapters=prepared.adapters,
    )


def load_draft(prepared: Prepared, loaded: LoadedModel) -> LoadedModel:
    """The draft model for `loaded`, through the same checks. Errors are those of `load`, and:

    Raises:
        UserError: its tokens mean something else, or it cannot propose any.
    """
    draft, asked = load_prepared(prepared), loaded.config.draft
    check_pair(loaded.tokenizer, draft.tokenizer, model=loaded.model, draft=draft.model, source=draft.plan.source)
    for name in ("num_assistant_tokens", "assistant_confidence_threshold"):
        if getattr(asked, name) is not None:
            setattr(draft.model.generation_config, name, getattr(asked, name))
    return draft


def ready_tokenizer(prepared: Prepared) -> tuple["PreTrainedTokenizerBase", tuple[int, ...]]:
    """The tokenizer that the plan asks for, and every token that ends an answer. No weights are read.

    Raises:
        ModelError: its files cannot be read.
        UserError: an extra end token does not exist.
    """
    plan = prepared.plan
    tokenizer = load_tokenizer(prepared.located.folder, plan.tokenizer_kwargs, source=plan.source)
    stored = prepared.info.generation_config.get("eos_token_id")
    return tokenizer, tuple(end_tokens(tokenizer, stored, prepared.config.generation.extra_eos_tokens))


def prepared_again(loaded: LoadedModel) -> Prepared:
    """What loads the same model, and its draft, once more."""
    draft = prepared_again(loaded.draft) if loaded.draft else None
    return Prepared(loaded.located, loaded.info, loaded.machine, loaded.plan, loaded.config, draft, loaded.adapters)


def apply_environment(plan: Plan) -> None:
    """Set the variables that the libraries read when they are imported; the user's own values stay."""
    for name, value in plan.environment.items():
        os.environ.setdefault(name, value)


def settle(prepared: Prepared) -> Prepared:
    """Ask transformers what only it knows of the architecture: whether it exists, and which attention it supports.

    Raises:
        UserError: the architecture needs code of its own that is not trusted, or cannot do the attention asked for.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    plan, info = prepared.plan, prepared.info
    trusted = bool(plan.model_kwargs["trust_remote_code"])
    known = info.model_type in AutoConfig.for_model.__globals__["CONFIG_MAPPING"]
    check_remote_code(info, known_type=known, trusted=trusted)
    if not known or trusted:
        return prepared
    config_class = type(AutoConfig.for_model(info.model_type))
    if config_class not in AutoModelForCausalLM._model_mapping:
        raise UserError(f"{info.source}: {info.model_type} is not a model that generates text", hint="take another one")
    model_class = AutoModelForCausalLM._model_mapping[config_class]
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class
    return replace(prepared, plan=_supported_attention(prepared, model_class))


def _supported_attention(prepared: Prepared, model_class: Any) -> Plan:
    plan, asked = prepared.plan, prepared.config.load.attn_implementation
    chosen = plan.model_kwargs["attn_implementation"]
    # where flash_attn is installed but cannot be used, transformers would fetch a kernel from the Hub in its place
    supports = {
        "flash_attention_2": getattr(model_class, "_supports_flash_attn", False) and _flash_attention_works(),
        "sdpa": getattr(model_class, "_supports_sdpa", False),
        "flex_attention": getattr(model_class, "_supports_flex_attn", False),
        "eager": True,
    }
    if supports[chosen]:
        return plan
    if asked != "auto":
        raise UserError(f"{plan.source}: {model_class.__name__} cannot do {chosen} here", hint="leave --attn away")
    instead = "sdpa" if supports["sdpa"] else "eager"
    decision = Decision("attn_implementation", instead, f"{model_class.__name__} cannot do {chosen} here")
    decisions = tuple(decision if d.key == "attn_implementation" else d for d in plan.decisions)
    return replace(plan, decisions=decisions, model_kwargs={**plan.model_kwargs, "attn_implementation": instead})


def _flash_attention_works() -> bool:
    from transformers.utils import is_flash_attn_2_available

    return bool(is_flash_attn_2_available())


def _seed(plan: Plan) -> None:
    from transformers import enable_full_determinism, set_seed

    if plan.deterministic:
        # warn_only: cumsum, which top-p sampling uses, has no deterministic kernel on CUDA
        enable_full_determinism(plan.seed, warn_only=True)
    set_seed(plan.seed)


def model_arguments(plan: Plan) -> dict[str, Any]:
    """The keyword arguments of `AutoModelForCausalLM.from_pretrained`, with transformers' objects in them."""
    arguments = dict(plan.model_kwargs)
    quantization = arguments.get("quantization_config")
    if quantization is not None and is_packed(quantization):
        from llmctl.quant.hf_quantizer import LlmctlConfig

        arguments["quantization_config"] = LlmctlConfig(**quantization)
    elif quantization is not None:
        from transformers import BitsAndBytesConfig

        arguments["quantization_config"] = BitsAndBytesConfig(**quantization)
    return arguments


def generation_arguments(plan: Plan, tokenizer: Any, eos_token_ids: tuple[int, ...]) -> dict[str, Any]:
    """The arguments of `GenerationConfig`, tokens included."""
    arguments = dict(plan.generation_kwargs)
    arguments["eos_token_id"] = list(eos_token_ids)
    arguments["pad_token_id"] = tokenizer.pad_token_id
    if tokenizer.bos_token_id is not None:
        arguments["bos_token_id"] = tokenizer.bos_token_id
    return arguments


def _import_quantization(prepared: Prepared) -> None:
    """Import what knows the format of the weights, so that transformers finds it."""
    arguments = prepared.plan.quantization(prepared.info)
    if is_packed(arguments):
        import llmctl.quant.hf_quantizer  # noqa: F401
    elif "load_in_4bit" in arguments or "load_in_8bit" in arguments:
        bnb.import_bitsandbytes()


def _own_config(prepared: Prepared, quantization_config: Any = None) -> Any:
    """config.json as transformers reads it, with our attention in it.

    `_attn_implementation` in a config.json wins over the argument of the same meaning unless the configuration is read
    first, and can name a kernel that transformers would fetch from the Hub and run.
    """
    from transformers import AutoConfig

    arguments = prepared.plan.model_kwargs
    config = AutoConfig.from_pretrained(
        str(prepared.located.folder), local_files_only=True, trust_remote_code=arguments["trust_remote_code"]
    )
    config._attn_implementation = arguments["attn_implementation"]
    config._experts_implementation = None
    if quantization_config is not None:
        config.quantization_config = quantization_config.to_dict()
    return config


def _load_weights(prepared: Prepared) -> tuple[Prepared, Any]:
    """The model from its quantised copy where the plan has one, else from its own files; a copy is kept if planned."""
    plan = prepared.plan
    if plan.copy_folder is not None:
        try:
            model = _load_model(prepared, plan.copy_folder)
            copies.mark_used(plan.copy_folder)
            return prepared, model
        except ModelError as error:  # whatever is wrong with a copy, the original is there
            copies.forget(plan.copy_folder)
            plan = copies.without_copy(plan, f"the one that was kept is damaged: {error.message}")
            prepared = replace(prepared, plan=plan)
    model = _load_model(prepared)
    if plan.keep_copy:
        plan = copies.keep(model, plan, prepared.config, prepared.info, prepared.machine)
        prepared = replace(prepared, plan=plan)
    return prepared, model


def _load_model(prepared: Prepared, copy_folder: Path | None = None) -> Any:
    """Call `from_pretrained`, and refuse what it only warns about.

    Of a quantised copy only the weights are read: the configuration is the model's own, with ours in it.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    plan = prepared.plan
    try:
        _import_quantization(prepared)
        arguments = model_arguments(plan)
        quantization = arguments.pop("quantization_config") if copy_folder is not None else None
        model, report = AutoModelForCausalLM.from_pretrained(
            str(copy_folder or prepared.located.folder),
            config=_own_config(prepared, quantization),
            local_files_only=True,
            output_loading_info=True,
            **arguments,
        )
    except ImportError as error:
        raise MachineError(
            f"loading {plan.source} needs a package that cannot be imported: {_first_line(error)}",
            hint="install it, or leave away what needs it (--attn, --quant)",
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, MemoryError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(plan, prepared.info, prepared.machine, prepared.config, doing="loading") from error
        raise ModelError(
            f"{plan.source} cannot be loaded: {_first_line(error)}",
            hint="are its files whole, and does this transformers know it? --debug shows the cause",
        ) from error
    _check_keys(plan.source, report)
    _check_finite(plan.source, model)
    if plan.uses_kernels:
        from llmctl.cpu.attention import use_attention
        from llmctl.cpu.layers import use_kernels

        use_kernels(model)
        use_attention(model)
    model.eval()
    return model


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out.

    GPUs raise a class of their own. The CPU's allocator raises a bare RuntimeError and can only be known by its name in
    the text (c10/core/impl/alloc_cpu.cpp): the one place where a message is searched.
    """
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def out_of_memory(plan: Plan, info: ModelInfo, machine: Machine, config: Config, *, doing: str) -> MachineError:
    """The error that says what was planned, what was free, and what gives how much back."""
    message, hint, details = explain_out_of_memory(plan, info, machine, config, doing=doing)
    return MachineError(message, hint=hint, details=details)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _check_keys(source: str, report: Mapping[str, Any]) -> None:
    """Missing weights are random numbers, unexpected ones mean another model: both only warn in transformers."""
    for what in ("missing", "mismatched", "unexpected"):
        keys = sorted(str(key[0] if isinstance(key, tuple) else key) for key in report.get(f"{what}_keys") or ())
        if keys:
            raise ModelError(
                f"{source} has {len(keys)} {what} weights, for example {', '.join(keys[:3])}",
                hint="the weights do not belong to this config.json, or are incomplete: download them again",
                details={f"{what}_keys": keys[:100]},
            )


def _check_finite(source: str, model: Any) -> None:
    """Refuse weights with NaN or infinity in them: everything generated from them would be noise."""
    import torch

    for name, parameter in chain(model.named_parameters(), packing.scales(model)):
        if not parameter.is_floating_point() or parameter.is_meta or parameter.element_size() < 2:
            continue
        smallest, largest = torch.aminmax(parameter.detach())  # NaN wins in both; ten times faster than isfinite
        if not torch.isfinite(smallest) or not torch.isfinite(largest):
            raise ModelError(
                f"{source}: the weight {name} contains NaN or infinity",
                hint="the checkpoint is damaged: download it again",
            )


def _measure(model: Any, seconds: float) -> Measured:
    placed = getattr(model, "hf_device_map", None) or {"": model.device}
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    return Measured(
        model_class=type(model).__name__,
        parameters=packing.parameters(model),
        dtype=str(dtype).removeprefix("torch."),
        attn_implementation=str(model.config._attn_implementation),
        quantization=_quantization_in_use(model),
        device_map={name: str(place) for name, place in placed.items()},
        device_bytes=_device_bytes(model),
        load_seconds=seconds,
        peak_memory_bytes=peak_memory_bytes(),
    )


def _quantization_in_use(model: Any) -> str:
    """Read off the layers themselves, not off what was asked."""
    stored = getattr(model.config, "quantization_config", None)
    return bnb.describe(model) or packing.describe(model) or str(getattr(stored, "quant_method", "none"))


def _device_bytes(model: Any) -> dict[str, int]:
    """Bytes of parameters, buffers and quantisation scales by device, each storage once."""
    found: dict[str, int] = {}
    seen: set[int] = set()
    for tensor in chain(model.parameters(), model.buffers()):
        for part in (tensor, *bnb.scale_tensors(tensor)):
            if part.is_meta or part.data_ptr() in seen:
                continue
            seen.add(part.data_ptr())
            found[str(part.device)] = found.get(str(part.device), 0) + part.numel() * part.element_size()
    return found
