"""Tool calls in what a model writes, found as the text arrives.

What does not read as a call of one of the tools stays text. A call is passed on once it is whole; where the answer is
held to the form of a call, its arguments are passed on as they come.
"""

import secrets
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmctl.generation.reasoning import overlap
from llmctl.generation.tools.format import ToolFormat
from llmctl.generation.tools.reading import Found, read_calls


@dataclass(frozen=True)
class Said:
    """Text that is no call."""

    text: str


@dataclass(frozen=True)
class Call:
    """A call begins. Its arguments follow."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class Arguments:
    """A piece of the arguments of a call: the text of a JSON object."""

    index: int
    text: str


Piece = Said | Call | Arguments


@dataclass(frozen=True)
class ToolCall:
    """A whole call: its `arguments` are text, which is JSON unless the answer was cut."""

    id: str
    name: str
    arguments: str


def new_id() -> str:
    """An id for a call, which nobody can guess."""
    return f"call_{secrets.token_hex(12)}"


class CallSplitter:
    """Splits one answer. Its state: the text held back, and how many calls there were.

    Args:
        form: How the model writes calls.
        tools: The tools that may be called, each with the schema of its parameters.
        most: So many calls at most; further ones are left out.
        calls_only: Whether the answer is held to calls and nothing else.
        exact: Whether every call is held to the form that the template writes.
    """

    def __init__(
        self,
        form: ToolFormat,
        tools: Mapping[str, Any],
        *,
        most: int | None = None,
        calls_only: bool = False,
        exact: bool = False,
    ) -> None:
        self._form, self._tools, self._most = form, tools, most
        self._held, self._gap, self._count = "", "", 0  # the gap: white space before what may be calls
        self._block = False  # whether what is held begins with what opens calls
        self._said = False  # whether there was any text
        self._begun = False  # whether there was any since the last call
        self._follower = _Follower(form, tools) if exact else None
        self._exact = calls_only and exact

    @property
    def call_count(self) -> int:
        """How many calls there were so far."""
        return self._count

    def add(self, text: str) -> list[Piece]:
        """Take new text; returns what is certain."""
        self._held += text
        return list(self._advance(final=False))

    def finish(self) -> list[Piece]:
        """No more text: what was held back."""
        return list(self._advance(final=True))

    def _advance(self, *, final: bool) -> Iterator[Piece]:
        while True:
            if self._exact:
                yield from self._follow()
                if self._exact:
                    return
            elif self._block:
                if not (yield from self._read(final=final)):
                    return
            elif not (yield from self._look(final=final)):
                return

    # -- text

    def _look(self, *, final: bool) -> Generator[Piece, None, bool]:
        """Pass text on up to where calls open; returns whether they do."""
        place = self._opening()
        if place is not None:
            before = self._held[:place].rstrip()
            yield from self._say(before)
            self._gap, self._held = self._held[len(before) : place], self._held[place:]
            self._block, self._exact = self._follower is None, self._follower is not None
            return True
        keep = 0 if final else self._uncertain()
        if final and self._count:
            self._held = self._held.rstrip()
        yield from self._say(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :] if keep else ""
        return False

    def _say(self, text: str) -> Iterator[Piece]:
        if self._count and not self._said:  # white space between and after calls
            text = text.lstrip()
        if text:
            self._said = self._begun = True
            yield Said(text)

    def _opening(self) -> int | None:
        """Where calls open in what is held."""
        if self._form.open:
            place = self._held.find(self._form.open)
            return None if place < 0 else place
        for start in ("<|python_tag|>", "{", "["):
            if not self._begun and self._held.lstrip().startswith(start):
                return self._held.index(start)
        return None

    def _uncertain(self) -> int:
        """How many of the last characters may yet open calls, or be the white space before them."""
        opened = self._form.open
        if not opened:
            begun = self._held.lstrip()
            return len(self._held) if not self._begun and "<|python_tag|>".startswith(begun) else 0
        text = self._held
        part = overlap(text, opened)
        before = text[: len(text) - part]
        return part + len(before) - len(before.rstrip())

    # -- calls, as the model likes to write them

    def _read(self, *, final: bool) -> Generator[Piece, None, bool]:
        """Read the block that is held; returns whether there is more to do."""
        outcome = read_calls(self._held, self._form, self._tools, final=final)
        if outcome is None:
            return False
        calls, length = outcome
        if calls:
            for call in calls:
                yield from self._pass_on(call)
            self._begun = False
        else:
            yield from self._say(self._gap + self._held[:length])
        self._held, self._block = self._held[length:], False
        return bool(self._held)

    def _pass_on(self, call: Found) -> Iterator[Piece]:
        if self._count == self._most:
            return
        index, self._count = self._count, self._count + 1
        yield Call(index, new_id(), call.name)
        yield Arguments(index, call.arguments)

    # -- calls that are held to their form

    def _follow(self) -> Iterator[Piece]:
        assert self._follower is not None  # noqa: S101
        for piece in self._follower.add(self._held):
            if isinstance(piece, Call):
                self._count += 1
            yield piece
        self._held = ""
        if self._follower.rest is not None:  # text again
            self._held, self._exact, self._begun = self._follower.rest, False, not self._follower.has_called
            if self._begun:  # it was no call after all
                yield from self._say(self._gap + self._held[:1])
                self._held = self._held[1:]
            self._follower = _Follower(self._form, self._tools, first=self._count)


class _Follower:
    """Follows calls that are written to the letter. Its state: what is held, and where it is.

    `rest` is what comes after the calls, once they have ended.
    """

    def __init__(self, form: ToolFormat, names: Collection[str], *, first: int = 0) -> None:
        self._form, self._index, self._first = form, first - 1, first
        self._heads = {f"{form.begin}{name}{form.middle}": name for name in names}
        self._more = {} if form.between is None else {f"{form.between}{name}{form.middle}": name for name in names}
        self._held = ""
        self._scan: _ObjectScan | None = None
        self.rest: str | None = None

    @property
    def has_called(self) -> bool:
        """Whether there was any call."""
        return self._index >= self._first

    def add(self, text: str) -> Iterator[Piece]:
        """Take new text; yield what it adds to the calls."""
        self._held += text
        while self._held and self.rest is None:
            if self._scan is not None:
                end = self._scan.take(self._held)
                yield Arguments(self._index, self._held[:end])
                self._held = self._held[end:]
                if not self._scan.is_whole:
                    return
                self._scan, self._heads = None, self._more
            head = max((head for head in self._heads if self._held.startswith(head)), key=len, default=None)
            if head is not None:
                self._index += 1
                yield Call(self._index, new_id(), self._heads[head])
                self._held, self._scan = self._held[len(head) :], _ObjectScan()
            elif any(head.startswith(self._held) for head in self._heads) or self._form.end.startswith(self._held):
                if self._held != self._form.end:
                    return
                self.rest = ""
            else:
                self.rest = self._held.removeprefix(self._form.end)


class _ObjectScan:
    """Finds the end of a JSON object in text that arrives in pieces. Its state: how deep it is, and in what."""

    def __init__(self) -> None:
        self._depth, self._in_text, self._escaped = 0, False, False
        self.is_whole = False

    def take(self, text: str) -> int:
        """How many characters of `text` belong to the object."""
        for place, letter in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_text:
                self._escaped, self._in_text = letter == "\\", letter != '"'
            elif letter == '"':
                self._in_text = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.is_whole = True
                    return place + 1
        return len(text)


def whole(pieces: Iterable[Piece]) -> tuple[str, list[ToolCall]]:
    """The text and the calls that pieces make up."""
    text, calls = "", []
    for piece in pieces:
        if isinstance(piece, Said):
            text += piece.text
        elif isinstance(piece, Call):
            calls.append(ToolCall(piece.id, piece.name, ""))
        else:
            call = calls[piece.index]
            calls[piece.index] = replace(call, arguments=call.arguments + piece.text)
    return text, calls
