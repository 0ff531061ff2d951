"""The capacity of an engine, determined from the free memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmctl.generation.engine.packed_modules import hides_other_sequences
from llmctl.loading.device_map import layer_shares
from llmctl.loading.device_memory import device_memory_bytes
from llmctl.machine.detection import read_free_ram_bytes
from llmctl.plan.cache_memory import kv_cache_bytes, state_bytes
from llmctl.plan.memory import activation_bytes

if TYPE_CHECKING:
    from llmctl.loading.model import LoadedModel

# More sequences gain nothing: a CPU is limited by its arithmetic, a GPU by its memory.
_MAX_SEQUENCES = {"cpu": 64, "cuda": 256}
_PASS_TOKENS = {"cpu": 512, "cuda": 4096}
# Where every token scores the tokens of all sequences, memory and work grow with both of these.
_HIDDEN_SEQUENCES, _HIDDEN_PASS_TOKENS = 8, 128
_IDLE_BYTES = 1 << 30  # on a CPU, where other processes need the memory; at least one whole context is always kept
_USABLE = 0.8  # share of the free memory; the rest is for other processes


@dataclass(frozen=True)
class EngineCapacity:
    """The limits of an engine.

    Attributes:
        sequences: Maximum concurrent sequences.
        pass_tokens: Maximum tokens of one forward pass, of prompts and answers together.
        kv_tokens: Maximum tokens in the KV cache.
        idle_tokens: Tokens of idle prefix cache to keep; None means as many as fit.
    """

    sequences: int
    pass_tokens: int
    kv_tokens: int
    idle_tokens: int | None = None


def engine_capacity(loaded: "LoadedModel", *, sequences: int | None = None) -> EngineCapacity:
    """Return the capacity for a model with the memory that is free now.

    Args:
        sequences: Maximum concurrent sequences; by default, the number that still improves throughput.
    """
    device = loaded.model.device.type
    dtype = str(loaded.plan.model_kwargs["dtype"])
    sequences = sequences or _MAX_SEQUENCES.get(device, 32)
    pass_tokens = _PASS_TOKENS.get(device, 1024)
    if hides_other_sequences(loaded.model):
        sequences, pass_tokens = min(sequences, _HIDDEN_SEQUENCES), min(pass_tokens, _HIDDEN_PASS_TOKENS)
    token = kv_cache_bytes(loaded.info, context=1, dtype=dtype)
    context = loaded.context_length or 8192
    wanted = sequences * context
    fitting = tokens_that_fit(
        [(_free_bytes(place), share) for place, share in layer_shares(loaded.model).items()],
        token_bytes=token,
        state_bytes=state_bytes(loaded.info, batch=sequences, dtype=dtype),
        activation_bytes=activation_bytes(loaded.info, context=pass_tokens, dtype=dtype),
    )
    kv_tokens = int(max(context // 8, min(wanted, wanted if fitting is None else fitting)))
    idle = max(context, _IDLE_BYTES // token) if device == "cpu" and token else None
    return EngineCapacity(sequences, pass_tokens, kv_tokens, idle)


def tokens_that_fit(
    devices: Sequence[tuple[int, float]], *, token_bytes: int, state_bytes: int, activation_bytes: int
) -> float | None:
    """Return the tokens whose keys and values fit on every device; None if the model keeps none.

    Args:
        devices: The free bytes of each device, and its share of the layers, which is its share of the cache.
        token_bytes: Bytes of the keys and values of one token in all layers.
        state_bytes: Bytes of the recurrent states in all layers.
        activation_bytes: Bytes of intermediate results, which every device needs in its turn.
    """
    if not token_bytes:
        return None
    return min(
        (free * _USABLE - activation_bytes - state_bytes * share) // (token_bytes * share) for free, share in devices
    )


def _free_bytes(device: Any) -> int:
    memory = device_memory_bytes(device)
    return read_free_ram_bytes() if memory is None else memory[0]
