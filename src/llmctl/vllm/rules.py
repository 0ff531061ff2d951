"""The translation of each configuration key for vLLM: one rule per key.

Checked against vLLM 0.32 (vllm/engine/arg_utils.py, vllm/config/, vllm/entrypoints/launchers/cli_args.py).
"""

import json
from collections.abc import Callable
from typing import Any

from llmctl.config import Config
from llmctl.model import demo
from llmctl.model.resolve import names_of
from llmctl.vllm.arguments import Outcome, Target, argument, not_needed, not_possible, translated, variable

Rule = Callable[[Config, Target], Outcome | None]
IN_REQUESTS = "in each request"
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def served_names(config: Config) -> list[str]:
    """Return the model's names for clients, which are the same as in `llmctl serve` without vLLM."""
    return names_of(config.model.id or demo.MODEL_ID, config.serve.model_name)


def uses_ray(config: Config) -> bool:
    """Return True if vLLM runs on several machines. Each of them then finds the model by its id."""
    return config.vllm.distributed_executor_backend == "ray"


def value_of(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


# -- model


def _model(config: Config, target: Target) -> Outcome:
    stored = target.quantization
    method = stored.backend.vllm_method if stored is not None else None
    if stored is not None and method is None:
        return not_possible(f"its weights are in the format of {stored.backend.name}, which vLLM cannot read")
    if method == "bitsandbytes" and not target.has_bitsandbytes:
        return not_possible("its weights are quantised with bitsandbytes, which this vLLM does not support")
    names = served_names(config)
    if config.model.adapters:  # the adapter gets the model's name, the base model another one
        names = [f"{names[0]}:base"]
    model = config.model.id or demo.MODEL_ID
    if target.model is not None and not uses_ray(config):
        model = target.model
    return argument("--model", model, "--served-model-name", *names)


def _revision(config: Config, target: Target) -> Outcome | None:
    if target.model is not None and not uses_ray(config):
        return not_needed("vLLM loads the folder in the cache") if config.model.revision else None
    revision = target.commit or config.model.revision
    return argument("--revision", revision) if revision else None


def _format(config: Config, target: Target) -> Outcome:
    # vLLM's loader for bitsandbytes prefers safetensors, and llmctl has checked that they exist.
    quantises = config.quantization.bits is not None and target.has_bitsandbytes
    return argument("--load-format", "bitsandbytes" if quantises else "safetensors")


def _adapters(config: Config, target: Target) -> Outcome:
    if len(config.model.adapters) > 1:
        return not_possible("vLLM applies one adapter at a time; merge them into a model first")
    spec = config.model.adapters[0]
    if spec.scale != 1:
        return not_possible(f"vLLM does not scale adapters (scale here: {spec.scale:g})")
    if spec.revision and target.adapter is None:
        return not_possible("vLLM accepts no revision of an adapter; download it and set its folder")
    name = served_names(config)[0]
    module = {"name": name, "path": target.adapter or spec.id, "base_model_name": f"{name}:base"}
    rank = next((rank for rank in _LORA_RANKS if rank >= (target.adapter_rank or 0)), None)
    if rank is None:
        return not_possible(f"the adapter has rank {target.adapter_rank}; vLLM supports up to {_LORA_RANKS[-1]}")
    max_rank = ["--max-lora-rank", str(rank)] if target.adapter_rank is not None else []
    return argument("--enable-lora", *max_rank, "--lora-modules", json.dumps(module))


# -- computation


def _device_map(config: Config, target: Target) -> Outcome:
    device = config.load.device_map
    if target.device is not None and device == target.device:
        return not_needed(f"this vLLM computes on {device}")
    return not_possible("vLLM places the model itself; vllm.tensor_parallel_size sets the number of GPUs")


def _images(config: Config, _: Target) -> Outcome:
    if config.load.images == "never":
        return argument("--limit-mm-per-prompt", json.dumps({"image": 0}))
    return not_needed("vLLM loads the towers of a model at the start")


def _attention(config: Config, _: Target) -> Outcome:
    backends = {"flash_attention_2": "FLASH_ATTN", "flex_attention": "FLEX_ATTENTION"}
    attention = config.load.attn_implementation
    if attention not in backends:
        return not_possible(f"vLLM has no attention backend {attention}; auto lets it choose")
    return argument("--attention-backend", backends[attention])


def _bits(config: Config, target: Target) -> Outcome:
    section = config.quantization
    if not target.has_bitsandbytes:
        return not_possible(
            "this vLLM does not quantise models while loading; use a quantised model (AWQ, GPTQ, compressed-tensors) "
            "or vllm.extra: {quantization: fp8_per_channel}"
        )
    if section.bits == 8:
        return not_possible("vLLM's bitsandbytes quantises only to 4 bits while loading; 8 bits need a quantised model")
    if section.backend not in ("auto", "bitsandbytes"):
        return not_possible(f"vLLM has no backend {section.backend} (quantization.backend)")
    return argument("--quantization", "bitsandbytes")


def _quantization_only(reason: str) -> Rule:
    def rule(config: Config, _: Target) -> Outcome:
        return not_possible(reason) if config.quantization.bits else not_needed("nothing is quantised")

    return rule


def _max_length(config: Config, _: Target) -> Outcome | None:
    ours, theirs = config.tokenizer.model_max_length, config.vllm.max_model_len
    if ours and theirs and ours != theirs:
        return not_possible(f"vllm.max_model_len is {theirs}, but this is {ours}; omit one of them")
    return argument("--max-model-len", str(ours)) if not theirs else not_needed("vllm.max_model_len sets it")


def _mistral_pattern(config: Config, target: Target) -> Outcome:
    if target.purpose == "batch":
        return not_needed("llmctl tokenises the prompts")
    if config.tokenizer.fix_mistral_regex is False:
        return not_needed("vLLM keeps the pattern")
    return not_possible("vLLM reads Mistral's own tokenizer files instead: vllm.extra: {tokenizer_mode: mistral}")


def _lookup(config: Config, _: Target) -> Outcome:
    if config.draft.id is not None:
        return not_possible("draft.id also proposes tokens; omit one of them")
    # transformers looks up the last two tokens, then the last one.
    speculative = {
        "method": "ngram",
        "num_speculative_tokens": config.generation.prompt_lookup_num_tokens,
        "prompt_lookup_max": 2,
        "prompt_lookup_min": 1,
    }
    return argument("--speculative-config", json.dumps(speculative))


def _draft(config: Config, _: Target) -> Outcome:
    draft = config.draft
    if draft.num_assistant_tokens is None:
        return not_possible("vLLM needs a fixed number of proposed tokens; set draft.num_assistant_tokens")
    speculative = {"method": "draft_model", "model": draft.id, "num_speculative_tokens": draft.num_assistant_tokens}
    speculative |= {"revision": draft.revision} if draft.revision else {}
    return argument("--speculative-config", json.dumps(speculative))


def _with_draft(config: Config, _: Target) -> Outcome:
    return not_needed("part of --speculative-config" if config.draft.id else "there is no draft model")


def _draft_only(reason: str) -> Rule:
    return lambda config, _: not_possible(reason) if config.draft.id else not_needed("there is no draft model")


def _cache(config: Config, _: Target) -> Outcome:
    cache = config.generation.cache_implementation
    if cache == "dynamic":
        return not_needed("vLLM's paged KV cache grows with the text")
    if cache != "quantized":
        return not_possible("vLLM has its own paged KV cache; use dynamic, or quantized with the backend fp8")
    if config.generation.cache_config.get("backend", "fp8") != "fp8":
        return not_possible("vLLM quantises its cache to fp8 only: generation.cache_config: {backend: fp8}")
    return argument("--kv-cache-dtype", "fp8")


def _cache_config(config: Config, _: Target) -> Outcome:
    if others := [name for name in config.generation.cache_config if name != "backend"]:
        return not_possible(f"vLLM's fp8 cache has no {', '.join(others)}")
    return not_needed("generation.cache_implementation covers it")


# -- sampling


def _sampling(config: Config, target: Target) -> Outcome:
    return translated(IN_REQUESTS if target.purpose == "batch" else "--override-generation-config")


def _max_new_tokens(config: Config, target: Target) -> Outcome:
    if target.purpose == "batch":
        return translated(IN_REQUESTS)
    return translated("--override-generation-config; vLLM also makes it the maximum for every request")


def _unsupported_sampling(name: str, off: tuple[Any, ...]) -> Rule:
    """Return the rule for a setting that vLLM lacks. The model's generation_config.json may also set it.

    Args:
        off: The values that turn the setting off.
    """

    def rule(config: Config, target: Target) -> Outcome | None:
        configured = getattr(config.generation, name)
        value = target.generation.values.get(name) if configured is None else configured
        if value in off:
            return not_needed("it is off") if configured is not None else None
        source = "" if configured is not None else f" (the model's generation_config.json sets it to {value})"
        return not_possible(f"vLLM does not support it{source}")

    return rule


def _beams(config: Config, _: Target) -> Outcome:
    return not_possible("vLLM's server supports beam search for single requests only")


def _per_request(reason: str) -> Rule:
    """Return the rule for a setting that vLLM accepts only in requests. A batch sends it there, a server cannot."""
    return lambda _, target: translated(IN_REQUESTS) if target.purpose == "batch" else not_possible(reason)


def _logprobs(config: Config, target: Target) -> Outcome:
    count = config.generation.logprobs
    if target.purpose == "serve":
        return not_possible("each request sets its own: logprobs")
    return argument("--max-logprobs", str(count)) if count and count > 20 else translated(IN_REQUESTS)


# -- prompts


def _prompt(for_server: Callable[[Config], Outcome]) -> Rule:
    """Return the rule for a setting that llmctl applies itself in a batch, because vLLM then gets tokens."""
    return lambda config, target: (
        not_needed("llmctl renders the prompts") if target.purpose == "batch" else for_server(config)
    )


def _thinking(config: Config) -> Outcome:
    if config.chat.template_kwargs:
        return not_needed("--default-chat-template-kwargs has it")
    return _template_kwargs(config)


def _template_kwargs(config: Config) -> Outcome:
    # vLLM drops variables that the template does not read, so that both names can be given.
    thinking = config.chat.thinking
    values = {} if thinking is None else {"enable_thinking": thinking, "thinking": thinking}
    return argument("--default-chat-template-kwargs", json.dumps({**values, **config.chat.template_kwargs}))


# -- the server


def _server_only(for_server: Callable[[Config], Outcome]) -> Rule:
    """Return the rule for a setting that the private server of a batch does not need."""
    return lambda config, target: (
        for_server(config) if target.purpose == "serve" else not_needed("a batch has its own server")
    )


def _guarded(config: Config) -> Outcome:
    return not_needed("llmctl's guard inside vLLM's server enforces it")


def _drain(config: Config) -> Outcome:
    return argument("--shutdown-timeout", str(round(config.serve.drain_seconds)))


# -- vLLM's own


def _extra(config: Config, _: Target) -> Outcome:
    texts: list[str] = []
    for name, value in config.vllm.extra.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            texts.append(option if value else f"--no-{option.removeprefix('--')}")
        elif isinstance(value, list) and not any(isinstance(item, dict | list) for item in value):
            texts += [option, *map(str, value)]
        else:
            texts += [option, value if isinstance(value, str) else json.dumps(value)]
    return argument(*texts)


def _value(option: str, key: str) -> Rule:
    return lambda config, _: argument(option, str(value_of(config, key)))


def _always(outcome: Outcome) -> Rule:
    return lambda _c, _t: outcome


ALWAYS_TRANSLATED = {
    "model.id", "model.revision", "model.use_safetensors",
    "generation.typical_p", "generation.no_repeat_ngram_size", "serve.host", "serve.port", "serve.drain_seconds",
}  # fmt: skip
_FIXED: dict[str, Outcome] = {
    "model.trust_remote_code": argument("--trust-remote-code"),
    "model.merge_adapters": not_possible("vLLM keeps adapters separate from the weights; omit it"),
    "load.max_memory": not_possible("vllm.gpu_memory_utilization sets vLLM's share of each GPU"),
    "load.cpu_kernels": not_needed("vLLM has its own kernels"),
    "load.overcommit": not_needed("vLLM itself refuses models that do not fit"),
    "tokenizer.source": not_needed("vLLM's server uses the class, and llmctl tokenises the prompts of a batch"),
    "tokenizer.use_fast": not_needed("it has no effect with any engine"),
    "quantization.backend": not_needed("quantization.bits covers it"),
    "quantization.cache": not_needed("vLLM has no quantised cache"),
    "quantization.cache_size": not_needed("vLLM has no quantised cache"),
    "quantization.enable_fp32_cpu_offload": not_possible("vLLM keeps no unquantised part of a quantised model in RAM"),
    "generation.compile": not_needed("vLLM compiles anyway; vllm.extra: {enforce_eager: true} turns that off"),
    "vllm.python": not_needed("it selects the vLLM to start"),
    "vllm.startup_seconds": not_needed("llmctl's own time limit for the start"),
    "engine": not_needed("it selects vLLM"),
    "deterministic": variable("VLLM_BATCH_INVARIANT", "1"),
}
# Keys whose value is passed on unchanged.
_OPTIONS = {
    "load.dtype": "--dtype",
    "seed": "--seed",
    "vllm.tensor_parallel_size": "--tensor-parallel-size",
    "vllm.pipeline_parallel_size": "--pipeline-parallel-size",
    "vllm.distributed_executor_backend": "--distributed-executor-backend",
    "vllm.gpu_memory_utilization": "--gpu-memory-utilization",
    "vllm.max_model_len": "--max-model-len",
}
RULES: dict[str, Rule] = {
    **{key: _always(outcome) for key, outcome in _FIXED.items()},
    "model.id": _model,
    "model.revision": _revision,
    "model.adapters": _adapters,
    "model.use_safetensors": _format,
    "load.device_map": _device_map,
    "load.attn_implementation": _attention,
    "load.images": _images,
    "load.max_image_tokens": _always(
        not_possible("vLLM has no limit of tokens per image; vllm.extra: {mm_processor_kwargs: …} has those of a model")
    ),
    "tokenizer.model_max_length": _max_length,
    "tokenizer.fix_mistral_regex": _mistral_pattern,
    "quantization.bits": _bits,
    "quantization.head_bits": _quantization_only("vLLM does not quantise the output head"),
    "quantization.quant_type": _quantization_only("vLLM's bitsandbytes supports nf4 only"),
    "quantization.use_double_quant": lambda _c, _t: not_needed("vLLM's bitsandbytes always does so"),
    "quantization.compute_dtype": _quantization_only("vLLM computes in the dtype of the model: load.dtype"),
    "quantization.llm_int8_threshold": _quantization_only("vLLM quantises only to 4 bits while loading"),
    "quantization.skip_modules": _quantization_only("vLLM has no list of modules to skip"),
    **{f"generation.{name}": _sampling for name in
       ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")},
    "generation.max_new_tokens": _max_new_tokens,
    "generation.typical_p": _unsupported_sampling("typical_p", (None, 1, 1.0)),
    "generation.no_repeat_ngram_size": _unsupported_sampling("no_repeat_ngram_size", (None, 0)),
    "generation.num_beams": _beams,
    "generation.stop_strings": _per_request("each request sets its own: stop"),
    "generation.extra_eos_tokens": _per_request("each request sets its own: stop_token_ids"),
    "generation.logprobs": _logprobs,
    "generation.prompt_lookup_num_tokens": _lookup,
    "generation.cache_implementation": _cache,
    "generation.cache_config": _cache_config,
    "draft.id": _draft,
    "draft.revision": _with_draft,
    "draft.num_assistant_tokens": _with_draft,
    "draft.dtype": _draft_only("vLLM's draft has the dtype of the model"),
    "draft.bits": _draft_only("vLLM does not quantise draft models while loading"),
    "draft.assistant_confidence_threshold": _draft_only("vLLM's draft always proposes the same number of tokens"),
    **{f"structure.{name}": _per_request("each request sets its own: response_format, structured_outputs") for name in
       ("json_schema", "regex", "choices", "grammar")},
    "chat.raw": _prompt(lambda _: not_possible("requests for raw prompts go to /v1/completions")),
    "chat.system": _prompt(lambda _: not_possible("each request has its own system message")),
    "chat.template": _prompt(lambda config: argument("--chat-template", str(config.chat.template))),
    "chat.thinking": _prompt(_thinking),
    "chat.template_kwargs": _prompt(_template_kwargs),
    "chat.prefill": _prompt(lambda _: not_possible("each request has its own final message of the assistant")),
    "serve.host": lambda _c, target: argument("--host", target.host),
    "serve.port": lambda _c, target: argument("--port", str(target.port)),
    **{f"serve.{name}": _server_only(_guarded) for name in
       ("api_key_file", "no_api_key", "allowed_hosts", "allowed_origins", "max_body_bytes")},
    "serve.model_name": _server_only(lambda _: not_needed("--served-model-name has it")),
    "serve.max_queue": _server_only(lambda _: not_possible("vLLM has no limit for its queue")),
    "serve.max_sequences": _server_only(lambda config: argument("--max-num-seqs", str(config.serve.max_sequences))),
    "serve.request_seconds": _server_only(lambda _: not_possible("vLLM has no time limit for a request")),
    "serve.drain_seconds": _server_only(_drain),
    "serve.fetch_images": _server_only(lambda _: not_possible("vLLM fetches images by rules of its own; omit it")),
    **{key: _value(option, key) for key, option in _OPTIONS.items()},
    "vllm.extra": _extra,
}  # fmt: skip
