"""The building blocks of model families. Each reads modules of a model and writes their operations.

Parameters have the names of the checkpoint (q_proj, gate_up_proj, q_norm). A block raises UnexpectedModuleError for
anything unexpected (an additional module, a hook, an adapter, an activation without a kernel); the model then has no
program.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

from llmctl.cpu.program.modules import (
    MlpNames,
    activation_forward,
    activation_numbers,
    gated_mlp_forward,
    norm_forward,
)
from llmctl.cpu.program.writer import CacheView, Heads, ProgramWriter, RmsNorm, Rope, View, Weight
from llmctl.cpu.structs import Activation, NormFlavour, RopeLayout

if TYPE_CHECKING:
    from torch import Tensor


class UnexpectedModuleError(Exception):
    """A model does not have the structure expected of its class."""


class Blocks:
    """Builds a program from a model's modules, block by block.

    All layers share the same buffers: the result of a block is valid until the next block of the same type.

    Attributes:
        ropes: transformers' modules that compute cosines and sines, each with its layer-type argument, or None.
        token_factors: Functions from positions [tokens] to factors [tokens] of queries.
        forwards: Modules that must use the program's operations from now on, with their new forward functions.
        logits_multiplier: The factor of all logits.
        logits_softcap: Logits become softcap * tanh(logits / softcap); None leaves them unchanged.
        media_multiplier: The factor of the embeddings of media.
    """

    def __init__(self, model: Any, writer: ProgramWriter, norm_flavour: NormFlavour) -> None:
        self.config, self.writer, self.norm_flavour = model.config, writer, norm_flavour
        self.ropes: list[tuple[Any, str | None]] = []
        self.token_factors: list[Callable[[Tensor], Tensor]] = []
        self.forwards: list[tuple[Any, Callable[..., Any]]] = []
        self.logits_multiplier = 1.0
        self.logits_softcap: float | None = None
        self.media_multiplier = 1.0
        self._hidden_size: int = model.config.hidden_size
        self._buffers: dict[tuple[str, int], View] = {}

    def embedding(self, embed_tokens: Any, *, multiplier: float = 1.0) -> View:
        """Look up the token ids, or take the media's embeddings. Return the hidden states.

        Args:
            multiplier: The factor of all hidden states before the first layer.
        """
        self.media_multiplier = multiplier
        return self._embedding(embed_tokens, "hidden", multiplier, takes_media=True)

    def add_media(self, hidden: View, index: int) -> None:
        """Add to the hidden states what an image encoder gives for the layer `index`, after that layer (DeepStack)."""
        self.writer.add_media(hidden, 1 + index)

    def rms_norm(self, module: Any, x: View, name: str = "normed") -> View:
        """Normalise x [hidden], the input or the output of a sublayer."""
        normed = self._buffer(name, self._hidden_size)
        self.writer.rms_norm(self._norm(module, self._hidden_size), x, normed)
        return normed

    def add(self, hidden: View, sublayer_output: View, *, multiplier: float = 1.0) -> None:
        """Add `multiplier` times the output of a sublayer to the hidden states."""
        self.writer.add(hidden, sublayer_output, hidden, width=self._hidden_size, multiplier=multiplier)

    def scale(self, x: View, factor: float) -> None:
        """Multiply the elements of a buffer by a constant."""
        if factor != 1.0:
            self.writer.scale(x, factor)

    def scaled(self, x: View, factor: float) -> View:
        """Return x [hidden] times a constant."""
        if factor == 1.0:
            return x
        out = self._buffer("scaled", self._hidden_size)
        self.writer.scale(x, factor, out, width=self._hidden_size)
        return out

    def sum(self, a: View, b: View, *, multiplier: float = 1.0) -> View:
        """Return a + multiplier * b, of the outputs of two sublayers."""
        out = self._buffer("sum", self._hidden_size)
        self.writer.add(a, b, out, width=self._hidden_size, multiplier=multiplier)
        return out

    def last_tokens(self, x: View, name: str = "last") -> View:
        """Return a copy of x for each sequence's last token. All later blocks compute only these tokens."""
        last = self._buffer(name, x.stride)
        self.writer.gather_last(x, last)
        return last

    def token_factor(self, compute: "Callable[[Tensor], Tensor]") -> int:
        """Add factors of queries that depend on the position. Return their number."""
        self.token_factors.append(compute)
        return len(self.token_factors) - 1

    def rope(
        self,
        rotary_emb: Any,
        layer_type: str | None = None,
        *,
        layout: RopeLayout = "halves",
        in_float32: bool = False,
    ) -> Rope:
        """Return the RoPE of a module that computes cosines and sines.

        Args:
            layer_type: The layer type to pass to the module if it has several RoPEs.
            layout: The elements that are rotated together, and the order of the module's table.
            in_float32: True if the model rounds once, False if after every step.
        """
        if (rotary_emb, layer_type) not in self.ropes:
            self.ropes.append((rotary_emb, layer_type))
        size = 2 * frequencies_of(rotary_emb, layer_type).numel()
        return Rope(self.ropes.index((rotary_emb, layer_type)), size, layout, in_float32)

    def attention(
        self,
        module: Any,
        x: View,
        *,
        scale: float,
        window: int = 0,
        chunk: int = 0,
        rope: Rope | None = None,
        norm_after_rope: bool = False,
        has_output_gate: bool = False,
        token_factor: int | None = None,
        shared_layer: int | None = None,
    ) -> View:
        """Compute causal attention of x [hidden], and write the keys and values to the KV cache.

        Heads are normalised if the module has norms with one of the names in `_HEAD_NORMS`: each head, or all of them
        together if the norm has that many weights. Without a v_proj, the values are the projected keys. A g_proj
        gives a gate for each head, by whose sigmoid its output is multiplied.

        Args:
            module: The attention module, with q_proj, k_proj and v_proj, or qkv_proj, or query_key_value (those of a
                head side by side), and an output projection with one of the names in `_OUTPUTS`.
            x: The normalised hidden states.
            scale: The factor of q·k.
            window: The number of tokens that a token sees, including itself; 0 means all.
            chunk: The tokens of a chunk, if a token sees only those of its own chunk; 0 means no chunks.
            rope: The RoPE of queries and keys.
            norm_after_rope: True if the norms of queries and keys follow RoPE.
            has_output_gate: True if q_proj computes a gate beside each query head, by whose sigmoid the head's output
                is multiplied.
            token_factor: The number of the factors of queries.
            shared_layer: The layer of the KV cache that another block has written and this one reads.
        """
        heads = _heads_of(module, self.config)
        if rope is not None and rope.rotary_size > heads.size:
            raise UnexpectedModuleError("a RoPE that is larger than a head")
        write, size = self.writer, heads.size
        by_head = hasattr(module, "query_key_value")
        head_stride = size * (2 if has_output_gate else 3 if by_head else 1)
        q_width = heads.query * head_stride
        parts = self._project_qkv(module, x, heads, q_width=q_width, only_query=shared_layer is not None)
        if getattr(module, "key_multiplier", 1.0) != 1.0:
            write.scale(parts[1], module.key_multiplier, width=heads.kv * size)
        query, attended = (self._buffer(name, heads.query * size) for name in ("query", "attended"))
        q, norm = self._head_norm(module, "q", parts[0], heads.query, size)
        how: dict[str, Any] = {"heads": heads.query, "size": size, "head_stride": head_stride}
        last = {"norm_last": norm_after_rope}
        write.prepare_heads(q, query, norm=norm, rope=rope, token_factor=token_factor, **how, **last)
        if shared_layer is None:
            shared_layer = write.kv_layer(heads.kv, size)
            for part, view in (("keys", parts[1]), ("values", parts[2])):
                states, norm = self._head_norm(module, part[0], view, heads.kv, size)
                out = CacheView("keys" if part == "keys" else "values", shared_layer)
                kv: dict[str, Any] = {"heads": heads.kv, "size": size, "head_stride": head_stride if by_head else size}
                write.prepare_heads(states, out, norm=norm, rope=rope if part == "keys" else None, **kv, **last)
        softcap = getattr(module, "attn_logit_softcapping", None) or 0.0
        sinks = module.sinks.detach() if hasattr(module, "sinks") else None
        seen = {"window": window, "chunk": chunk}
        write.attention(query, attended, heads, layer=shared_layer, scale=scale, softcap=softcap, sinks=sinks, **seen)
        if has_output_gate:
            write.prepare_heads(q.after(size), query, **how)
            write.gated_activation(query, attended, attended, width=attended.stride, activation="sigmoid")
        if getattr(module, "g_proj", None) is not None:
            gate = self._linear(module.g_proj, x, "head_gates")
            how = {"width": attended.stride, "activation": "sigmoid", "gates": heads.query}
            write.gated_activation(gate, attended, attended, **how)
        output = next(getattr(module, name) for name in _OUTPUTS if hasattr(module, name))
        return self._linear(output, attended, "attention_output")

    def gated_mlp(self, module: Any, x: View, *, gate_multiplier: float = 1.0, down_multiplier: float = 1.0) -> View:
        """Compute down_proj(act(gate_proj(x)) * up_proj(x)), with separate projections or the fused gate_up_proj.

        The projections may have any of the names in `_MLPS`. The outputs of gate_proj and down_proj are multiplied by
        constants.
        """
        names = replace(_mlp_names(module), gate_multiplier=gate_multiplier, down_multiplier=down_multiplier)
        down = getattr(module, names.down)
        width: int = down.in_features
        is_fused = len(names.gate_up) == 1
        if is_fused:
            gate = self._linear(getattr(module, names.gate_up[0]), x, "gate_up")
            up = gate.after(width)
        else:
            gate, up = (self._linear(getattr(module, name), x, name) for name in names.gate_up)
        if gate.stride != (2 * width if is_fused else width) or up.stride != gate.stride:
            raise UnexpectedModuleError("projections with different sizes")
        if gate_multiplier != 1.0:
            self.writer.scale(gate, gate_multiplier, width=width)
        inner = self._buffer("inner", width)
        self.writer.gated_activation(gate, up, inner, width=width, activation=names.activation)
        self.forwards.append((module, partial(gated_mlp_forward, module, names)))
        output = self._linear(down, inner, "sublayer_output")
        self.scale(output, down_multiplier)
        return output

    def mlp(self, module: Any, x: View) -> View:
        """Compute down_proj(act_fn(up_proj(x))). The parts may have any of the names in `_PLAIN_MLPS`."""
        children = {name for name, _ in module.named_children()}
        up, down, act = next((names for names in _PLAIN_MLPS if children >= {*names}), _PLAIN_MLPS[0])
        expect_children(module, up, down, act)
        function = getattr(module, act)
        numbers = activation_numbers(function)
        activation: Activation = "xielu" if numbers else activation_of(function)
        projected = self._linear(getattr(module, up), x, "up")
        inner = self._buffer("inner", projected.stride)
        self.writer.activation(projected, inner, activation, numbers)
        self.forwards.append((function, partial(activation_forward, function, activation, numbers)))
        return self._linear(getattr(module, down), inner, "sublayer_output")

    def output_head(
        self, norm: Any, lm_head: Any, hidden: View, *, multiplier: float = 1.0, softcap: float | None = None
    ) -> None:
        """Compute the logits after each sequence's last token."""
        last = hidden if self.writer.has_gathered_last else self.last_tokens(hidden)
        normed = self._buffer("last_normed", self._hidden_size)
        self.writer.rms_norm(self._norm(norm, self._hidden_size), last, normed)
        _expect_untouched(lm_head)
        self.writer.logits(_weight(lm_head), normed, _bias(lm_head))
        self.logits_multiplier, self.logits_softcap = multiplier, softcap

    def _project_qkv(self, module: Any, x: View, heads: Heads, *, q_width: int, only_query: bool) -> list[View]:
        """Return queries, keys and values; without v_proj, the values are the keys."""
        names = {name for name, _ in module.named_children()}
        fused = names & {"qkv_proj", "query_key_value"}
        wanted = [*fused] if fused else ["q_proj", "k_proj", *(["v_proj"] if "v_proj" in names else [])]
        projections = wanted[:1] if only_query else wanted
        norms = names.intersection(chain(*_HEAD_NORMS.values()))
        expect_children(module, *projections, *names.intersection(_OUTPUTS), *norms, *(names & {"g_proj"}))
        query, kv = heads.query * heads.size, heads.kv * heads.size
        views = [self._linear(getattr(module, name), x, name) for name in projections]
        if fused:
            by_head = "query_key_value" in fused
            views += [views[0].after(heads.size if by_head else query)]
            views += [views[1].after(heads.size if by_head else kv)]
            widths = [query + 2 * kv] * 3
        else:
            views += views[1:2] if len(views) == 2 else []
            widths = [q_width, kv, kv][: len(views)]
        if [view.stride for view in views] != widths:
            raise UnexpectedModuleError("projections that do not match the heads")
        return views

    def _embedding(self, module: Any, name: str, multiplier: float = 1.0, *, takes_media: bool = False) -> View:
        from torch import nn

        from llmctl.cpu.layers import PackedEmbedding

        if isinstance(module, PackedEmbedding):
            multiplier *= module.scale or 1.0
        elif isinstance(module, nn.Embedding) and hasattr(module, "embed_scale"):
            multiplier *= float(cast("Tensor", module.embed_scale).to(module.weight.dtype))
        elif type(module) is not nn.Embedding:
            raise UnexpectedModuleError(type(module).__name__)
        _expect_untouched(module)
        weight = _weight(module)
        out = self._buffer(name, weight.k)
        self.writer.embedding(weight, out, multiplier=multiplier, takes_media=takes_media)
        return out

    def _linear(self, module: Any, x: View, out: str) -> View:
        _expect_untouched(module)
        weight = _weight(module)
        view = self._buffer(out, weight.n)
        self.writer.linear(weight, x, view, _bias(module))
        return view

    def _head_norm(self, attention: Any, part: str, x: View, heads: int, size: int) -> tuple[View, RmsNorm | None]:
        """Return heads ("q", "k" or "v") and the norm of each, if the attention has it. Apply a norm of all heads."""
        names = [name for name in _HEAD_NORMS[part] if hasattr(attention, name)]
        if not names:
            return x, None
        norm = getattr(attention, names[0])
        weight = getattr(norm, "weight", None)
        if weight is None or weight.shape == (size,):
            return x, self._norm(norm, size)
        normed = self._buffer(f"{part}_normed", heads * size)
        self.writer.rms_norm(self._norm(norm, heads * size), x, normed)
        return normed, None

    def _norm(self, module: Any, size: int) -> RmsNorm:
        _expect_untouched(module)
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        ending = "LayerNorm" if self.norm_flavour == "layer_norm" else "RMSNorm"
        weight = getattr(module, "weight", None)
        has_weight = getattr(module, "with_scale", not type(module).__name__.endswith("L2Norm"))
        bias = getattr(module, "bias", None)
        is_known = type(module).__name__.endswith((ending, "L2Norm"))
        if epsilon is None or not is_known or (bias is not None and ending == "RMSNorm"):
            raise UnexpectedModuleError(type(module).__name__)
        if (weight.shape != (size,)) if weight is not None else has_weight:
            raise UnexpectedModuleError(f"{type(module).__name__} of another size")
        flavour = self.norm_flavour if has_weight else "no_weight"
        self.forwards.append((module, partial(norm_forward, module, epsilon, flavour)))
        weight, bias = (None if vector is None else vector.detach() for vector in (weight, bias))
        return RmsNorm(size, weight, epsilon, flavour, bias)

    def _buffer(self, name: str, width: int) -> View:
        if (name, width) not in self._buffers:
            self._buffers[name, width] = self.writer.buffer(width)
        return self._buffers[name, width]


# the norms of an attention's queries, keys and values; Llama 4 has one for both
_HEAD_NORMS = {
    "q": ("q_norm", "q_layernorm", "query_layernorm", "qk_norm"),
    "k": ("k_norm", "k_layernorm", "key_layernorm", "qk_norm"),
    "v": ("v_norm",),
}
_OUTPUTS = ("o_proj", "out_proj", "dense")

# projections of MLPs without a gate, and the activation between them
_PLAIN_MLPS = (
    ("up_proj", "down_proj", "act_fn"),
    ("c_fc", "c_proj", "act"),
    ("fc1", "fc2", "activation_fn"),
    ("dense_h_to_4h", "dense_4h_to_h", "act"),
)

# projections of gated MLPs: gate and up, or a fused one; the output; the activation, which has a module except in LFM2
_MLPS: tuple[tuple[tuple[str, ...], str, str | None], ...] = (
    (("gate_proj", "up_proj"), "down_proj", "act_fn"),
    (("gate_proj", "up_proj"), "down_proj", "activation_fn"),
    (("gate_up_proj",), "down_proj", "activation_fn"),
    (("w1", "w3"), "w2", None),
    (("input_linear",), "output_linear", "activation"),
)


def _mlp_names(module: Any) -> MlpNames:
    """Return the parts of a gated MLP. Raises UnexpectedModuleError if it has others."""
    children = {name for name, _ in module.named_children()}
    for gate_up, down, activation in _MLPS:
        if children >= {*gate_up, down, *([] if activation is None else [activation])}:
            expect_children(module, *gate_up, down, *([] if activation is None else [activation]))
            return MlpNames(gate_up, down, "silu" if activation is None else activation_of(getattr(module, activation)))
    raise UnexpectedModuleError(f"{type(module).__name__} as an MLP")


def frequencies_of(rotary_emb: Any, layer_type: str | None) -> "Tensor":
    """Return the frequencies of a RoPE, one for each pair of elements. Raises UnexpectedModuleError without any."""
    name = "inv_freq" if layer_type is None else f"{layer_type}_inv_freq"
    frequencies: Tensor | None = getattr(rotary_emb, name, None)
    if frequencies is None:
        raise UnexpectedModuleError(f"a RoPE without {name}")
    return frequencies


def expect_children(module: Any, *names: str) -> None:
    """Raise UnexpectedModuleError unless a module has exactly these children. Dropouts are ignored."""
    from torch import nn

    _expect_untouched(module)
    children = {name for name, child in module.named_children() if type(child) is not nn.Dropout}
    if children != set(names):
        raise UnexpectedModuleError(f"{type(module).__name__} with {', '.join(sorted(children))}")


def _expect_untouched(module: Any) -> None:
    """Raise UnexpectedModuleError if a module has hooks or a replaced forward, which a program would bypass."""
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        raise UnexpectedModuleError(f"{type(module).__name__} with a hook")


def _weight(module: Any) -> Weight:
    """Return the weight of a linear layer or an embedding, in a layout that the kernels read."""
    from torch import nn

    from llmctl.cpu.layers import KernelLinear, PackedEmbedding, PackedLinear

    if isinstance(module, PackedLinear | PackedEmbedding):
        packed = module.packed
        if not packed.has_native_layout:
            raise UnexpectedModuleError(packed.packing_format)
        codes, scales = packed.views(module.weight)
        return Weight(codes, packed.n, packed.k, packed.bits, scales)
    if isinstance(module, KernelLinear | nn.Embedding):
        n, k = module.weight.shape
        return Weight(module.weight.detach(), n, k)
    raise UnexpectedModuleError(type(module).__name__)


def _bias(module: Any) -> "Tensor | None":
    return None if module.bias is None else cast("Tensor", module.bias.detach())


def _heads_of(module: Any, config: Any) -> Heads:
    size: int = module.head_dim if hasattr(module, "head_dim") else module.head_size
    query: int = config.num_attention_heads
    return Heads(query, query // getattr(module, "num_key_value_groups", 1), size)


def activation_of(module: Any) -> Activation:
    """Return the name of an activation. Raises UnexpectedModuleError if the kernels do not have it."""
    from llmctl.cpu.expert_layers import ACTIVATION_OF

    activation = ACTIVATION_OF.get(type(module).__name__)
    if activation is None:
        raise UnexpectedModuleError(type(module).__name__)
    return activation
