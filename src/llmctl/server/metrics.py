"""What Prometheus can ask for at /metrics."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from llmctl.generation.completion import Completion

if TYPE_CHECKING:
    from prometheus_client import Metric

    from llmctl.server.worker import Load, Worker

Outcome = Literal["answered", "cancelled", "failed", "refused"]
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_SPEEDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass
class Watch:
    """One request on its way. Its state: when it began and when its first text came."""

    begun: float = field(default_factory=time.monotonic)
    first: float | None = None
    outcome: Outcome = "answered"

    def text_came(self) -> None:
        """There is text; only the first time counts."""
        self.first = self.first or time.monotonic()


class Metrics:
    """Counts of one server. Its state: a registry of its own, so that several servers in a process do not mix."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self.registry = CollectorRegistry()
        self._requests = Counter(
            "llmctl_requests", "Requests, by what became of them.", ["outcome"], registry=self.registry
        )
        self._first = Histogram(
            "llmctl_time_to_first_token_seconds",
            "From a request to its first text, waiting included.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._whole = Histogram(
            "llmctl_request_seconds", "From a request to its end.", buckets=_SECONDS, registry=self.registry
        )
        self._speed = Histogram(
            "llmctl_answer_tokens_per_second",
            "Tokens per second of one answer after its first token.",
            buckets=_SPEEDS,
            registry=self.registry,
        )

    def follow(self, worker: "Worker") -> None:
        """Ask a worker how busy it is whenever somebody asks for the metrics."""
        self.registry.register(_OfLoad(worker))

    def refused(self) -> None:
        """A request was not taken."""
        self._requests.labels("refused").inc()

    def ended(self, watch: Watch, completions: Sequence[Completion]) -> None:
        """A request has its answers, or will have none."""
        self._requests.labels(watch.outcome).inc()
        if watch.first is not None:
            self._first.observe(watch.first - watch.begun)
        if watch.outcome == "answered":
            self._whole.observe(time.monotonic() - watch.begun)
        for completion in completions:
            if completion.tokens_per_second is not None:
                self._speed.observe(completion.tokens_per_second)

    def text(self) -> tuple[bytes, str]:
        """The document and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class _OfLoad:
    """Reads a worker's load when it is asked. prometheus_client calls `collect`.

    Its state: the tokens at the last time it was asked, for the speed since then.
    """

    def __init__(self, worker: "Worker") -> None:
        self._worker = worker
        self._before = time.monotonic(), 0

    def collect(self) -> "Iterable[Metric]":
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        load = self._worker.load()
        yield GaugeMetricFamily("llmctl_answers_waiting", "Answers that have not begun.", load.waiting)
        yield GaugeMetricFamily("llmctl_answers_running", "Answers under way.", load.running)
        yield GaugeMetricFamily("llmctl_kv_cache_usage_ratio", "Pages that answers under way hold.", load.pages_used)
        yield CounterMetricFamily("llmctl_prompt_tokens", "Computed for prompts.", load.prefilled_tokens)
        yield CounterMetricFamily("llmctl_generated_tokens", "Generated.", load.generated_tokens)
        yield GaugeMetricFamily("llmctl_tokens_per_second", "Generated since this was last asked.", self._speed(load))

    def _speed(self, load: "Load") -> float:
        (then, tokens), now = self._before, time.monotonic()
        self._before = now, load.generated_tokens
        return (load.generated_tokens - tokens) / max(now - then, 1e-3)
