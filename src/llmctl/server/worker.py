"""The worker thread: it takes requests from a bounded queue, steps the engine, and publishes the engine's events.

Requests are taken in order of arrival. Only this thread uses the model. Clients wait in the event loop, which the
thread calls once per step.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmctl.errors import LlmctlError, MachineError
from llmctl.generation.engine import engine_for_many
from llmctl.generation.request import Request
from llmctl.server.http_errors import RequestError, to_request_error
from llmctl.server.pending import PendingAnswer, PendingResponse, Update, publish

if TYPE_CHECKING:
    from llmctl.loading.model import LoadedModel

_log = logging.getLogger("llmctl.serve")


@dataclass(frozen=True)
class Load:
    """The load of a worker.

    Attributes:
        waiting: Answers in the queue.
        running: Answers being generated.
        kv_usage: Fraction of the paged KV cache in use.
        generated_tokens: Tokens generated since the start.
        prefilled_tokens: Prompt tokens processed since the start.
    """

    waiting: int
    running: int
    kv_usage: float
    generated_tokens: int
    prefilled_tokens: int


class Worker:
    """The thread, its queue and its engine.

    Args:
        loaded: The model.
        max_queue: Maximum number of waiting answers.
        max_sequences: Maximum concurrent sequences; by default, the number that still improves throughput.
    """

    def __init__(self, loaded: "LoadedModel", *, max_queue: int, max_sequences: int | None = None) -> None:
        self.loaded, self.max_queue = loaded, max_queue
        self._engine = engine_for_many(loaded, sequences=max_sequences)
        self._changed = threading.Condition()
        self._queue: deque[PendingAnswer] = deque()
        self._cancelled: set[PendingAnswer] = set()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._running: set[PendingAnswer] = set()  # used by the thread alone
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="llmctl-serve", daemon=True)

    def start(self) -> None:
        self._thread.start()

    # -- called in the event loop

    def submit(self, requests: Sequence[tuple[Request, Sequence[Any]]], *, seconds: float) -> PendingResponse:
        """Queue all requests of one client, or none.

        Args:
            requests: Each request with its own logits processors.
            seconds: Time limit.

        Raises:
            RequestError: 400 if a request is too long for the KV cache, 429 if the queue is full, 503 if the server is
                shutting down.
        """
        for request, _ in requests:
            self._check_fits(request)
        pending = PendingResponse(requests, time.monotonic() + seconds)
        with self._changed:
            self._check_accepts()
            if self._queue and len(self._queue) + len(pending.answers) > self.max_queue:
                raise _queue_full(len(self._queue))
            self._queue.extend(pending.answers)
            self._changed.notify()
        return pending

    def cancel(self, pending: PendingResponse) -> None:
        """Cancel unfinished answers. Their memory is free after the next step."""
        with self._changed:
            self._cancelled.update(pending.answers)
            self._changed.notify()

    async def call(self, work: Callable[[], Any]) -> Any:
        """Run a function that needs the model in the thread, between two steps. Return its result.

        Raises:
            RequestError: 429 if the queue is full, 503 if the server is shutting down.
            Exception: any exception that `work` raises.
        """
        future: Future[Any] = Future()
        with self._changed:
            self._check_accepts()
            if len(self._calls) >= self.max_queue:
                raise _queue_full(len(self._calls))
            self._calls.append((work, future))
            self._changed.notify()
        return await asyncio.wrap_future(future)

    def load(self) -> Load:
        """Return the current load of the worker."""
        engine = self._engine
        return Load(
            waiting=len(self._queue) + engine.waiting,
            running=engine.running,
            kv_usage=engine.kv_usage,
            generated_tokens=engine.generated_tokens,
            prefilled_tokens=engine.prefilled_tokens,
        )

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, and wait at most `seconds` for running ones."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        deadline = time.monotonic() + seconds
        while self._thread.is_alive() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    @property
    def is_alive(self) -> bool:
        """True if the thread runs and accepts requests."""
        return self._thread.is_alive() and not self._is_stopping

    def _check_fits(self, request: Request) -> None:
        tokens, limit = len(request.prompt) + request.budget, self._engine.token_limit(request)
        if limit is not None and tokens > limit:
            raise RequestError(
                f"prompt and answer need up to {tokens} tokens, but the server has room for {limit}: lower max_tokens",
                param="max_tokens",
                code="context_length_exceeded",
            )

    def _check_accepts(self) -> None:
        if self._is_stopping:
            raise RequestError("the server is shutting down", status=503, code="shutting_down")

    # -- the thread

    def _run(self) -> None:
        while True:
            failure: Exception | None = None
            try:
                if not self._take_work():
                    return
                publish(self._step())
            except MachineError as error:
                _log.warning("%s", error.message)  # its message is for the operator
                failure = _out_of_memory()
            except LlmctlError as error:
                failure = error
            except Exception as error:  # noqa: BLE001 (a bug must not affect later requests)
                _log.exception("a bug while generating")
                failure = to_request_error(error)
            if failure is not None:  # outside of the except clauses: a traceback holds the tensors of the pass
                self._fail_running(failure)

    def _take_work(self) -> bool:
        """Wait for work, then start queued answers while there is room. Return False once the server has drained."""
        with self._changed:
            while not (self._queue or self._cancelled or self._calls or self._running):
                if self._is_stopping:
                    return False
                self._changed.wait()
            cancelled, self._cancelled = self._cancelled, set()
            now = time.monotonic()
            late = {answer for answer in (*self._queue, *self._running) if answer.response.deadline < now}
            if dropped := cancelled | late:
                self._queue = deque(answer for answer in self._queue if answer not in dropped)
        for answer in dropped & self._running:
            self._running.remove(answer)
            self._engine.cancel(answer)
        error = RequestError("the answer was not complete in time", status=503, code="deadline_exceeded")
        publish((answer, (), error) for answer in late - cancelled)
        self._run_one_call()
        self._start_queued()
        return True

    def _run_one_call(self) -> None:
        """Run at most one waiting call, so that running answers continue between calls."""
        if not self._calls:
            return
        work, future = self._calls.popleft()
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001 (it is raised in `call`)
            future.set_exception(error)

    def _start_queued(self) -> None:
        while self._engine.has_room:
            with self._changed:
                if not self._queue:
                    return
                answer = self._queue.popleft()
            try:
                self._engine.add(answer, answer.request, answer.processors)
                self._running.add(answer)
            except LlmctlError as error:
                publish([(answer, (), error)])
            except Exception as error:  # noqa: BLE001 (it must not affect other requests)
                _log.exception("a bug at the start of an answer")
                publish([(answer, (), to_request_error(error))])

    def _step(self) -> Iterator[Update]:
        """Yield the updates of the engine's next pass."""
        if not self._running:
            return
        for event in self._engine.step():
            if event.end is not None:
                self._running.remove(event.key)
            yield event.key, event.pieces, event.end

    def _fail_running(self, error: Exception) -> None:
        """Fail all running answers after an out-of-memory error or a bug. Queued answers are still served."""
        failed = list(self._running)
        self._running.clear()
        self._engine.recover()
        publish((answer, (), error) for answer in failed)


def _out_of_memory() -> RequestError:
    return RequestError(
        "the server ran out of memory: try again later, or with fewer tokens",
        status=503,
        code="out_of_memory",
        headers={"Retry-After": "1"},
    )


def _queue_full(waiting: int) -> RequestError:
    retry_seconds = max(1, min(60, waiting // 8))  # a guess
    return RequestError(
        f"{waiting} requests are waiting already; try again later",
        status=429,
        code="queue_full",
        headers={"Retry-After": str(retry_seconds)},
    )
