"""The decision which kernels compute on a CPU: llmctl's own, or torch's. Pure."""

from typing import Literal

from llmctl.config import Config
from llmctl.machine.detection import Machine
from llmctl.plan.decision import Decision


def decide_kernels(
    config: Config, machine: Machine, *, devices: tuple[str, ...]
) -> tuple[Literal["llmctl", "torch"], list[Decision]]:
    """Choose the kernels that multiply unquantised weights on a CPU and compute its attention."""
    key, obstacle = "linear_kernels", kernels_obstacle(config, machine, devices=devices)
    if devices != ("cpu",) or machine.kernels is None:
        return "torch", []
    if obstacle is not None:
        return "torch", [Decision(key, "torch", obstacle)]
    reason = "weights and attention: a result does not depend on its batch"
    return "llmctl", [Decision(key, f"llmctl ({machine.kernels})", reason)]


def kernels_obstacle(config: Config, machine: Machine, *, devices: tuple[str, ...]) -> str | None:
    """Return why llmctl's own kernels do not compute, or None if they do."""
    if devices != ("cpu",):
        return "llmctl's own kernels run on CPUs only"
    if machine.kernels is None:
        return "llmctl's own kernels were not compiled"
    if config.generation.compile:
        return "generation.compile: torch compiles only its own operations"
    return None if config.load.cpu_kernels else "load.cpu_kernels is false"
