"""The draft model: a configuration of its own, planned before the model, which gets what is left of the memory."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmctl.config import Config
from llmctl.machine.detection import Machine
from llmctl.plan.decision import Decision, Plan


def draft_config(config: Config) -> Config:
    """The configuration of the draft model: dtype and quantisation as the model's unless said otherwise.

    Trust in the model's own code does not extend to the draft's. A device map by modules is the model's alone.
    """
    asked = config.draft
    said = config.model_dump(exclude_unset=True)
    load, quantization = dict(said.get("load", {})), dict(said.get("quantization", {}))
    load.pop("attn_implementation", None)
    if asked.dtype is not None:
        load["dtype"] = asked.dtype
    if isinstance(load.get("device_map"), Mapping):
        del load["device_map"]
    if asked.bits is not None:
        quantization["bits"] = asked.bits or None
    values: dict[str, Any] = {
        "model": {"id": asked.id, "revision": asked.revision},
        "load": load,
        "quantization": quantization,
        "generation": {"max_new_tokens": config.generation.max_new_tokens, "do_sample": False},
        "seed": config.seed,
        "deterministic": config.deterministic,
    }
    return Config.model_validate(values)


def beside(machine: Machine, plan: Plan) -> Machine:
    """The machine as it will be once `plan` is loaded and works: with less memory free."""
    taken = dict(plan.memory.weights)
    for device in plan.devices:
        taken[device] = taken.get(device, 0) + plan.memory.working_bytes // len(plan.devices)
    on_ram = sum(size for device, size in taken.items() if not device.startswith("cuda"))
    gpus = tuple(
        replace(gpu, free_bytes=max(gpu.free_bytes - taken.get(gpu.device, 0), 0))
        if gpu.kind == "cuda"
        else replace(gpu, free_bytes=max(gpu.free_bytes - on_ram, 0))
        for gpu in machine.gpus
    )
    return replace(machine, gpus=gpus, ram_available_bytes=max(machine.ram_available_bytes - on_ram, 0))


def with_draft(plan: Plan, draft: Plan) -> Plan:
    """`plan` with the draft model in it: its memory counted, and a line that says what it is."""
    memory = replace(plan.memory, draft_bytes=sum(draft.memory.weights.values()) + draft.memory.working_bytes)
    dtype, devices = draft.model_kwargs["dtype"], ", ".join(draft.devices)
    reason = f"asked for: {dtype} on {devices}, {memory.draft_bytes / 1e6:,.0f} MB with its own cache"
    return replace(
        plan, draft=draft, memory=memory, decisions=(*plan.decisions, Decision("assistant_model", draft.source, reason))
    )
