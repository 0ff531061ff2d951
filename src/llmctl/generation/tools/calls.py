"""Detection of tool calls in an answer while it arrives.

Text that cannot be parsed as a call of one of the tools stays text. A call is emitted when it is complete. If the
answer is constrained to the format of a call with JSON arguments, they are emitted as they arrive.
"""

from collections.abc import Collection, Generator, Iterator, Mapping
from typing import Any

from llmctl.generation.marks import ID, INDEX, ObjectScanner, overlap
from llmctl.generation.pieces import ArgumentsDelta, CallStart, Piece, TextDelta, new_id
from llmctl.generation.tools.arguments import JsonArguments
from llmctl.generation.tools.format import ToolFormat
from llmctl.generation.tools.reading import ParsedCall, parse_calls
from llmctl.generation.tools.scan import IncompleteError, json_value
from llmctl.generation.tools.schema import arguments_json

_STRETCH = 4096  # characters: longer text is read in stretches, so that its rest is not copied for every call
# Limits that keep the time for an answer proportional to its length, whatever the model writes. A block is parsed again
# while the characters read in all attempts are less than a minimum plus a multiple of its length; a closing character
# allows some more.
_FREE_WORK, _WORK_PER_CHARACTER, _MORE_AT_END = 65_536, 2, 4
_MAX_UNFINISHED = 16  # blocks without an end that are searched for other calls


class CallSplitter:
    """Splits one answer into text and calls. Its state: the text held back, and the number of calls so far.

    Args:
        form: The format of calls.
        tools: The parameter schema of each tool.
        max_calls: Maximum number of calls to emit; further calls are dropped.
        calls_only: True if the answer is constrained to contain only calls.
        exact: True if every call is constrained to the template's format.
    """

    def __init__(
        self,
        form: ToolFormat,
        tools: Mapping[str, Any],
        *,
        max_calls: int | None = None,
        calls_only: bool = False,
        exact: bool = False,
    ) -> None:
        self._form, self._tools, self._max_calls = form, tools, max_calls
        self._held, self._gap, self._count = "", "", 0  # gap: white space before a possible call
        self._arrived: list[str] = []  # text that is not yet in the held text
        self._in_block = False  # True if the held text begins with the opening marker
        self._work = self._unfinished = 0  # see the limits above
        self._last = (form.end.rstrip() or "}")[-1]
        self._has_text = False
        self._has_text_since_call = False
        exact = exact and _can_follow(form)
        self._follower = _Follower(form, tools) if exact else None
        self._exact = calls_only and exact

    @property
    def call_count(self) -> int:
        """The number of calls so far."""
        return self._count

    def add(self, text: str) -> list[Piece]:
        """Add new text. Return the pieces that are final."""
        pieces: list[Piece] = []
        for at in range(0, len(text), _STRETCH):
            self._arrived.append(text[at : at + _STRETCH])
            if not self._in_block or self._is_due(self._arrived[-1]):
                pieces += self._advance(final=False)
        return pieces

    def finish(self) -> list[Piece]:
        """End the answer. Return the pieces of the text held back."""
        return [*self._advance(final=False), *self._advance(final=True)]

    def add_call(self, name: str, arguments: str, *, header: str = "") -> list[Piece]:
        """Add a complete call that is marked by the header of its message. Without JSON arguments it is text.

        Args:
            header: The header, if it is text without control tokens.
        """
        pieces = self.finish()
        try:
            value, end = json_value(arguments, 0) if arguments.strip() else ({}, 0)
            call = ParsedCall(name, arguments_json(value))
        except (IncompleteError, ValueError):
            return [*pieces, *self._emit_text(header + arguments)]
        if not isinstance(value, dict):
            return [*pieces, *self._emit_text(header + arguments)]
        return [*pieces, *self._emit_call(call), *self._emit_text(arguments[end:])]

    def _is_due(self, text: str) -> bool:
        """Return True if the held block is to be parsed again after the arrival of a text."""
        allowed = _FREE_WORK + _WORK_PER_CHARACTER * len(self._held)
        return self._work <= allowed * (_MORE_AT_END if self._last in text else 1)

    def _advance(self, *, final: bool) -> Iterator[Piece]:
        self._held, self._arrived = "".join([self._held, *self._arrived]), []
        while True:
            if self._exact:
                yield from self._follow(final=final)
                if self._exact:
                    return
            elif self._in_block:
                if not (yield from self._parse_block(final=final)):
                    return
            elif not (yield from self._scan_text(final=final)):
                return

    # -- text

    def _scan_text(self, *, final: bool) -> Generator[Piece, None, bool]:
        """Emit text up to the opening marker of calls. Return True if there is one."""
        if self._count and not self._form.open and not self._has_text_since_call:
            self._held = self._held.lstrip(" \t\r\n;,")  # separators between unmarked calls
        position = self._find_opening()
        if position is not None:
            before = self._held[:position].rstrip()
            yield from self._emit_text(before)
            self._gap, self._held = self._held[len(before) : position], self._held[position:]
            self._in_block, self._exact = self._follower is None, self._follower is not None
            return True
        keep = 0 if final else self._uncertain_length()
        if final and self._count:
            self._held = self._held.rstrip()
        yield from self._emit_text(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :] if keep else ""
        return False

    def _emit_text(self, text: str) -> Iterator[Piece]:
        if self._count and not self._has_text:  # drop white space between and after calls
            text = text.lstrip()
        if text:
            self._has_text = self._has_text_since_call = True
            yield TextDelta(text)

    def _find_opening(self) -> int | None:
        """Return the position of the opening marker in the held text."""
        if self._form.open:
            position = self._held.find(self._form.open)
            return None if position < 0 else position
        if not self._form.is_json_object or self._has_text_since_call:
            return None  # without a marker, calls stand alone
        begun = self._held.lstrip()
        return len(self._held) - len(begun) if begun.startswith(("<|python_tag|>", "{", "[")) else None

    def _uncertain_length(self) -> int:
        """Return the number of trailing characters that may belong to an opening marker or white space before it."""
        text, opened = self._held, self._form.open
        if not opened:
            may_open = self._form.is_json_object and not self._has_text_since_call
            if may_open and "<|python_tag|>".startswith(text.lstrip()):
                return len(text)
            return len(text) - len(text.rstrip()) if self._count else 0
        part = overlap(text, opened)
        before = text[: len(text) - part]
        return part + len(before) - len(before.rstrip())

    # -- unconstrained calls

    def _parse_block(self, *, final: bool) -> Generator[Piece, None, bool]:
        """Parse the held block. Return True if text remains to be processed."""
        if self._unfinished > _MAX_UNFINISHED:
            parsed: tuple[list[ParsedCall], int] | None = ([], len(self._held))
        else:
            self._work += len(self._held)
            parsed = parse_calls(self._held, self._form, self._tools, final=final)
        if parsed is None:
            return False
        calls, length = parsed
        if calls:
            for call in calls:
                yield from self._emit_call(call)
            self._has_text_since_call = False
        else:
            self._unfinished += final
            yield from self._emit_text(self._gap + self._held[:length])
        self._held, self._in_block, self._work = self._held[length:], False, 0
        return bool(self._held)

    def _emit_call(self, call: ParsedCall) -> Iterator[Piece]:
        if self._count == self._max_calls:
            return
        index, self._count = self._count, self._count + 1
        yield CallStart(index, new_id(), call.name)
        yield ArgumentsDelta(index, call.arguments)

    # -- constrained calls

    def _follow(self, *, final: bool) -> Iterator[Piece]:
        assert self._follower is not None  # noqa: S101
        for piece in self._follower.add(self._held):
            if isinstance(piece, CallStart):
                self._count += 1
            yield piece
        if final:
            self._follower.finish()
        self._held = ""
        if self._follower.rest is not None:  # the calls have ended
            self._held, self._exact = self._follower.rest, False
            self._has_text_since_call = not self._follower.has_called
            if self._has_text_since_call and self._held:  # the marker did not open a call
                yield from self._emit_text(self._gap + self._held[:1])
                self._held = self._held[1:]
            self._follower = _Follower(self._form, self._tools, first=self._count)


def _can_follow(form: ToolFormat) -> bool:
    """Return True if constrained calls are fixed texts around JSON arguments."""
    fixed = form.begin + form.middle + (form.between or "") + form.end
    return isinstance(form.syntax, JsonArguments) and bool(form.begin) and ID not in fixed and INDEX not in fixed


class _Follower:
    """Parses constrained calls, which are exactly in the template's format, while they arrive.

    Its state: the text held back, and the position in the calls.

    Attributes:
        rest: The text after the calls; None until they have ended.
    """

    def __init__(self, form: ToolFormat, names: Collection[str], *, first: int = 0) -> None:
        self._form, self._index, self._first = form, first - 1, first
        self._heads = {f"{form.begin}{name}{form.middle}": name for name in names}
        self._next_heads: dict[str, str] = {}
        if form.between is not None:
            self._next_heads = {f"{form.between}{name}{form.middle}": name for name in names}
        self._held = ""
        self._scanner: ObjectScanner | None = None
        self.rest: str | None = None

    @property
    def has_called(self) -> bool:
        """True if a call has begun."""
        return self._index >= self._first

    def add(self, text: str) -> Iterator[Piece]:
        """Add new text. Yield its pieces of calls."""
        self._held += text
        if not self.has_called:
            self._held = self._held.lstrip()  # white space between reasoning and calls
        while self._held and self.rest is None:
            if self._scanner is not None:
                end = self._scanner.take(self._held)
                yield ArgumentsDelta(self._index, self._held[:end])
                self._held = self._held[end:]
                if not self._scanner.is_whole:
                    return
                self._scanner, self._heads = None, self._next_heads
            matching = [head for head in self._heads if self._held.startswith(head)]
            if self._may_grow():
                return
            if matching:
                head = max(matching, key=len)
                self._index += 1
                yield CallStart(self._index, new_id(), self._heads[head])
                self._held, self._scanner = self._held[len(head) :], ObjectScanner()
            else:
                self.rest = self._held.removeprefix(self._form.end)

    def _may_grow(self) -> bool:
        """Return True if the held text may be the beginning of a fixed part."""
        return any(part != self._held and part.startswith(self._held) for part in (*self._heads, self._form.end))

    def finish(self) -> None:
        """End the text. A fixed part of which only the beginning has come is dropped."""
        if self.rest is None:
            is_after = self._scanner is None and self.has_called and self._held.startswith(self._form.end)
            self.rest = self._held[len(self._form.end) :] if is_after else ""
