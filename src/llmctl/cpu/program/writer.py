"""A program under construction: operations of the compiled library on buffers of rows.

The work between two matrix products is small, but in Python it takes longer than reading the weights. Therefore a whole
forward pass is one call of the library. Each operation rounds where torch's would; see native/rows.h and
native/program.cpp.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llmctl.cpu.experts import Experts, Routing
from llmctl.cpu.structs import (
    ACTIVATIONS,
    DESTINATIONS,
    NORM_FLAVOURS,
    OPERATION_KINDS,
    ROPE_LAYOUTS,
    Activation,
    Destination,
    NormFlavour,
    Operation,
    OperationKind,
    RopeLayout,
)
from llmctl.cpu.tensors import check_quantized, check_vector, dtype_codes

if TYPE_CHECKING:
    from torch import Tensor, dtype


StateShape = tuple[tuple[int, ...], "dtype"]  # of a sequence's part of a state


@dataclass(frozen=True)
class View:
    """A range of elements in every row of a buffer.

    Attributes:
        buffer: The number of the buffer.
        offset: The first element.
        stride: The length of a row.
    """

    buffer: int
    offset: int
    stride: int

    def after(self, elements: int) -> "View":
        """Return a view that begins `elements` later."""
        return View(self.buffer, self.offset + elements, self.stride)


@dataclass(frozen=True)
class CacheView:
    """A layer's keys or values in the KV cache, or a part of them.

    Attributes:
        part: Keys or values.
        layer: The number of the layer.
        offset: The first element.
        stride: The elements of a token; None if the heads that are written are all.
    """

    part: Literal["keys", "values"]
    layer: int
    offset: int = 0
    stride: int | None = None


@dataclass(frozen=True)
class Weight:
    """A matrix [n, k] or an embedding with n rows: in torch's layout (`bits` is 0), or in 4 or 8 bits with scales."""

    tensor: "Tensor"
    n: int
    k: int
    bits: int = 0
    scales: "Tensor | None" = None


@dataclass(frozen=True)
class RmsNorm:
    """A norm of `size` elements, with weights unless its flavour is `no_weight`."""

    size: int
    weight: "Tensor | None"
    epsilon: float
    flavour: NormFlavour
    bias: "Tensor | None" = None


@dataclass(frozen=True)
class Rope:
    """A rotary position embedding.

    Attributes:
        index: Its index in the program's list of RoPEs.
        rotary_size: The number of elements that it rotates in each head.
        layout: The elements that it rotates together, and the order of its table: `RopeLayout` in native/kernels.h.
        in_float32: True if it rounds once, False if after every step.
    """

    index: int
    rotary_size: int
    layout: RopeLayout = "halves"
    in_float32: bool = False


@dataclass(frozen=True)
class Heads:
    """The numbers of query heads and key-value heads, and the size of a head."""

    query: int
    kv: int
    size: int


class ProgramWriter:
    """Writes the operations of a program.

    Attributes:
        dtype: The dtype of activations, keys and values.
        operations: The operations so far.
        buffer_widths: The row length of each buffer.
        kv_shapes: The number of key heads, their size and the size of a value, for each layer with attention.
        state_shapes: The shape and the dtype of a sequence's part of each state.
        vocabulary_size: The number of logits.
        embedding_rows: The number of token ids that have an embedding.
        tensors: References that keep alive the tensors to which the operations point.
    """

    def __init__(self, dtype: "dtype") -> None:
        self.dtype = dtype
        self.operations: list[Operation] = []
        self.buffer_widths: list[int] = []
        self.kv_shapes: list[tuple[int, int, int]] = []
        self.state_shapes: list[StateShape] = []
        self.vocabulary_size = self.embedding_rows = 0
        self.tensors: list[Tensor] = []

    @property
    def has_gathered_last(self) -> bool:
        """True after `gather_last`: operations have one row per sequence."""
        return any(op.kind == OPERATION_KINDS.index("gather_last") for op in self.operations)

    def buffer(self, width: int) -> View:
        """Add a buffer with rows of `width` elements."""
        self.buffer_widths.append(width)
        return View(len(self.buffer_widths) - 1, 0, width)

    def state(self, shape: tuple[int, ...], dtype: "dtype") -> int:
        """Add a state of `shape` for every sequence, which operations continue from pass to pass. Return its number."""
        self.state_shapes.append((shape, dtype))
        return len(self.state_shapes) - 1

    def kv_layer(self, heads: int, size: int, *, value_size: int | None = None) -> int:
        """Add a layer with `heads` keys and values of `size` elements per token to the KV cache. Return its number.

        Args:
            value_size: The size of a value, if it differs; 0 for values that are a part of the keys.
        """
        self.kv_shapes.append((heads, size, size if value_size is None else value_size))
        return len(self.kv_shapes) - 1

    def embedding(self, weight: Weight, out: View, *, multiplier: float = 1.0, takes_media: bool = False) -> None:
        """Look up the rows of the token ids.

        Args:
            takes_media: Copy the first media of the pass instead, for the tokens that have media.
        """
        self.embedding_rows = min(weight.n, self.embedding_rows or weight.n)
        media = 1 if takes_media else 0
        self._add("embedding", output=out.buffer, n=weight.k, scale=multiplier, media=media, **self._weight(weight))

    def add_media(self, x: View, number: int) -> None:
        """Add the media with this number to x, in place, if the pass has them. x is a whole buffer."""
        self._add("add_media", **_input(x), output=x.buffer, n=x.stride, media=1 + number)

    def rms_norm(self, norm: RmsNorm, x: View, out: View) -> None:
        """Apply a norm to x."""
        self._add("rms_norm", **_input(x), output=out.buffer, n=norm.size, **self._norm(norm))

    def linear(self, weight: Weight, x: View, out: View, bias: "Tensor | None" = None) -> None:
        """Multiply x by a weight and add a bias."""
        self._linear(weight, x, "buffer", out.buffer, bias)

    def float_linear(self, weight: Weight, x: View, out: View, bias: "Tensor | None" = None) -> None:
        """Do the same as `linear`; `out` receives float32 numbers, whatever the program's dtype."""
        self._linear(weight, x, "floats", out.buffer, bias)

    def logits(self, weight: Weight, x: View, bias: "Tensor | None" = None) -> None:
        """Multiply x by the weight of the output head; the result is the logits in float32."""
        self.vocabulary_size = weight.n
        self._linear(weight, x, "logits", 0, bias)

    def prepare_heads(
        self,
        x: View,
        out: View | CacheView,
        *,
        heads: int,
        size: int,
        norm: RmsNorm | None = None,
        rope: Rope | None = None,
        head_stride: int | None = None,
        out_head_stride: int | None = None,
        token_factor: int | None = None,
        norm_last: bool = False,
    ) -> None:
        """Apply norm, RoPE and a factor to each head of a token's heads [heads, size], and store them in `out`.

        Args:
            head_stride: The distance of the heads in x, if other elements lie between them.
            out_head_stride: The distance of the heads in `out`, likewise.
            token_factor: The number of the factors in the pass.
            norm_last: True if the norm follows RoPE.
        """
        fields: dict[str, Any] = {
            "norm_last": norm_last,
            "heads": heads,
            "head_size": size,
            "head_stride": head_stride or size,
        }
        fields["output_head_stride"] = out_head_stride or size
        if norm is not None:
            fields |= self._norm(norm)
        if rope is not None:
            fields |= {"rope": rope.index, "rotary_size": rope.rotary_size, "rope_in_float32": rope.in_float32}
            fields["rope_layout"] = ROPE_LAYOUTS.index(rope.layout)
        if token_factor is not None:
            fields["token_factor"] = 1 + token_factor
        if isinstance(out, CacheView):
            fields |= {"destination": DESTINATIONS.index(out.part), "layer": out.layer}
            fields |= {"output_offset": out.offset, "output_stride": out.stride or heads * size}
        else:
            fields |= {"output": out.buffer, "output_offset": out.offset, "output_stride": out.stride}
        self._add("prepare_heads", **_input(x), **fields)

    def attention(
        self,
        q: View,
        out: View,
        heads: Heads,
        *,
        layer: int,
        scale: float,
        window: int = 0,
        chunk: int = 0,
        softcap: float = 0.0,
        sinks: "Tensor | None" = None,
        value_size: int | None = None,
    ) -> None:
        """Compute attention of q over its sequence's keys and values, as `Kernels.paged_attention` does.

        Args:
            value_size: The values are this number of elements at the beginning of the keys; None for separate values.
        """
        check_vector(sinks, heads.query, "sinks")
        self._add(
            "attention",
            **_input(q),
            output=out.buffer,
            heads=heads.query,
            kv_heads=heads.kv,
            head_size=heads.size,
            layer=layer,
            scale=scale,
            window=window,
            chunk=chunk,
            softcap=softcap,
            value_size=heads.size if value_size is None else value_size,
            values_in_keys=value_size is not None,
            **({} if sinks is None else self._bias(sinks)),
        )

    def linear_heads(self, weight: "Tensor", x: View, out: View, *, head_stride: int, out_head_stride: int) -> None:
        """Multiply each head of x by its own weight.

        Args:
            weight: [heads, n, k].
            x: Heads of k elements, `head_stride` from each other.
            out: Heads of n elements, `out_head_stride` from each other.
        """
        heads, n, k = weight.shape
        self._add(
            "linear_heads",
            **_input(x),
            output=out.buffer,
            output_offset=out.offset,
            output_stride=out.stride,
            heads=heads,
            n=n,
            k=k,
            head_stride=head_stride,
            output_head_stride=out_head_stride,
            **self._plain_weight(weight),
        )

    def gated_activation(
        self, gate: View, up: View, out: View, *, width: int, activation: Activation, gates: int | None = None
    ) -> None:
        """Compute activation(gate) * up.

        Args:
            width: The size of a row.
            gates: The number of gates, each for an equal part of the row; by default, each element has its own.
        """
        index = ACTIVATIONS.index(activation)
        fields = {"n": width, "k": 0 if gates is None else gates, "activation": index}
        self._add("gated_activation", **_input(gate), **_other(up), output=out.buffer, **fields)

    def activation(self, x: View, out: View, activation: Activation, numbers: Mapping[str, float]) -> None:
        """Compute activation(x). `numbers` are those of an activation that has some, by fields of `Operation`."""
        fields = {"n": out.stride, "activation": ACTIVATIONS.index(activation), **numbers}
        self._add("activation", **_input(x), output=out.buffer, **fields)

    def route(self, logits: View, routing: Routing) -> View:
        """Choose each token's experts. Return a buffer of their indices and weights, in a layout for `experts`."""
        out = self.buffer(routing.top_k * 8 // self.dtype.itemsize)
        self.tensors += [tensor for tensor in (routing.correction, routing.factors) if tensor is not None]
        self._add("route", **_input(logits), output=out.buffer, **routing.fields())
        return out

    def experts(self, x: View, routes: View, out: View, routing: Routing, experts: Experts) -> None:
        """Compute each token's experts: gate_up_proj, the gated activation, down_proj, and the weighted sum.

        Args:
            x: Hidden states [hidden].
            routes: The result of `route`.
            out: The weighted sums [hidden].
            routing: The choice of experts.
            experts: Their weights.
        """
        tensors = (experts.gate_up_proj, experts.down_proj, experts.gate_up_bias, experts.down_bias)
        self.tensors += [tensor for tensor in tensors if tensor is not None]
        self._add(
            "experts",
            **_input(x),
            **_other(routes),
            output=out.buffer,
            top_k=routing.top_k,
            **experts.fields(),
        )

    def add(self, a: View, b: View, out: View, *, width: int, multiplier: float = 1.0) -> None:
        """Compute a + multiplier * b."""
        self._add("add", **_input(a), **_other(b), output=out.buffer, n=width, scale=multiplier)

    def scale(self, x: View, factor: float, out: View | None = None, *, width: int | None = None) -> None:
        """Multiply x by a constant.

        Args:
            x: The elements.
            factor: The constant.
            out: The results; by default, they replace x.
            width: The number of elements; by default, x is a whole buffer.
        """
        to = x if out is None else out
        fields = {"output": to.buffer, "output_offset": to.offset, "output_stride": to.stride}
        self._add("scale", **_input(x), n=x.stride if width is None else width, scale=factor, **fields)

    def gather_last(self, x: View, out: View) -> None:
        """Copy the row of each sequence's last token. All later operations have one row per sequence."""
        self._add("gather_last", **_input(x), output=out.buffer, n=out.stride)

    def _linear(self, weight: Weight, x: View, destination: Destination, output: int, bias: "Tensor | None") -> None:
        last = self.operations[-1]
        is_linear = last.kind == OPERATION_KINDS.index("linear")
        same_input = is_linear and (last.input, last.input_offset) == (x.buffer, x.offset)
        fields = {**_input(x), "n": weight.n, "k": weight.k, "same_input": same_input, "output": output}
        if bias is not None:
            fields |= self._bias(bias)
        self._add("linear", destination=DESTINATIONS.index(destination), **fields, **self._weight(weight))

    def _add(self, kind: OperationKind, **fields: Any) -> None:
        fields.setdefault("scale", 1.0)
        self.operations.append(
            Operation(kind=OPERATION_KINDS.index(kind), per_sequence=self.has_gathered_last, **fields)
        )

    def _weight(self, weight: Weight) -> dict[str, int]:
        if weight.scales is None:
            return self._plain_weight(weight.tensor)
        check_quantized(weight.bits, weight.tensor, weight.scales, weight.n, weight.k)
        self.tensors += [weight.tensor, weight.scales]
        return {"weight": weight.tensor.data_ptr(), "scales": weight.scales.data_ptr(), "bits": weight.bits}

    def _bias(self, bias: "Tensor") -> dict[str, int]:
        self.tensors.append(bias)
        return {"bias": bias.data_ptr(), "bias_dtype": dtype_codes()[bias.dtype]}

    def _norm(self, norm: RmsNorm) -> dict[str, float]:
        flavour = NORM_FLAVOURS.index(norm.flavour)
        weight = {} if norm.weight is None else self._plain_weight(norm.weight)
        bias = {} if norm.bias is None else self._bias(norm.bias)
        return {**weight, **bias, "epsilon": norm.epsilon, "norm_flavour": flavour}

    def _plain_weight(self, tensor: "Tensor") -> dict[str, int]:
        if tensor.dtype not in dtype_codes() or not tensor.is_contiguous():
            raise ValueError("weights must be contiguous and of float32, bfloat16 or float16")
        self.tensors.append(tensor)
        return {"weight": tensor.data_ptr(), "weight_dtype": dtype_codes()[tensor.dtype]}


def view_fields(name: str, view: View) -> dict[str, int]:
    """Return the fields of an operation for one of its inputs: input, other, …"""
    return {name: view.buffer, f"{name}_offset": view.offset, f"{name}_stride": view.stride}


def _input(view: View) -> dict[str, int]:
    return view_fields("input", view)


def _other(view: View) -> dict[str, int]:
    return view_fields("other", view)
