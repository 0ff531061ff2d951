"""The choice of the attention backend of a model's packed passes, by capability.

The first backend of the list that has what a call needs, and that passes a trial of such a call, computes it. The last
one has everything. So what a backend lacks goes to the next one and is never ignored.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from llmctl.gpu.call import AttentionBackend, AttentionCall
from llmctl.gpu.flash import flash_backends
from llmctl.gpu.sdpa import SdpaAttention, cuda_capability
from llmctl.gpu.trial import failure_of_trial
from llmctl.gpu.varlen import varlen_backends
from llmctl.transformers_compat import attention_of

if TYPE_CHECKING:
    from torch import Tensor

_SMALL_PAGE = 16  # tokens
_FLASH_CAPABILITY = (8, 0)


class PagedAttention:
    """Computes the attention calls of one model. Its state: the results of trials, by the kind of call.

    Args:
        backends: In order of preference. `SdpaAttention` follows them.
        replaces_kernels: Use them on a CPU too, in place of llmctl's kernels.

    Attributes:
        used: The names of the backends that computed calls.
        failures: Why a backend was passed over, by its name.
    """

    def __init__(self, backends: Sequence[AttentionBackend] = (), *, replaces_kernels: bool = False) -> None:
        self._backends, self._last = tuple(backends), SdpaAttention()
        self.replaces_kernels = replaces_kernels
        self._passes: dict[Any, bool] = {}
        self.used: set[str] = set()
        self.failures: dict[str, str] = {}

    @property
    def page_tokens(self) -> int:
        """Tokens of a page of the KV cache that all backends can read."""
        return max([_SMALL_PAGE, *(backend.page_tokens for backend in self._backends)])

    @property
    def is_single_call(self) -> bool:
        """True if the calls so far needed no loop over sequences."""
        return bool(self.used) and self._last.name not in self.used

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Forget inside the `with` block what was used before it."""
        before, self.used = self.used, set()
        try:
            yield
        finally:
            self.used |= before

    def attend(self, call: AttentionCall) -> "Tensor":
        """Return [tokens, heads, value size]."""
        backend = next((one for one in self._backends if self._can(one, call)), self._last)
        self.used.add(backend.name)
        return backend.attend(call)

    def _can(self, backend: AttentionBackend, call: AttentionCall) -> bool:
        if not backend.supports(call):
            return False
        kind = (backend.name, *_kind(call))
        if kind not in self._passes:
            failure = failure_of_trial(backend, call)
            self._passes[kind] = failure is None
            if failure is not None:
                self.failures[backend.name] = failure
        return self._passes[kind]


def _kind(call: AttentionCall) -> tuple[Any, ...]:
    """Return everything that a trial depends on."""
    score = call.score
    features = (bool(score.visible.window), score.softcap, score.sinks is not None, score.scale)
    shapes = (call.query.shape[1:], call.keys.shape[-2:], call.values.shape[-1], call.keys.shape[1:-2])
    return call.query.device, call.query.dtype, call.keys.dtype, features, shapes


_CHOSEN: "WeakKeyDictionary[Any, PagedAttention]" = WeakKeyDictionary()


def attention_of_model(model: Any) -> PagedAttention:
    """Return what computes the packed attention of a model, chosen at the first call."""
    if model not in _CHOSEN:
        _CHOSEN[model] = PagedAttention(backends_for(model.device, implementation=attention_of(model.config)))
    return _CHOSEN[model]


def choose_attention(model: Any, attention: PagedAttention) -> None:
    """Choose what computes the packed attention of a model."""
    _CHOSEN[model] = attention


def backends_for(device: Any, *, implementation: str) -> list[AttentionBackend]:
    """Return the backends that may work on a device, in order of preference.

    Args:
        implementation: The planned implementation. With `flash_attention_2`, the package comes before torch's kernel.
    """
    if device.type != "cuda" or cuda_capability(device) < _FLASH_CAPABILITY:
        return []
    flash, varlen = flash_backends(), varlen_backends()
    return [*flash, *varlen] if implementation == "flash_attention_2" else [*varlen, *flash]
