"""The thread that computes: it takes requests from a bounded queue, steps the engine, and hands on its events.

Requests are taken in order of arrival. Everything that touches the model happens in this one thread; everything that a
client waits for happens in the event loop, which is told of each step once.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmctl.errors import LlmctlError, MachineError
from llmctl.generation.completion import Completion
from llmctl.generation.engine import engine_for_many
from llmctl.generation.request import Request
from llmctl.server.http_errors import RequestError, error_of

if TYPE_CHECKING:
    from llmctl.loading.model import LoadedModel

_log = logging.getLogger("llmctl.serve")

End = Completion | Exception | None


@dataclass(eq=False)
class Ticket:
    """One answer that somebody waits for.

    Attributes:
        asked: The answers that are asked for together.
        index: Its place among them.
        request: What is generated.
        processors: Logits processors of this answer alone.
    """

    asked: "Asked"
    index: int
    request: Request
    processors: Sequence[Any] = ()


class Asked:
    """The answers that one client waits for. Its state: what has come of them and was not yet read.

    Args:
        deadline: When they are given up, on time.monotonic's clock.
    """

    def __init__(self, deadline: float) -> None:
        self.loop, self.deadline = asyncio.get_running_loop(), deadline
        self.tickets: list[Ticket] = []
        self._news: asyncio.Queue[tuple[int, str, End]] = asyncio.Queue()

    def put(self, index: int, text: str, end: End) -> None:
        """Called in the event loop."""
        self._news.put_nowait((index, text, end))

    async def pieces(self) -> AsyncIterator[list[tuple[int, str, Completion | None]]]:
        """What has come, by answer: its place, its new text, and its completion with the last piece.

        Raises:
            LlmctlError, RequestError: one of them failed.
        """
        left = len(self.tickets)
        while left:
            news = [await self._news.get()]
            while not self._news.empty():
                news.append(self._news.get_nowait())
            found: dict[int, tuple[str, Completion | None]] = {}
            for index, text, end in news:
                if isinstance(end, Exception):
                    raise end
                found[index] = found.get(index, ("", None))[0] + text, end
                left -= end is not None
            yield [(index, text, end) for index, (text, end) in found.items()]


@dataclass(frozen=True)
class Load:
    """How busy the worker is.

    Attributes:
        waiting: Answers that have not begun.
        running: Answers under way.
        kv_usage: Share of the paged KV cache that answers under way hold.
        generated_tokens: Since the start.
        prefilled_tokens: Since the start.
    """

    waiting: int
    running: int
    kv_usage: float
    generated_tokens: int
    prefilled_tokens: int


class Worker:
    """The thread, its queue and its engine.

    Args:
        loaded: What `load` returned.
        max_queue: So many answers may wait.
        max_sequences: So many at a time; without it as many as bring something.
    """

    def __init__(self, loaded: "LoadedModel", *, max_queue: int, max_sequences: int | None = None) -> None:
        self.loaded, self.max_queue = loaded, max_queue
        self._engine = engine_for_many(loaded, sequences=max_sequences)
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._gone: set[Ticket] = set()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._running: set[Ticket] = set()  # the thread's own
        self._ends = False
        self._thread = threading.Thread(target=self._run, name="llmctl-serve", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    # -- called in the event loop

    def submit(self, asking: Sequence[tuple[Request, Sequence[Any]]], *, seconds: float) -> Asked:
        """Queue the answers that one client asks for: all of them or none.

        Args:
            asking: What is to be generated, and logits processors of that answer alone.
            seconds: They are given up after so long.

        Raises:
            RequestError: 400 for what can never have room, 429 when too many wait, 503 when the server ends.
        """
        for request, _ in asking:
            self._check_fits(request)
        asked = Asked(time.monotonic() + seconds)
        asked.tickets += [Ticket(asked, n, request, processors) for n, (request, processors) in enumerate(asking)]
        with self._changed:
            if self._ends:
                raise RequestError("the server is going down", status=503, code="shutting_down")
            if self._waiting and len(self._waiting) + len(asked.tickets) > self.max_queue:
                raise _too_many(len(self._waiting), self._retry_seconds())
            self._waiting.extend(asked.tickets)
            self._changed.notify()
        return asked

    def cancel(self, asked: Asked) -> None:
        """Nobody waits for these any more; their places are free within a step. Those that have ended stay so."""
        with self._changed:
            self._gone.update(asked.tickets)
            self._changed.notify()

    async def call(self, work: Callable[[], Any]) -> Any:
        """What `work` gives, which needs the model: done in the thread, between two steps.

        Raises:
            RequestError: 429 when too many wait, 503 when the server ends.
            Exception: whatever it raises.
        """
        future: Future[Any] = Future()
        with self._changed:
            if self._ends:
                raise RequestError("the server is going down", status=503, code="shutting_down")
            if len(self._calls) >= self.max_queue:
                raise _too_many(len(self._calls), self._retry_seconds())
            self._calls.append((work, future))
            self._changed.notify()
        return await asyncio.wrap_future(future)

    def load(self) -> Load:
        """How busy it is now."""
        engine = self._engine
        return Load(
            waiting=len(self._waiting) + engine.waiting,
            running=engine.running,
            kv_usage=engine.kv_usage,
            generated_tokens=engine.generated_tokens,
            prefilled_tokens=engine.prefilled_tokens,
        )

    async def drain(self, seconds: float) -> None:
        """Take nothing more; wait for what is under way, so long at most; then end."""
        with self._changed:
            self._ends = True
            self._changed.notify()
        until = time.monotonic() + seconds
        while self._thread.is_alive() and time.monotonic() < until:
            await asyncio.sleep(0.05)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs and takes requests."""
        return self._thread.is_alive() and not self._ends

    def _check_fits(self, request: Request) -> None:
        tokens, room = len(request.ids) + request.budget, self._engine.token_limit(request)
        if room is not None and tokens > room:
            raise RequestError(
                f"prompt and answer may take {tokens} tokens, the server has room for {room}: lower max_tokens",
                param="max_tokens",
                code="context_length_exceeded",
            )

    def _retry_seconds(self) -> int:
        """When there may be room: a guess."""
        return max(1, min(60, len(self._waiting) // 8))

    # -- the thread

    def _run(self) -> None:
        while True:
            try:
                if not self._take_in():
                    return
                self._give_out(self._step())
            except LlmctlError as error:
                self._fail_all(error)
            except Exception as error:  # noqa: BLE001 (a bug must not take those down that come after it)
                _log.exception("a bug while generating")
                self._fail_all(error_of(error))

    def _take_in(self) -> bool:
        """Wait for something to do; let those in that have room. False when all is over."""
        with self._changed:
            while not (self._waiting or self._gone or self._calls or self._running):
                if self._ends:
                    return False
                self._changed.wait()
            gone, self._gone = self._gone, set()
            now = time.monotonic()
            late = {t for t in (*self._waiting, *self._running) if t.asked.deadline < now}
            if gone or late:
                self._waiting = deque(t for t in self._waiting if t not in gone and t not in late)
        for ticket in gone:
            self._leave(ticket)
        for ticket in late:
            self._leave(ticket)
            error = RequestError("the answer was not complete in time", status=503, code="deadline_exceeded")
            self._give_out([(ticket, "", error)])
        self._answer_calls()
        self._admit()
        return True

    def _answer_calls(self) -> None:
        """One of those that wait, so that answers under way go on in between."""
        if not self._calls:
            return
        work, future = self._calls.popleft()
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001 (it is raised where it is waited for)
            future.set_exception(error)

    def _admit(self) -> None:
        while self._engine.has_room:
            with self._changed:
                if not self._waiting:
                    return
                ticket = self._waiting.popleft()
            try:
                self._engine.add(ticket, ticket.request, ticket.processors)
                self._running.add(ticket)
            except LlmctlError as error:
                self._give_out([(ticket, "", error)])
            except Exception as error:  # noqa: BLE001 (it is this request's alone)
                _log.exception("a bug at the beginning of an answer")
                self._give_out([(ticket, "", error_of(error))])

    def _leave(self, ticket: Ticket) -> None:
        if ticket in self._running:
            self._running.remove(ticket)
            self._engine.cancel(ticket)

    def _step(self) -> Iterator[tuple[Ticket, str, End]]:
        """Yield the news of the engine's next pass."""
        if not self._running:
            return
        for event in self._engine.step():
            if event.end is not None:
                self._running.remove(event.key)
            yield event.key, event.text, event.end

    def _give_out(self, news: Iterable[tuple[Ticket, str, End]]) -> None:
        """Tell the event loop, once for all of a step."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, str, End]]] = {}
        for ticket, text, end in news:
            by_loop.setdefault(ticket.asked.loop, []).append((ticket, text, end))
        for loop, found in by_loop.items():
            with suppress(RuntimeError):  # it was closed: nobody listens
                loop.call_soon_threadsafe(_put_all, found)

    def _fail_all(self, error: Exception) -> None:
        """What is under way cannot go on: memory ran out, or a bug. Those that wait get their turn."""
        if isinstance(error, MachineError):  # it is about this machine, and for who runs it
            _log.warning("%s", error.message)
            error = RequestError(
                "memory ran out while this was answered: try again later, or with fewer tokens",
                status=503,
                code="out_of_memory",
                headers={"Retry-After": "1"},
            )
        tickets = list(self._running)
        self._running.clear()
        self._engine.drop_all()
        self._give_out([(ticket, "", error) for ticket in tickets])


def _too_many(waiting: int, retry_seconds: int) -> RequestError:
    return RequestError(
        f"{waiting} requests wait already; try again later",
        status=429,
        code="queue_full",
        headers={"Retry-After": str(retry_seconds)},
    )


def _put_all(found: list[tuple[Ticket, str, End]]) -> None:
    for ticket, text, end in found:
        ticket.asked.put(ticket.index, text, end)
