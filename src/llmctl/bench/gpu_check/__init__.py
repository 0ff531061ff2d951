"""The check of a GPU: is what runs on it right, and how near to its limits does it run?

It needs neither a network nor a model: checkpoints with random weights are written first. The steps run in child
processes, so that a step that fails, hangs or crashes is reported and the next one runs. `steps.py` lists them;
`run_check` yields a report after each.
"""

from llmctl.bench.gpu_check.report import Report, report_text
from llmctl.bench.gpu_check.run import require_gpu, run_check

__all__ = ["Report", "report_text", "require_gpu", "run_check"]
