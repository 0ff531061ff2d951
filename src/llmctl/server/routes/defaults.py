"""`GET /defaults`: the settings of a request that sets none, and the context length. The page shows them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI

    from llmctl.server.registry import ModelRegistry

_SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}  # values without effect


def add_routes(app: "FastAPI", registry: "ModelRegistry") -> None:
    """Add the route."""
    document = defaults(registry)

    @app.get("/defaults")
    async def server_defaults() -> dict[str, Any]:
        return document


def defaults(registry: "ModelRegistry") -> dict[str, Any]:
    """Return the settings by their names in a chat request. Greedy decoding is the temperature 0, without the others.

    A client can read the system prompt with /tokenize and /detokenize, too, so it is not hidden here.
    """
    loaded = registry.loaded
    arguments = loaded.plan.generation_kwargs
    if arguments.get("do_sample"):
        sampling = {name: arguments.get(name, value) for name, value in _SAMPLING.items()}
    else:
        sampling = {"temperature": 0, **dict.fromkeys(("top_p", "top_k", "min_p"))}
    return {
        "model": registry.name,
        "max_model_len": loaded.context_length,
        "system": loaded.config.chat.system,
        "max_tokens": loaded.config.generation.max_new_tokens,
        "seed": loaded.plan.seed,
        **sampling,
    }
