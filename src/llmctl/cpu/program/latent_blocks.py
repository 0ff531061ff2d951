"""The block of multi-head latent attention (MLA; DeepSeek-V2, arXiv:2405.04434, section 2.1).

The KV cache has one row per token for all heads: the latent, and the rotary part of the key. The two halves of
kv_b_proj are applied to the queries and to the results instead of to the cached latents ("absorbed"), in every pass, so
that a result does not depend on how a prompt was split. The modules expand the latents, which rounds differently.
"""

from typing import TYPE_CHECKING, Any

from llmctl.cpu.program.blocks import UnexpectedModuleError, expect_children
from llmctl.cpu.program.expert_blocks import ExpertBlocks
from llmctl.cpu.program.writer import CacheView, Heads, Rope, View

if TYPE_CHECKING:
    from torch import Tensor


class LatentBlocks(ExpertBlocks):
    """Adds latent attention."""

    def latent_attention(self, module: Any, x: View, *, scale: float, rope: Rope) -> View:
        """Compute causal attention of x [hidden] over latents.

        Args:
            module: The attention module, with q_proj, or q_a_proj, q_a_layernorm and q_b_proj; kv_a_proj_with_mqa,
                kv_a_layernorm, kv_b_proj and o_proj.
            x: The normalised hidden states.
            scale: The factor of q·k.
            rope: The RoPE of the rotary parts of queries and keys.
        """
        write, heads, rank = self.writer, module.num_heads, module.kv_lora_rank
        plain, rotary, value = module.qk_nope_head_dim, module.qk_rope_head_dim, module.v_head_dim
        width, stride = rank + rotary, plain + rotary
        queries = ("q_proj",) if module.q_lora_rank is None else ("q_a_proj", "q_a_layernorm", "q_b_proj")
        expect_children(module, *queries, "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj")
        latent, q = self._linear(module.kv_a_proj_with_mqa, x, "latent"), self._latent_queries(module, x)
        if (q.stride, latent.stride, rope.rotary_size) != (heads * stride, width, rotary):
            raise UnexpectedModuleError("projections that do not match the heads")
        layer = write.kv_layer(1, width, value_size=0)
        norm = self._norm(module.kv_a_layernorm, rank)
        write.prepare_heads(latent, CacheView("keys", layer, 0, width), heads=1, size=rank, norm=norm)
        write.prepare_heads(latent.after(rank), CacheView("keys", layer, rank, width), heads=1, size=rotary, rope=rope)
        to_latent, from_latent = _absorbed(module)
        query, attended = (self._buffer(f"latent_{name}", heads * n) for name, n in (("q", width), ("out", rank)))
        write.linear_heads(to_latent, q, query, head_stride=stride, out_head_stride=width)
        how = {"heads": heads, "size": rotary, "head_stride": stride, "out_head_stride": width}
        write.prepare_heads(q.after(plain), query.after(rank), rope=rope, **how)
        write.attention(query, attended, Heads(heads, 1, width), layer=layer, scale=scale, value_size=rank)
        values = self._buffer("attended", heads * value)
        write.linear_heads(from_latent, attended, values, head_stride=rank, out_head_stride=value)
        return self._linear(module.o_proj, values, "sublayer_output")

    def _latent_queries(self, module: Any, x: View) -> View:
        if module.q_lora_rank is None:
            return self._linear(module.q_proj, x, "q")
        compressed = self._linear(module.q_a_proj, x, "q_a")
        normed = self._buffer("q_a_normed", compressed.stride)
        self.writer.rms_norm(self._norm(module.q_a_layernorm, compressed.stride), compressed, normed)
        return self._linear(module.q_b_proj, normed, "q")


def _absorbed(module: Any) -> "tuple[Tensor, Tensor]":
    """Return kv_b_proj as weights [heads, latent, query part] of queries and [heads, value, latent] of results."""
    import torch

    from llmctl.cpu.layers import KernelLinear, PackedLinear

    projection = module.kv_b_proj
    expect_children(projection)
    if projection.bias is not None:
        raise UnexpectedModuleError("kv_b_proj with a bias")
    if isinstance(projection, PackedLinear) and projection.packed.has_native_layout:
        rows = projection.packed.rows(projection.weight, torch.arange(projection.out_features))
        weight = rows.to(module.kv_a_layernorm.weight.dtype)
    elif isinstance(projection, KernelLinear):
        weight = projection.weight.detach()
    else:
        raise UnexpectedModuleError(type(projection).__name__)
    by_head = weight.view(module.num_heads, module.qk_nope_head_dim + module.v_head_dim, module.kv_lora_rank)
    keys, values = by_head[:, : module.qk_nope_head_dim], by_head[:, module.qk_nope_head_dim :]
    return keys.transpose(1, 2).contiguous(), values.contiguous()
