"""The import of transformers without parts that a single process does not need: they take a third of a cold start.

There are two of them. transformers imports torch.distributed.tensor for models spread over several processes, unless
torch was built without it. It also decorates a few functions for torch.compile, which imports torch._dynamo and sympy.
Here a stand-in provides these decorators, and the real module is imported when a function is compiled.
`LLMCTL_PLAIN_IMPORTS=1` turns this module off. peft is hidden separately; see `transformers_compat.without_peft`.
"""

import functools
import gc
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from llmctl.transformers_compat import hide_distributed

_DYNAMO = "torch._dynamo"
_MASKS = "torch._dynamo._trace_wrapped_higher_order_op"


@contextmanager
def lean_imports() -> Iterator[None]:
    """Import transformers without torch.distributed and torch._dynamo inside the block; torch is unchanged after it."""
    if os.environ.get("LLMCTL_PLAIN_IMPORTS") or _DYNAMO in sys.modules:
        yield
        return
    with _without_garbage_collection():
        import torch

        hide_distributed()
        stand_in = _Dynamo()
        sys.modules[_DYNAMO] = stand_in
        sys.modules[_MASKS] = stand_in.masks
        torch.__dict__["_dynamo"] = stand_in
        try:
            yield
        finally:
            stand_in.uninstall()


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Switch the garbage collector off: modules live as long as the process, so scanning them finds nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
            gc.freeze()


class _Dynamo(ModuleType):
    """A stand-in for torch._dynamo. Access to any other attribute replaces it with the real module."""

    def __init__(self) -> None:
        super().__init__(_DYNAMO)
        self.__path__: list[str] = []
        self.masks = ModuleType(_MASKS)
        vars(self.masks)["TransformGetItemToIndex"] = self._real_masks

    def uninstall(self) -> None:
        """Remove the stand-in; the real module is imported on first use."""
        import torch

        for name, module in ((_DYNAMO, self), (_MASKS, self.masks)):
            if sys.modules.get(name) is module:
                del sys.modules[name]
        if torch.__dict__.get("_dynamo") is self:
            del torch.__dict__["_dynamo"]

    def _real_masks(self) -> Any:
        """Import the real module and return its context manager for vectorised masks."""
        self.uninstall()
        return importlib.import_module(_MASKS).TransformGetItemToIndex()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.uninstall()
        return getattr(importlib.import_module(_DYNAMO), name)

    @staticmethod
    def assume_constant_result(function: Any) -> Any:
        """Mark the function as the real decorator does; only a compiler reads the mark."""
        function._dynamo_marked_constant = True
        return function

    @staticmethod
    def allow_in_graph(function: Any) -> Any:
        """Return the function unmarked: a later compiler breaks its graph here."""
        return function

    @staticmethod
    def disable(function: Any = None, recursive: bool = True, *, reason: str | None = None, **_: Any) -> Any:
        """Wrap a function so that the compiler skips it, once the real compiler is imported."""
        if function is None:
            return lambda inner: _Dynamo.disable(inner, recursive, reason=reason)

        @functools.wraps(function)
        def uncompiled(*arguments: Any, **keywords: Any) -> Any:
            if _DYNAMO not in sys.modules or isinstance(sys.modules[_DYNAMO], _Dynamo):
                return function(*arguments, **keywords)
            import torch

            compiler: Any = torch.compiler
            return compiler.disable(function, recursive, reason=reason)(*arguments, **keywords)

        return uncompiled
