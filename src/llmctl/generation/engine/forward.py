"""A forward pass over several sequences, packed one after the other without padding.

The model sees a single row of tokens with explicit positions. The attention separates the sequences: for each one, it
reads the pages of that sequence in the cache pool.
"""

from typing import TYPE_CHECKING, Any

from llmctl.generation.engine.cache_pool import CachePool
from llmctl.generation.engine.layout import Layout
from llmctl.generation.engine.packed_modules import forward_modules

if TYPE_CHECKING:
    from torch import Tensor


def forward(model: Any, layout: Layout, pool: CachePool) -> "Tensor":
    """Run the model and return the logits [sequences, vocabulary] after the last token of each sequence.

    Raises:
        UnsupportedAttentionError: the model's layers cannot be packed.
    """
    from llmctl.cpu.program import compiled

    model_program = compiled(model)
    if model_program is None:
        return forward_modules(model, layout, pool)
    program = model_program.program
    kv_cache = pool.kv_tensors(program.kv_shapes, program.dtype)
    return model_program.forward(layout, kv_cache, pool.state_tensors(program.state_shapes))
