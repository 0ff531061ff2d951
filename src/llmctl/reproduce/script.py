"""A plain transformers script that does the same as llmctl, to read, to use without llmctl, or for bug reports."""

import json
from collections.abc import Iterator
from pprint import pformat
from typing import TYPE_CHECKING, Any

from llmctl.config import Config
from llmctl.generation.prompt import rendering, uses_template
from llmctl.generation.structured.structure import make_structure
from llmctl.loading.model import PromptModel, load_prompt_model
from llmctl.loading.prepare import Prepared
from llmctl.model.mistral_pattern import KEY as FIX_KEY
from llmctl.model.mistral_pattern import RIGHT
from llmctl.model.tokenizer import in_parts
from llmctl.model.tokenizer_file import end_arguments, is_read_from_file, read_settings
from llmctl.plan import Plan
from llmctl.quant.backend import ScriptLines
from llmctl.transformers_compat import knows_architecture, sanitising_arguments, text_model_class

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROUNDING = "# llmctl uses its own kernels here, so rounding differs (load.cpu_kernels)."
EXAMPLE_PROMPT = "What is the capital of France?"


def transformers_script(prepared: Prepared, *, prompt: str = EXAMPLE_PROMPT) -> str:
    """Return a script without llmctl that prints the same text as `llmctl generate` for the same prompt.

    This reads the tokenizer, not the weights.

    Raises:
        ModelError: the tokenizer cannot be read.
    """
    plan, config, draft = prepared.plan, prepared.config, prepared.draft
    prompt_model = load_prompt_model(prepared)
    tokenizer, arguments = prompt_model.tokenizer, prompt_model.generation_arguments()
    templated = uses_template(tokenizer, config.chat, prompt)
    parts = [
        _head(prepared),
        *_load_tokenizer(prompt_model),
        "\n".join([*([_ROUNDING] if plan.kernels == "llmctl" else []), *_load_model("model", prepared), ""]),
        *([_load_adapters(prepared)] if prepared.adapters else []),
        *([_load_draft(prepared, draft)] if draft else []),
        _prompt(tokenizer, config, prompt, templated=templated),
        _generate(prepared, arguments, is_open=not templated or config.chat.prefill is not None),
    ]
    return "\n".join(parts)


def _where(prepared: Prepared) -> str:
    plan = prepared.plan
    return f'"{plan.source}", revision="{plan.commit}"' if plan.commit else repr(str(prepared.resolved.folder))


def _head(prepared: Prepared) -> str:
    plan, draft = prepared.plan, prepared.draft
    lines = [f"# The same as llmctl does for {plan.source}, with plain transformers.", "import os"]
    lines += [f"os.environ.setdefault({name!r}, {value!r})" for name, value in sorted(plan.environment.items())]
    tokenizers = {_tokenizer_class(one) for one in (prepared, draft) if one is not None}
    loaders = {_model_loader(one) for one in (prepared, draft) if one is not None}
    names = [*sorted(loaders), *sorted(tokenizers), "GenerationConfig", "set_seed"]
    quantization = _quantization_lines(plan)
    names[2:2] = quantization.classes
    if "compile_config" in plan.generation_kwargs:
        names.insert(2, "CompileConfig")
    if plan.deterministic:
        names.append("enable_full_determinism")
    lines += ["import torch", f"from transformers import {', '.join(names)}"]
    lines += quantization.imports
    lines.append("")
    if plan.deterministic:
        lines.append(f"enable_full_determinism({plan.seed or 0}, warn_only=True)")
    return "\n".join(lines)


def _tokenizer_class(prepared: Prepared) -> str:
    """Return the class of transformers that loads the tokenizer as llmctl does."""
    trusted = bool(prepared.plan.tokenizer_kwargs.get("trust_remote_code"))
    folder, section = prepared.resolved.folder, prepared.config.tokenizer
    is_file = is_read_from_file(folder, section, trust_remote_code=trusted)
    return "PreTrainedTokenizerFast" if is_file else "AutoTokenizer"


def _load_tokenizer(prompt_model: PromptModel) -> Iterator[str]:
    """Yield the lines that load the tokenizer."""
    plan, tokenizer = prompt_model.plan, prompt_model.tokenizer
    loader, folder = _tokenizer_class(prompt_model.prepared), prompt_model.resolved.folder
    arguments = dict(plan.tokenizer_kwargs) | (end_arguments(folder) if loader == "AutoTokenizer" else {})
    yield f"# tokenizer: {plan.reason('tokenizer')}"
    yield f"tokenizer = {loader}.from_pretrained({_where(prompt_model.prepared)}, {_keywords(arguments)})"
    settings = read_settings(folder)
    for name in ("bos_token", "eos_token"):
        if settings.get(name) is None and getattr(tokenizer, name) is not None:
            yield f"tokenizer.{name} = {getattr(tokenizer, name)!r}"
    yield f"tokenizer.pad_token = {tokenizer.pad_token!r}"
    if any(decision.key == FIX_KEY and decision.value for decision in plan.decisions):
        yield "from tokenizers import Regex, pre_tokenizers"
        yield f"pattern = pre_tokenizers.Split(Regex({RIGHT!r}), 'isolated')"
        yield f"tokenizer.backend_tokenizer.pre_tokenizer[0] = pattern  # {plan.reason(FIX_KEY)}"


def _load_adapters(prepared: Prepared) -> str:
    """Return the lines that apply the adapters to the model."""
    names = [f"adapter_{number}" for number in range(len(prepared.adapters))]
    lines = ["from peft import PeftModel", "from peft.tuners.lora import LoraLayer", ""]
    for name, adapter in zip(names, prepared.adapters, strict=True):
        where = f'"{adapter.source}", revision="{adapter.commit}"' if adapter.commit else repr(str(adapter.folder))
        verb = "model = PeftModel.from_pretrained(model, " if name == names[0] else "model.load_adapter("
        lines.append(f'{verb}{where}, adapter_name="{name}")')
    lines.append(f"model.base_model.set_adapter({names!r})")
    for name, adapter in zip(names, prepared.adapters, strict=True):
        if adapter.scale != 1:
            lines.append("for layer in model.modules():\n    if isinstance(layer, LoraLayer):")
            lines.append(f'        layer.set_scale("{name}", {adapter.scale!r})')
    merge = prepared.config.model.merge_adapters
    lines.append(f"model = model.{'merge_and_unload(safe_merge=True)' if merge else 'get_base_model()'}")
    return "\n".join([*lines, "model.eval()", ""])


def _load_draft(prepared: Prepared, draft: Prepared) -> str:
    """Return the lines that load the draft model."""
    lines = _load_model("draft", draft)
    for name in ("num_assistant_tokens", "assistant_confidence_threshold"):
        value = getattr(prepared.config.draft, name)
        value = draft.info.generation.values.get(name) if value is None else value
        if value is not None:
            lines.append(f"draft.generation_config.{name} = {value!r}")
    return "\n".join([*lines, ""])


def _quantization_lines(plan: Plan) -> ScriptLines:
    quantization = plan.quantization
    return quantization.backend.script(quantization) if quantization is not None else ScriptLines()


def _model_loader(prepared: Prepared) -> str:
    """Return transformers' auto class for the model: for images and text if it is composite."""
    model_type = prepared.info.model_type
    chosen = text_model_class(model_type) if knows_architecture(model_type) else None
    return "AutoModelForImageTextToText" if chosen is not None and chosen.is_composite else "AutoModelForCausalLM"


def _load_model(variable: str, prepared: Prepared) -> list[str]:
    plan, where = prepared.plan, _where(prepared)
    reasons = {decision.key: decision.reason for decision in plan.decisions}
    edits = _quantization_lines(plan).edits
    lines = [f"{variable} = {_model_loader(prepared)}.from_pretrained(\n    {where},"]
    if edits:
        lines = [
            f"config = AutoConfig.from_pretrained({where})",
            "settings = config.quantization_config",
            *edits,
            *lines,
        ]
        lines.append("    config=config,")
    for name, value in plan.model_kwargs.items():
        if name == "quantization_config":
            shown = _quantization_lines(plan).config
        elif name == "attn_implementation" and isinstance(prepared.info.config.get("text_config"), dict):
            shown = repr({"": value, "text_config": value})  # some towers lack it
        else:
            shown = f"torch.{value}" if name == "dtype" else repr(value)
        reason = f"  # {reasons[name]}" if name in reasons else ""
        lines.append(f"    {name}={shown},{reason}")
    lines.append("    generation_config=GenerationConfig(),  # instead of the model's own: see below")
    return [*lines, ")", f"{variable}.eval()"]


def _prompt(tokenizer: "PreTrainedTokenizerBase", config: Config, prompt: str, *, templated: bool) -> str:
    if not templated:
        return f'inputs = tokenizer({prompt!r}, return_tensors="pt").to(model.device)\n'
    conversation = rendering(tokenizer, prompt, config.chat)
    arguments = ["messages"]
    if conversation.template is not None:
        arguments.append(f"chat_template={conversation.template!r}")
    arguments += ["tokenize=True", "return_dict=True", 'return_tensors="pt"']
    left_out = sanitising_arguments(tokenizer)
    arguments += [f"{name}={value!r}" for name, value in conversation.arguments.items() if name not in left_out]
    given = in_parts(conversation.messages) if conversation.has_parts else conversation.messages
    messages = json.dumps(given, indent=4, ensure_ascii=False)
    return f"messages = {messages}\ninputs = tokenizer.apply_chat_template({', '.join(arguments)}).to(model.device)\n"


def _generate(prepared: Prepared, arguments: dict[str, Any], *, is_open: bool) -> str:
    stops, draft = list(prepared.plan.generation.stop_strings), prepared.draft
    options = [f"stop_strings={stops!r}"] if stops else []
    lines = []
    if draft is not None:
        options.append("assistant_model=draft")
        if draft.info.text_config.get("vocab_size") != prepared.info.text_config.get("vocab_size"):
            loader = _tokenizer_class(draft)
            lines.append(f"draft_tokenizer = {loader}.from_pretrained({_where(draft)}, trust_remote_code=False)")
            options.append("assistant_tokenizer=draft_tokenizer")
    if any(option.startswith(("stop_strings", "assistant_tokenizer")) for option in options):
        options.append("tokenizer=tokenizer")
    if make_structure(prepared.config.structure) is not None:
        lines.append("# the requested structure is not part of this script: a logits processor of llmctl enforces it")
    compiling = arguments.pop("compile_config", None)
    lines.append(f"generation_config = GenerationConfig(**{pformat(arguments, sort_dicts=False)})")
    if compiling is not None:
        lines.append(f"generation_config.compile_config = CompileConfig({_keywords(compiling)})")
        lines.append("generation_config.compile_config._compile_all_devices = True  # the default is GPUs only")
    if prepared.plan.seed is not None:
        lines.append(f"set_seed({prepared.plan.seed})")
    elif arguments.get("do_sample"):
        lines.append("# set_seed(N) repeats an answer")
    lines += [
        f"output = model.generate({', '.join(['**inputs', 'generation_config=generation_config', *options])})",
        *_decode(is_open=is_open),
    ]
    for stop in stops:
        lines.append(f"text = text.partition({stop!r})[0]")
    return "\n".join([*lines, "print(text)", ""])


def _decode(*, is_open: bool) -> list[str]:
    """Return the lines that decode the answer; a space at its beginning counts if it continues the prompt's text."""
    if not is_open:
        return ['text = tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)']
    return [
        'before = tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True)',
        "text = tokenizer.decode(output[0], skip_special_tokens=True)[len(before):]",
    ]


def _keywords(values: Any) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())
