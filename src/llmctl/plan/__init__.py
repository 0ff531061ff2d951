"""The decision: Config x Machine x ModelInfo -> Plan. Pure: no torch, no network, no disk.

`make_plan` asks one room a question each, in this order: which devices (placement), which quantisation (quantization),
which dtype (dtype), which attention (attention), where every module goes (placement), how tokens are chosen
(generation).
"""

from llmctl.plan.decision import Decision, Plan
from llmctl.plan.make import make_plan

__all__ = ["Decision", "Plan", "make_plan"]
