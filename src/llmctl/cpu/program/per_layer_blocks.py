"""The blocks of Gemma 4: inputs that every layer receives from the token itself, beside the hidden states."""

from functools import partial
from typing import Any

from llmctl.cpu.program.blocks import UnexpectedModuleError, activation_of
from llmctl.cpu.program.expert_blocks import ExpertBlocks
from llmctl.cpu.program.modules import activation_forward
from llmctl.cpu.program.writer import View


class PerLayerBlocks(ExpertBlocks):
    """Adds Gemma 4's inputs of layers."""

    def per_layer_inputs(self, body: Any, hidden: View) -> View:
        """Compute Gemma 4's inputs of all layers, [layers, size] for each token, from the token and its embedding."""
        layers, size = self.config.num_hidden_layers, self.config.hidden_size_per_layer_input
        embedded = self._embedding(body.embed_tokens_per_layer, "per_layer_embedding")
        projected = self._linear(body.per_layer_model_projection, hidden, "per_layer_projection")
        if (embedded.stride, projected.stride) != (layers * size, layers * size):
            raise UnexpectedModuleError("inputs of layers with different sizes")
        self.writer.scale(projected, body.per_layer_model_projection_scale)
        norm, inputs = self._norm(body.per_layer_projection_norm, size), self._buffer("per_layer_inputs", layers * size)
        self.writer.prepare_heads(projected, inputs, heads=layers, size=size, norm=norm)
        self.writer.add(inputs, embedded, inputs, width=layers * size)
        self.writer.scale(inputs, body.per_layer_input_scale)
        return inputs

    def per_layer_input(self, layer: Any, hidden: View, inputs: View, index: int) -> View:
        """Return the projection of a layer's part of `per_layer_inputs`, gated by the hidden states and normalised."""
        size, activation = self.config.hidden_size_per_layer_input, activation_of(layer.act_fn)
        gate = self._linear(layer.per_layer_input_gate, hidden, "per_layer_gate")
        inner = self._buffer("per_layer_inner", size)
        self.writer.gated_activation(gate, inputs.after(index * size), inner, width=size, activation=activation)
        self.forwards.append((layer.act_fn, partial(activation_forward, layer.act_fn, activation, {})))
        return self.rms_norm(layer.post_per_layer_input_norm, self._linear(layer.per_layer_projection, inner, "output"))
