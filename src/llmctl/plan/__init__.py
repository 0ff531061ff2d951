"""The decision: Config x Machine x ModelInfo -> Plan. Pure: no torch, no network, no disk.

`make_plan` asks one module a question each, in this order: which devices (placement), which dtype (dtype), which
quantisation (quantization), where every module goes (placement), which attention (attention), how tokens are chosen
(generation), what makes decoding faster (decoding), whether adapters fit (adapters).
"""

from llmctl.plan.decision import Decision, Plan
from llmctl.plan.make import make_plan
from llmctl.plan.request import PlanRequest

__all__ = ["Decision", "Plan", "PlanRequest", "make_plan"]
