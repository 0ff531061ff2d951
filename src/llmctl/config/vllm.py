"""The section `vllm`: options that only vLLM has, for `--engine vllm`."""

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from llmctl.config.fields import Section

ArgumentValue = bool | int | float | str | list[Any] | dict[str, Any]
_NAME = re.compile(r"^[a-z][a-z0-9]*([_-][a-z0-9]+)*$")
# Arguments of vLLM that other keys set.
_SET_BY = {
    "model": "model.id",
    "revision": "model.revision",
    "tokenizer_revision": "model.revision",
    "code_revision": "model.revision",
    "trust_remote_code": "model.trust_remote_code",
    "lora_modules": "model.adapters",
    "dtype": "load.dtype",
    "seed": "seed",
    "override_generation_config": "generation",
    "generation_config": "generation",
    "speculative_config": "draft.id",
    "chat_template": "chat.template",
    "default_chat_template_kwargs": "chat.template_kwargs",
    "host": "serve.host",
    "port": "serve.port",
    "served_model_name": "serve.model_name",
    "allowed_origins": "serve.allowed_origins",
    "max_num_seqs": "serve.max_sequences",
    "shutdown_timeout": "serve.drain_seconds",
    "tensor_parallel_size": "vllm.tensor_parallel_size",
    "pipeline_parallel_size": "vllm.pipeline_parallel_size",
    "distributed_executor_backend": "vllm.distributed_executor_backend",
    "gpu_memory_utilization": "vllm.gpu_memory_utilization",
    "device_memory_utilization": "vllm.gpu_memory_utilization",
    "max_model_len": "vllm.max_model_len",
}
_ALIASES = {"tp": "tensor_parallel_size", "pp": "pipeline_parallel_size", "q": "quantization"}
# Arguments that are refused because they weaken security or interfere with llmctl, with the reason.
_REFUSED = {
    "api_key": "everybody on the machine can read a key on a command line: set it in the environment",
    "hf_token": "everybody on the machine can read a token on a command line: llmctl login stores it",
    "load_format": "only safetensors are loaded: pickled weights can run code",
    "trust_request_chat_template": "a template from a request could use unlimited time and memory",
    "allowed_local_media_path": "requests could read files of this machine",
    "tool_server": "it runs tools on this machine for every client",
    "middleware": "it imports Python by name",
    "tool_parser_plugin": "it imports a Python file",
    "reasoning_parser_plugin": "it imports a Python file",
    "logits_processors": "it imports Python by name",
    "worker_cls": "it imports Python by name",
    "worker_extension_cls": "it imports Python by name",
    "config": "the configuration is llmctl's",
    "uds": "llmctl needs the server on an address",
    "grpc": "llmctl needs the HTTP server",
    "headless": "llmctl needs the HTTP server",
    "ssl_keyfile": "llmctl needs the server without TLS: put a proxy in front of it",
    "ssl_certfile": "llmctl needs the server without TLS: put a proxy in front of it",
    "root_path": "llmctl needs the server at /",
}


class VllmSection(Section):
    """Options that only vLLM has, for `--engine vllm`."""

    python: str | None = Field(
        None,
        min_length=1,
        description="Python of the environment that has vLLM. Default: the Python of llmctl.",
    )
    tensor_parallel_size: int = Field(
        1, ge=1, le=1024, description="Number of GPUs that share each layer, usually on one machine."
    )
    pipeline_parallel_size: int = Field(
        1, ge=1, le=1024, description="Number of pipeline stages, for GPUs of several machines."
    )
    distributed_executor_backend: Literal["mp", "ray"] | None = Field(
        None,
        description="Executor of the workers: mp on this machine, ray on a Ray cluster. Default: vLLM's choice, which "
        "is mp for more than one GPU.",
    )
    gpu_memory_utilization: float | None = Field(
        None, gt=0, le=1, description="Fraction of each GPU's memory that vLLM uses. Default: 0.92, as in vLLM."
    )
    max_model_len: int | None = Field(
        None,
        ge=1,
        description="Maximum tokens of prompt and answer. Default: tokenizer.model_max_length, or the context.",
    )
    startup_seconds: float = Field(
        1800, gt=0, le=86400, description="Maximum seconds until vLLM answers; after that it is stopped."
    )
    extra: dict[str, ArgumentValue] = Field(
        {},
        description="Other arguments of vllm serve by name: {enforce_eager: true, swap_space: 8}.",
    )

    @field_validator("extra")
    @classmethod
    def _check_extra(cls, value: dict[str, ArgumentValue]) -> dict[str, ArgumentValue]:
        spellings: dict[str, str] = {}
        for name in value:
            if not _NAME.match(name):
                raise ValueError(f"{name!r} is not an argument name: write it in full, without leading dashes")
            plain = name.replace("-", "_").removeprefix("no_")
            plain = _ALIASES.get(plain, plain)
            # argparse accepts any unambiguous prefix of a name
            if known := next((known for known in _SET_BY if known.startswith(plain)), None):
                raise ValueError(f"{name} is set by {_SET_BY[known]}")
            if refused := next((known for known in _REFUSED if known.startswith(plain)), None):
                raise ValueError(f"{name} is refused: {_REFUSED[refused]}")
            if plain in spellings:
                raise ValueError(f"{name} and {spellings[plain]} are the same argument")
            spellings[plain] = name
        return value
