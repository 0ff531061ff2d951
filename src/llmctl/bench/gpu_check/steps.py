"""The steps of a check, in order, with the seconds that each may take."""

from collections.abc import Iterator
from dataclasses import dataclass

_PACKAGE = "llmctl.bench.gpu_check"
_MAKES_MODELS = "checkpoints"  # for every other step but the first


@dataclass(frozen=True)
class Step:
    """A step.

    Attributes:
        function: Module and name of the function that runs it, which takes a `Workplace` and yields results.
        seconds: Maximum duration.
    """

    name: str
    function: str
    seconds: int


# Steps of one group share a process, and with it a loaded model, as long as none of them goes wrong.
GROUPS: tuple[tuple[Step, ...], ...] = (
    (Step("probe", f"{_PACKAGE}.probe:probe", 40),),
    (Step("checkpoints", f"{_PACKAGE}.checkpoints:write_checkpoints", 90),),
    (
        Step("llama", f"{_PACKAGE}.correctness:llama", 60),
        Step("gemma2", f"{_PACKAGE}.correctness:gemma2", 45),
        Step("gpt_oss", f"{_PACKAGE}.correctness:gpt_oss", 45),
    ),
    (
        Step("load", f"{_PACKAGE}.speed:load", 60),
        Step("single stream", f"{_PACKAGE}.speed:single_stream", 60),
        Step("long prompts", f"{_PACKAGE}.speed:long_prompts", 45),
        Step("many sequences", f"{_PACKAGE}.speed:many_sequences", 90),
        Step("generate_batch", f"{_PACKAGE}.speed:generate_batch", 60),
    ),
    (Step("quantised", f"{_PACKAGE}.weights:quantised", 80),),
    (Step("out of memory", f"{_PACKAGE}.weights:out_of_memory", 45),),
    (Step("spill", f"{_PACKAGE}.weights:spill", 45),),
    (Step("server", f"{_PACKAGE}.serving:server", 75),),
)


def chosen_groups(names: "tuple[str, ...]", *, one_process: bool) -> tuple[tuple[Step, ...], ...]:
    """Return the groups with the named steps, and the one that makes their models; all steps without names.

    Args:
        one_process: Run all of them in one process.
    """
    chosen = {*names, _MAKES_MODELS}
    groups = tuple(tuple(step for step in group if not names or step.name in chosen) for group in GROUPS)
    if one_process:
        return (tuple(step for group in groups for step in group),)
    return tuple(group for group in groups if group)


def all_steps() -> Iterator[Step]:
    """Yield every step in order."""
    for group in GROUPS:
        yield from group
