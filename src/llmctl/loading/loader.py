"""Loading: from a configuration to a model in memory.

`load` finds the files, reads their headers, plans, then does exactly what the plan says and checks the outcome.
"""

import os
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from llmctl.config import Config, Settings
from llmctl.cpu.program import compile_model, compiled
from llmctl.loading.adapters import apply_adapters
from llmctl.loading.checks import check_architecture
from llmctl.loading.image_encoder import image_encoder
from llmctl.loading.lean_imports import lean_imports
from llmctl.loading.measure import measure
from llmctl.loading.model import LoadedModel, PromptModel, load_prompt_model
from llmctl.loading.prepare import Prepared, prepare
from llmctl.loading.time_steps import bound_time_steps
from llmctl.loading.weights import load_weights
from llmctl.machine.detection import Machine
from llmctl.model.tokenizer import check_draft
from llmctl.plan import Plan
from llmctl.plan.make import ALLOCATOR_VARIABLES
from llmctl.quant import registry
from llmctl.rope import complete_beginning_again
from llmctl.transformers_compat import quiet_libraries, without_peft

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llmctl.hub.download.progress import Progress


def load(
    config: Config | Settings,
    *,
    machine: Machine | None = None,
    offline: bool = False,
    progress: "Progress | None" = None,
) -> LoadedModel:
    """Load the model that a configuration asks for, in eval mode, with its tokenizer.

    Args:
        config: A `Config`, or `Settings` with the origin of each value.
        machine: The computer to plan for; by default this one.
        offline: Never use the network.
        progress: Receives the progress of a download.

    Raises:
        UserError: the configuration or the model cannot be used as requested.
        MachineError: this machine lacks memory, a package or a GPU.
        RemoteError: the model has to be downloaded and cannot be.
    """
    settings = config if isinstance(config, Settings) else Settings(config)
    return load_prepared(prepare(settings, machine=machine, offline=offline, progress=progress))


def load_prepared(prepared: Prepared) -> LoadedModel:
    """Load a prepared model as its plan says. Errors are those of `load`."""
    started = time.perf_counter()
    apply_environment(prepared.plan)
    with _imports(prepared.plan), quiet_libraries(), without_peft():
        prepared = check_architecture(prepared)
        _set_seed(prepared.plan)
        prompt_model = load_prompt_model(prepared)
        prepared, model = load_weights(prompt_model.prepared)
    if prepared.adapters:
        with quiet_libraries():
            model = apply_adapters(model, prepared.adapters, merge=prepared.config.model.merge_adapters)
    if prepared.plan.kernels == "llmctl":
        compile_model(model)
    if compiled(model) is None:  # programs bound every step
        bound_time_steps(model)
    complete_beginning_again(model)
    _set_special_tokens(model, prompt_model)
    loaded = LoadedModel(
        prepared,
        prompt_model.tokenizer,
        prompt_model.eos_token_ids,
        model=model,
        measured=measure(model, load_seconds=time.perf_counter() - started, parameters=_stored_parameters(prepared)),
    )
    if prepared.plan.loads_towers:
        image_encoder(loaded).towers()
    return loaded if prepared.draft is None else _with_draft(loaded, prepared.draft)


def _with_draft(loaded: LoadedModel, prepared: Prepared) -> LoadedModel:
    """Load the draft model through the same checks.

    Raises:
        UserError: its token ids have other meanings, or it cannot propose tokens.
    """
    draft, options = load_prepared(prepared), loaded.config.draft
    check_draft(loaded.tokenizer, draft.tokenizer, model=loaded.model, draft=draft.model, source=draft.plan.source)
    for name in ("num_assistant_tokens", "assistant_confidence_threshold"):
        value = getattr(options, name)
        setattr(draft.model.generation_config, name, draft.info.generation.values.get(name) if value is None else value)
    return replace(loaded, draft=draft, prepared=replace(loaded.prepared, draft=draft.prepared))


def _stored_parameters(prepared: Prepared) -> int | None:
    """Return the number of weights that a checkpoint keeps packed in memory; None for any other model."""
    stored = prepared.plan.stored_quantization
    if stored is None or stored.backend in registry.BACKENDS or stored.backend.is_unpacked(stored):
        return None
    return prepared.info.parameters


def _imports(plan: Plan) -> AbstractContextManager[None]:
    """Return the context to import transformers in: lean, unless the format of the weights needs all of torch."""
    stored = plan.stored_quantization
    return nullcontext() if stored is not None and stored.backend.imports_compiler else lean_imports()


def apply_environment(plan: Plan) -> None:
    """Set the variables that the libraries read when they are imported; the user's own values stay."""
    has_allocator = any(name in os.environ for name in ALLOCATOR_VARIABLES)
    for name, value in plan.environment.items():
        if not (has_allocator and name in ALLOCATOR_VARIABLES):
            os.environ.setdefault(name, value)


def _set_special_tokens(model: "PreTrainedModel", prompt_model: PromptModel) -> None:
    """Give the model a generation config with nothing but special tokens, since every request has its own settings."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(**prompt_model.special_token_arguments())


def _set_seed(plan: Plan) -> None:
    from transformers import enable_full_determinism, set_seed

    if plan.deterministic:
        # warn_only: cumsum, which top-p sampling uses, has no deterministic kernel on CUDA
        enable_full_determinism(plan.seed or 0, warn_only=True)
    if plan.seed is not None:
        set_seed(plan.seed)
