"""One interface for all requests: those that can be packed run together, the others alone, in order of arrival."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from llmctl.cpu.program import compiled
from llmctl.errors import LlmctlError, UserError
from llmctl.generation.completion import Completion, Event
from llmctl.generation.conversation_cache import ConversationCache
from llmctl.generation.engine.capacity import EngineCapacity
from llmctl.generation.engine.decode_graphs import DecodeGraphs
from llmctl.generation.engine.packable import is_packable, why_not_packed
from llmctl.generation.engine.packed import PackedRunner
from llmctl.generation.engine.packed_modules import has_recurrent_state
from llmctl.generation.engine.sampler import PACKABLE_ARGUMENTS
from llmctl.generation.engine.sequence import SequenceState
from llmctl.generation.engine.solo import SoloRun
from llmctl.generation.request import Request
from llmctl.gpu.graphs import GraphRecorder, is_on_gpu, recorder_for
from llmctl.loading.device_memory import is_out_of_memory
from llmctl.plan.memory_advice import out_of_memory_error

if TYPE_CHECKING:
    from llmctl.loading.model import LoadedModel


class Engine:
    """Generates answers. Its state: the queue of requests, the packed sequences, and the request that runs alone.

    Requests start in order of arrival. A request that cannot be packed (beams, a draft, prompt lookup, another KV cache
    implementation, an architecture whose attention cannot be packed) starts when all earlier requests have ended, and
    later requests wait until it has ended.

    Args:
        single: Expect one request at a time. A model that is compiled to a program uses it, one with a recurrent state
            is packed because the next turn can then continue from a checkpoint of that state, and one on a GPU because
            its steps are then recorded as graphs. Any other model gains nothing from packing one sequence and uses
            `model.generate`, except for prompts with images.
        cache: Keeps keys and values between requests that run alone.
        recorder_for: Returns what records decode steps of a model as graphs; None to run all steps without.
    """

    def __init__(
        self,
        loaded: "LoadedModel",
        capacity: EngineCapacity,
        *,
        single: bool = False,
        cache: ConversationCache | None = None,
        recorder_for: Callable[[Any], GraphRecorder | None] = recorder_for,
    ) -> None:
        self.loaded, self.capacity = loaded, capacity
        self._cache, self._recorder_for = cache, recorder_for
        self._packs_text = not single or _gains_alone(loaded)
        self._packed = self._runner() if self._packs_text and _packs(loaded) else None
        self._solo: SoloRun | None = None
        self._waiting: deque[SequenceState | SoloRun] = deque()
        self._refused: list[Event] = []
        self._ran_out = False  # of memory, in the last step
        self._solo_prefilled = self._solo_generated = 0

    def run(self, requests: Iterable[tuple[Any, Request]]) -> Iterator[tuple[Any, Completion | LlmctlError]]:
        """Yield answers in the order in which they finish. Requests are read as capacity becomes free.

        Closing the iterator drops unfinished requests.
        """
        source = iter(requests)
        try:
            while True:
                while self.has_room and (item := next(source, None)) is not None:
                    self.add(*item)
                if not self.is_busy:
                    return
                for event in self.step():
                    if event.end is not None:
                        yield event.key, event.end
        finally:
            self.recover()

    # -- the load

    @property
    def is_busy(self) -> bool:
        """True if any request is waiting or running."""
        return bool(self.waiting or self.running or self._refused)

    @property
    def has_room(self) -> bool:
        """True if another request would start soon: there is capacity, and no request runs alone."""
        alone = self._solo is not None or any(isinstance(one, SoloRun) for one in self._waiting)
        return not alone and self.waiting + self.running < self.capacity.sequences

    @property
    def waiting(self) -> int:
        """Number of requests that have not started or were preempted."""
        return len(self._waiting) + (len(self._packed.waiting) if self._packed else 0)

    @property
    def running(self) -> int:
        """Number of running requests."""
        return (self._solo is not None) + (len(self._packed.running) if self._packed else 0)

    @property
    def prefilled_tokens(self) -> int:
        """Prompt tokens computed so far, without those taken from the prefix cache."""
        return self._solo_prefilled + (self._packed.prefilled_tokens if self._packed else 0)

    @property
    def generated_tokens(self) -> int:
        """Tokens generated so far."""
        return self._solo_generated + (self._packed.generated_tokens if self._packed else 0)

    @property
    def kv_usage(self) -> float:
        """Share of the paged KV cache that running sequences hold."""
        pages = self._packed.prefix_cache if self._packed else None
        return 1 - pages.free / pages.count if pages else 0.0

    @property
    def graphs(self) -> DecodeGraphs | None:
        """The recorded decode steps; None where steps are not recorded."""
        return self._packed.graphs if self._packed else None

    @property
    def kv_tokens(self) -> int:
        """Tokens that the paged KV cache has room for now; 0 without one."""
        return self._packed.kv_tokens if self._packed else 0

    def token_limit(self, request: Request, *, now: bool = False) -> int | None:
        """Return the maximum tokens of prompt and answer that fit in the KV cache; None if there is no limit.

        Args:
            now: In its present size, which is less than the planned one after memory ran out.
        """
        if self._packed is None or not self._is_packed(request):
            return None
        return self._packed.kv_tokens if now else self._packed.max_sequence_tokens

    # -- requests

    def add(self, key: Any, request: Request, processors: Sequence[Any] = ()) -> None:
        """Queue a request. One whose images cannot be used ends with its error in the next step.

        Args:
            processors: Logits processors for this answer only, applied after those of its structure.
        """
        try:
            self._waiting.append(self._start(key, request, processors))
        except LlmctlError as error:
            self._refused.append(Event(key, end=error))

    def _runner(self) -> PackedRunner:
        return PackedRunner(self.loaded, self.capacity, recorder=self._recorder_for(self.loaded.model))

    def _start(self, key: Any, request: Request, processors: Sequence[Any]) -> SequenceState | SoloRun:
        """Return the run of a request. Raise LlmctlError if its images cannot be used."""
        if request.prompt.media and self._packed is None and not self._packs_text and _packs(self.loaded):
            self._packed = self._runner()
        if self._packed is not None and self._is_packed(request):
            return self._packed.sequence(key, request, processors)
        if request.prompt.media:
            reason = why_not_packed(self.loaded) if self.loaded.draft is None else "it has a draft model"
            raise UserError(
                f"this request cannot have images: {reason or 'one of its settings needs model.generate'}",
                hint="beam search, drafts, prompt lookup and other KV caches take no images",
            )
        return SoloRun(key, self.loaded, request, processors, cache=self._cache)

    def cancel(self, key: Any) -> None:
        """Drop a request. A running one stops within one token."""
        self._waiting = deque(one for one in self._waiting if one.key != key)
        self._refused = [event for event in self._refused if event.key != key]
        if self._packed is not None:
            self._packed.cancel(key)
        if self._solo is not None and self._solo.key == key:
            self._drop_solo()

    def drop_all(self) -> None:
        """Drop every request; the prefix cache is kept."""
        self._waiting.clear()
        self._refused.clear()
        if self._packed is not None:
            self._packed.drop_all()
        self._drop_solo()

    def forget(self) -> None:
        """Drop every request and all cached keys and values."""
        self.drop_all()
        if self._packed is not None:
            self._packed.forget()
        if self._cache is not None:
            self._cache.forget()

    def recover(self) -> None:
        """Drop every request; if memory ran out in the last step, halve the paged KV cache.

        After an error, call it outside of the except clause if the engine goes on: the exception holds the tensors of
        the pass.
        """
        ran_out, self._ran_out = self._ran_out, False
        if ran_out and self._packed is not None:
            self._packed.shrink()  # before the requests are dropped: that may copy states
        self.drop_all()

    def step(self) -> list[Event]:
        """Run one pass of the model and return its events.

        Raises:
            MachineError: memory ran out.
            Exception: any error; then the caller must call `recover`.
        """
        self._admit()
        refused, self._refused = self._refused, []
        try:
            if self._solo is not None:
                return refused + self._step_solo(self._solo)
            return refused + (self._packed.step() if self._packed is not None else [])
        except Exception as error:
            # the cause: what encodes images translates its errors itself
            self._ran_out = any(map(is_out_of_memory, filter(None, (error, error.__cause__))))
            _raise_if_out_of_memory(error, self.loaded)
            raise

    def _is_packed(self, request: Request) -> bool:
        if self._packed is None or not request.arguments.keys() <= PACKABLE_ARGUMENTS:
            return False
        if not self._packs_text and not request.prompt.media:
            return False
        return self._packed.takes(request)

    def _admit(self) -> None:
        """Start waiting requests in order, up to the first that must wait because a request runs alone."""
        while self._waiting and self._solo is None:
            first = self._waiting[0]
            if isinstance(first, SoloRun):
                if self._packed is not None and self._packed.is_busy:
                    return
                self._solo = first
                first.start()
            elif self._packed is not None:
                self._packed.waiting.append(first)
            self._waiting.popleft()

    def _step_solo(self, solo: SoloRun) -> list[Event]:
        step = solo.next_step()
        self._solo_prefilled += step.prefilled
        self._solo_generated += step.generated
        if step.failure is not None or step.end is not None:
            self._solo = None
        if step.failure is not None:
            raise step.failure
        return [Event(solo.key, step.pieces, step.end)] if step.pieces or step.end is not None else []

    def _drop_solo(self) -> None:
        if self._solo is not None:
            self._solo.cancel()
            self._solo = None


def _gains_alone(loaded: "LoadedModel") -> bool:
    """Return True if packing speeds up a model even with a single sequence."""
    return is_on_gpu(loaded.model) or compiled(loaded.model) is not None or has_recurrent_state(loaded.model)


def _packs(loaded: "LoadedModel") -> bool:
    """Return True if the engine packs the requests of this model."""
    if loaded.draft is not None:
        return False
    try:
        return is_packable(loaded)
    except Exception as error:
        _raise_if_out_of_memory(error, loaded)
        raise


def _raise_if_out_of_memory(error: Exception, loaded: "LoadedModel") -> None:
    """Raise MachineError with the plan and advice if `error` means that memory ran out."""
    if is_out_of_memory(error):
        raise out_of_memory_error(
            loaded.plan, loaded.info, loaded.machine, loaded.config, doing="generating with"
        ) from error
