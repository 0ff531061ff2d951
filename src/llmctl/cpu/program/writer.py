"""A whole pass through a model as one call of the compiled library: a list of operations over buffers of rows.

Between two products of matrices a model does little, and in Python that little takes longer than reading the weights.
`ProgramWriter` collects what is to be done, `Program` does it for packed tokens of several sequences. Each operation
rounds where torch's would; see native/rows.h and native/step.cpp.
"""

import ctypes
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llmctl.cpu.operations import ACTIVATIONS, BLOCK, GROUP, NORM_FLAVOURS, Activation, Kernels, NormFlavour

if TYPE_CHECKING:
    from torch import Tensor, dtype

_KINDS = ("embed", "norm", "linear", "heads", "attend", "gated", "add", "gather", "route", "experts")
_LOGITS, _KEYS, _VALUES = -1, -1, -2  # in the place of a buffer that is written to

_SIZES = (
    "kind", "flavour", "per_sequence", "in_", "in_at", "in_stride", "other", "other_at", "other_stride", "out", "n",
    "k", "bits", "again", "heads", "kv_heads", "width", "value_width", "rotated", "angles", "layer", "window",
    "chosen", "normalised", "rounded",
)  # fmt: skip


class _Op(ctypes.Structure):
    """Op of native/kernels.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        ("weight", ctypes.c_void_p),
        ("weight_dtype", ctypes.c_int64),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("bias_dtype", ctypes.c_int64),
        ("second", ctypes.c_void_p),
        ("epsilon", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
    )


class _Pass(ctypes.Structure):
    """Pass of native/step.h."""

    _fields_ = (
        ("dtype", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
        ("sequences", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("buffers", "logits", "ids", "slots", "last", "cosines", "sines")),
        *((name, ctypes.c_void_p) for name in ("keys", "values", "page_table", "query_start", "kv_length")),
        ("most_pages", ctypes.c_int64),
        ("page_tokens", ctypes.c_int64),
        ("threads", ctypes.c_int64),
    )


@dataclass(frozen=True)
class Part:
    """A place in every row of a buffer: where it begins, and how long a row is, in elements."""

    buffer: int
    at: int
    stride: int

    def after(self, elements: int) -> "Part":
        """The place so many elements further on in the row."""
        return Part(self.buffer, self.at + elements, self.stride)


@dataclass(frozen=True)
class Weight:
    """A matrix [n, k], or rows of an embedding: as torch stores it, or in 4 or 8 bits with scales."""

    tensor: "Tensor"
    n: int
    k: int
    bits: int = 0
    scales: "Tensor | None" = None


@dataclass(frozen=True)
class Norm:
    """Weights [width] of a norm by the root of the mean square, and how they are applied."""

    weight: "Tensor"
    epsilon: float
    flavour: NormFlavour


class ProgramWriter:
    """Writes a program. Its state: the operations and the buffers so far."""

    def __init__(self, found: Kernels, dtype: "dtype") -> None:
        self._kernels, self.dtype = found, dtype
        self._codes = found.dtype_codes()
        self._ops: list[_Op] = []
        self.widths: list[int] = []
        self._kept: list[Any] = []  # what the operations point into
        self.kv_shapes: list[tuple[int, int]] = []
        self.vocabulary = self.embedded = 0

    def buffer(self, width: int) -> Part:
        """A new buffer of rows of so many elements."""
        self.widths.append(width)
        return Part(len(self.widths) - 1, 0, width)

    def embed(self, weight: Weight, out: Part, *, scale: float = 1.0) -> None:
        """Rows of an embedding for the tokens' ids, times a number."""
        self.embedded = weight.n
        self._add("embed", out=out.buffer, n=weight.k, scale=scale, **self._weight(weight))

    def norm(self, norm: Norm, x: Part, out: Part) -> None:
        """x normed."""
        self._add("norm", **_in(x), out=out.buffer, n=norm.weight.numel(), **self._norm(norm))

    def linear(self, weight: Weight, x: Part, out: Part | None, bias: "Tensor | None" = None) -> None:
        """x times a weight, plus a bias; without `out` the logits, in float32."""
        found = {**self._weight(weight), **self._bias(bias), "n": weight.n, "k": weight.k, **_in(x)}
        before = self._ops[-1] if self._ops else None
        linear = _KINDS.index("linear")
        again = before is not None and before.kind == linear and (before.in_, before.in_at) == (x.buffer, x.at)
        if out is None:
            self.vocabulary = weight.n
        self._add("linear", out=_LOGITS if out is None else out.buffer, again=int(again), **found)

    def heads(
        self,
        x: Part,
        *,
        heads: int,
        width: int,
        to: "Part | Literal['keys', 'values']",
        layer: int = 0,
        norm: Norm | None = None,
        rotated: int = 0,
        angles: int = 0,
    ) -> None:
        """Heads [heads, width] of every token, normed and turned, to a buffer or to a layer's keys or values.

        Args:
            x: Where they are.
            heads: How many.
            width: Of one head.
            to: Where they go.
            layer: Which layer's keys or values.
            norm: How each head is normed.
            rotated: So many elements of each head are turned.
            angles: By which of the pass's angles.
        """
        out = {"keys": _KEYS, "values": _VALUES}[to] if isinstance(to, str) else to.buffer
        more = self._norm(norm) if norm is not None else {}
        self._add(
            "heads", **_in(x), out=out, heads=heads, width=width, layer=layer, rotated=rotated, angles=angles, **more
        )

    def attend(
        self,
        q: Part,
        out: Part,
        *,
        heads: int,
        kv_heads: int,
        width: int,
        layer: int,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
    ) -> None:
        """Attention of q over the keys and values of its own sequence, as `Kernels.packed_attention`."""
        self.kv_shapes.append((kv_heads, width))
        self._add(
            "attend", **_in(q), out=out.buffer, heads=heads, kv_heads=kv_heads, width=width, value_width=width,
            layer=layer, scale=scale, window=window, softcap=softcap,
        )  # fmt: skip

    def gated(self, gate: Part, up: Part, out: Part, *, width: int, activation: Activation) -> None:
        """activation(gate) times up."""
        self._add("gated", **_in(gate), **_other(up), out=out.buffer, n=width, flavour=ACTIVATIONS.index(activation))

    def route(self, logits: Part, *, experts: int, chosen: int, normalised: bool, rounded: bool) -> Part:
        """The experts of every token and their shares, in a buffer that only `experts` reads.

        Args:
            logits: Of all experts.
            experts: How many there are.
            chosen: How many a token takes.
            normalised: Whether its shares sum to one.
            rounded: Whether they are rounded to `dtype`.
        """
        out = self.buffer(chosen * 8 // self.dtype.itemsize)
        self._add(
            "route", **_in(logits), out=out.buffer, n=experts, chosen=chosen, normalised=normalised, rounded=rounded
        )
        return out

    def experts(
        self,
        x: Part,
        routes: Part,
        out: Part,
        *,
        there: Weight,
        back: Weight,
        experts: int,
        chosen: int,
        activation: Activation,
    ) -> None:
        """Every token through its experts: x [hidden] to gates and ups [2, inner], activation(gate) times up, and back.

        Args:
            x: Where the tokens are.
            routes: What `route` returned.
            out: Where the sums go.
            there: Packed weights [2 * inner, hidden], as bytes, an expert after the other, codes before scales.
            back: Packed weights [hidden, inner] likewise.
            experts: How many there are.
            chosen: How many a token takes.
            activation: Of the gates.
        """
        self._kept += [there, back]
        for weight in (there, back):
            blocks = -(-weight.n // GROUP) * -(-weight.k // BLOCK)
            each = blocks * (GROUP * BLOCK * weight.bits // 8 + 2 * GROUP)
            if weight.tensor.shape != (experts, each) or not weight.tensor.is_contiguous():
                raise ValueError(f"packed experts have to be contiguous bytes [{experts}, {each}]")
        self._add(
            "experts", **_in(x), **_other(routes), out=out.buffer, n=there.k, k=back.k, bits=there.bits, width=experts,
            chosen=chosen, flavour=ACTIVATIONS.index(activation), weight=there.tensor.data_ptr(),
            second=back.tensor.data_ptr(),
        )  # fmt: skip

    def add(self, a: Part, b: Part, out: Part, *, width: int, scale: float = 1.0) -> None:
        """a plus scale times b."""
        self._add("add", **_in(a), **_other(b), out=out.buffer, n=width, scale=scale)

    def gather_last(self, x: Part, out: Part) -> None:
        """The rows of each sequence's last token; what comes after has a row for each sequence."""
        self._add("gather", **_in(x), out=out.buffer, n=out.stride)

    def program(self) -> "Program":
        """What was written."""
        return Program(self._kernels, self, self._ops, self._kept)

    def _add(self, kind: str, **fields: Any) -> None:
        after = any(op.kind == _KINDS.index("gather") for op in self._ops)
        fields.setdefault("scale", 1.0)
        self._ops.append(_Op(kind=_KINDS.index(kind), per_sequence=int(after), **fields))

    def _weight(self, weight: Weight) -> dict[str, Any]:
        self._kept.append(weight)
        if weight.scales is None:
            if weight.tensor.dtype not in self._codes or not weight.tensor.is_contiguous():
                raise ValueError("a weight has to be contiguous and of float32, bfloat16 or float16")
            return {"weight": weight.tensor.data_ptr(), "weight_dtype": self._codes[weight.tensor.dtype]}
        self._kernels.check_quantized(weight.bits, weight.tensor, weight.scales, weight.n, weight.k)
        return {"weight": weight.tensor.data_ptr(), "scales": weight.scales.data_ptr(), "bits": weight.bits}

    def _norm(self, norm: Norm) -> dict[str, Any]:
        self._kept.append(norm)
        if norm.weight.dtype not in self._codes or not norm.weight.is_contiguous():
            raise ValueError("the weights of a norm have to be contiguous and of float32, bfloat16 or float16")
        code = self._codes[norm.weight.dtype]
        found = {"weight": norm.weight.data_ptr(), "weight_dtype": code, "epsilon": norm.epsilon}
        return {**found, "flavour": NORM_FLAVOURS.index(norm.flavour)}

    def _bias(self, bias: "Tensor | None") -> dict[str, Any]:
        if bias is None:
            return {}
        self._kept.append(bias)
        return {"bias": bias.data_ptr(), "bias_dtype": self._codes[bias.dtype]}


class Program:
    """Runs passes. Its state: the memory of the buffers, as large as the largest pass so far.

    Attributes:
        dtype: Of activations, keys and values.
        kv_shapes: Key heads and their width, for each layer.
    """

    def __init__(self, found: Kernels, written: ProgramWriter, ops: Sequence[_Op], kept: list[Any]) -> None:
        self.dtype, self.kv_shapes = written.dtype, tuple(written.kv_shapes)
        self._kernels, self._widths, self._kept = found, tuple(written.widths), kept
        self._vocabulary, self._embedded = written.vocabulary, written.embedded
        self._ops = (_Op * len(ops))(*ops)
        self._buffers: list[Tensor] = []
        self._turn = threading.Lock()  # the buffers are one pass's at a time
        self._rows = 0

    def run(
        self,
        *,
        ids: "Tensor",
        slots: "Tensor",
        last: "Tensor",
        page_table: "Tensor",
        query_start: "Tensor",
        kv_length: "Tensor",
        angles: Sequence[tuple["Tensor", "Tensor"]],
        pools: Sequence[tuple["Tensor", "Tensor"]],
    ) -> "Tensor":
        """One pass.

        Args:
            ids: int64 [tokens].
            slots: int64 [tokens], the place of each token's key and value, counted in tokens.
            last: int64 [sequences], the last token of each.
            page_table: int32 [sequences, most pages].
            query_start: int32 [sequences + 1].
            kv_length: int32 [sequences].
            angles: Cosines and sines [tokens, rotated] of each kind, in `dtype`.
            pools: Keys and values of each layer, [pages, tokens of a page, heads, width] in `dtype`.

        Returns:
            Logits float32 [sequences, vocabulary].

        Raises:
            ValueError: an id is outside of the vocabulary, or a table leads outside of the pools.
        """
        import torch

        tokens, sequences = ids.numel(), kv_length.numel()
        pages, page_tokens = pools[0][0].shape[:2]
        self._check(ids, slots, last, page_table, query_start, kv_length, pages, page_tokens)
        logits = torch.empty((sequences, self._vocabulary), dtype=torch.float32)
        with self._turn:
            self._make_room(max(tokens, sequences))
            cosines, sines = ([one[n].contiguous() for one in angles] for n in (0, 1))
            lists = [_pointers(tensors) for tensors in (self._buffers, cosines, sines, *zip(*pools, strict=True))]
            buffers, cosine, sine, keys, values = (ctypes.addressof(one) for one in lists)
            self._kernels.step(
                self._ops,
                len(self._ops),
                _Pass(
                    dtype=self._kernels.dtype_codes()[self.dtype],
                    tokens=tokens,
                    sequences=sequences,
                    buffers=buffers,
                    logits=logits.data_ptr(),
                    ids=ids.data_ptr(),
                    slots=slots.data_ptr(),
                    last=last.data_ptr(),
                    cosines=cosine,
                    sines=sine,
                    keys=keys,
                    values=values,
                    page_table=page_table.data_ptr(),
                    query_start=query_start.data_ptr(),
                    kv_length=kv_length.data_ptr(),
                    most_pages=page_table.shape[1],
                    page_tokens=page_tokens,
                    threads=torch.get_num_threads(),
                ),
            )
        return logits

    def _make_room(self, rows: int) -> None:
        import torch

        if rows <= self._rows:
            return
        self._rows = max(rows, min(2 * self._rows, 64))
        self._buffers = [torch.empty(self._rows * width, dtype=self.dtype) for width in self._widths]

    def _check(
        self,
        ids: "Tensor",
        slots: "Tensor",
        last: "Tensor",
        page_table: "Tensor",
        query_start: "Tensor",
        kv_length: "Tensor",
        pages: int,
        page_tokens: int,
    ) -> None:
        """The tables are short, and the library trusts them."""
        tables = (ids, slots, last, page_table, query_start, kv_length)
        if not all(table.is_contiguous() and table.device.type == "cpu" for table in tables):
            raise ValueError("tables have to be contiguous tensors on the CPU")
        places, found, starts = slots.tolist(), ids.tolist(), query_start.tolist()
        if not 0 <= min(found) <= max(found) < self._embedded:
            raise ValueError(f"a token is outside of the vocabulary of {self._embedded}")
        if not 0 <= min(places) <= max(places) < pages * page_tokens or len(places) != len(found):
            raise ValueError(f"a slot is outside of the pool of {pages * page_tokens} tokens")
        lengths, entries = kv_length.tolist(), page_table.tolist()
        if starts[0] != 0 or starts[-1] != len(found) or len(starts) != len(lengths) + 1 != len(entries) + 1:
            raise ValueError("query_start has to run over all tokens, with an end for each sequence")
        if not all(0 <= at < len(found) for at in last.tolist()) or last.numel() != len(lengths):
            raise ValueError("every sequence needs a last token")
        for first, after, length, used in zip(starts, starts[1:], lengths, entries, strict=False):
            needed = used[: -(-length // page_tokens)]
            if (
                not 0 < after - first <= length <= len(used) * page_tokens
                or not 0 <= min(needed) <= max(needed) < pages
            ):
                raise ValueError("a page table leads outside of the pool")


def _pointers(tensors: Iterable["Tensor"]) -> Any:
    found = [tensor.data_ptr() for tensor in tensors]
    return (ctypes.c_void_p * max(len(found), 1))(*found)


def _in(part: Part) -> dict[str, int]:
    return {"in_": part.buffer, "in_at": part.at, "in_stride": part.stride}


def _other(part: Part) -> dict[str, int]:
    return {"other": part.buffer, "other_at": part.at, "other_stride": part.stride}
