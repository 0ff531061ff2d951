"""The effect of faster decoding on one answer, measured while it is generated."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmctl.generation.completion import DecodingStats
from llmctl.generation.request import Request
from llmctl.plan.cache_memory import kv_cache_bytes
from llmctl.transformers_compat import cache_of

if TYPE_CHECKING:
    from llmctl.loading.model import LoadedModel


class DecodingMeter:
    """Measures one answer of `model.generate`. Its state: passes, drafted tokens, the cache, and compilation time.

    Args:
        prefilled_tokens: Tokens of the prompt that the first pass computes.
    """

    def __init__(self, loaded: "LoadedModel", request: Request, *, prefilled_tokens: int) -> None:
        self._loaded = loaded
        self._proposing = "prompt_lookup_num_tokens" in request.arguments or loaded.draft is not None
        self._compiling = "compile_config" in request.arguments
        self._caching = "cache_implementation" in request.arguments
        self._expected = prefilled_tokens
        self._passes = self._drafted = 0
        self._cache: Any = None
        self._compile_seconds = self._compile_started = 0.0

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Measure the forward passes of this thread until the block ends."""
        if not (self._proposing or self._caching):
            yield
            return
        self._thread = threading.get_ident()
        self._hook = self._loaded.model.register_forward_pre_hook(self._before_pass, with_kwargs=True)
        try:
            with self._timing_compilation():
                yield
        finally:
            self._hook.remove()

    def _before_pass(self, _module: Any, _args: Any, inputs: dict[str, Any]) -> None:
        if not self._compiling and threading.get_ident() != self._thread:  # a server may score a text at the same time
            return
        self._cache = cache_of(inputs)
        tokens = inputs["input_ids"].shape[1]
        self._drafted += tokens - (1 if self._passes else self._expected)
        self._passes += 1
        if self._compiling:  # the first pass is not compiled; no Python hook may run in the others
            self._hook.remove()

    @contextmanager
    def _timing_compilation(self) -> Iterator[None]:
        """Add up the time that torch spends compiling."""
        if not self._compiling:
            yield
            return
        from torch._dynamo.callback import callback_handler

        callback_handler.register_start_callback(self._compiling_starts)
        callback_handler.register_end_callback(self._compiling_ends)
        try:
            yield
        finally:
            callback_handler.remove_start_callback(self._compiling_starts)
            callback_handler.remove_end_callback(self._compiling_ends)

    def _compiling_starts(self, _: Any) -> None:
        self._compile_started = time.perf_counter()

    def _compiling_ends(self, _: Any) -> None:
        self._compile_seconds += time.perf_counter() - self._compile_started

    def stats(self, token_count: int) -> DecodingStats | None:
        """Return the statistics of an answer of `token_count` tokens; None if no faster decoding was requested."""
        if not (self._proposing or self._caching):
            return None
        stats: dict[str, Any] = {}
        if self._proposing:
            accepted = max(token_count - self._passes, 0)
            stats = {"forward_passes": self._passes, "drafted_tokens": self._drafted, "accepted_tokens": accepted}
        if self._caching and self._cache is not None:
            plan, info = self._loaded.plan, self._loaded.info
            length, dtype = int(self._cache.get_seq_length()), plan.model_kwargs["dtype"]
            stats["cache_bytes"] = cache_bytes(self._cache)
            stats["dynamic_cache_bytes"] = kv_cache_bytes(info, context=length, dtype=dtype)
        if self._compiling:
            stats["compile_seconds"] = self._compile_seconds
        return DecodingStats(**stats)


def cache_bytes(cache: Any) -> int:
    """Return the size of a KV cache in memory, however its layers store their tensors."""
    import torch

    seen: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            inner = [getattr(value, name) for name in getattr(value, "__tensor_flatten__", lambda: ([], None))()[0]]
            if inner:
                visit(inner)
            elif value.numel():
                seen[value.data_ptr()] = max(seen.get(value.data_ptr(), 0), value.numel() * value.element_size())
        elif isinstance(value, list | tuple):
            for part in value:
                visit(part)
        elif isinstance(value, dict):
            visit(list(value.values()))

    for layer in cache.layers:
        visit(vars(layer))
    return sum(seen.values())
