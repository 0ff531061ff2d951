"""What becomes of each key for vLLM: one rule a key.

Checked against vLLM 0.32 (vllm/engine/arg_utils.py, vllm/config/, vllm/entrypoints/launchers/cli_args.py).
"""

import json
from collections.abc import Callable
from typing import Any

from llmctl.config import Config
from llmctl.model import demo
from llmctl.model.info import PACKED
from llmctl.model.resolve import names_of
from llmctl.vllm.arguments import Said, Target, argument, cannot, idle, variable

Rule = Callable[[Config, Target], Said | None]
IN_REQUESTS = "in each request"
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def served_names(config: Config) -> list[str]:
    """What clients call the model, as `llmctl serve` without vLLM."""
    return names_of(config.model.id or demo.MODEL_ID, config.serve.model_name)


def is_spread(config: Config) -> bool:
    """Whether several machines compute: each needs the model, which it then finds by its id."""
    return config.vllm.distributed_executor_backend == "ray"


def value_of(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


# -- which model


def _model(config: Config, target: Target) -> Said:
    if target.quant_method == PACKED:
        return cannot("its weights are in llmctl's own format, which vLLM does not know")
    if target.quant_method == "bitsandbytes" and not target.has_bitsandbytes:
        return cannot("its weights are quantised with bitsandbytes, which this vLLM does not know")
    names = served_names(config)
    if config.model.adapters:  # it is what clients mean by the model's name
        names = [f"{names[0]}:base"]
    model = config.model.id or demo.MODEL_ID
    if target.model is not None and not is_spread(config):
        model = target.model
    return argument("--model", model, "--served-model-name", *names)


def _revision(config: Config, target: Target) -> Said | None:
    if target.model is not None and not is_spread(config):
        return idle("its folder in the cache is served") if config.model.revision else None
    revision = target.commit or config.model.revision
    return argument("--revision", revision) if revision else None


def _format(config: Config, target: Target) -> Said:
    # its loader for bitsandbytes reads safetensors where there are any; llmctl has looked that there are
    loads_bits = config.quantization.bits is not None and target.has_bitsandbytes
    return argument("--load-format", "bitsandbytes" if loads_bits else "safetensors")


def _adapters(config: Config, target: Target) -> Said:
    if len(config.model.adapters) > 1:
        return cannot("vLLM puts one adapter on the model at a time: merge them into a model of their own")
    spec = config.model.adapters[0]
    if spec.scale != 1:
        return cannot(f"vLLM does not scale an adapter (here {spec.scale:g})")
    if spec.revision and target.adapter is None:
        return cannot("vLLM takes no revision of an adapter: download it, and give its folder")
    name = served_names(config)[0]
    module = {"name": name, "path": target.adapter or spec.id, "base_model_name": f"{name}:base"}
    rank = next((known for known in _LORA_RANKS if known >= (target.adapter_rank or 0)), None)
    if rank is None:
        return cannot(f"vLLM's adapters have a rank of at most {_LORA_RANKS[-1]}, this one has {target.adapter_rank}")
    room = ["--max-lora-rank", str(rank)] if target.adapter_rank is not None else []
    return argument("--enable-lora", *room, "--lora-modules", json.dumps(module))


# -- how it computes


def _device_map(config: Config, target: Target) -> Said:
    asked = config.load.device_map
    if target.device is not None and asked == target.device:
        return idle(f"this vLLM computes on {asked}")
    return cannot("vLLM places the model itself; vllm.tensor_parallel_size says over how many GPUs")


def _attention(config: Config, _: Target) -> Said:
    backends = {"flash_attention_2": "FLASH_ATTN", "flex_attention": "FLEX_ATTENTION"}
    asked = config.load.attn_implementation
    if asked not in backends:
        return cannot(f"vLLM has no attention like {asked}: auto lets it choose")
    return argument("--attention-backend", backends[asked])


def _bits(config: Config, target: Target) -> Said:
    section = config.quantization
    if not target.has_bitsandbytes:
        return cannot(
            "this vLLM does not quantise to it while it loads: name a model that is quantised already (AWQ, GPTQ, "
            "compressed-tensors), or say vllm.extra: {quantization: fp8_per_channel}"
        )
    if section.bits == 8:
        return cannot("vLLM's bitsandbytes quantises to 4 bits while it loads: 8 bits need a model that has them")
    if section.backend in ("llmctl", "torch"):
        return cannot(f"vLLM does not know such weights: quantization.backend is {section.backend}")
    return argument("--quantization", "bitsandbytes")


def _of_quantization(why: str) -> Rule:
    def rule(config: Config, _: Target) -> Said:
        return cannot(why) if config.quantization.bits else idle("nothing is quantised")

    return rule


def _max_length(config: Config, _: Target) -> Said | None:
    ours, theirs = config.tokenizer.model_max_length, config.vllm.max_model_len
    if ours and theirs and ours != theirs:
        return cannot(f"vllm.max_model_len says {theirs}, this says {ours}: leave one of them away")
    return argument("--max-model-len", str(ours)) if not theirs else idle("as vllm.max_model_len says")


def _lookup(config: Config, _: Target) -> Said:
    if config.draft.id is not None:
        return cannot("draft.id proposes tokens as well: leave one of them away")
    # transformers looks for the last two tokens, then for the last one
    said = {
        "method": "ngram",
        "num_speculative_tokens": config.generation.prompt_lookup_num_tokens,
        "prompt_lookup_max": 2,
        "prompt_lookup_min": 1,
    }
    return argument("--speculative-config", json.dumps(said))


def _draft(config: Config, _: Target) -> Said:
    draft = config.draft
    if draft.num_assistant_tokens is None:
        return cannot("vLLM has to be told how many tokens it proposes: set draft.num_assistant_tokens")
    said = {"method": "draft_model", "model": draft.id, "num_speculative_tokens": draft.num_assistant_tokens}
    said |= {"revision": draft.revision} if draft.revision else {}
    return argument("--speculative-config", json.dumps(said))


def _with_draft(config: Config, _: Target) -> Said:
    return idle("part of --speculative-config" if config.draft.id else "there is no draft model")


def _of_draft(why: str) -> Rule:
    return lambda config, _: cannot(why) if config.draft.id else idle("there is no draft model")


def _cache(config: Config, _: Target) -> Said:
    asked = config.generation.cache_implementation
    if asked == "dynamic":
        return idle("vLLM's pages grow as the text does")
    if asked != "quantized":
        return cannot("vLLM keeps keys and values in pages of its own: dynamic, or quantized with backend fp8")
    if config.generation.cache_config.get("backend", "fp8") != "fp8":
        return cannot("of quantised caches vLLM has fp8: generation.cache_config: {backend: fp8}")
    return argument("--kv-cache-dtype", "fp8")


def _cache_config(config: Config, _: Target) -> Said:
    if more := [name for name in config.generation.cache_config if name != "backend"]:
        return cannot(f"vLLM's fp8 cache has no {', '.join(more)}")
    return idle("as generation.cache_implementation says")


# -- how tokens are chosen


def _sample_key(config: Config, target: Target) -> Said:
    return Said("argument", IN_REQUESTS if target.purpose == "batch" else "--override-generation-config")


def _most_tokens(config: Config, target: Target) -> Said:
    if target.purpose == "batch":
        return Said("argument", IN_REQUESTS)
    return Said("argument", "--override-generation-config; vLLM takes it as the most that a request may ask for")


def _not_sampled(name: str, off: tuple[Any, ...]) -> Rule:
    """vLLM has no such setting; the model's own generation_config.json may ask for it as well."""

    def rule(config: Config, target: Target) -> Said | None:
        asked = getattr(config.generation, name)
        value = target.generation_config.get(name) if asked is None else asked
        if value in off:
            return idle("it is off") if asked is not None else None
        by = "" if asked is not None else f" (the model's generation_config.json asks for {value})"
        return cannot(f"vLLM does not have it{by}")

    return rule


def _beams(config: Config, _: Target) -> Said:
    return cannot("vLLM's server has beam search for single requests only")


def _by_request(why: str) -> Rule:
    """A setting that vLLM takes with each request: a batch says it there, a server cannot have it for all."""
    return lambda _, target: Said("argument", IN_REQUESTS) if target.purpose == "batch" else cannot(why)


def _logprobs(config: Config, target: Target) -> Said:
    count = config.generation.logprobs
    if target.purpose == "serve":
        return cannot("each request asks for its own: logprobs")
    return argument("--max-logprobs", str(count)) if count and count > 20 else Said("argument", IN_REQUESTS)


# -- how a prompt becomes a conversation


def _here(of_serve: Callable[[Config], Said]) -> Rule:
    """What a batch does itself, before vLLM gets the tokens."""
    return lambda config, target: idle("llmctl makes the prompts") if target.purpose == "batch" else of_serve(config)


# -- the server


def _of_server(said: Callable[[Config], Said]) -> Rule:
    """What a batch, whose server is its own, has no use for."""
    return lambda config, target: said(config) if target.purpose == "serve" else idle("a batch has a server of its own")


def _guarded(config: Config) -> Said:
    return idle("llmctl's guard inside vLLM's server sees to it")


def _drain(config: Config) -> Said:
    return argument("--shutdown-timeout", str(round(config.serve.drain_seconds)))


# -- what only vLLM has


def _extra(config: Config, _: Target) -> Said:
    texts: list[str] = []
    for name, value in config.vllm.extra.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            texts.append(option if value else f"--no-{option.removeprefix('--')}")
        elif isinstance(value, list) and not any(isinstance(one, dict | list) for one in value):
            texts += [option, *map(str, value)]
        else:
            texts += [option, value if isinstance(value, str) else json.dumps(value)]
    return argument(*texts)


def _plain(option: str, key: str) -> Rule:
    return lambda config, _: argument(option, str(value_of(config, key)))


def _always(said: Said) -> Rule:
    return lambda _c, _t: said


ALWAYS = {
    "model.id", "model.revision", "model.use_safetensors", "seed",
    "generation.typical_p", "generation.no_repeat_ngram_size", "serve.host", "serve.port", "serve.drain_seconds",
}  # fmt: skip
_FIXED: dict[str, Said] = {
    "model.trust_remote_code": argument("--trust-remote-code"),
    "model.merge_adapters": cannot("vLLM keeps an adapter beside the weights: leave it away"),
    "load.max_memory": cannot("vllm.gpu_memory_utilization says which share of each GPU vLLM takes"),
    "load.cpu_kernels": idle("vLLM computes with its own kernels"),
    "load.overcommit": idle("vLLM itself refuses what does not fit"),
    "tokenizer.use_fast": idle("it has no effect anywhere"),
    "quantization.backend": idle("as quantization.bits says"),
    "quantization.cache": idle("vLLM keeps no quantised copies"),
    "quantization.cache_size": idle("vLLM keeps no quantised copies"),
    "quantization.enable_fp32_cpu_offload": cannot("vLLM puts no part of a quantised model into RAM unquantised"),
    "generation.compile": idle("vLLM compiles by itself; vllm.extra: {enforce_eager: true} turns that off"),
    "vllm.python": idle("which vLLM is started"),
    "vllm.startup_seconds": idle("how long llmctl waits for it"),
    "engine": idle("what is asked here"),
    "deterministic": variable("VLLM_BATCH_INVARIANT", "1"),
}
# keys whose value is an option's as it is
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
    **{key: _always(said) for key, said in _FIXED.items()},
    "model.id": _model,
    "model.revision": _revision,
    "model.adapters": _adapters,
    "model.use_safetensors": _format,
    "load.device_map": _device_map,
    "load.attn_implementation": _attention,
    "tokenizer.model_max_length": _max_length,
    "quantization.bits": _bits,
    "quantization.head_bits": _of_quantization("vLLM does not quantise the output head"),
    "quantization.quant_type": _of_quantization("vLLM's bitsandbytes has nf4"),
    "quantization.use_double_quant": lambda _c, _t: idle("vLLM's bitsandbytes always does"),
    "quantization.compute_dtype": _of_quantization("vLLM multiplies in the dtype of the model: load.dtype"),
    "quantization.llm_int8_threshold": _of_quantization("vLLM quantises to 4 bits while it loads"),
    "quantization.skip_modules": _of_quantization("vLLM has no list of modules to keep"),
    **{f"generation.{name}": _sample_key for name in
       ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")},
    "generation.max_new_tokens": _most_tokens,
    "generation.typical_p": _not_sampled("typical_p", (None, 1, 1.0)),
    "generation.no_repeat_ngram_size": _not_sampled("no_repeat_ngram_size", (None, 0)),
    "generation.num_beams": _beams,
    "generation.stop_strings": _by_request("each request says its own: stop"),
    "generation.extra_eos_tokens": _by_request("each request says its own: stop_token_ids"),
    "generation.logprobs": _logprobs,
    "generation.prompt_lookup_num_tokens": _lookup,
    "generation.cache_implementation": _cache,
    "generation.cache_config": _cache_config,
    "draft.id": _draft,
    "draft.revision": _with_draft,
    "draft.num_assistant_tokens": _with_draft,
    "draft.dtype": _of_draft("vLLM's draft has the dtype of the model"),
    "draft.bits": _of_draft("vLLM does not quantise a draft model while it loads"),
    "draft.assistant_confidence_threshold": _of_draft("vLLM's draft always proposes the same number"),
    **{f"structure.{name}": _by_request("each request says its own: response_format, structured_outputs") for name in
       ("json_schema", "regex", "choices", "grammar")},
    "chat.raw": _here(lambda _: cannot("a prompt as it is goes to /v1/completions")),
    "chat.system": _here(lambda _: cannot("each request brings its own system message")),
    "chat.template": _here(lambda config: argument("--chat-template", str(config.chat.template))),
    "chat.template_kwargs": _here(
        lambda config: argument("--default-chat-template-kwargs", json.dumps(config.chat.template_kwargs))
    ),
    "serve.host": lambda _c, target: argument("--host", target.host),
    "serve.port": lambda _c, target: argument("--port", str(target.port)),
    **{f"serve.{name}": _of_server(_guarded) for name in
       ("api_key_file", "no_api_key", "allowed_hosts", "allowed_origins", "max_body_bytes")},
    "serve.model_name": _of_server(lambda _: idle("as --served-model-name says")),
    "serve.max_queue": _of_server(lambda _: cannot("vLLM has no bound for what waits")),
    "serve.max_sequences": _of_server(lambda config: argument("--max-num-seqs", str(config.serve.max_sequences))),
    "serve.request_seconds": _of_server(lambda _: cannot("vLLM has no time limit for a request")),
    "serve.drain_seconds": _of_server(_drain),
    **{key: _plain(option, key) for key, option in _OPTIONS.items()},
    "vllm.extra": _extra,
}  # fmt: skip
