"""A model that is found, read and planned: everything known before torch is imported."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmctl.config import Config, Settings
from llmctl.loading.quantized_cache import plan_cache
from llmctl.machine.detection import Machine, read_machine
from llmctl.model.adapters import AdapterInfo
from llmctl.model.info import ModelInfo, read_model_info
from llmctl.model.resolve import Located, draft_settings, locate, locate_adapters
from llmctl.plan import Plan, make_plan

if TYPE_CHECKING:
    from llmctl.hub.download.progress import Progress


@dataclass(frozen=True)
class Prepared:
    """The inputs of loading: the files, what they describe, the machine, and the decisions.

    Attributes:
        located: The folder of the model, and why this model was chosen.
        info: The configuration and the headers of the weights.
        machine: This computer.
        plan: The decisions.
        config: The user's configuration.
        draft: The same for the draft model, or None.
        adapters: Adapters to put on the model.
    """

    located: Located
    info: ModelInfo = field(repr=False)
    machine: Machine
    plan: Plan
    config: Config
    draft: "Prepared | None" = None
    adapters: tuple[AdapterInfo, ...] = ()


def prepare(
    settings: Settings,
    *,
    machine: Machine | None = None,
    offline: bool = False,
    progress: "Progress | None" = None,
    context: int | None = None,
    batch: int = 1,
) -> Prepared:
    """Find the model, download it if needed, read its headers, and plan. Imports no torch and reads no weights.

    Args:
        machine: The computer to plan for; by default this one.
        offline: Never use the network.
        progress: Receives the progress of a download.
        context: Tokens to reserve memory for; see `make_plan`.
        batch: Concurrent sequences to reserve memory for.

    Raises:
        LlmctlError: see `locate`, `read_model_info` and `make_plan`.
    """
    located = locate(settings, offline=offline, progress=progress)
    info = read_model_info(located.folder, source=located.source, commit=located.commit)
    machine, config = machine or read_machine(), settings.config
    adapters = locate_adapters(config, offline=offline, progress=progress)
    if config.draft.id is None:
        plan = make_plan(config, machine, info, context=context, batch=batch, adapters=adapters)
        plan = plan_cache(plan, config, info, machine)
        return Prepared(located, info, machine, plan, config, adapters=adapters)
    assisting = draft_settings(settings)
    beside = locate(assisting, offline=offline, progress=progress)
    draft_info = read_model_info(beside.folder, source=beside.source, commit=beside.commit)
    plan = make_plan(config, machine, info, context=context, batch=batch, draft=draft_info, adapters=adapters)
    plan = plan_cache(plan, config, info, machine)
    assert plan.draft is not None  # noqa: S101 (it was given one)
    draft_plan = plan_cache(plan.draft, assisting.config, draft_info, machine)
    draft = Prepared(beside, draft_info, machine, draft_plan, assisting.config)
    return Prepared(located, info, machine, plan, config, draft, adapters)
