"""The parts of an answer as they arrive: text, reasoning, and tool calls."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TextDelta:
    """Text for the user."""

    text: str


@dataclass(frozen=True)
class ReasoningDelta:
    """Text that the model writes for itself before its answer."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """The start of a tool call. Its arguments follow."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ArgumentsDelta:
    """A piece of a call's arguments, which are the text of a JSON object."""

    index: int
    text: str


Piece = TextDelta | ReasoningDelta | CallStart | ArgumentsDelta


@dataclass(frozen=True)
class ToolCall:
    """A call. Its `arguments` are JSON text, incomplete if the answer was cut off."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Assembled:
    """The parts of an answer.

    Attributes:
        text: The text for the user.
        reasoning: The reasoning; empty if there is none.
        calls: The tool calls, in order.
    """

    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()


def new_id() -> str:
    """Return a random id for a call."""
    return f"call_{secrets.token_hex(12)}"


def text_of(pieces: Iterable[Piece]) -> str:
    """Return the text for the user."""
    return "".join(piece.text for piece in pieces if isinstance(piece, TextDelta))


def reasoning_of(pieces: Iterable[Piece]) -> str:
    """Return the reasoning."""
    return "".join(piece.text for piece in pieces if isinstance(piece, ReasoningDelta))


def join_text(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """Return the pieces with neighbours of the same kind joined."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if not isinstance(piece, CallStart) and type(piece) is type(last):
            assert not isinstance(last, CallStart | None)  # noqa: S101
            joined[-1] = replace(piece, text=last.text + piece.text)
        else:
            joined.append(piece)
    return tuple(joined)


def assemble(pieces: Iterable[Piece]) -> Assembled:
    """Join the pieces of an answer."""
    pieces = list(pieces)
    calls = [(piece, list[str]()) for piece in pieces if isinstance(piece, CallStart)]
    for piece in pieces:
        if isinstance(piece, ArgumentsDelta):
            calls[piece.index][1].append(piece.text)
    return Assembled(
        text_of(pieces),
        reasoning_of(pieces),
        tuple(ToolCall(start.id, start.name, "".join(arguments)) for start, arguments in calls),
    )
