"""HTTP routes: one module per route or group of routes.

Each module defines `add_routes(app, registry)` and, for paths that need no API key, `OPEN_PATHS`. To add a route, add a
module to this package; it is found automatically.
"""

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI

    from llmctl.server.registry import ModelRegistry

# The order in the OpenAPI document. Other modules follow in alphabetical order.
_ORDER = ("chat", "completions", "responses", "tokenizer", "models", "defaults", "metrics", "health", "page")


def add_routes(app: "FastAPI", registry: "ModelRegistry") -> None:
    """Add every route of this package to an app."""
    for module in _modules():
        module.add_routes(app, registry)


def open_paths() -> frozenset[str]:
    """Return the paths that need no API key."""
    return frozenset(path for module in _modules() for path in getattr(module, "OPEN_PATHS", ()))


def _modules() -> Iterator[Any]:
    names = {module.name for module in iter_modules(__path__)}
    for name in (*_ORDER, *sorted(names.difference(_ORDER))):
        yield import_module(f"{__name__}.{name}")
