"""The checks of this machine: each problem on one line, with the command that fixes it.

`examine` collects facts (this machine, imports in child processes, the Hub), `diagnose` turns them into checks (pure),
`report_text` writes a report to share.
"""

from llmctl.doctor.diagnose import diagnose
from llmctl.doctor.examine import examine
from llmctl.doctor.findings import Check, Findings
from llmctl.doctor.report import report_text

__all__ = ["Check", "Findings", "diagnose", "examine", "report_text"]
