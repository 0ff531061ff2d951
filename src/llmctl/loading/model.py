"""A model without its weights, for making prompts, and a model in memory."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llmctl.loading.measure import Measured
from llmctl.loading.prepare import Prepared
from llmctl.model.tokenizer import end_tokens, load_tokenizer, render_turn
from llmctl.model.tokenizer_file import TokenizerChoice
from llmctl.model.vocabulary import check_vocabulary
from llmctl.plan import Decision

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmctl.config import Config
    from llmctl.machine.detection import Machine
    from llmctl.model.adapters import AdapterInfo
    from llmctl.model.info import ModelInfo
    from llmctl.model.resolve import ResolvedModel
    from llmctl.plan import Plan


@dataclass(frozen=True)
class PromptModel:
    """A model without its weights: everything that prompts, requests and overrides need.

    Attributes:
        prepared: The files, the machine, the configuration and the plan.
        tokenizer: The tokenizer, with left padding and a pad token.
        eos_token_ids: Every token that ends an answer.
    """

    prepared: Prepared
    tokenizer: "PreTrainedTokenizerBase" = field(repr=False)
    eos_token_ids: tuple[int, ...]

    @property
    def plan(self) -> "Plan":
        """The decisions."""
        return self.prepared.plan

    @property
    def config(self) -> "Config":
        """The user's configuration."""
        return self.prepared.config

    @property
    def info(self) -> "ModelInfo":
        """The configuration of the model and the headers of its weights."""
        return self.prepared.info

    @property
    def resolved(self) -> "ResolvedModel":
        """The folder of the model."""
        return self.prepared.resolved

    @property
    def machine(self) -> "Machine":
        """The computer that the plan was made for."""
        return self.prepared.machine

    @property
    def adapters(self) -> "tuple[AdapterInfo, ...]":
        """The adapters on the model, or merged into it."""
        return self.prepared.adapters

    @property
    def context_length(self) -> int | None:
        """The maximum tokens of prompt and answer together, or None if the model does not state it."""
        return self.config.tokenizer.model_max_length or self.info.context_length

    def generation_arguments(self) -> dict[str, Any]:
        """Return the arguments of `GenerationConfig`, the ids of special tokens included."""
        return {**self.plan.generation_kwargs, **self.special_token_arguments()}

    def special_token_arguments(self) -> dict[str, Any]:
        """Return the arguments of `GenerationConfig` that are ids of special tokens."""
        arguments: dict[str, Any] = {
            "eos_token_id": list(self.eos_token_ids),
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        if self.tokenizer.bos_token_id is not None:
            arguments["bos_token_id"] = self.tokenizer.bos_token_id
        return arguments


@dataclass(frozen=True)
class LoadedModel(PromptModel):
    """A model in memory.

    Attributes:
        model: The transformers model, in eval mode.
        measured: Facts measured after loading.
        draft: The draft model, loaded the same way, or None.
    """

    model: "PreTrainedModel" = field(repr=False)
    measured: Measured
    draft: "LoadedModel | None" = None


def load_prompt_model(prepared: Prepared) -> PromptModel:
    """Load the tokenizer of a prepared model, and no weights.

    Raises:
        ModelError: the files of the tokenizer cannot be read, or belong to another model.
        UserError: a token of `generation.extra_eos_tokens` does not exist, or the configuration asks for something
            that this tokenizer lacks.
    """
    plan, config, info = prepared.plan, prepared.config, prepared.info
    choices: list[TokenizerChoice] = []
    tokenizer = load_tokenizer(
        prepared.resolved.folder,
        plan.tokenizer_kwargs,
        source=plan.source,
        section=config.tokenizer,
        info=info,
        report=choices.append,
    )
    turn = None if config.chat.raw or config.chat.template is not None else render_turn(tokenizer)
    check_vocabulary(tokenizer, info.embedding_rows, source=plan.source, turn=turn)
    ends = end_tokens(tokenizer, info.generation.eos_token_ids, config.generation.extra_eos_tokens)
    plan = plan.with_decisions([Decision(*choice) for choice in choices])
    return PromptModel(replace(prepared, plan=plan), tokenizer, tuple(ends))
