"""The decision to put adapters on a model, or to merge them into it."""

from collections.abc import Sequence

from llmctl.config import Config
from llmctl.errors import MachineError, UserError
from llmctl.machine.detection import Machine
from llmctl.model.adapters import AdapterInfo, check_fit
from llmctl.model.info import ModelInfo
from llmctl.plan.decision import Decision
from llmctl.plan.placement import Placement
from llmctl.units import format_bytes


def decide_adapters(
    config: Config,
    machine: Machine,
    info: ModelInfo,
    adapters: Sequence[AdapterInfo],
    *,
    placement: Placement,
    quantized: bool,
) -> list[Decision]:
    """Return a decision for each adapter, and one for merging.

    Raises:
        UserError: an adapter does not fit the model, or the model is spread over GPU and RAM.
        MachineError: peft is not installed.
    """
    merge = config.model.merge_adapters
    if not adapters:
        if merge:
            raise UserError("model.merge_adapters is set without an adapter", hint="add --adapter, or omit --merge")
        return []
    if "peft" not in machine.packages:
        raise MachineError(
            "adapters need the package peft, which is not installed", hint="pip install 'llmctl-hf[adapters]'"
        )
    for adapter in adapters:
        check_fit(adapter, info)
    if placement.spilled or ("cpu" in placement.weights and len(placement.weights) > 1):
        raise UserError(
            "adapters cannot be put on a model that is partly in RAM beside a GPU",
            hint="use --device-map cpu or a smaller model",
        )
    replaced = [name for adapter in adapters for name in adapter.settings.get("modules_to_save", ())]
    if len(replaced) > len(set(replaced)):
        twice = next(name for name in replaced if replaced.count(name) > 1)
        raise UserError(f"two adapters replace {twice} as a whole, and only one can", hint="omit one of them")
    decisions = [Decision("adapter", adapter.source, _reason(adapter, info)) for adapter in adapters]
    if merge:
        decisions.append(Decision("merge_adapters", True, _merge_reason(quantized=quantized)))
    return decisions


def _reason(adapter: AdapterInfo, info: ModelInfo) -> str:
    ranks = sorted(set(adapter.ranks.values()))
    rank = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    size = f"rank {rank} on {len(adapter.ranks)} modules, {format_bytes(adapter.size_bytes)} in float32"
    scale = f", times {adapter.scale:g}" if adapter.scale != 1 else ""
    made_for = adapter.base_model
    if made_for is None:
        origin = "its model is not stated"
    elif made_for == info.source:
        origin = "made for this model"
    else:
        origin = f"made for {made_for}, whose shapes this model has"
    return f"asked for: {size}{scale}; {origin}"


def _merge_reason(*, quantized: bool) -> str:
    if quantized:
        return "asked for: the weights are unpacked, changed and quantised again, which rounds them once more"
    return "asked for: added to the weights, which rounds them in half precision"
