"""Output for people and scripts; the only module that uses rich.

Data goes to standard output, messages to standard error. Text from a model or a repository is untrusted: on a terminal
its control characters are made visible instead of being sent to it.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from llmctl.cli._streams import silence
from llmctl.cli._table import table_lines
from llmctl.cli._wrap import Styled, WordWrap, text_width, wrapped
from llmctl.errors import LlmctlError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

# C0 and C1 except newline and tab, DEL, and the marks that reorder text on the screen (bidirectional overrides).
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

_STYLES = {
    "bold": "bold", "heading": "bold", "code": "cyan", "dim": "dim", "italic": "italic", "good": "green",
    "doubtful": "yellow", "bad": "bold red",
}  # fmt: skip


def terminal_columns() -> int:
    """Return the width of the terminal now."""
    return shutil.get_terminal_size().columns


def visible(text: str) -> str:
    """Return `text` with its control characters spelled out (`\\x1b`), so that it cannot control a terminal."""
    return _CONTROL.sub(lambda m: f"\\x{ord(m[0]):02x}" if ord(m[0]) < 256 else f"\\u{ord(m[0]):04x}", text)


@dataclass
class Output:
    """The output of one run of the command line. Its flags change only while the command line is parsed."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    debug: bool = False
    no_color: bool = False
    _noted: set[str] = field(default_factory=set, repr=False)

    # -- data: standard output

    def document(self, kind: str, body: dict[str, Any]) -> None:
        """Print one JSON document. `kind` names its schema and version, as in `llmctl.load/1`."""
        print(json.dumps({"schema": kind, **body}, indent=2, ensure_ascii=False), flush=True)

    def line(self, text: str) -> None:
        """Print one line of data."""
        print(visible(text) if sys.stdout.isatty() else text, flush=True)

    def piece(self, text: str) -> None:
        """Print a piece of streamed text at once."""
        sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()

    def prose(self, *, wraps: bool = True) -> "Prose":
        """Return a writer of streamed text, which wraps at words on a terminal.

        Args:
            wraps: Wrap at words; otherwise the terminal folds long lines.
        """
        return Prose(self, sys.stdout, wraps=wraps and sys.stdout.isatty())

    def reasoning_prose(self) -> "Prose | None":
        """Return a writer of a model's reasoning, which is not part of its answer; None where it is not shown."""
        return None if self.quiet or not sys.stderr.isatty() else Prose(self, sys.stderr, wraps=True)

    def write_styled(self, stream: TextIO, parts: Iterable[Styled]) -> None:
        """Write text in styles: `bold`, `heading`, `code`, `dim`, … (`_STYLES`), or an empty string for none."""
        for text, style in parts:
            if not style or self.plain or not stream.isatty():
                stream.write(text)
            else:
                self.console(stream).print(
                    text, style=_STYLES[style], end="", markup=False, highlight=False, emoji=False, soft_wrap=True
                )
        stream.flush()

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        drop: Sequence[str] = (),
        wrap: Sequence[str] = (),
    ) -> list[str]:
        """Print a table, and return the names of omitted columns.

        It fits a terminal, where an empty one is nothing, and is tab-separated in a pipe.

        Args:
            drop: Columns to omit on a narrow terminal, the first one first.
            wrap: Columns of prose, which may be broken at spaces.
        """
        if not sys.stdout.isatty():
            for row in [columns, *rows]:
                print("\t".join(row))
            return []
        if not rows:
            return []
        cells = [[visible(cell) for cell in row] for row in rows]
        lines, omitted = table_lines(columns, cells, width=terminal_columns(), drop=drop, wrap=wrap)
        for line in lines:
            self.write_styled(sys.stdout, [*line, Styled("\n")])
        if omitted:
            self.note(f"not shown on this width: {', '.join(omitted)}; --json has everything")
        return omitted

    def heading(self, text: str) -> None:
        """Print the title of a group of lines."""
        self.write_styled(sys.stdout, [Styled(visible(text), "heading"), Styled("\n")])

    def pairs(self, rows: Sequence[tuple[str, str]], *, styles: Sequence[str] = ()) -> None:
        """Print names and values in two columns; long values wrap within theirs, or a word that is wider stands below.

        Args:
            styles: The style of each name.
        """
        width = max((text_width(name) for name, _ in rows), default=0)
        is_terminal = sys.stdout.isatty()
        for number, (name, value) in enumerate(rows):
            text = " ".join(visible(value).split())
            room = max(terminal_columns() - width - 4, 30)
            lines = wrapped(text, room) if is_terminal else [text]
            style = styles[number] if styles else ""
            space = " " * (width - text_width(name))
            if is_terminal and text_width(lines[0]) > room:
                lines.insert(0, "")
            first = f"{space}  {lines[0]}".rstrip() if is_terminal else f"{space}  {lines[0]}"
            self.write_styled(sys.stdout, [Styled("  "), Styled(name, style), Styled(f"{first}\n")])
            for line in lines[1:]:
                print(f"  {'':<{width}}  {line}" if text_width(line) <= room else f"    {line}")

    def bars(self, rows: Sequence[tuple[str, float, float]]) -> None:
        """Print a bar for each name: solid up to the first value, shaded up to the second, larger one."""
        names = max((len(name) for name, _, _ in rows), default=0)
        width = terminal_columns() if sys.stdout.isatty() else 80
        room, maximum = max(width - names - 12, 10), max((high for _, _, high in rows), default=0) or 1
        for name, value, high in rows:
            solid, shaded = round(value / maximum * room), round(high / maximum * room)
            number = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
            print(f"  {visible(name):<{names}}  {'█' * solid}{'░' * (shaded - solid)} {number}")

    # -- messages: standard error

    @contextmanager
    def waiting(self, text: str) -> Iterator[Callable[[str], None]]:
        """Show activity on a terminal; yield a function that changes the text (elsewhere, reports a detail)."""
        if self.quiet or not sys.stderr.isatty() or self.debug:
            yield self.detail
            return
        with self.console(sys.stderr).status(visible(text)) as status:
            yield lambda text: status.update(visible(text))

    def note(self, text: str) -> None:
        """Report something worth knowing. Silent with --quiet."""
        if not self.quiet:
            self._say(text, "dim")

    def note_once(self, text: str) -> None:
        """Report something that several steps of a run find out, once."""
        if text not in self._noted:
            self._noted.add(text)
            self.note(text)

    def detail(self, text: str) -> None:
        """Report something for --verbose only."""
        if self.verbose and not self.quiet:
            self._say(text, "dim")

    def warn(self, text: str) -> None:
        """Report something that probably matters. Shown even with --quiet."""
        self._say(f"warning: {text}", "yellow")

    def error(self, error: LlmctlError) -> None:
        """Report an error and its hint; with --json also as a document on standard output."""
        if self.as_json:
            body: dict[str, Any] = {
                "kind": error.kind,
                "exit_code": error.exit_code,
                "message": error.message,
            }
            self.document("llmctl.error/1", {"error": {**body, "hint": error.hint, **error.details}})
        self._say(f"error: {error.message}", "red")
        if error.hint:
            self._say(f"  {error.hint}", None)

    def _say(self, text: str, style: str | None) -> None:
        try:
            if not sys.stderr.isatty():
                print(visible(text), file=sys.stderr, flush=True)
                return
            for line in wrapped(visible(text), terminal_columns(), indent=2):
                if style and not self.plain:
                    self.console(sys.stderr).print(line, style=style, markup=False, highlight=False, soft_wrap=True)
                else:
                    print(line, file=sys.stderr, flush=True)
        except OSError:  # nobody can read the message; the work goes on
            silence(sys.stderr)

    @property
    def plain(self) -> bool:
        """True when colours are off."""
        return self.no_color or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"

    def progress_bar(self, *, percentage: bool = True) -> "Progress":
        """Return a transient progress bar on standard error; its tasks have a field `state`."""
        from rich.progress import BarColumn, Progress, TextColumn

        text = ("{task.percentage:>3.0f}% " if percentage else "") + "{task.fields[state]}"
        columns = (BarColumn(bar_width=None), TextColumn(text))
        return Progress(*columns, console=self.console(sys.stderr), transient=True, refresh_per_second=4, expand=True)

    def console(self, stream: TextIO) -> "Console":
        """Return a rich console on `stream` with the colours of this run."""
        from rich.console import Console

        return Console(file=stream, no_color=self.plain, highlight=False)


class Prose:
    """Writes one streamed text. Its state: what the word wrap holds back.

    Without `wraps`, and outside terminals, every piece is written at once and unchanged.
    """

    def __init__(self, output: Output, stream: TextIO, *, wraps: bool) -> None:
        self._output, self._stream = output, stream
        self._wrap = WordWrap(terminal_columns) if wraps else None

    def write(self, text: str, style: str = "") -> None:
        """Write a piece in a style."""
        shown = visible(text) if self._stream.isatty() else text
        parts = [Styled(shown, style)] if self._wrap is None else self._wrap.add(shown, style)
        self._output.write_styled(self._stream, parts)

    def finish(self) -> None:
        """Write what is held back."""
        if self._wrap is not None:
            self._output.write_styled(self._stream, self._wrap.flush())
