"""The progress of a batch: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from llmctl.cli._download_bar import time_text
from llmctl.cli._render import Output, visible

if TYPE_CHECKING:
    from llmctl.generation.batch.rows import Row
    from llmctl.generation.batch.run import Tally

_LINE_SECONDS = 30.0
_REFRESH_SECONDS = 0.25
_SHOWN_ERRORS = 5


class BatchProgress:
    """Listens to a batch and tells standard error. Its state: the tally, and when it last spoke.

    Args:
        output: How this run speaks.
        total: How many rows there are, where that is known.
    """

    def __init__(self, output: Output, *, total: int | None) -> None:
        self._output, self._total = output, total
        self._tally: Tally | None = None
        self._rows = self._tokens = 0
        self._errors = 0
        self._began: float | None = None
        self._resumed = 0
        self._spoke = time.monotonic()
        self._bar: Any = None  # rich.progress.Progress, from render
        self._task: Any = None

    def __enter__(self) -> "BatchProgress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @property
    def seconds(self) -> float:
        """How long the model has been computing."""
        return time.monotonic() - self._began if self._began is not None else 0.0

    @property
    def kept(self) -> str:
        """How much there is, for a run that is stopped."""
        tally = self._tally
        done = tally.rows - tally.errors if tally else 0
        return f"{done:,}{f' of {self._total:,}' if self._total else ''} answers"

    def begin(self) -> None:
        """The model is there: from now on time counts."""
        self._began = self._spoke = time.monotonic()
        self._resumed = self._rows
        if sys.stderr.isatty() and not self._output.quiet:
            self._bar = self._output.progress_bar(percentage=self._total is not None)
            self._task = self._bar.add_task("", total=self._total, completed=self._rows, state="")
            self._bar.start()

    def settled(self, tally: "Tally") -> None:
        """One more row."""
        self._tally, self._rows = tally, tally.rows
        self._tell()

    def passed(self, tokens: int) -> None:
        """One more pass through the model; so many tokens have been generated."""
        self._tokens = tokens
        self._tell()

    def _tell(self) -> None:
        now = time.monotonic()
        if self._began is None or now - self._spoke < (_LINE_SECONDS if self._bar is None else _REFRESH_SECONDS):
            return
        self._spoke = now
        if self._bar is None:
            self._output.note(self.state(now))
        else:
            self._bar.update(self._task, completed=self._rows, state=self.state(now))

    def failed(self, row: "Row", message: str) -> None:
        """The first few errors are shown."""
        self._errors += 1
        if self._errors > _SHOWN_ERRORS:
            return
        last = "; further errors are only in the output" if self._errors == _SHOWN_ERRORS else ""
        text = f"line {row.line}: {message}{last}"
        if self._bar is None:
            self._output.warn(text)
        else:
            self._bar.console.print(visible(f"warning: {text}"), markup=False, highlight=False, soft_wrap=True)

    def state(self, now: float) -> str:
        """Rows, errors, rate, time left."""
        elapsed = max(now - (self._began or now), 1e-6)
        parts = [f"{self._rows:,}{f'/{self._total:,}' if self._total else ''} rows"]
        if self._errors:
            parts.append(f"{self._errors:,} errors")
        parts.append(f"{self._tokens / elapsed:.0f} tokens/s")
        done = self._rows - self._resumed
        if self._total and done > 0:
            parts.append(f"{time_text((self._total - self._rows) * elapsed / done)} left")
        return ", ".join(parts)
