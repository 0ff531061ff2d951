"""How fast configurations are, side by side: measured in fresh processes, against this machine's bounds and the plan.

`compare` runs (children, one at a time), `summarise` decides what the figures say (pure), `draw` writes a picture.
"""

from llmctl.bench.compare import Comparison, Outcome, compare
from llmctl.bench.contender import Contender
from llmctl.bench.summary import Summary, summarise
from llmctl.bench.task import Task

__all__ = ["Comparison", "Contender", "Outcome", "Summary", "Task", "compare", "summarise"]
