"""Benchmarks of configurations, measured in fresh processes and compared with this machine's limits and the plan.

`compare` measures (in child processes, one at a time), `summarise` computes the figures (pure), `draw` makes a chart.
"""

from llmctl.bench.compare import Comparison, Outcome, compare
from llmctl.bench.contender import Contender
from llmctl.bench.summary import Summary, summarise
from llmctl.bench.task import Task

__all__ = ["Comparison", "Contender", "Outcome", "Summary", "Task", "compare", "summarise"]
