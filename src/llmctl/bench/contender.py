"""The configurations under test, and the facts known of each before it runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmctl.bench.task import Cell, Task
from llmctl.config import Config
from llmctl.errors import LlmctlError
from llmctl.loading.prepare import Prepared
from llmctl.machine.detection import Machine
from llmctl.plan import PlanRequest, make_plan
from llmctl.plan.speed import Speed, estimate_speed


@dataclass(frozen=True)
class Contender:
    """A configuration under test.

    Attributes:
        name: Name in the report.
        prepared: Resolved and planned model, with room for the largest cell; None where that failed.
        failure: Reason for the failure.
    """

    name: str
    config: Config
    prepared: Prepared | None = field(default=None, repr=False)
    failure: LlmctlError | None = None

    @property
    def source(self) -> str:
        """Return the user's name for the model."""
        return self.prepared.resolved.source if self.prepared else self.config.model.id or "the default model"


def pinned(prepared: Prepared) -> Config:
    """Return the configuration with resolved commits, so that every run loads the same files without the network."""
    values = prepared.config.model_dump(mode="json", exclude_unset=True)
    for section, part in (("model", prepared), ("draft", prepared.draft)):
        if part is not None and part.resolved.commit is not None:
            values[section] = {
                **values.get(section, {}),
                "id": part.resolved.source,
                "revision": part.resolved.commit,
            }
    return Config.model_validate(values)


def bounding_device(prepared: Prepared) -> str | None:
    """Return the device whose limits apply: the only one, or the first of several GPUs, which take turns.

    None where part of the model is elsewhere: then the bus between limits it.
    """
    devices = prepared.plan.devices
    return devices[0] if len({device.partition(":")[0] for device in devices}) == 1 else None


def dtype_of(prepared: Prepared) -> str:
    """Return the dtype that it computes in."""
    return str(prepared.plan.model_kwargs["dtype"])


def proposes(prepared: Prepared) -> bool:
    """Return whether one pass can give several tokens, so that bytes per token mean nothing."""
    return prepared.draft is not None or "prompt_lookup_num_tokens" in prepared.plan.generation_kwargs


def estimates(prepared: Prepared, machine: Machine, task: Task, *, ram_bandwidth: float | None) -> Mapping[Cell, Speed]:
    """Return the plan's estimate for every cell of one sequence that it has one for."""
    speeds: dict[Cell, Speed] = {}
    for cell in task.cells:
        if cell.batch == 1 and not proposes(prepared):
            context = cell.prompt_tokens + task.new_tokens
            plan = make_plan(PlanRequest(prepared.config, machine, prepared.info, context=context))
            speed = estimate_speed(plan, machine, prepared.info, ram_bandwidth=ram_bandwidth)
            if speed is not None:
                speeds[cell] = speed
    return speeds
