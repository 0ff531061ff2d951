"""The decision: Config x Machine x ModelInfo -> Plan. Pure: no torch, no network, no disk.

`make_plan` makes one decision after the other, each in its own module: the devices (placement), the dtype (dtype), the
quantisation (quantization), the device of every module (placement), the attention (attention), the sampling parameters
(generation), the options for faster decoding (decoding), the adapters (adapters).
"""

from llmctl.plan.decision import Decision, Plan
from llmctl.plan.make import make_plan
from llmctl.plan.request import PlanRequest

__all__ = ["Decision", "Plan", "PlanRequest", "make_plan"]
