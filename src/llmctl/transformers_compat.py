"""Every private or version-dependent name of transformers that llmctl uses, each behind one function.

llmctl supports transformers 5.17 and newer releases of 5.x. A name without a comment on versions is the same in
all of them. This module imports nothing heavy, and any other module may import it.
"""

import inspect
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import copy, deepcopy
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple

# First release that quantises a KV cache in fp8 (cache_utils.py).
FP8_CACHE_SINCE = (5, 21)
# Attributes of model classes, in their source: modules that stay in float32 in half precision; those that do so in
# float16 only, and are never quantised; weights that are shared.
FLOAT32_MODULES = "_keep_in_fp32_modules_strict"
FLOAT16_EXCEPTIONS = "_keep_in_fp32_modules"
TIED_WEIGHTS = "_tied_weights_keys"
# The same of attention: flags of the implementations that a class supports, and the FlashAttention kernels it can use.
ATTENTION_FLAGS = {"sdpa": "_supports_sdpa", "flash_attention_2": "_supports_flash_attn"}
FLASH_KERNELS = "_compatible_flash_implementations"


# -- importing and logging


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence transformers and accelerate, warnings and progress bars: llmctl says what matters.

    A verbosity that the user raised (TRANSFORMERS_VERBOSITY=info, or `--debug`) is kept.
    """
    from transformers.utils import logging

    accelerate = getLogger("accelerate")
    verbosity, bars, level = logging.get_verbosity(), logging.is_progress_bar_enabled(), accelerate.level
    if verbosity >= logging.WARNING:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        accelerate.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        accelerate.setLevel(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def quiet_packages() -> Iterator[None]:
    """Swallow what the packages of pre-quantised formats print while they load, on both streams.

    Standard output belongs to llmctl's own documents. Errors are exceptions. With a raised verbosity nothing is lost:
    all of it goes to standard error.
    """
    from transformers.utils import logging

    if logging.get_verbosity() < logging.ERROR:
        with redirect_stdout(sys.stderr):
            yield
        return
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield


@contextmanager
def without_peft() -> Iterator[None]:
    """Hide from transformers that peft is installed.

    transformers takes an adapter_config.json beside a model as an instruction: it loads the base model named there,
    from anywhere, and the adapter, pickled or not (models/auto/auto_factory.py, integrations/peft.py). set_seed is
    defined beside the Trainer, which imports peft, and peft imports bitsandbytes, which fetches code from the Hub if
    `kernels` is installed.
    """
    import transformers.utils  # noqa: F401 (so that the name below exists)
    from transformers.utils import import_utils

    original = import_utils.is_peft_available

    def unavailable() -> bool:
        return False

    def swap(old: Any, new: Any) -> None:
        for name, module in list(sys.modules.items()):
            if name.startswith("transformers") and vars(module).get("is_peft_available") is old:
                vars(module)["is_peft_available"] = new

    swap(original, unavailable)
    try:
        yield
    finally:
        swap(unavailable, original)


def hide_distributed() -> None:
    """Tell transformers that this torch has no torch.distributed, so that transformers does not import that module."""
    import transformers.utils
    from transformers.utils import import_utils

    for module in (transformers.utils, import_utils):
        vars(module)["is_torch_distributed_available"] = lambda: False


# -- architectures


def knows_architecture(model_type: str) -> bool:
    """Return True if transformers has a configuration class for a model type."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


class TextModelClass(NamedTuple):
    """The class that generates text for a model type.

    Attributes:
        model_class: The class.
        is_composite: True if it may have towers: transformers' auto class for images and text chooses it, or its
            configuration has a part for something else than text.
    """

    model_class: Any
    is_composite: bool


def text_model_class(model_type: str) -> TextModelClass | None:
    """Return the class that generates text for a model type, or None.

    For a composite type that is the language model alone if transformers leaves the towers out of it by itself
    (Qwen3.5), and otherwise the composite class.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    config_class = CONFIG_MAPPING[model_type]
    causal = _class_in(MODEL_FOR_CAUSAL_LM_MAPPING, config_class)
    composite = _class_in(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, config_class)
    ignored = getattr(causal, "_keys_to_ignore_on_load_unexpected", None) or ()
    if composite is None or any("visual" in pattern or "vision" in pattern for pattern in ignored):
        return None if causal is None else TextModelClass(causal, is_composite=_has_other_parts(causal, config_class))
    return TextModelClass(composite, is_composite=True)


def _has_other_parts(causal: Any, config_class: Any) -> bool:
    """Return True for a class that continues a text and listens as well (MOSS-Transcribe)."""
    parts = set(getattr(config_class, "sub_configs", None) or {}) - {"text_config"}
    return bool(parts) and not causal.__name__.endswith("ForCausalLM")


def composite_model_class(model_type: str) -> Any:
    """Return the class of a composite model with its towers; None for a model without any."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return _class_in(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, CONFIG_MAPPING[model_type])


def accepted_arguments(model: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that the forward pass of a model names; `**kwargs` reach other functions."""
    names = inspect.signature(type(model).forward).parameters
    inner = inspect.signature(type(model.base_model).forward).parameters
    return {name: value for name, value in given.items() if name in names or name in inner}


def empty_model(loader: Any, config: Any, *, trust_remote_code: bool) -> Any:
    """Return a model on the meta device, made by an auto class or a model class."""
    import torch

    config = deepcopy(config)
    set_attention(config, "eager")  # the planned one may need a GPU
    with torch.device("meta"):
        if hasattr(loader, "_model_mapping"):
            return loader.from_config(config, trust_remote_code=trust_remote_code)
        return loader._from_config(config)


def _class_in(mapping: Any, config_class: Any) -> Any:
    try:
        model_class = mapping[config_class]
    except (KeyError, ValueError, AttributeError):  # AttributeError: a class that transformers names but does not have
        return None
    return model_class[0] if isinstance(model_class, tuple) else model_class


def is_stateful(model: Any) -> bool:
    """Return True if a model keeps a state from which tokens cannot be removed (Mamba, for example)."""
    return bool(getattr(model, "_is_stateful", False))


def supports_dynamic_cache(model: Any) -> bool:
    """Return True if a model keeps its past in DynamicCache and computes several tokens after it.

    A few have a cache class of their own. GPT has none at all, and ProphetNet takes one token at a time after a cache
    (the assertion on `use_cache` in modeling_prophetnet.py).
    """
    takes_cache = {"cache", "past_key_values", "cache_params"} & inspect.signature(
        type(model).forward
    ).parameters.keys()
    is_prophetnet = type(model).__name__ == "ProphetNetForCausalLM"
    return bool(takes_cache and not is_prophetnet and model._supports_default_dynamic_cache())


# -- attention


def supports_attention(model_class: Any, implementation: str) -> bool:
    """Return True if a model class can use `eager`, `sdpa`, `flash_attention_2` or `flex_attention` here."""
    if implementation == "flash_attention_2":
        from transformers.utils import is_flash_attn_2_available

        # if flash_attn is installed but unusable, or not among the implementations that a class lists (gpt-oss),
        # transformers fetches a kernel from the Hub in its place
        listed = getattr(model_class, "_compatible_flash_implementations", None) or (implementation,)
        is_supported = getattr(model_class, "_supports_flash_attn", False) and implementation in listed
        return bool(is_supported and is_flash_attn_2_available())
    flags = {"sdpa": "_supports_sdpa", "flex_attention": "_supports_flex_attn"}
    return implementation == "eager" or bool(getattr(model_class, flags[implementation], False))


def flash_attention_failure() -> str | None:
    """Import the package flash_attn, and return why that fails; None if it works.

    Its compiled part fits one version of torch and of CUDA only, which its metadata does not show.
    """
    try:
        import_module("flash_attn")
    except (ImportError, OSError, RuntimeError) as error:
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return None


def has_indexer(model: Any) -> bool:
    """Return True if layers select the keys that a token sees (DeepSeek V3.2, GLM MoE DSA, MiniMax M3)."""
    return any(getattr(module, "indexer", None) is not None for module in model.modules())


def takes_registered_attention(model: Any) -> bool:
    """Return True if a model calls its attention through AttentionInterface, under any name, with a complete mask.

    Layers with an indexer mask the tokens that it did not select only if the implementation is named `eager` or `sdpa`
    (5.20 to 5.24).
    """
    return bool(getattr(model, "_supports_attention_backend", False)) and not has_indexer(model)


def has_sinks_or_softcap(model: Any) -> bool:
    """Return True if the only special feature of a model's attention are sinks (`s_aux`) or a soft cap (`softcap`).

    transformers has no SDPA for these models, because torch's SDPA has neither.
    """
    return str(model.config.model_type) in ("gpt_oss", "granite_swa", "granitemoe_swa", "mimo_v2_flash", "gemma2")


def attention_of(config: Any) -> str:
    """Return the attention implementation that a configuration selects."""
    return str(config._attn_implementation)


def set_attention(config: Any, implementation: str) -> None:
    """Select the attention implementation of a model, and of the language model in a composite one.

    Towers keep transformers' default, because some of them lack the implementation (the audio tower of Gemma 4).
    """
    text = config.get_text_config(decoder=True)
    if text is config or not any(getattr(config, name, None) is text for name in config.sub_configs):
        config._attn_implementation = implementation
        return
    config._attn_implementation = {
        "": implementation,
        **{name: implementation if getattr(config, name, None) is text else None for name in config.sub_configs},
    }


def group_heads_only_where(takes_grouped_heads: Callable[[Any, Any], bool]) -> None:
    """Let transformers' SDPA repeat the heads of keys and values for which a function of both returns False.

    transformers groups heads on every CUDA card, also where no fused kernel of torch does (5.18 to 5.24).
    """
    from transformers.integrations import sdpa_attention

    decide = sdpa_attention.use_gqa_in_sdpa

    def use_gqa_in_sdpa(attention_mask: Any, key: Any, value: Any) -> bool:
        return takes_grouped_heads(key, value) and bool(decide(attention_mask, key, value))

    sdpa_attention.use_gqa_in_sdpa = use_gqa_in_sdpa


def use_default_experts(config: Any) -> None:
    """Drop an experts implementation named by config.json, which can be a kernel from the Hub."""
    config._experts_implementation = None


def counts_cached_tokens(module: Any) -> bool:
    """Return True for an embedding of positions that counts on from the cache, as BART's does.

    The argument is called `past_key_values_length` in 5.18 and `cache_length` in the releases that deprecate that name.
    """
    if "PositionalEmbedding" not in type(module).__name__:
        return False
    parameters = inspect.signature(type(module).forward).parameters
    return "position_ids" in parameters and bool({"cache_length", "past_key_values_length"} & parameters.keys())


# -- recurrent states


def uses_recurrent_state(module: Any) -> bool:
    """Return True if a module's own code keeps a recurrent or convolutional state in a cache."""
    return _keeps_state(f"{type(module).__module__}:{type(module).__qualname__}")


@cache
def _keeps_state(module_class: str) -> bool:
    module, _, name = module_class.partition(":")
    if not module.startswith("transformers.models."):
        return False
    source = inspect.getsource(getattr(sys.modules[module], name))
    return "update_conv_state" in source or "update_recurrent_state" in source


# -- generation


def cache_argument(model: Any) -> str:
    """Return the name of the cache argument of a model, and of its `generate`.

    It is `past_key_values` in 5.18, `cache_params` there for models that have only a recurrent state (Mamba), and
    `cache` in the releases that deprecate these names.
    """
    from transformers import GenerationMixin

    if "cache_params" in inspect.signature(type(model).forward).parameters:
        return "cache_params"
    parameters = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    return "cache" if "cache" in parameters else "past_key_values"


def cache_of(inputs: Mapping[str, Any]) -> Any:
    """Return the cache among the keyword arguments or the outputs of a forward pass, under any name, or None."""
    found = (inputs.get(name) for name in ("cache", "past_key_values", "cache_params"))
    return next((cache for cache in found if cache is not None), None)


def sanitising_arguments(tokenizer: Any) -> dict[str, Any]:
    """Return the arguments of `apply_chat_template` that make control tokens in messages ordinary text.

    Empty in 5.18, which has no such argument.
    """
    if "sanitize_control_tokens" in inspect.signature(tokenizer.apply_chat_template).parameters:
        return {"sanitize_control_tokens": True}
    return {}


def parse_template(source: str) -> tuple[Any, frozenset[str]]:
    """Return the syntax tree of a chat template, and the names that every template has without setting them.

    Templates have statements of transformers' own, so that its environment has to parse them.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment = _compile_jinja_template("").environment
    return environment.parse(source), frozenset(environment.globals)


def chat_template_source(tokenizer: Any, template: str | None, *, with_tools: bool) -> str:
    """Return the text of the template that `apply_chat_template` would use."""
    return str(tokenizer.get_chat_template(template, [{}] if with_tools else None))


def own_template_arguments() -> frozenset[str]:
    """Return the names that a template cannot get as further variables: arguments of `apply_chat_template`, and what
    it gives to the template itself. `documents` is both."""
    from transformers import PreTrainedTokenizerBase

    names = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    return frozenset({*names, "messages"}) - {"documents"}


def logits_processors(
    model: Any, generation_config: Any, *, prompt_tokens: int, extra: Sequence[Any] = ()
) -> tuple[Any, Any]:
    """Return the logits processors that `generate` would use, and the completed generation config.

    Args:
        extra: Processors to add after the penalties and before those for sampling.
    """
    from transformers import LogitsProcessorList

    config, _ = model._prepare_generation_config(generation_config)
    model._prepare_special_tokens(config, kwargs_has_attention_mask=True, device=model.device)
    processors = model._get_logits_processor(
        config,
        input_ids_seq_length=prompt_tokens,
        device=model.device,
        logits_processor=LogitsProcessorList(extra),
    )
    return processors, config


def compile_on_cpu(compile_config: Any) -> None:
    """Let `generate` compile on every device; by default it compiles on GPUs only."""
    compile_config._compile_all_devices = True


# -- weights


def modules_kept_in_float32(model: Any) -> tuple[str, ...]:
    """Return the names of modules that a model keeps out of half precision."""
    return tuple(model._keep_in_fp32_modules or ())


def save_under_loaded_names(model: Any) -> None:
    """Drop the conversions that rename weights when a model is saved."""
    model._weight_conversions = []


def tied_weights(model: Any) -> Mapping[str, str]:
    """Return the tied weights of a model: the name of each, and the name of the one it shares."""
    tied: Mapping[str, str] = model.all_tied_weights_keys
    return tied


def forget_tied_weights(model: Any, *, under: tuple[str, ...]) -> None:
    """Remove the ties of weights in modules that no longer exist."""
    tied = tied_weights(model)
    inside = tuple(f"{name}." for name in under)
    model.all_tied_weights_keys = {
        name: source for name, source in tied.items() if not name.startswith(inside) and not source.startswith(inside)
    }


def has_default_gate(experts: Any) -> bool:
    """Return True if experts compute act_fn(gate) * up, as most classes do."""
    from transformers.integrations.moe import _default_apply_gate

    return type(experts)._apply_gate is _default_apply_gate


def gate_experts(experts: Any, gate_up: Any) -> Any:
    """Return activation(gate) * up as the experts' own class computes it."""
    return experts._apply_gate(gate_up)


@cache
def returns_indices_first(router_forward: Callable[..., Any]) -> bool:
    """Return True if a router returns the indices of experts first and its logits last, as Granite's do in 5.18.

    Args:
        router_forward: The forward function of the router's class.
    """
    return "return top_k_index, top_k_weights, router_logits" in inspect.getsource(router_forward)


def embedding_scale(embedding: Any) -> float | None:
    """Return the factor by which an embedding multiplies its rows; None without one."""
    values = (getattr(embedding, name, None) for name in ("scalar_embed_scale", "embed_scale"))
    return next((float(value) for value in values if isinstance(value, int | float)), None)


# -- processors of images


def counts_images(image_processor: Any) -> bool:
    """Return True if an image processor treats several images of a prompt differently from a single one."""
    return "batch_num_images" in getattr(image_processor, "model_input_names", ())


def image_processor(folder: Path, tokenizer: Any) -> Any:
    """Return transformers' processor of a model with `tokenizer` and without its parts for video and sound.

    Return None if the model's type has no processor. `AutoProcessor` would load all parts, and those for video need
    torchvision.

    Raises:
        ImportError: the image processor needs a package.
    """
    # by its module, since `transformers` itself has a class in its place that asks for torchvision (5.17)
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    whole = _processor_class(folder)
    if whole is None or "image_processor" not in whole.get_attributes():
        return None

    class ImagesOnly(whole):  # type: ignore[misc, valid-type] # transformers' classes are untyped
        @classmethod
        def get_attributes(cls) -> list[str]:
            attributes: list[str] = whole.get_attributes()
            return attributes

        @classmethod
        def _get_arguments_from_pretrained(cls, path: Any, processor_dict: Any = None, **_: Any) -> list[Any]:
            images = AutoImageProcessor.from_pretrained(str(path), local_files_only=True)
            parts = {"tokenizer": tokenizer, "image_processor": images}
            return [parts.get(name, _LEFT_OUT) for name in cls.get_attributes()]

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument is _LEFT_OUT:
                return type(argument)
            return super().check_argument_for_proper_class(argument_name, argument)

    ImagesOnly.__name__ = whole.__name__
    return ImagesOnly.from_pretrained(str(folder), local_files_only=True)


def expanding_tokenizer(tokenizer: Any, expand: Callable[[str], str]) -> Any:
    """Return a copy of a tokenizer that changes a text before it encodes it; `apply_chat_template` calls it."""

    class Expanding(type(tokenizer)):  # type: ignore[misc]
        def __call__(self, text: str, **arguments: Any) -> Any:
            return super().__call__(expand(text), **arguments)

    changed = copy(tokenizer)
    changed.__class__ = Expanding
    return changed


class _LeftOutPart(dict[str, Any]):
    """Stands for the part of a processor that reads videos or sound. Some processors read these attributes of it."""

    model_input_names: tuple[str, ...] = ()
    num_frames = fps = None


_LEFT_OUT = _LeftOutPart()


def _processor_class(folder: Path) -> Any:
    """Return the class of a model's processor: the one that its files name, or that of its type; None without one.

    Without torchvision the package `transformers` has placeholders for some classes, which their modules do not need.
    """
    from transformers.models.auto.configuration_auto import model_type_to_module_name
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    def read(file: str, key: str) -> Any:
        try:
            document = json.loads((folder / file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return document.get(key) if isinstance(document, dict) else None

    files = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
    model_type = read("config.json", "model_type")
    named = [read(file, "processor_class") for file in files]
    name = next((name for name in named if isinstance(name, str)), PROCESSOR_MAPPING_NAMES.get(model_type))
    types = [one for one, class_name in PROCESSOR_MAPPING_NAMES.items() if class_name == name]
    for part in dict.fromkeys(map(model_type_to_module_name, [*types, *([model_type] if model_type else [])])):
        module = f"transformers.models.{part}.processing_{part}"
        if find_spec(module) is not None:
            with _pixtral_without_torchvision():
                found = getattr(import_module(module), str(name), None)
            if found is not None:
                return found
    return None


@contextmanager
def _pixtral_without_torchvision() -> Iterator[None]:
    """Let PixtralProcessor import the function that it needs from the module for Pillow, inside the block (5.24)."""
    from transformers.utils import is_torchvision_available

    name = "transformers.models.pixtral.image_processing_pixtral"
    if is_torchvision_available() or find_spec(name.replace("processing_", "processing_pil_")) is None:
        yield
        return
    sys.modules[name] = import_module(name.replace("processing_", "processing_pil_"))
    try:
        yield
    finally:
        del sys.modules[name]
