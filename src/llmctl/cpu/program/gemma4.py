"""Gemma 4: Gemma 3 whose last layers share keys and values, with an embedding of each token for every layer.

Layers of the type full_attention have larger heads; they may take the projected keys as values. Norms have ordinary
weights. The shared layers write nothing to the KV cache, so only the last token of each sequence passes through them.
"""

from typing import Any

from llmctl.cpu.program.blocks import UnexpectedModuleError, expect_children
from llmctl.cpu.program.gemma import Gemma3
from llmctl.cpu.program.per_layer_blocks import PerLayerBlocks
from llmctl.cpu.program.writer import View


class Gemma4(Gemma3):
    """Builds the text model of Gemma 4."""

    transformers_class = "Gemma4ForCausalLM"
    norm_flavour = "weight_then_round"
    blocks: PerLayerBlocks

    def build(self) -> None:
        """Write the program."""
        body, config, blocks = self.model.model, self.config, self.blocks
        per_layer = ("embed_tokens_per_layer", "per_layer_model_projection", "per_layer_projection_norm")
        has_per_layer = bool(config.hidden_size_per_layer_input)
        expect_children(self.model, "model", "lm_head")
        expect_children(body, "embed_tokens", "layers", "norm", "rotary_emb", *(per_layer if has_per_layer else ()))
        if len(body.layers) != config.num_hidden_layers or config.use_bidirectional_attention == "all":
            raise UnexpectedModuleError(f"{len(body.layers)} layers, {config.use_bidirectional_attention} attention")
        hidden = self.embedding(body.embed_tokens)
        self.inputs = blocks.per_layer_inputs(body, hidden) if has_per_layer else None
        self.stored: dict[str, int] = {}  # the layer of the KV cache for each type of layer
        for index, layer in enumerate(body.layers):
            if index == config.num_hidden_layers - config.num_kv_shared_layers and index > 0:
                hidden = blocks.last_tokens(hidden)
                self.inputs = None if self.inputs is None else blocks.last_tokens(self.inputs, "last_inputs")
            self.decoder_layer(layer, hidden, index)
        self.output_head(body.norm, self.model.lm_head, hidden)

    def decoder_layer(self, layer: Any, hidden: View, index: int) -> None:
        """Add attention, MLP and the layer's part of the token's embeddings; multiply by the layer's scalar."""
        norms = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm")
        names = ("self_attn", "mlp", *norms, "post_feedforward_layernorm")
        per_layer = ("act_fn", "per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm")
        experts = ("router", "experts", "post_feedforward_layernorm_1", "post_feedforward_layernorm_2")
        moe = (*experts, "pre_feedforward_layernorm_2") if layer.enable_moe_block else ()
        expect_children(layer, *names, *moe, *(per_layer if self.inputs is not None else ()))
        self.add_attention_and_mlp(layer, hidden, index)
        if self.inputs is not None:
            self.add(hidden, self.blocks.per_layer_input(layer, hidden, self.inputs, index))
        self.blocks.scale(hidden, float(layer.layer_scalar))

    def feed_forward(self, layer: Any, hidden: View) -> View:
        """Return the output of the MLP, plus that of the experts, each normalised, if the layer has experts."""
        output = super().feed_forward(layer, hidden)
        if not layer.enable_moe_block:
            return output
        blocks = self.blocks
        shared = blocks.rms_norm(layer.post_feedforward_layernorm_1, output, "normed_mlp")
        normed = blocks.rms_norm(layer.pre_feedforward_layernorm_2, hidden)
        top_k = self.config.top_k_experts
        routed = blocks.experts_with_normed_router(layer.router, layer.experts, normed, hidden, top_k=top_k)
        return blocks.sum(shared, blocks.rms_norm(layer.post_feedforward_layernorm_2, routed))

    def attention(self, module: Any, x: View, index: int) -> View:
        """Return the output of a layer's attention."""
        layer_type = self.config.layer_types[index]
        shared = self.stored[layer_type] if module.is_kv_shared_layer else None
        window, rope = self.sliding_window(index), self.rope(index)
        attended = self.blocks.attention(module, x, scale=1.0, window=window, rope=rope, shared_layer=shared)
        if shared is None:
            self.stored[layer_type] = len(self.blocks.writer.kv_shapes) - 1
        return attended
