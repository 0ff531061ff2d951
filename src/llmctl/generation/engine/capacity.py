"""How many sequences at once: from the memory that is free, not from a default."""

from typing import TYPE_CHECKING

from llmctl.generation.engine.engine import Size
from llmctl.plan.memory import activation_bytes, kv_cache_bytes

if TYPE_CHECKING:
    from llmctl.loading.model import LoadedModel

# Beyond these nothing is gained: a CPU is busy with its arithmetic, a GPU with its memory.
_MOST_SEQUENCES = {"cpu": 64, "cuda": 256}
_PASS_TOKENS = {"cpu": 512, "cuda": 4096}
_IDLE_BYTES = 1 << 30  # on a CPU, where memory that is not used is others'; but always a whole context
_USABLE = 0.8  # of what is free; the rest is for whoever else is here


def engine_size(loaded: "LoadedModel", *, sequences: int | None = None) -> Size:
    """The size for this model on this machine, as it is now.

    Args:
        loaded: The model.
        sequences: At most so many at a time; without it as many as bring something.
    """
    kind = loaded.model.device.type
    dtype = loaded.measured.dtype
    sequences = sequences or _MOST_SEQUENCES.get(kind, 32)
    pass_tokens = _PASS_TOKENS.get(kind, 1024)
    free = _free_bytes(loaded) * _USABLE - activation_bytes(loaded.info, context=pass_tokens, dtype=dtype)
    token = kv_cache_bytes(loaded.info, context=1, dtype=dtype)
    context = loaded.context_length or 8192
    wanted = sequences * context
    pool = int(max(context // 8, min(wanted, free // token if token else wanted)))
    idle = max(context, _IDLE_BYTES // token) if kind == "cpu" and token else None
    return Size(sequences, pass_tokens, pool, idle)


def _free_bytes(loaded: "LoadedModel") -> int:
    if loaded.model.device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(loaded.model.device)[0])
    from llmctl.machine.detection import read_free_ram_bytes

    return read_free_ram_bytes()
