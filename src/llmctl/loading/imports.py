"""transformers imported without what one process on one machine does not need: a third of a cold start's time.

Two things cost it. transformers imports torch.distributed.tensor wherever torch has it, for models spread over
several processes; it does without where a torch was built without. It decorates a few functions for torch.compile,
which imports torch._dynamo and sympy; a stand-in takes the decorations, and the real thing is imported when a function
is compiled. `LLMCTL_PLAIN_IMPORTS=1` leaves both as they are. A third is peft, which `without_peft` hides.
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

_DYNAMO = "torch._dynamo"
_MASKS = "torch._dynamo._trace_wrapped_higher_order_op"


@contextmanager
def lean_imports() -> Iterator[None]:
    """While this is open, importing transformers leaves out what is not needed. Nothing of torch's is changed after."""
    if os.environ.get("LLMCTL_PLAIN_IMPORTS") or _DYNAMO in sys.modules:
        yield
        return
    with _collecting_nothing():
        import torch

        _without_distributed()
        stand_in = _Dynamo()
        sys.modules[_DYNAMO] = stand_in
        sys.modules[_MASKS] = stand_in.masks
        torch.__dict__["_dynamo"] = stand_in
        try:
            yield
        finally:
            stand_in.step_aside()


@contextmanager
def _collecting_nothing() -> Iterator[None]:
    """Modules live as long as the process: looking through them again and again for garbage finds nothing."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
            gc.freeze()


@contextmanager
def without_peft() -> Iterator[None]:
    """While this is open, transformers does not know that peft is installed.

    It takes an adapter_config.json beside a model for an order: it loads the base model that is named there, from
    wherever that is, and the adapter, pickled or not (models/auto/auto_factory.py, integrations/peft.py). set_seed
    lives beside the Trainer, which imports peft, and that bitsandbytes, which fetches code from the Hub where `kernels`
    is installed.
    """
    import transformers.utils  # noqa: F401 (so that the name below exists)
    from transformers.utils import import_utils

    known = import_utils.is_peft_available

    def unknown() -> bool:
        return False

    def swap(old: Any, new: Any) -> None:
        for name, module in list(sys.modules.items()):
            if name.startswith("transformers") and vars(module).get("is_peft_available") is old:
                vars(module)["is_peft_available"] = new

    swap(known, unknown)
    try:
        yield
    finally:
        swap(unknown, known)


def _without_distributed() -> None:
    """Tell transformers that this torch knows no other processes."""
    import transformers.utils
    from transformers.utils import import_utils

    for module in (transformers.utils, import_utils):
        vars(module)["is_torch_distributed_available"] = lambda: False


class _Dynamo(ModuleType):
    """Stands where torch._dynamo will be. Whatever it does not know itself makes it give way to the real one."""

    def __init__(self) -> None:
        super().__init__(_DYNAMO)
        self.__path__: list[str] = []
        self.masks = ModuleType(_MASKS)
        vars(self.masks)["TransformGetItemToIndex"] = self._real_masks

    def step_aside(self) -> None:
        """Leave the place to the real module, which is imported when somebody needs it."""
        import torch

        for name, module in ((_DYNAMO, self), (_MASKS, self.masks)):
            if sys.modules.get(name) is module:
                del sys.modules[name]
        if torch.__dict__.get("_dynamo") is self:
            del torch.__dict__["_dynamo"]

    def _real_masks(self) -> Any:
        """The context that masks are vectorised in: the real one, imported when one is."""
        self.step_aside()
        return importlib.import_module(_MASKS).TransformGetItemToIndex()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.step_aside()
        return getattr(importlib.import_module(_DYNAMO), name)

    @staticmethod
    def assume_constant_result(function: Any) -> Any:
        """As the real one: a mark that only a compiler reads."""
        function._dynamo_marked_constant = True
        return function

    @staticmethod
    def allow_in_graph(function: Any) -> Any:
        """Not marked: a compiler that comes later breaks its graph at this function."""
        return function

    @staticmethod
    def disable(function: Any = None, recursive: bool = True, *, reason: str | None = None, **_: Any) -> Any:
        """A function that the compiler leaves alone, once there is a compiler."""
        if function is None:
            return lambda inner: _Dynamo.disable(inner, recursive, reason=reason)

        @functools.wraps(function)
        def left_alone(*arguments: Any, **keywords: Any) -> Any:
            if _DYNAMO not in sys.modules or isinstance(sys.modules[_DYNAMO], _Dynamo):
                return function(*arguments, **keywords)
            import torch

            compiler: Any = torch.compiler
            return compiler.disable(function, recursive, reason=reason)(*arguments, **keywords)

        return left_alone
