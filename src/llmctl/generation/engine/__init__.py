"""The engine that answers many requests at once."""

from typing import TYPE_CHECKING

from llmctl.generation.engine.capacity import engine_size
from llmctl.generation.engine.engine import Engine, Event, Size
from llmctl.generation.engine.packable import why_not

if TYPE_CHECKING:
    from llmctl.loading.model import LoadedModel

__all__ = ["Engine", "Event", "Size", "engine_for", "engine_size"]


def engine_for(loaded: "LoadedModel") -> Engine | None:
    """An engine for a model, or None for an architecture whose attention cannot be packed."""
    return None if why_not(loaded) else Engine(loaded, engine_size(loaded))
