"""Answers that clients wait for, passed from the worker's thread to the event loop."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from llmctl.generation.completion import Completion
from llmctl.generation.pieces import Piece, join_text
from llmctl.generation.request import Request

End = Completion | Exception | None


@dataclass(eq=False)
class PendingAnswer:
    """One answer that a client waits for.

    Attributes:
        response: The response that it belongs to.
        index: Its position in the response.
        request: The request to generate.
        processors: Logits processors for this answer only.
    """

    response: "PendingResponse"
    index: int
    request: Request
    processors: Sequence[Any] = ()


Update = tuple[PendingAnswer, tuple[Piece, ...], End]


@dataclass(frozen=True)
class AnswerUpdate:
    """New pieces of an answer; the last update has the completion."""

    index: int
    pieces: tuple[Piece, ...]
    completion: Completion | None


class PendingResponse:
    """All answers that one client waits for. Its state: updates that have not been read yet.

    Args:
        requests: Each request with its own logits processors.
        deadline: The time limit, as a value of time.monotonic.
    """

    def __init__(self, requests: Iterable[tuple[Request, Sequence[Any]]], deadline: float) -> None:
        self.loop, self.deadline = asyncio.get_running_loop(), deadline
        self.answers = [PendingAnswer(self, index, *request) for index, request in enumerate(requests)]
        self._updates: asyncio.Queue[tuple[int, tuple[Piece, ...], End]] = asyncio.Queue()

    def put(self, index: int, pieces: tuple[Piece, ...], end: End) -> None:
        """Add an update. Call it in the event loop."""
        self._updates.put_nowait((index, pieces, end))

    async def updates(self) -> AsyncIterator[list[AnswerUpdate]]:
        """Yield lists of all new updates, with at most one per answer.

        Raises:
            LlmctlError, RequestError: one of the answers failed.
        """
        remaining = len(self.answers)
        while remaining:
            updates = [await self._updates.get()]
            while not self._updates.empty():
                updates.append(self._updates.get_nowait())
            merged: dict[int, AnswerUpdate] = {}
            for index, pieces, end in updates:
                if isinstance(end, Exception):
                    raise end
                earlier = merged[index].pieces if index in merged else ()
                merged[index] = AnswerUpdate(index, join_text((*earlier, *pieces)), end)
                remaining -= end is not None
            yield list(merged.values())


def publish(updates: Iterable[Update]) -> None:
    """Pass updates from the worker's thread to the event loops, with one call per loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Update]] = {}
    for update in updates:
        by_loop.setdefault(update[0].response.loop, []).append(update)
    for loop, loop_updates in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed, so nobody waits
            loop.call_soon_threadsafe(_put_all, loop_updates)


def _put_all(updates: list[Update]) -> None:
    for answer, pieces, end in updates:
        answer.response.put(answer.index, pieces, end)
