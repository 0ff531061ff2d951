"""The inputs of a plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llmctl.config import Config
from llmctl.machine.detection import Machine
from llmctl.model.adapters import AdapterInfo
from llmctl.model.draft import draft_config
from llmctl.model.info import ModelInfo
from llmctl.plan.images import ImageRequest

Changes = Mapping[str, Mapping[str, Any]]

# Tokens reserved for a prompt of unknown length.
PROMPT_ALLOWANCE = 2048


@dataclass(frozen=True)
class PlanRequest:
    """Everything that a plan depends on.

    Attributes:
        config: The user's configuration.
        machine: The computer to run on.
        info: The model.
        context: Tokens of prompt and answer to reserve memory for; None means a prompt of `PROMPT_ALLOWANCE` tokens and
            the answer.
        batch: Concurrent sequences to reserve memory for.
        draft: The model that `config.draft` names, or None.
        adapters: The adapters that `config.model.adapters` names.
        origins: The origins of the user's values by dotted key, to be shown with them.
        proposes_quantization: True if a comparison set the quantisation, not the user.
        images: Images to reserve memory for; their tokens are part of `context`.
    """

    config: Config
    machine: Machine
    info: ModelInfo
    context: int | None = None
    batch: int = 1
    draft: ModelInfo | None = None
    adapters: Sequence[AdapterInfo] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
    proposes_quantization: bool = False
    images: ImageRequest | None = None

    @property
    def context_tokens(self) -> int:
        """Tokens to reserve memory for, at most the model's context length."""
        wanted = self.context or self.config.generation.max_new_tokens + PROMPT_ALLOWANCE
        return min(wanted, self.info.context_length or wanted)

    def with_changes(self, changes: Changes) -> "PlanRequest":
        """Return the request with keys of the configuration replaced, by section."""
        values = self.config.model_dump(exclude_unset=True)
        for section, part in changes.items():
            values[section] = {**values.get(section, {}), **part}
        return replace(self, config=Config.model_validate(values))

    def for_draft(self, draft: ModelInfo) -> "PlanRequest":
        """Return the request for the draft model: alone on the machine, one sequence, no adapters."""
        config = draft_config(self.config)
        return replace(self, config=config, info=draft, batch=1, draft=None, adapters=(), origins={}, images=None)
