"""The progress of a download and of a batch: a bar on a terminal, lines elsewhere."""

import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from llmctl.cli._render import Output, visible
from llmctl.units import format_bytes

if TYPE_CHECKING:
    from llmctl.generation.batch.rows import Row
    from llmctl.generation.batch.run import BatchCounts

_WINDOW_SECONDS = 5.0  # of the download rate
_STALL_SECONDS = 3.0
_LINE_SECONDS = 30.0  # between two lines of a batch without a terminal
_REFRESH_SECONDS = 0.25
_MAX_SHOWN_ERRORS = 5


class DownloadProgress:
    """Shows a download on standard error; implements `hub.progress.Progress`."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._bar: Any = None  # rich.progress.Progress, from render
        self._task: Any = None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._total = self._done = 0
        self._recent: deque[tuple[float, int]] = deque()
        self._last_byte = 0.0

    @property
    def has_started(self) -> bool:
        """True once a download has started."""
        return self._total > 0

    def start(self, files: Sequence[tuple[str, int, int]]) -> None:
        """Show the number and size of the files; on a terminal, start the bar."""
        self._total = sum(size for _, size, _ in files)
        self._done = sum(here for _, _, here in files)
        self._last_byte = time.monotonic()
        resumed = f", {format_bytes(self._done)} already here" if self._done else ""
        if files:
            plural = "" if len(files) == 1 else "s"
            self._output.note(f"fetching {len(files)} file{plural}, {format_bytes(self._total)}{resumed}")
        if files and sys.stderr.isatty() and not self._output.quiet:
            self._bar = self._output.progress_bar()
            self._task = self._bar.add_task("", total=self._total, completed=self._done, state="")
            self._bar.start()
            threading.Thread(target=self._refresh, daemon=True).start()

    def advance(self, path: str, count: int) -> None:
        """Count bytes."""
        with self._lock:
            self._done += count
            self._last_byte = time.monotonic()
            self._recent.append((self._last_byte, count))

    def finished(self, path: str, size_bytes: int) -> None:
        """Report a finished file."""
        self._line(f"{path}  {format_bytes(size_bytes)}  checked")

    def note(self, text: str) -> None:
        """Report something worth knowing."""
        self._line(text)

    def close(self) -> None:
        """Remove the bar."""
        self._closed.set()
        with self._lock:
            if self._bar is not None:
                self._update()
                self._bar.stop()
                self._bar = None

    def _line(self, text: str) -> None:
        with self._lock:
            if self._closed.is_set():
                return
            if self._bar is None:
                self._output.note(text)
            else:
                self._bar.console.print(visible(text), markup=False, highlight=False, soft_wrap=True)

    def _refresh(self) -> None:
        while not self._closed.wait(_REFRESH_SECONDS):
            with self._lock:
                if self._bar is not None:
                    self._update()

    def _update(self) -> None:
        self._bar.update(self._task, completed=self._done, state=self.state(time.monotonic()))

    def state(self, now: float) -> str:
        """Return the rate and the remaining time, or the time since the last byte."""
        while self._recent and self._recent[0][0] < now - _WINDOW_SECONDS:
            self._recent.popleft()
        amounts = f"{format_bytes(self._done)}/{format_bytes(self._total)}"
        idle = now - self._last_byte
        if idle >= _STALL_SECONDS:
            return f"{amounts} stalled for {idle:.0f} s"
        received = sum(count for _, count in self._recent)
        span = max(now - self._recent[0][0], _REFRESH_SECONDS) if self._recent else 1.0
        rate = max(received, 0) / span
        if rate <= 0:
            return amounts
        remaining = (self._total - self._done) / rate
        return f"{amounts} {format_bytes(int(rate))}/s {time_text(remaining)}"


class BatchProgress:
    """Shows a batch on standard error; implements `generation.batch.run.Listener`.

    Args:
        output: The output of this run.
        total: The number of rows, if it is known.
    """

    def __init__(self, output: Output, *, total: int | None) -> None:
        self._output, self._total = output, total
        self._counts: BatchCounts | None = None
        self._rows = self._tokens = 0
        self._errors = 0
        self._start: float | None = None
        self._resumed = 0
        self._last_report = time.monotonic()
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
        """Seconds since the model started to compute."""
        return time.monotonic() - self._start if self._start is not None else 0.0

    @property
    def kept(self) -> str:
        """The number of answers so far, for the message of an interrupted run."""
        counts = self._counts
        done = counts.rows - counts.errors if counts else 0
        return f"{done:,}{f' of {self._total:,}' if self._total else ''} answers"

    def begin(self) -> None:
        """Start the clock: the model is loaded."""
        self._start = self._last_report = time.monotonic()
        self._resumed = self._rows
        if sys.stderr.isatty() and not self._output.quiet:
            self._bar = self._output.progress_bar(percentage=self._total is not None)
            self._task = self._bar.add_task("", total=self._total, completed=self._rows, state="")
            self._bar.start()

    def row_done(self, counts: "BatchCounts") -> None:
        """Count a finished row."""
        self._counts, self._rows = counts, counts.rows
        self._report()

    def passed(self, tokens: int) -> None:
        """Count a pass through the model, after which `tokens` have been generated."""
        self._tokens = tokens
        self._report()

    def _report(self) -> None:
        now = time.monotonic()
        if self._start is None or now - self._last_report < (_LINE_SECONDS if self._bar is None else _REFRESH_SECONDS):
            return
        self._last_report = now
        if self._bar is None:
            self._output.note(self.state(now))
        else:
            self._bar.update(self._task, completed=self._rows, state=self.state(now))

    def row_failed(self, row: "Row", message: str) -> None:
        """Show an error, up to the first few."""
        self._errors += 1
        if self._errors > _MAX_SHOWN_ERRORS:
            return
        last = "; further errors are only in the output" if self._errors == _MAX_SHOWN_ERRORS else ""
        text = f"line {row.line}: {message}{last}"
        if self._bar is None:
            self._output.warn(text)
        else:
            self._bar.console.print(visible(f"warning: {text}"), markup=False, highlight=False, soft_wrap=True)

    def state(self, now: float) -> str:
        """Return rows, errors, rate and remaining time."""
        elapsed = max(now - (self._start or now), 1e-6)
        parts = [f"{self._rows:,}{f'/{self._total:,}' if self._total else ''} rows"]
        if self._errors:
            parts.append(f"{self._errors:,} errors")
        parts.append(f"{self._tokens / elapsed:.0f} tokens/s")
        done = self._rows - self._resumed
        if self._total and done > 0:
            parts.append(f"{time_text((self._total - self._rows) * elapsed / done)} left")
        return ", ".join(parts)


def time_text(seconds: float) -> str:
    """Return a remaining time: `0:42`, `1:02:09`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
