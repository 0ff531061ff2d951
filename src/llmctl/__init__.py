"""Set up and run large language models locally with Hugging Face transformers.

    import llmctl

    model = llmctl.load("HuggingFaceTB/SmolLM2-135M-Instruct", quantization="4bit")
    for chunk in model.stream("What is the capital of France?"):
        print(chunk.text, end="", flush=True)

Importing this package imports neither torch nor transformers: names are resolved when they are used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llmctl._version import __version__

if TYPE_CHECKING:
    from llmctl.api import Model, generate, generate_batch, generate_object, load, rank, score, stream
    from llmctl.config import Config, Settings
    from llmctl.errors import ConfigError, LlmctlError, MachineError, ModelError, RemoteError, UserError
    from llmctl.generation.batch.answers import RowAnswer
    from llmctl.generation.chat.conversation import ChatSession
    from llmctl.generation.completion import Chunk, Completion
    from llmctl.generation.logprobs import Alternative, TokenLogprob
    from llmctl.generation.scoring import RankedChoice, Score
    from llmctl.loading.model import LoadedModel
    from llmctl.machine.detection import Machine, read_machine
    from llmctl.model.info import ModelInfo, read_model_info
    from llmctl.plan import Plan, PlanRequest, make_plan

_MODULE_OF = {
    "Model": "llmctl.api",
    "load": "llmctl.api",
    "stream": "llmctl.api",
    "generate": "llmctl.api",
    "generate_object": "llmctl.api",
    "score": "llmctl.api",
    "rank": "llmctl.api",
    "generate_batch": "llmctl.api",
    "Config": "llmctl.config",
    "Settings": "llmctl.config",
    "LlmctlError": "llmctl.errors",
    "UserError": "llmctl.errors",
    "ConfigError": "llmctl.errors",
    "ModelError": "llmctl.errors",
    "MachineError": "llmctl.errors",
    "RemoteError": "llmctl.errors",
    "RowAnswer": "llmctl.generation.batch.answers",
    "ChatSession": "llmctl.generation.chat.conversation",
    "Chunk": "llmctl.generation.completion",
    "Completion": "llmctl.generation.completion",
    "Alternative": "llmctl.generation.logprobs",
    "TokenLogprob": "llmctl.generation.logprobs",
    "RankedChoice": "llmctl.generation.scoring",
    "Score": "llmctl.generation.scoring",
    "LoadedModel": "llmctl.loading.model",
    "Machine": "llmctl.machine.detection",
    "read_machine": "llmctl.machine.detection",
    "ModelInfo": "llmctl.model.info",
    "read_model_info": "llmctl.model.info",
    "Plan": "llmctl.plan",
    "PlanRequest": "llmctl.plan",
    "make_plan": "llmctl.plan",
}

__all__ = [
    "Alternative",
    "ChatSession",
    "Chunk",
    "Completion",
    "Config",
    "ConfigError",
    "LlmctlError",
    "LoadedModel",
    "Machine",
    "MachineError",
    "Model",
    "ModelError",
    "ModelInfo",
    "Plan",
    "PlanRequest",
    "RankedChoice",
    "RemoteError",
    "RowAnswer",
    "Score",
    "Settings",
    "TokenLogprob",
    "UserError",
    "__version__",
    "generate",
    "generate_batch",
    "generate_object",
    "load",
    "make_plan",
    "rank",
    "read_machine",
    "read_model_info",
    "score",
    "stream",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'llmctl' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
