"""The configurations under test, and what is known about each before it runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmctl.bench.task import Cell, Task
from llmctl.config import Config
from llmctl.errors import LlmctlError
from llmctl.loading.prepare import Prepared
from llmctl.machine.cpu_rates import CpuRates
from llmctl.machine.detection import Machine
from llmctl.plan import PlanRequest, make_plan
from llmctl.plan.speed import Speed, estimate_speed


@dataclass(frozen=True)
class Contender:
    """A configuration under test.

    Attributes:
        name: Name in the report.
        prepared: Resolved model, planned for the largest cell; None if this failed.
        failure: The error if `prepared` is None.
    """

    name: str
    config: Config
    prepared: Prepared | None = field(default=None, repr=False)
    failure: LlmctlError | None = None

    @property
    def source(self) -> str:
        """The model as the user named it."""
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

    None if parts of the model are on devices of different types, whose connection then limits the speed.
    """
    devices = prepared.plan.devices
    return devices[0] if len({device.partition(":")[0] for device in devices}) == 1 else None


def dtype_of(prepared: Prepared) -> str:
    """Return the dtype of the computation."""
    return str(prepared.plan.model_kwargs["dtype"])


def proposes(prepared: Prepared) -> bool:
    """Return True if one forward pass can generate several tokens, so that bytes per token are meaningless."""
    return prepared.draft is not None or "prompt_lookup_num_tokens" in prepared.plan.generation_kwargs


def estimates(prepared: Prepared, machine: Machine, task: Task, *, cpu_rates: CpuRates | None) -> Mapping[Cell, Speed]:
    """Return the plan's estimates for the cells with one sequence, where there is an estimate."""
    speeds: dict[Cell, Speed] = {}
    for cell in task.cells:
        if cell.batch == 1 and not proposes(prepared):
            context = cell.prompt_tokens + task.new_tokens
            plan = make_plan(PlanRequest(prepared.config, machine, prepared.info, context=context))
            speed = estimate_speed(plan, machine, prepared.info, cpu_rates=cpu_rates, prompt_tokens=cell.prompt_tokens)
            if speed is not None:
                speeds[cell] = speed
    return speeds
