"""The engine answers every request, packed with others or alone."""

from dataclasses import replace
from typing import TYPE_CHECKING

from llmctl.generation.conversation_cache import ConversationCache
from llmctl.generation.engine.capacity import EngineCapacity, engine_capacity
from llmctl.generation.engine.engine import Engine
from llmctl.generation.engine.packed_modules import page_tokens

if TYPE_CHECKING:
    from llmctl.generation.request import Request
    from llmctl.loading.model import LoadedModel

__all__ = ["Engine", "EngineCapacity", "engine_for_chat", "engine_for_many", "engine_for_one"]


def engine_for_many(loaded: "LoadedModel", *, sequences: int | None = None) -> Engine:
    """Return an engine for concurrent requests.

    Args:
        sequences: Maximum concurrent sequences; by default, the number that still improves throughput.
    """
    return Engine(loaded, engine_capacity(loaded, sequences=sequences))


def engine_for_one(loaded: "LoadedModel", request: "Request") -> Engine:
    """Return an engine whose KV cache is large enough for one request."""
    tokens = len(request.prompt) + request.budget + page_tokens(loaded.model)
    return Engine(loaded, replace(engine_capacity(loaded, sequences=1), kv_tokens=tokens), single=True)


def engine_for_chat(loaded: "LoadedModel") -> Engine:
    """Return an engine for the turns of one conversation, which keeps the keys and values of earlier turns."""
    return Engine(loaded, engine_capacity(loaded, sequences=1), single=True, cache=ConversationCache())
