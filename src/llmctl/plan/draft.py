"""The draft model in a plan. It is planned first, and the model gets the remaining memory."""

from dataclasses import replace

from llmctl.machine.detection import Machine
from llmctl.plan.decision import Decision, Plan
from llmctl.plan.gpus import is_card
from llmctl.units import format_bytes


def remaining_machine(machine: Machine, plan: Plan) -> Machine:
    """Return the machine with the memory that remains once `plan` is loaded and computing."""
    used = dict(plan.memory.weights)
    for device in plan.devices:
        used[device] = used.get(device, 0) + plan.memory.working_bytes // len(plan.devices)
    in_ram = sum(size for device, size in used.items() if not is_card(device))
    gpus = tuple(
        replace(gpu, free_bytes=max(gpu.free_bytes - (in_ram if gpu.kind == "mps" else used.get(gpu.device, 0)), 0))
        for gpu in machine.gpus
    )
    return replace(machine, gpus=gpus, ram_available_bytes=max(machine.ram_available_bytes - in_ram, 0))


def with_draft(plan: Plan, draft: Plan) -> Plan:
    """Return `plan` with the draft model in it: its memory, and a decision that describes it."""
    memory = replace(plan.memory, draft_bytes=sum(draft.memory.weights.values()) + draft.memory.working_bytes)
    dtype, devices = draft.model_kwargs["dtype"], ", ".join(draft.devices)
    reason = f"asked for: {dtype} on {devices}, {format_bytes(memory.draft_bytes)} with its own cache"
    decision = Decision("assistant_model", draft.source, reason)
    return replace(plan, draft=draft, memory=memory, decisions=(*plan.decisions, decision))
