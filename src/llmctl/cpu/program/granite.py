"""Granite: Llama with multipliers for embeddings, attention scores, sublayer outputs and logits.

Granite-MoE has a mixture of experts as MLP; Granite-MoE-Shared adds the output of a gated MLP to theirs.
"""

from typing import Any, ClassVar

from llmctl.cpu.experts import Routing
from llmctl.cpu.program.blocks import expect_children
from llmctl.cpu.program.expert_blocks import ExpertBlocks
from llmctl.cpu.program.llama import Llama
from llmctl.cpu.program.writer import View


class Granite(Llama):
    """Builds Granite 3."""

    transformers_class = "GraniteForCausalLM"

    def embedding(self, embed_tokens: Any) -> View:
        """Return the embeddings times their multiplier."""
        return self.blocks.embedding(embed_tokens, multiplier=self.config.embedding_multiplier)

    def attention_scale(self, head_size: int) -> float:
        """Return the multiplier of attention scores."""
        return float(self.config.attention_multiplier)

    def add(self, hidden: View, sublayer_output: View) -> None:
        """Add a sublayer's output times `residual_multiplier`."""
        self.blocks.add(hidden, sublayer_output, multiplier=self.config.residual_multiplier)

    def output_head(self, norm: Any, lm_head: Any, hidden: View) -> None:
        """Compute the logits and divide them by `logits_scaling`."""
        self.blocks.output_head(norm, lm_head, hidden, multiplier=1 / self.config.logits_scaling)


class GraniteMoe(Granite):
    """Builds Granite-MoE."""

    transformers_class = "GraniteMoeForCausalLM"
    mlp_name = "block_sparse_moe"
    blocks: ExpertBlocks

    def mlp(self, module: Any, x: View) -> View:
        """Return the output of the experts, whose weights are the softmax over the chosen ones."""
        router = module.router
        routing = Routing(len(router.weight), router.top_k, scoring="top_softmax", round_weights=True)
        return self.blocks.moe(module, x, routing, router=router, router_class="GraniteMoeTopKRouter")


class GraniteMoeShared(Granite):
    """Builds Granite-MoE-Shared."""

    transformers_class = "GraniteMoeSharedForCausalLM"
    router_class: ClassVar[str] = "GraniteMoeSharedTopKRouter"
    blocks: ExpertBlocks

    def decoder_layer(self, layer: Any, hidden: View, index: int) -> None:
        """Add attention, then the experts and the MLP, to the hidden states."""
        shared = [] if layer.shared_mlp is None else ["shared_mlp"]
        expect_children(layer, "input_layernorm", "self_attn", "post_attention_layernorm", "block_sparse_moe", *shared)
        normed = self.blocks.rms_norm(layer.input_layernorm, hidden)
        self.add(hidden, self.attention(layer.self_attn, normed, index))
        normed = self.blocks.rms_norm(layer.post_attention_layernorm, hidden)
        output = self.mlp(layer.shared_mlp, normed) if shared else None
        self.add(hidden, self.experts(layer.block_sparse_moe, normed, output))

    def experts(self, module: Any, x: View, shared: View | None) -> View:
        """Return the output of the experts, whose weights are the softmax over the chosen ones, plus `shared`."""
        router = module.router
        routing = Routing(len(router.weight), router.top_k, scoring="top_softmax", round_weights=True)
        return self.blocks.moe(module, x, routing, router=router, router_class=self.router_class, shared=shared)
