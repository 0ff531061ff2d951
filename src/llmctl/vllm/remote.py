"""A model that vLLM runs. llmctl needs only its tokenizer and settings, not its weights."""

from typing import TYPE_CHECKING, Any

from llmctl.config import Config, Settings
from llmctl.loading.lean_imports import lean_imports
from llmctl.loading.model import PromptModel, load_prompt_model
from llmctl.loading.prepare import Prepared
from llmctl.machine.detection import read_machine
from llmctl.model.info import read_model_info
from llmctl.model.resolve import resolve_adapters, resolve_model
from llmctl.plan import Plan
from llmctl.plan.generation import decide_generation
from llmctl.plan.memory import Memory
from llmctl.transformers_compat import quiet_libraries, without_peft

if TYPE_CHECKING:
    from llmctl.hub.download.progress import Progress

_NO_MEMORY = Memory(weights={}, kv_cache_bytes=0, activation_bytes=0, context=0)


def prepare_remote(settings: Settings, *, offline: bool = False, progress: "Progress | None" = None) -> Prepared:
    """Prepare a model that vLLM runs. The memory of this machine is not checked.

    Raises:
        LlmctlError: the model cannot be found, or its files cannot be read.
    """
    config = _with_context(settings.config)
    resolved = resolve_model(settings, offline=offline, progress=progress)
    info = read_model_info(resolved.folder, source=resolved.source, commit=resolved.commit)
    trusted = config.model.trust_remote_code and info.has_remote_code
    tokenizer_kwargs: dict[str, Any] = {"padding_side": "left", "trust_remote_code": trusted}
    generation = decide_generation(config, info, origins=settings.origins)
    plan = Plan(
        source=resolved.source,
        folder=resolved.folder,
        commit=resolved.commit,
        tokenizer_kwargs=tokenizer_kwargs,
        model_kwargs={"trust_remote_code": trusted},
        generation_kwargs=generation.arguments,
        generation=generation,
        devices=(),
        memory=_NO_MEMORY,
        decisions=(),
        seed=config.seed,
        deterministic=config.deterministic,
    )
    adapters = resolve_adapters(config, offline=offline, progress=progress)
    return Prepared(resolved, info, read_machine(), plan, config, adapters=adapters)


def _with_context(config: Config) -> Config:
    """Return the configuration with `vllm.max_model_len` as the tokenizer's limit for prompts and answers."""
    limit = config.vllm.max_model_len
    if limit is None:
        return config
    tokenizer = config.tokenizer.model_copy(update={"model_max_length": limit})
    return config.model_copy(update={"tokenizer": tokenizer})


def load_remote(prepared: Prepared) -> PromptModel:
    """Load the tokenizer of a model that vLLM runs.

    Raises:
        ModelError: the tokenizer cannot be read.
        UserError: an extra end token does not exist.
    """
    with lean_imports(), quiet_libraries(), without_peft():
        return load_prompt_model(prepared)
