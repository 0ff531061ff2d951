"""The preparation of a load: find a model, read its headers, plan. All of it happens before torch is imported."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from llmctl.config import Config, Settings
from llmctl.loading.quantized_cache import plan_cache
from llmctl.machine.detection import Machine, read_machine
from llmctl.model.adapters import AdapterInfo
from llmctl.model.draft import draft_settings
from llmctl.model.info import ModelInfo, check_generates_text, read_model_info
from llmctl.model.resolve import ResolvedModel, resolve_adapters, resolve_model
from llmctl.plan import Plan, PlanRequest, make_plan
from llmctl.plan.images import ImageRequest

if TYPE_CHECKING:
    from llmctl.hub.download.progress import Progress


@dataclass(frozen=True)
class Prepared:
    """The inputs of loading: the files, what they describe, the machine, and the decisions.

    Attributes:
        resolved: Folder of the model, and why this model was chosen.
        info: Configuration of the model and headers of its weights.
        machine: This computer.
        plan: Decisions.
        config: The user's configuration.
        draft: Inputs for the draft model, or None.
        adapters: Adapters to put on the model.
    """

    resolved: ResolvedModel
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
    images: ImageRequest | None = None,
) -> Prepared:
    """Find the model, download it if needed, read its headers, and plan. Reads no weights and does not import torch.

    Args:
        machine: The computer to plan for; by default this one.
        offline: Never use the network.
        progress: Receives the progress of a download.
        context: Tokens to reserve memory for; see `PlanRequest`.
        batch: Concurrent sequences to reserve memory for.
        images: Images to reserve memory for.

    Raises:
        LlmctlError: see `resolve_model`, `read_model_info` and `make_plan`.
    """
    config = settings.config
    resolved, info = _resolve(settings, offline=offline, progress=progress)
    machine = machine or read_machine()
    adapters = resolve_adapters(config, offline=offline, progress=progress)
    request = PlanRequest(
        config,
        machine,
        info,
        context=context,
        batch=batch,
        adapters=adapters,
        origins=settings.origins,
        images=images,
    )
    if config.draft.id is None:
        plan = plan_cache(make_plan(request), config, info, machine)
        return Prepared(resolved, info, machine, plan, config, adapters=adapters)
    settings_of_draft = draft_settings(settings)
    draft_resolved, draft_info = _resolve(settings_of_draft, offline=offline, progress=progress)
    plan = plan_cache(make_plan(replace(request, draft=draft_info)), config, info, machine)
    assert plan.draft is not None  # noqa: S101 (the request has a draft)
    draft_plan = plan_cache(plan.draft, settings_of_draft.config, draft_info, machine)
    draft = Prepared(draft_resolved, draft_info, machine, draft_plan, settings_of_draft.config)
    return Prepared(resolved, info, machine, plan, config, draft, adapters)


def _resolve(settings: Settings, *, offline: bool, progress: "Progress | None") -> tuple[ResolvedModel, ModelInfo]:
    resolved = resolve_model(settings, offline=offline, progress=progress)
    info = read_model_info(resolved.folder, source=resolved.source, commit=resolved.commit)
    check_generates_text(info)
    return resolved, info
