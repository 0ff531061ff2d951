"""What can go wrong while a model computes, for people."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmctl.loading.model import LoadedModel


def explained(error: BaseException, loaded: "LoadedModel") -> BaseException:
    """Memory that ran out, with what was planned and what gives how much back. Any other error is as it was."""
    from llmctl.loading.weights import is_out_of_memory
    from llmctl.plan.memory_advice import out_of_memory_error

    if not is_out_of_memory(error):
        return error
    return out_of_memory_error(loaded.plan, loaded.info, loaded.machine, loaded.config, doing="generating with")
