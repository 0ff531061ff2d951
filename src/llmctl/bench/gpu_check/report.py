"""The report of one step, as a JSON document and as text to share."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llmctl._version import __version__
from llmctl.doctor.privacy import known_tokens, without_secrets

SCHEMA = "llmctl.gpu_check/1"
# ok: as it should be; failed: a result is wrong; error: an exception; timeout: longer than its budget;
# died: the process ended; skipped: not run, for a reason that is no fault
Status = Literal["ok", "failed", "error", "timeout", "died", "skipped"]


@dataclass(frozen=True)
class Report:
    """The outcome of one step.

    Attributes:
        step: Name of the step.
        seconds: Duration.
        reason: What happened, if the status is not ok; else a line with the most important figures.
        results: What was measured and compared so far, by name. A result with `ok` false is wrong.
        traceback: The last calls before an exception.
    """

    step: str
    status: Status
    seconds: float = 0.0
    reason: str = ""
    results: Mapping[str, Any] = field(default_factory=dict)
    traceback: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        """True if nothing is wrong."""
        return self.status in ("ok", "skipped")

    def document(self) -> dict[str, Any]:
        """Return the report as JSON values, without secrets and without the home folder."""
        body: dict[str, Any] = {"schema": SCHEMA, "step": self.step, "status": self.status}
        body["seconds"] = round(self.seconds, 1)
        if self.reason:
            body["reason"] = self.reason
        if self.results:
            body["results"] = dict(self.results)
        if self.traceback:
            body["traceback"] = list(self.traceback)
        cleaned: dict[str, Any] = json.loads(without_secrets(json.dumps(body), secrets=known_tokens()))
        return cleaned


def wrong_results(results: Mapping[str, Any]) -> list[str]:
    """Return the names of the results that are wrong."""
    return [name for name, value in results.items() if isinstance(value, Mapping) and value.get("ok") is False]


def report_text(documents: Sequence[Mapping[str, Any]], *, when: str) -> str:
    """Return the documents of a check in Markdown, to paste into an issue.

    Args:
        when: Date.
    """
    rows = [f"{document['status']:<7}  {document['step']:<16}  {document.get('reason', '')}" for document in documents]
    lines = [f"# llmctl {__version__}, check of a GPU, {when}", "", "```text", *rows, "```", "", "```json"]
    lines += [json.dumps(document, ensure_ascii=False) for document in documents]
    return "\n".join([*lines, "```"]) + "\n"
