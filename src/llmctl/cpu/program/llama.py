"""Llama: pre-norm layers of attention with RoPE and a gated MLP. Every other family derives from it."""

import inspect
from typing import Any, ClassVar

from llmctl.cpu.program.blocks import Blocks, UnexpectedModuleError, expect_children
from llmctl.cpu.program.writer import Rope, View
from llmctl.cpu.structs import NormFlavour


class Llama:
    """Builds the program of a model.

    Attributes:
        transformers_class: The name of transformers' class of the model.
        text_classes: Names of transformers' classes of the same language model inside composite models, beside those
            that have the family's own name (LlamaModel).
        norm_flavour: The way in which RMS norms apply their weights.
        body_name: The name of the part before the output head.
        embed_tokens: The name of the embedding.
        final_norm: The name of the norm before the output head.
        rotary_emb: The name of the module that computes cosines and sines.
        mlp_name: The name of a layer's MLP or mixture of experts.
        norms: The names of the norms before attention and before the MLP.
    """

    transformers_class: ClassVar[str] = "LlamaForCausalLM"
    text_classes: ClassVar[tuple[str, ...]] = ()
    norm_flavour: ClassVar[NormFlavour] = "norm_then_weight"
    body_name: ClassVar[str] = "model"
    embed_tokens: ClassVar[str] = "embed_tokens"
    final_norm: ClassVar[str] = "norm"
    rotary_emb: ClassVar[str] = "rotary_emb"
    mlp_name: ClassVar[str] = "mlp"
    norms: ClassVar[tuple[str, str]] = ("input_layernorm", "post_attention_layernorm")

    def __init__(self, model: Any, blocks: Blocks) -> None:
        self.model, self.config, self.blocks = model, model.config, blocks
        self.body: Any = getattr(model, self.body_name)

    def build(self) -> None:
        """Write the program."""
        body = self.body
        expect_children(self.model, self.body_name, "lm_head")
        rotary_emb = [] if getattr(body, self.rotary_emb, None) is None else [self.rotary_emb]
        expect_children(body, self.embed_tokens, "layers", self.final_norm, *rotary_emb)
        if len(body.layers) != self.config.num_hidden_layers:
            raise UnexpectedModuleError(f"{len(body.layers)} layers")
        hidden = self.embedding(getattr(body, self.embed_tokens))
        for index, layer in enumerate(body.layers):
            self.decoder_layer(layer, hidden, index)
            if takes_deepstack(body):
                self.blocks.add_media(hidden, index)
        self.output_head(getattr(body, self.final_norm), self.model.lm_head, hidden)

    def embedding(self, embed_tokens: Any) -> View:
        """Return the hidden states before the first layer."""
        return self.blocks.embedding(embed_tokens)

    def decoder_layer(self, layer: Any, hidden: View, index: int) -> None:
        """Add attention and MLP to the hidden states."""
        blocks = self.blocks
        before_attention, before_mlp = self.norms
        expect_children(layer, before_attention, "self_attn", before_mlp, self.mlp_name)
        normed = blocks.rms_norm(getattr(layer, before_attention), hidden)
        self.add(hidden, self.attention(layer.self_attn, normed, index))
        normed = blocks.rms_norm(getattr(layer, before_mlp), hidden)
        self.add(hidden, self.mlp(getattr(layer, self.mlp_name), normed))

    def attention(self, module: Any, x: View, index: int) -> View:
        """Return the output of a layer's attention."""
        scale = self.attention_scale(module.head_dim)
        window, rope = self.sliding_window(index), self.rope(index)
        return self.blocks.attention(module, x, scale=scale, window=window, rope=rope)

    def attention_scale(self, head_size: int) -> float:
        """Return the factor of q·k."""
        return float(head_size**-0.5)

    def sliding_window(self, index: int) -> int:
        """Return the number of tokens that a token of this layer sees, including itself; 0 means all."""
        return 0

    def rope(self, index: int) -> Rope | None:
        """Return the RoPE of a layer."""
        return self.blocks.rope(getattr(self.body, self.rotary_emb))

    def mlp(self, module: Any, x: View) -> View:
        """Return the output of a layer's MLP."""
        return self.blocks.gated_mlp(module, x)

    def add(self, hidden: View, sublayer_output: View) -> None:
        """Add the output of attention or MLP to the hidden states."""
        self.blocks.add(hidden, sublayer_output)

    def output_head(self, norm: Any, lm_head: Any, hidden: View) -> None:
        """Compute the logits."""
        self.blocks.output_head(norm, lm_head, hidden)


def takes_deepstack(body: Any) -> bool:
    """Return True if a language model adds features of images to the hidden states after its first layers."""
    return "deepstack_visual_embeds" in inspect.signature(type(body).forward).parameters


def window_of_layer_type(config: Any, index: int) -> int:
    """Return the sliding window if `config.layer_types` has sliding_attention for this layer, else 0."""
    return (config.sliding_window or 0) if config.layer_types[index] == "sliding_attention" else 0
