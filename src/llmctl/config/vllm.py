"""The section `vllm`: what only vLLM has, for `--engine vllm`."""

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from llmctl.config.section import Section

ArgumentValue = bool | int | float | str | list[Any] | dict[str, Any]
_NAME = re.compile(r"^[a-z][a-z0-9]*([_-][a-z0-9]+)*$")
# Arguments of vLLM that other keys stand for, by the key.
_SAID_ELSEWHERE = {
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
_SHORT = {"tp": "tensor_parallel_size", "pp": "pipeline_parallel_size", "q": "quantization"}
# Arguments that would open what llmctl keeps shut, with what they do.
_SHUT = {
    "api_key": "a key on a command line can be read by everybody on the machine: it goes in the environment",
    "hf_token": "a token on a command line can be read by everybody on the machine: llmctl login stores it",
    "load_format": "only safetensors are loaded: pickled weights can run code",
    "trust_request_chat_template": "a template from a request could take time and memory without end",
    "allowed_local_media_path": "requests could read files of this machine",
    "tool_server": "it runs tools on this machine for whoever may ask",
    "middleware": "it imports Python by name",
    "tool_parser_plugin": "it imports a Python file",
    "reasoning_parser_plugin": "it imports a Python file",
    "logits_processors": "it imports Python by name",
    "worker_cls": "it imports Python by name",
    "worker_extension_cls": "it imports Python by name",
    "config": "the configuration is this one",
    "uds": "llmctl waits for the server on an address",
    "grpc": "llmctl waits for the HTTP server",
    "headless": "llmctl waits for the HTTP server",
    "ssl_keyfile": "llmctl waits for the server without TLS: put a proxy in front of it",
    "ssl_certfile": "llmctl waits for the server without TLS: put a proxy in front of it",
    "root_path": "llmctl waits for the server at /",
}


class VllmSection(Section):
    """What only vLLM has: used with `--engine vllm`."""

    python: str | None = Field(
        None,
        min_length=1,
        description="The Python of the environment that has vLLM. Default: the one that runs llmctl.",
    )
    tensor_parallel_size: int = Field(
        1, ge=1, le=1024, description="Over how many GPUs each layer is spread; on one machine, as a rule."
    )
    pipeline_parallel_size: int = Field(
        1, ge=1, le=1024, description="In how many stages of layers the model is cut, for GPUs of several machines."
    )
    distributed_executor_backend: Literal["mp", "ray"] | None = Field(
        None,
        description="What starts the workers: mp on this machine, ray on the machines of a Ray cluster. "
        "Default: vLLM's, mp where there is more than one GPU.",
    )
    gpu_memory_utilization: float | None = Field(
        None, gt=0, le=1, description="The share of each GPU's memory that vLLM takes. Default: vLLM's, 0.92."
    )
    max_model_len: int | None = Field(
        None, ge=1, description="Most tokens of prompt and answer. Default: tokenizer.model_max_length, or the model's."
    )
    startup_seconds: float = Field(
        1800, gt=0, le=86400, description="How long it may take until vLLM answers; then it is ended."
    )
    extra: dict[str, ArgumentValue] = Field(
        {},
        description="Other arguments of vllm serve by their names: {enforce_eager: true, swap_space: 8}.",
    )

    @field_validator("extra")
    @classmethod
    def _free_arguments(cls, value: dict[str, ArgumentValue]) -> dict[str, ArgumentValue]:
        seen: dict[str, str] = {}
        for name in value:
            if not _NAME.match(name):
                raise ValueError(f"{name!r} is no name of an argument: write it in full, without dashes in front")
            plain = name.replace("-", "_").removeprefix("no_")
            plain = _SHORT.get(plain, plain)
            # argparse takes the beginning of a name for the name
            if said := next((known for known in _SAID_ELSEWHERE if known.startswith(plain)), None):
                raise ValueError(f"{name} is said by {_SAID_ELSEWHERE[said]}")
            if shut := next((known for known in _SHUT if known.startswith(plain)), None):
                raise ValueError(f"{name} cannot be given: {_SHUT[shut]}")
            if plain in seen:
                raise ValueError(f"{name} and {seen[plain]} are the same argument")
            seen[plain] = name
        return value
