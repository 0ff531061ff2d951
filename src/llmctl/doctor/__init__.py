"""What is in the way of running a model here, one line a check, with the command that mends it.

`examine` looks (this machine, the imports in child processes, the Hub), `diagnose` decides (pure), `report_text` writes
it down for somebody else.
"""

from llmctl.doctor.diagnose import diagnose
from llmctl.doctor.examine import examine
from llmctl.doctor.findings import Check, Findings
from llmctl.doctor.report import report_text

__all__ = ["Check", "Findings", "diagnose", "examine", "report_text"]
