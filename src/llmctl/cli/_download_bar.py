"""The progress of a download: one bar on a terminal, one line for each finished file everywhere."""

import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from llmctl.cli._render import Output, visible
from llmctl.units import format_bytes

_WINDOW_SECONDS = 5.0
_STALL_SECONDS = 3.0
_REFRESH_SECONDS = 0.25


class DownloadBar:
    """Listens to a download (it is a `hub.progress.Progress`) and shows it on standard error."""

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
        """Whether a download has begun."""
        return self._total > 0

    def start(self, files: Sequence[tuple[str, int, int]]) -> None:
        """Show how much there is to do; on a terminal, begin the bar."""
        self._total = sum(size for _, size, _ in files)
        self._done = sum(here for _, _, here in files)
        self._last_byte = time.monotonic()
        resumed = f", {format_bytes(self._done)} of them already here" if self._done else ""
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
        """One line for a file that is done."""
        self._line(f"{path}  {format_bytes(size_bytes)}  checked")

    def note(self, text: str) -> None:
        """One line for something worth knowing."""
        self._line(text)

    def close(self) -> None:
        """Take the bar away."""
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
        """The rate and the remaining time, or since when nothing came."""
        while self._recent and self._recent[0][0] < now - _WINDOW_SECONDS:
            self._recent.popleft()
        figures = f"{format_bytes(self._done)}/{format_bytes(self._total)}"
        silent = now - self._last_byte
        if silent >= _STALL_SECONDS:
            return f"{figures} stalled for {silent:.0f} s"
        arrived = sum(count for _, count in self._recent)
        span = max(now - self._recent[0][0], _REFRESH_SECONDS) if self._recent else 1.0
        rate = max(arrived, 0) / span
        if rate <= 0:
            return figures
        left = (self._total - self._done) / rate
        return f"{figures} {format_bytes(int(rate))}/s {time_text(left)}"


def time_text(seconds: float) -> str:
    """A remaining time: `0:42`, `1:02:09`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
