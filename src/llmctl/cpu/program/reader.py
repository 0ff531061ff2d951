"""From the modules of a model to the operations of a program.

Anything unexpected, a module more, a hook, an adapter, an activation without a kernel, and there is no program.
"""

from functools import partial
from typing import TYPE_CHECKING, Any, cast

from llmctl.cpu.operations import Activation
from llmctl.cpu.program.architectures import ROUTERS, Architecture
from llmctl.cpu.program.writer import Norm, Part, Program, ProgramWriter, Weight
from llmctl.model.info import PACKED

if TYPE_CHECKING:
    from torch import Tensor

_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_GEMMA_NORMS = {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
_DROPOUTS = {"resid_attn_dropout", "resid_mlp_dropout"}


class UnexpectedError(Exception):
    """The model is not quite what its class says."""


class Reader:
    """Reads a model's modules into a program."""

    def __init__(self, model: Any, architecture: Architecture, writer: ProgramWriter) -> None:
        self.model, self.config, self.kind, self.writer = model, model.config, architecture, writer
        self.hidden: int = model.config.hidden_size
        self.x, self.normed, self.moved = (writer.buffer(self.hidden) for _ in range(3))
        self.norms: list[tuple[Any, Norm]] = []
        self.gates: list[tuple[Any, Activation]] = []
        self.routers: list[tuple[Any, dict[str, bool]]] = []
        self._shared: dict[tuple[str, int], Part] = {}

    def program(self) -> Program:
        _children(self.model, {"model", "lm_head"})
        body = self.model.model
        _children(body, {"embed_tokens", "layers", "norm", "rotary_emb"})
        if len(body.layers) != self.config.num_hidden_layers:
            raise UnexpectedError
        self._embed(body.embed_tokens)
        for number, layer in enumerate(body.layers):
            self._layer(layer, number)
        last, normed = self.writer.buffer(self.hidden), self.writer.buffer(self.hidden)
        self.writer.gather_last(self.x, last)
        self._norm(body.norm, last, normed)
        self._linear(self.model.lm_head, normed, None)
        return self.writer.program()

    def _embed(self, module: Any) -> None:
        from torch import nn

        from llmctl.cpu.layers import PackedEmbedding

        scale = self.kind.embedding(self.config)
        if isinstance(module, PackedEmbedding):
            scale *= module.scale or 1.0
        elif isinstance(module, nn.Embedding) and hasattr(module, "embed_scale"):
            scale *= float(cast("Tensor", module.embed_scale).to(module.weight.dtype))
        elif type(module) is not nn.Embedding:
            raise UnexpectedError
        _untouched(module)
        self.writer.embed(_weight(module), self.x, scale=scale)

    def _layer(self, layer: Any, number: int) -> None:
        _children(layer, _LAYER | (_GEMMA_NORMS if self.kind.has_four_norms else set()), optional=_DROPOUTS)
        write, scale = self.writer, self.kind.residual(self.config)
        self._norm(layer.input_layernorm, self.x, self.normed)
        self._attention(layer.self_attn, number)
        if self.kind.has_four_norms:
            self._norm(layer.post_attention_layernorm, self.moved, self.normed)
            write.add(self.x, self.normed, self.x, width=self.hidden, scale=scale)
            self._norm(layer.pre_feedforward_layernorm, self.x, self.normed)
            self._mlp(layer.mlp)
            self._norm(layer.post_feedforward_layernorm, self.moved, self.normed)
            write.add(self.x, self.normed, self.x, width=self.hidden, scale=scale)
            return
        write.add(self.x, self.moved, self.x, width=self.hidden, scale=scale)
        self._norm(layer.post_attention_layernorm, self.x, self.normed)
        self._mlp(layer.mlp)
        write.add(self.x, self.moved, self.x, width=self.hidden, scale=scale)

    def _attention(self, module: Any, number: int) -> None:
        """From `normed` to `moved`."""
        names = set(dict(module.named_children()))
        norms, fused = names & {"q_norm", "k_norm"}, "qkv_proj" in names
        _children(module, ({"qkv_proj", "o_proj"} if fused else {"q_proj", "k_proj", "v_proj", "o_proj"}) | norms)
        width, heads, kv_heads = module.head_dim, self.config.num_attention_heads, self.config.num_key_value_heads
        queries, keys = heads * width, kv_heads * width
        if fused:
            q = self._buffer("qkv", queries + 2 * keys)
            self._linear(module.qkv_proj, self.normed, q)
            k, v = q.after(queries), q.after(queries + keys)
        else:
            q, k, v = self._buffer("q", queries), self._buffer("k", keys), self._buffer("v", keys)
            for projection, out in ((module.q_proj, q), (module.k_proj, k), (module.v_proj, v)):
                self._linear(projection, self.normed, out)
        rotated = self._rotated(width) if self.kind.turns(self.config, number) else 0
        angles = self._angles(number)
        query, attended = self._buffer("query", queries), self._buffer("attended", queries)
        heads_of = partial(self.writer.heads, width=width, layer=number)
        turned = partial(heads_of, rotated=rotated, angles=angles)
        turned(q, heads=heads, to=query, norm=self._norm_of(getattr(module, "q_norm", None), width))
        turned(k, heads=kv_heads, to="keys", norm=self._norm_of(getattr(module, "k_norm", None), width))
        heads_of(v, heads=kv_heads, to="values")
        self.writer.attend(
            query,
            attended,
            heads=heads,
            kv_heads=kv_heads,
            width=width,
            layer=number,
            scale=self.kind.scale(self.config, width),
            window=self.kind.window(self.config, number),
        )
        self._linear(module.o_proj, attended, self.moved)

    def _mlp(self, module: Any) -> None:
        """From `normed` to `moved`."""
        names = set(dict(module.named_children()))
        if names == {"gate", "experts"}:
            self._mixture(module)
            return
        fused, act = "gate_up_proj" in names, "act_fn" if "act_fn" in names else "activation_fn"
        _children(module, {"down_proj", act} | ({"gate_up_proj"} if fused else {"gate_proj", "up_proj"}))
        activation = _activation(getattr(module, act))
        width: int = self.config.intermediate_size
        if activation is None:
            raise UnexpectedError
        self.gates.append((module, activation))
        if fused:
            gate = self._buffer("gate_up", 2 * width)
            self._linear(module.gate_up_proj, self.normed, gate)
            up = gate.after(width)
        else:
            gate, up = self._buffer("gate", width), self._buffer("up", width)
            self._linear(module.gate_proj, self.normed, gate)
            self._linear(module.up_proj, self.normed, up)
        inner = self._buffer("inner", width)
        self.writer.gated(gate, up, inner, width=width, activation=activation)
        self._linear(module.down_proj, inner, self.moved)

    def _mixture(self, module: Any) -> None:
        """A mixture of packed experts, from `normed` to `moved`."""
        _untouched(module)
        router, experts = module.gate, module.experts
        _children(router, set())
        packed = getattr(experts, "packed", None)
        names = set(dict(experts.named_children()))
        if type(router).__name__ not in ROUTERS or not isinstance(packed, dict) or names != {"act_fn"}:
            raise UnexpectedError
        if experts._forward_hooks or experts._forward_pre_hooks or packed["down_proj"].made_by != PACKED:
            raise UnexpectedError
        count, hidden = router.weight.shape
        logits = self._buffer("router", count)
        self.writer.linear(Weight(router.weight.detach(), count, hidden), self.normed, logits)
        how = {"normalised": getattr(router, "norm_topk_prob", True), "rounded": ROUTERS[type(router).__name__]}
        routes = self.writer.route(logits, experts=count, chosen=router.top_k, **how)
        weights = (
            Weight(getattr(experts, name).detach(), packed[name].n, packed[name].k, packed[name].bits)
            for name in ("gate_up_proj", "down_proj")
        )
        there, back = weights
        self.writer.experts(
            self.normed,
            routes,
            self.moved,
            there=there,
            back=back,
            experts=count,
            chosen=router.top_k,
            activation=_activation(experts.act_fn),
        )
        self.routers.append((router, how))

    def _norm(self, module: Any, x: Part, out: Part) -> None:
        self.writer.norm(cast("Norm", self._norm_of(module, self.hidden)), x, out)

    def _norm_of(self, module: Any, width: int) -> Norm | None:
        if module is None:
            return None
        _untouched(module)
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if epsilon is None or not type(module).__name__.endswith("RMSNorm") or module.weight.shape != (width,):
            raise UnexpectedError
        norm = Norm(module.weight.detach(), epsilon, self.kind.norm)
        self.norms.append((module, norm))
        return norm

    def _linear(self, module: Any, x: Part, out: Part | None) -> None:
        _untouched(module)
        weight = _weight(module)
        if out is not None and out.stride != weight.n:
            raise UnexpectedError
        self.writer.linear(weight, x, out, None if module.bias is None else module.bias.detach())

    def _rotated(self, width: int) -> int:
        rotary = self.model.model.rotary_emb
        sizes = {2 * buffer.numel() for name, buffer in rotary.named_buffers() if name.endswith("inv_freq")}
        if len(sizes) != 1 or max(sizes) > width:
            raise UnexpectedError
        return int(sizes.pop())

    def _angles(self, number: int) -> int:
        types = self.config.layer_types if self.kind.angles_by_type else None
        return sorted(set(types)).index(types[number]) if types else 0

    def _buffer(self, name: str, width: int) -> Part:
        """The buffer of that name, which every layer uses again."""
        if (name, width) not in self._shared:
            self._shared[name, width] = self.writer.buffer(width)
        return self._shared[name, width]


def _weight(module: Any) -> Weight:
    """The weight of a linear layer or an embedding in one of the forms that the kernels multiply."""
    from torch import nn

    from llmctl.cpu.layers import KernelLinear, PackedEmbedding, PackedLinear

    if isinstance(module, PackedLinear | PackedEmbedding):
        packed = module.packed
        if packed.made_by != PACKED:
            raise UnexpectedError
        codes, scales = packed.views(module.weight)
        return Weight(codes, packed.n, packed.k, packed.bits, scales)
    if isinstance(module, KernelLinear | nn.Embedding):
        n, k = module.weight.shape
        return Weight(module.weight.detach(), n, k)
    raise UnexpectedError


def _activation(module: Any) -> Activation:
    from llmctl.cpu.layers import ACTIVATION_OF

    found = ACTIVATION_OF.get(type(module).__name__)
    if found is None:
        raise UnexpectedError
    return found


def _children(module: Any, expected: set[str], *, optional: set[str] | None = None) -> None:
    """Raise unless a module has these children and no others."""
    _untouched(module)
    if set(dict(module.named_children())) - (optional or set()) != expected:
        raise UnexpectedError


def _untouched(module: Any) -> None:
    """Raise where something was hung onto a module that a program would pass by."""
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        raise UnexpectedError
