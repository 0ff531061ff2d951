"""The names that other tools have for the keys, flags and commands of llmctl.

A name with exactly the meaning of a key works in place of it: in a file inside the key's section, as a flag, in
`/set`, and as a keyword in Python. Any other name is an error that says what to write instead. Names are compared in
lower case, with underscores.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SAME_KEYS = {
    "generation.max_new_tokens": (
        "max_tokens", "num_predict", "n_predict", "max_completion_tokens", "max_output_tokens", "max_gen_len",
    ),
    "generation.temperature": ("temp",),
    "generation.top_k": ("topk",),
    "generation.top_p": ("topp", "nucleus"),
    "generation.min_p": ("minp",),
    "generation.typical_p": ("typical",),
    "generation.repetition_penalty": ("repeat_penalty", "rep_pen"),
    "generation.stop_strings": ("stop", "stops", "stop_sequence", "stop_sequences", "reverse_prompt"),
    "generation.extra_eos_tokens": ("stop_token_ids",),
    "generation.num_beams": ("beams", "beam_size", "beam_width"),
    "generation.cache_implementation": ("cache_type", "kv_cache"),
    "generation.prompt_lookup_num_tokens": ("prompt_lookup",),
    "generation.compile": ("torch_compile",),
    "tokenizer.model_max_length": (
        "num_ctx", "ctx_size", "n_ctx", "context_length", "context_size", "max_context", "max_model_len", "max_seq_len",
    ),
    "quantization.bits": ("quantize", "quantise", "quantization", "quant_bits", "num_bits"),
    "quantization.quant_type": ("bnb_4bit_quant_type",),
    "quantization.use_double_quant": ("bnb_4bit_use_double_quant", "double_quant"),
    "quantization.compute_dtype": ("bnb_4bit_compute_dtype",),
    "quantization.skip_modules": ("llm_int8_skip_modules", "modules_to_not_convert"),
    "quantization.enable_fp32_cpu_offload": ("llm_int8_enable_fp32_cpu_offload",),
    "load.device_map": ("device",),
    "load.dtype": ("torch_dtype", "data_type", "precision"),
    "load.attn_implementation": ("attention", "attention_implementation", "attn_impl"),
    "load.max_memory": ("max_mem",),
    "model.id": ("model_id", "model_path", "model_name_or_path", "repo_id", "hf_repo", "hf"),
    "model.revision": ("rev", "branch", "hf_revision"),
    "model.adapters": ("lora", "lora_path", "lora_adapter", "peft"),
    "model.merge_adapters": ("merge_lora",),
    "draft.id": ("draft_model", "model_draft", "assistant_model", "speculative_model"),
    "draft.num_assistant_tokens": ("num_speculative_tokens", "draft_max"),
    "chat.system": ("system_prompt", "system_message", "sys"),
    "chat.template": ("chat_template", "chat_template_file"),
    "chat.template_kwargs": ("chat_template_kwargs",),
    "chat.thinking": ("think", "enable_thinking"),
    "chat.raw": ("no_template", "no_chat_template"),
    "structure.json_schema": ("schema", "guided_json"),
    "structure.regex": ("pattern", "guided_regex"),
    "structure.choices": ("guided_choice",),
    "serve.host": ("bind", "listen", "hostname"),
    "serve.model_name": ("served_model_name", "alias"),
    "serve.max_sequences": ("parallel", "num_parallel", "max_num_seqs"),
    "seed": ("random_seed", "rng_seed"),
}  # fmt: skip
_VALUES: dict[str, tuple[str, Any]] = {
    "load_in_4bit": ("quantization.bits", "4bit"),
    "load_in_8bit": ("quantization.bits", "8bit"),
    "4bit": ("quantization.bits", "4bit"),
    "8bit": ("quantization.bits", "8bit"),
    "int4": ("quantization.bits", "4bit"),
    "int8": ("quantization.bits", "8bit"),
    "fp16": ("load.dtype", "float16"),
    "half": ("load.dtype", "float16"),
    "bf16": ("load.dtype", "bfloat16"),
    "fp32": ("load.dtype", "float32"),
    "cpu": ("load.device_map", "cpu"),
    "gpu": ("load.device_map", "cuda"),
    "cuda": ("load.device_map", "cuda"),
    "rocm": ("load.device_map", "cuda"),
    "xpu": ("load.device_map", "xpu"),
    "greedy": ("generation.temperature", "0"),
}
_SPLIT = "layers go to the GPU as they fit; load.max_memory limits it, --device cpu avoids it"
_THREADS = "OMP_NUM_THREADS=N in the environment"
_PARALLEL = (
    "layers are divided among the GPUs as they fit (--device-map); vLLM: engine: vllm and vllm.tensor_parallel_size: N"
)
_FLASH = "--attn flash_attention_2 (auto uses it where it can run)"
_NO_SERVICE = "Ctrl-C in the window of llmctl serve; nothing runs in the background"
_FILES = "a YAML file: llmctl config init"
_EMBEDDINGS = "the package sentence-transformers; llmctl generates text"
_ADVICE = {
    "stream": "answers always stream; --json gives one document at the end, and in Python llmctl.stream yields pieces",
    "no_stream": "--json gives one document at the end",
    "max_length": "max_new_tokens limits the answer alone; tokenizer.model_max_length limits the context",
    "frequency_penalty": "repetition_penalty, a factor; requests to llmctl serve take frequency_penalty",
    "presence_penalty": "repetition_penalty, a factor; requests to llmctl serve take presence_penalty",
    "mirostat": "top_p, min_p or typical_p",
    "tfs_z": "top_p, min_p or typical_p",
    "xtc_probability": "top_p, min_p or typical_p",
    "dry_multiplier": "repetition_penalty or no_repeat_ngram_size",
    "repeat_last_n": "repetition_penalty counts the whole text",
    "n_gpu_layers": _SPLIT,
    "gpu_layers": _SPLIT,
    "num_gpu": _SPLIT,
    "ngl": _SPLIT,
    "tensor_split": _SPLIT,
    "gpu_memory_utilization": f"{_SPLIT}; with --engine vllm it is vllm.gpu_memory_utilization",
    "threads": _THREADS,
    "num_thread": _THREADS,
    "num_threads": _THREADS,
    "n_threads": _THREADS,
    "tensor_parallel_size": _PARALLEL,
    "tensor_parallel": _PARALLEL,
    "tp": _PARALLEL,
    "tp_size": _PARALLEL,
    "split_mode": _SPLIT,
    "main_gpu": "--device cuda:N",
    "flash_attn": _FLASH,
    "flash_attention": _FLASH,
    "use_flash_attention_2": _FLASH,
    "fa": _FLASH,
    "do_sample": "--temperature NUMBER samples, 0 is greedy",
    "cache_type_k": "--cache quantized",
    "cache_type_v": "--cache quantized",
    "ctk": "--cache quantized",
    "ctv": "--cache quantized",
    "np": "--set serve.max_sequences=N",
    "jinja": "the chat template is always used; --raw sends the prompt without it",
    "mmproj": "images are read by the model itself, without a second file",
    "s": "--seed N",
    "q4": "--quant 4bit",
    "q8": "--quant 8bit",
    "b": "requests are computed together as they fit; llmctl bench --batch measures it",
    "hff": "the id of a model with safetensors: --model org/name",
    "hf_file": "the id of a model with safetensors: --model org/name",
    "mlock": "nothing replaces it: weights are mapped or copied as they fit",
    "no_mmap": "nothing replaces it: weights are mapped or copied as they fit",
    "batch_size": "requests are computed together as they fit; llmctl bench --batch measures it",
    "keep_alive": "a model stays in memory as long as its command runs: llmctl serve or llmctl chat",
    "keepalive": "a model stays in memory as long as its command runs: llmctl serve or llmctl chat",
    "format": "--json-schema FILE (structure.json_schema) gives answers in JSON; --json gives a report in JSON",
    "response_format": "--json-schema FILE (structure.json_schema)",
    "interactive": "llmctl chat",
    "conversation": "llmctl chat",
    "cnv": "llmctl chat",
    "multiline_input": "llmctl chat: a block between three quotation marks has several lines",
    "hidethinking": "--hide-reasoning in chat, or --no-think",
    "n": "--num-return N",
    "num_samples": "--num-return N",
    "num_return_sequences": "--num-return N",
    "file": "--prompt-file FILE",
    "prompts": "--input FILE",
    "input_file": "--input FILE",
    "output_file": "--output FILE",
    "local_files_only": "--offline",
    "cache_dir": "HF_HOME or HF_HUB_CACHE in the environment",
    "local_dir": "HF_HOME or HF_HUB_CACHE in the environment; llmctl models path prints a model's folder",
    "force_download": "--verify, which downloads damaged files again",
    "token": "llmctl login, or HF_TOKEN in the environment: a command line is not private",
    "hf_token": "llmctl login, or HF_TOKEN in the environment: a command line is not private",
    "api_key": "--api-key-file FILE, or LLMCTL_API_KEY in the environment: a command line is not private",
    "log_level": "--verbose, --debug or --quiet",
}
COMMANDS = {
    "pull": ("download",),
    "get": ("download",),
    "ls": ("models", "list"),
    "list": ("models", "list"),
    "rm": ("models", "rm"),
    "remove": ("models", "rm"),
    "delete": ("models", "rm"),
    "show": ("models", "info"),
    "info": ("models", "info"),
    "ps": ("models", "list"),
    "scan-cache": ("models", "list"),
    "list-models": ("models", "list"),
    "cache": ("models",),
    "model": ("models",),
    "scan": ("models", "list"),
    "server": ("serve",),
    "server start": ("serve",),
    "auth login": ("login",),
    "auth logout": ("logout",),
    "auth whoami": ("whoami",),
    "auth switch": ("use-token",),
    "benchmark": ("bench",),
    "quantise": ("quantize",),
}
COMMAND_ADVICE = {
    "ask": "llmctl generate PROMPT",
    "complete": "llmctl generate PROMPT",
    "completion": "llmctl generate PROMPT",
    "infer": "llmctl generate PROMPT",
    "talk": "llmctl chat",
    "start": "llmctl serve MODEL, or llmctl chat MODEL",
    "stop": _NO_SERVICE,
    "kill": _NO_SERVICE,
    "unload": _NO_SERVICE,
    "server stop": _NO_SERVICE,
    "server status": "curl http://127.0.0.1:8000/v1/models while llmctl serve runs; nothing runs in the background",
    "status": "curl http://127.0.0.1:8000/v1/models while llmctl serve runs; nothing runs in the background",
    "logs": "llmctl serve writes its log in its own window",
    "log": "llmctl serve writes its log in its own window",
    "create": _FILES,
    "cp": _FILES,
    "import": "the safetensors original on the Hub, or its folder: llmctl run FOLDER",
    "tokenize": "llmctl prompt PROMPT --tokens",
    "tokenise": "llmctl prompt PROMPT --tokens",
    "embed": _EMBEDDINGS,
    "embeddings": _EMBEDDINGS,
    "embedding": _EMBEDDINGS,
    "delete-cache": "llmctl models rm MODEL, or llmctl models prune",
    "hf": "the same command without hf, as in: llmctl download MODEL",
    "ollama": "the same command without ollama, as in: llmctl run MODEL",
    "repo": "hf repo, of the package huggingface_hub",
    "settings": "llmctl config show",
    "set": "--set KEY=VALUE after a command, or a YAML file: llmctl config init",
    "config set": "--set KEY=VALUE after a command, or a YAML file: llmctl config init",
    "config edit": "a YAML file: llmctl config init",
    "config get": "llmctl config show",
    "config list": "llmctl config show",
    "update": "pip install --upgrade llmctl-hf, or git pull and make run in a clone",
    "upgrade": "pip install --upgrade llmctl-hf, or git pull and make run in a clone",
    "completions": "llmctl --install-completion",
    "push": "hf upload, of the package huggingface_hub",
    "upload": "hf upload, of the package huggingface_hub",
    "search": "https://huggingface.co/models",
    "convert": "llmctl quantize MODEL --output FOLDER",
    "perplexity": "llmctl score --file FILE",
    "eval": "llmctl score",
    "auth": "llmctl login, llmctl logout or llmctl whoami",
    "env": "llmctl doctor",
    "estimate": "llmctl plan MODEL",
    "init": "llmctl config init",
}
CHAT_COMMANDS = {
    "/bye": "/exit",
    "/quit": "/exit",
    "/q": "/exit",
    "/?": "/help",
    "/reset": "/clear",
    "/new": "/clear",
    "/regen": "/retry",
    "/regenerate": "/retry",
    "/info": "/show",
    "/write": "/save",
}
CHAT_SETTINGS = {  # after `/set`
    "verbose": "stats on",
    "quiet": "stats off",
    "think": "thinking on",
    "nothink": "thinking off",
}


@dataclass(frozen=True)
class Synonym:
    """The meaning of another tool's name.

    Attributes:
        key: The key of the same meaning, or an empty string.
        value: The value of that key that the name stands for, as `load_in_4bit` does; None for any value.
        advice: The replacement in words, for a name without a key of the same meaning.
    """

    key: str = ""
    value: Any = None
    advice: str = ""

    def instead(self) -> str:
        """Return what to write instead."""
        return self.advice or (self.key if self.value is None else f"{self.key}: {self.value}")


_TABLE: Mapping[str, Synonym] = (
    {name: Synonym(key) for key, names in _SAME_KEYS.items() for name in names}
    | {name: Synonym(key, value) for name, (key, value) in _VALUES.items()}
    | {name: Synonym(advice=advice) for name, advice in _ADVICE.items()}
)


def find_synonym(name: str) -> Synonym | None:
    """Return the meaning of a key (the last part counts), a flag, or a keyword of another tool."""
    return _TABLE.get(normalized(name.rpartition(".")[2]))


def normalized(name: str) -> str:
    """Return a name as the table has it: `--Top-K` is top_k."""
    return name.lstrip("-/").replace("-", "_").lower()


def names_of(key: str) -> tuple[str, ...]:
    """Return the other names of a key."""
    return _SAME_KEYS.get(key, ())


def values_of(key: str) -> dict[str, Any]:
    """Return the names that stand for one value of a key, each with that value."""
    return {name: value for name, (target, value) in _VALUES.items() if target == key}


def same_key(key: str) -> str:
    """Return the key that a dotted key with another tool's name in the right section means, else the key itself."""
    synonym = find_synonym(key)
    if synonym is None or not synonym.key or synonym.value is not None:
        return key
    return synonym.key if synonym.key.rpartition(".")[0] == key.rpartition(".")[0] else key


def renamed(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a section with other tools' names replaced by those of llmctl."""
    return {same_key(f"{section}.{name}").rpartition(".")[2]: value for name, value in values.items()}
