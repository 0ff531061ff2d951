"""Counters for Prometheus."""

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
class RequestTimer:
    """The times and the outcome of one request. Its state: the time of its first text, and its outcome."""

    started: float = field(default_factory=time.monotonic)
    first_text: float | None = None
    outcome: Outcome = "answered"

    def note_first_text(self) -> None:
        """Record the time of the first text. Later calls have no effect."""
        self.first_text = self.first_text or time.monotonic()


class Metrics:
    """The counters of one server. Its state: its own Prometheus registry, so that servers in one process do not mix."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self.registry = CollectorRegistry()
        self._requests = Counter("llmctl_requests", "Requests by outcome.", ["outcome"], registry=self.registry)
        self._first_token = Histogram(
            "llmctl_time_to_first_token_seconds",
            "Time from a request to its first text, including the wait.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._duration = Histogram(
            "llmctl_request_seconds", "Time from a request to its end.", buckets=_SECONDS, registry=self.registry
        )
        self._speed = Histogram(
            "llmctl_answer_tokens_per_second",
            "Tokens per second of one answer after its first token.",
            buckets=_SPEEDS,
            registry=self.registry,
        )

        self._drafted = Counter(
            "llmctl_drafted_tokens", "Tokens proposed by a draft model or prompt lookup.", registry=self.registry
        )
        self._accepted = Counter(
            "llmctl_accepted_tokens", "Proposed tokens that the model accepted.", registry=self.registry
        )

    def follow(self, worker: "Worker") -> None:
        """Report a worker's load in every scrape."""
        self.registry.register(_LoadCollector(worker))

    def count_refused(self) -> None:
        """Count a request that was not accepted."""
        self._requests.labels("refused").inc()

    def count_ended(self, timer: RequestTimer, completions: Sequence[Completion]) -> None:
        """Count a request that has ended."""
        self._requests.labels(timer.outcome).inc()
        if timer.first_text is not None:
            self._first_token.observe(timer.first_text - timer.started)
        if timer.outcome == "answered":
            self._duration.observe(time.monotonic() - timer.started)
        for completion in completions:
            if completion.tokens_per_second is not None:
                self._speed.observe(completion.tokens_per_second)
            if (stats := completion.decoding_stats) is not None:
                self._drafted.inc(stats.drafted_tokens or 0)
                self._accepted.inc(stats.accepted_tokens or 0)

    def text(self) -> tuple[bytes, str]:
        """Return Prometheus' text format and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class _LoadCollector:
    """Reads a worker's load for each scrape; prometheus_client calls `collect`.

    Its state: the time and the token count of the last scrape, from which it computes the speed since then.
    """

    def __init__(self, worker: "Worker") -> None:
        self._worker = worker
        self._last_scrape = time.monotonic(), 0

    def collect(self) -> "Iterable[Metric]":
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        load = self._worker.load()
        yield GaugeMetricFamily("llmctl_answers_waiting", "Answers in the queue.", load.waiting)
        yield GaugeMetricFamily("llmctl_answers_running", "Answers being generated.", load.running)
        yield GaugeMetricFamily("llmctl_kv_cache_usage_ratio", "Share of KV cache pages in use.", load.kv_usage)
        yield CounterMetricFamily("llmctl_prompt_tokens", "Prompt tokens computed.", load.prefilled_tokens)
        yield CounterMetricFamily("llmctl_generated_tokens", "Tokens generated.", load.generated_tokens)
        yield GaugeMetricFamily(
            "llmctl_tokens_per_second", "Tokens generated per second since the last scrape.", self._speed(load)
        )

    def _speed(self, load: "Load") -> float:
        (last_time, last_tokens), now = self._last_scrape, time.monotonic()
        self._last_scrape = now, load.generated_tokens
        return (load.generated_tokens - last_tokens) / max(now - last_time, 1e-3)
