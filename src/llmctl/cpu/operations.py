"""What the compiled library does, on tensors. Shapes and types are checked here: the library trusts its pointers."""

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from llmctl.platform_support import mapped_regions

if TYPE_CHECKING:
    from torch import Tensor, dtype

NormFlavour = Literal["norm_then_weight", "one_plus_weight", "weighted_norm"]
NORM_FLAVOURS: tuple[NormFlavour, ...] = get_args(NormFlavour)  # in the order of native/kernels.h
Activation = Literal["silu", "gelu_tanh"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

GROUP = 16  # output rows that lie interleaved
BLOCK = 32  # inputs that share one scale


class Kernels:
    """The kernels of one instruction set.

    All tensors are on the CPU and contiguous where nothing else is said; no gradients. Floats are float32, bfloat16 or
    float16. What does not fit raises ValueError.

    Attributes:
        isa: The instruction set in use: avx512bf16, avx512vnni, avx512vl, avxvnni, avx2, neon or portable.
        usable: Those that were compiled and can run on this processor, best first.
    """

    def __init__(self, library: ctypes.CDLL, isa: str, usable: tuple[str, ...]) -> None:
        self.isa = isa
        self.usable = usable
        self._library = library
        self._codes: dict[Any, int] = {}
        self._threads: Any = None

    def use(self, isa: str) -> None:
        """Change to another of the `usable` instruction sets, in the whole process. For tests and measurements."""
        if self._library.llmctl_select(isa.encode()) is None:
            raise ValueError(f"{isa} is not one of {', '.join(self.usable)}")
        self.isa = isa

    def linear_q4(
        self,
        x: "Tensor",
        qweight: "Tensor",
        scales: "Tensor",
        n: int,
        k: int,
        bias: "Tensor | None" = None,
        dtype: "dtype | None" = None,
    ) -> "Tensor":
        """x [..., k] times the weights [n, k] that `quantize_q4` made, plus a bias [n].

        x is rounded to 8 bits on the way, in blocks of 32 with a scale each.

        Returns:
            [..., n], in `dtype` or else x's.
        """
        return self._linear_quantized(4, x, qweight, scales, n, k, bias, dtype)

    def linear_q8(
        self,
        x: "Tensor",
        qweight: "Tensor",
        scales: "Tensor",
        n: int,
        k: int,
        bias: "Tensor | None" = None,
        dtype: "dtype | None" = None,
    ) -> "Tensor":
        """The same for weights that `quantize_q8` made."""
        return self._linear_quantized(8, x, qweight, scales, n, k, bias, dtype)

    def linear(
        self, x: "Tensor", weight: "Tensor", bias: "Tensor | None" = None, dtype: "dtype | None" = None
    ) -> "Tensor":
        """x [..., k] times weight [n, k] as torch stores it, plus a bias [n]; sums are float32.

        bfloat16 x and weights meet in the processor's instruction for it where there is one.
        """
        codes = self._codes or self._prepare()
        n, k = self._matrix(weight)
        rows = self._rows(x, k)
        y = x.new_empty((*x.shape[:-1], n), dtype=dtype or x.dtype)
        self._check_vector(bias, n)
        self._library.llmctl_linear(
            x.data_ptr(),
            codes[x.dtype],
            rows,
            k,
            weight.data_ptr(),
            codes[weight.dtype],
            n,
            None if bias is None else bias.data_ptr(),
            0 if bias is None else codes[bias.dtype],
            y.data_ptr(),
            codes[y.dtype],
            self._threads(),
        )
        return y

    def dtype_codes(self) -> "dict[dtype, int]":
        """The library's numbers of the types it knows."""
        return self._codes or self._prepare()

    def rms_norm(self, x: "Tensor", weight: "Tensor", epsilon: float, flavour: "NormFlavour") -> "Tensor":
        """x [..., width] over the root of its mean square, times the weights [width]; as one of a program's operations.

        Args:
            x: Of float32, bfloat16 or float16.
            weight: Likewise.
            epsilon: Added to the mean square.
            flavour: `norm_then_weight` rounds before the weights are applied (Llama), `one_plus_weight` applies one
                more than the weights and rounds once (Gemma), `weighted_norm` rounds once.
        """
        codes = self._codes or self._prepare()
        self._check_vector(weight, x.shape[-1], "weight")
        x = x if x.is_contiguous() else x.contiguous()
        rows, y = self._rows(x, weight.numel()), x.new_empty(x.shape)
        kind = NORM_FLAVOURS.index(flavour)
        self._library.llmctl_norm(
            x.data_ptr(),
            codes[x.dtype],
            rows,
            weight.numel(),
            weight.data_ptr(),
            codes[weight.dtype],
            kind,
            epsilon,
            y.data_ptr(),
            self._threads(),
        )
        return y

    def gated(self, gate: "Tensor", up: "Tensor", activation: "Activation") -> "Tensor":
        """activation(gate) times up, both [..., width]; as one of a program's operations."""
        codes = self._codes or self._prepare()
        gate, up = gate.contiguous(), up.contiguous()
        width = gate.shape[-1]
        rows, y = self._rows(gate, width), gate.new_empty(gate.shape)
        if up.shape != gate.shape or up.dtype != gate.dtype:
            raise ValueError(f"gate {tuple(gate.shape)} and up {tuple(up.shape)} do not fit together")
        self._library.llmctl_gated(
            gate.data_ptr(),
            up.data_ptr(),
            codes[gate.dtype],
            rows,
            width,
            ACTIVATIONS.index(activation),
            y.data_ptr(),
            self._threads(),
        )
        return y

    def route(self, logits: "Tensor", chosen: int, *, normalised: bool, rounded: bool) -> "tuple[Tensor, Tensor]":
        """The likeliest experts of each token, by logits [tokens, experts]; as one of a program's operations.

        Args:
            logits: Of float32, bfloat16 or float16.
            chosen: How many a token takes.
            normalised: Whether a token's shares sum to one.
            rounded: Whether shares are rounded to the logits' type.

        Returns:
            Their numbers int32 and their shares float32, both [tokens, chosen], the likeliest first.
        """
        import torch

        codes = self._codes or self._prepare()
        count = logits.shape[-1]
        rows = self._rows(logits, count)
        if not 0 < chosen <= count:
            raise ValueError(f"{chosen} of {count} experts cannot be chosen")
        experts = logits.new_empty((rows, chosen), dtype=torch.int32)
        shares = logits.new_empty((rows, chosen), dtype=torch.float32)
        self._library.llmctl_route(
            logits.data_ptr(),
            codes[logits.dtype],
            rows,
            count,
            chosen,
            normalised,
            rounded,
            experts.data_ptr(),
            shares.data_ptr(),
            self._threads(),
        )
        return experts, shares

    def step(self, operations: Any, count: int, what: Any) -> None:
        """A whole pass, as `program.Program` prepares it: an array of operations, and the pass's own data."""
        self._library.llmctl_step(operations, count, ctypes.byref(what))

    def quantize_q4(self, weight: "Tensor") -> "tuple[Tensor, Tensor]":
        """Weights [n, k] in 4.5 bits each: blocks of 32 inputs, sixteen unevenly spaced values, a float16 scale.

        Returns:
            `qweight` uint8 [n/16, k/32, 256] and `scales` float16 [n/16, k/32, 16], n and k rounded up.
        """
        return self._quantize(4, weight)

    def quantize_q8(self, weight: "Tensor") -> "tuple[Tensor, Tensor]":
        """Weights [n, k] in 8.5 bits each.

        Returns:
            `qweight` uint8 [n/16, k/32, 512] and `scales` float16 [n/16, k/32, 16], n and k rounded up.
        """
        return self._quantize(8, weight)

    def dequantize_q4(self, qweight: "Tensor", scales: "Tensor", n: int, k: int) -> "Tensor":
        """The weights [n, k] that 4-bit codes stand for, as float32."""
        import torch

        self.check_quantized(4, qweight, scales, n, k)
        code = torch.tensor(self._library.llmctl_code4()[:16], dtype=torch.float32)
        low, high = code[(qweight & 15).int()], code[(qweight >> 4).int()]
        return _as_matrix(torch.cat([low, high], dim=-1), scales, n, k)

    def dequantize_q8(self, qweight: "Tensor", scales: "Tensor", n: int, k: int) -> "Tensor":
        """The weights [n, k] that 8-bit codes stand for, as float32."""
        self.check_quantized(8, qweight, scales, n, k)
        return _as_matrix(qweight.float() - 128.0, scales, n, k)

    def packed_attention(
        self,
        q: "Tensor",
        k_pool: "Tensor",
        v_pool: "Tensor",
        block_table: "Tensor",
        query_start: "Tensor",
        kv_len: "Tensor",
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
    ) -> "Tensor":
        """Causal attention of several sequences at once, queries packed, keys and values in a paged pool.

        Sequence r has kv_len[r] tokens, the queries query_start[r]..query_start[r+1] are its last ones. Token p of it
        lies in block block_table[r, p // block_size], slot p % block_size. Softmax and sums are float32.

        Args:
            q: [tokens, query heads, width].
            k_pool: [blocks, block_size, key heads, width]; any strides, but the last one is 1. Query heads are a
                multiple of key heads: a group of consecutive query heads shares a key head.
            v_pool: [blocks, block_size, key heads, value width], likewise; of the same type.
            block_table: int32 [sequences, most blocks]. Entries that no visible token needs are not read.
            query_start: int32 [sequences + 1], rising from 0 to tokens.
            kv_len: int32 [sequences].
            scale: What q·k is multiplied by.
            window: A key is seen where query position - key position < window; 0 for all.
            softcap: Scores s become softcap * tanh(s / softcap); 0 for none.

        Returns:
            [tokens, query heads, value width], of q's type.
        """
        codes = self._codes or self._prepare()
        sequences = self._check_attention(q, k_pool, v_pool, block_table, query_start, kv_len, window)
        tokens, query_heads, width = q.shape
        _, block_size, kv_heads, value_width = v_pool.shape
        out = q.new_empty((tokens, query_heads, value_width))
        sizes = (ctypes.c_int64 * 14)(
            sequences,
            block_table.shape[1],
            block_size,
            query_heads,
            kv_heads,
            width,
            value_width,
            *k_pool.stride()[:3],
            *v_pool.stride()[:3],
            window,
        )
        self._library.llmctl_attention(
            q.data_ptr(),
            codes[q.dtype],
            k_pool.data_ptr(),
            v_pool.data_ptr(),
            codes[k_pool.dtype],
            out.data_ptr(),
            block_table.data_ptr(),
            query_start.data_ptr(),
            kv_len.data_ptr(),
            sizes,
            scale,
            softcap,
            self._threads(),
        )
        return out

    def _linear_quantized(
        self,
        bits: int,
        x: "Tensor",
        qweight: "Tensor",
        scales: "Tensor",
        n: int,
        k: int,
        bias: "Tensor | None",
        dtype: "dtype | None",
    ) -> "Tensor":
        codes = self._codes or self._prepare()
        self.check_quantized(bits, qweight, scales, n, k)
        rows = self._rows(x, k)
        y = x.new_empty((*x.shape[:-1], n), dtype=dtype or x.dtype)
        self._check_vector(bias, n)
        self._library.llmctl_linear_quantized(
            bits,
            x.data_ptr(),
            codes[x.dtype],
            rows,
            k,
            qweight.data_ptr(),
            scales.data_ptr(),
            n,
            None if bias is None else bias.data_ptr(),
            0 if bias is None else codes[bias.dtype],
            y.data_ptr(),
            codes[y.dtype],
            self._threads(),
        )
        return y

    def _quantize(self, bits: int, weight: "Tensor") -> "tuple[Tensor, Tensor]":
        import torch

        codes = self._codes or self._prepare()
        n, k = self._matrix(weight)
        groups, blocks = -(-n // GROUP), -(-k // BLOCK)
        qweight = torch.empty((groups, blocks, GROUP * BLOCK * bits // 8), dtype=torch.uint8)
        scales = torch.empty((groups, blocks, GROUP), dtype=torch.float16)
        self._library.llmctl_quantize(
            bits,
            weight.data_ptr(),
            codes[weight.dtype],
            n,
            k,
            qweight.data_ptr(),
            scales.data_ptr(),
            self._threads(),
        )
        return qweight, scales

    def _prepare(self) -> dict[Any, int]:
        """What needs torch, once: the numbers of its types, its number of threads, and its pool of threads."""
        import torch

        self._threads = torch.get_num_threads
        region = _openmp_region(Path(torch.__file__).parent)
        if region is not None:
            self._library.llmctl_use_region(region)
        self._bytes, self._half, self._int = torch.uint8, torch.float16, torch.int32
        self._codes = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
        return self._codes

    def _rows(self, x: "Tensor", k: int) -> int:
        if x.dtype not in self._codes or x.device.type != "cpu" or not x.is_contiguous():
            raise ValueError("x has to be a contiguous CPU tensor of float32, bfloat16 or float16")
        if x.ndim == 0 or x.shape[-1] != k:
            raise ValueError(f"x has shape {tuple(x.shape)}, its last dimension has to be {k}")
        return x.numel() // k if k else 0

    def _matrix(self, weight: "Tensor") -> tuple[int, int]:
        if weight.dtype not in self._codes or weight.device.type != "cpu" or not weight.is_contiguous():
            raise ValueError("weight has to be a contiguous CPU tensor of float32, bfloat16 or float16")
        if weight.ndim != 2 or 0 in weight.shape:
            raise ValueError(f"weight has shape {tuple(weight.shape)}, it has to be a matrix")
        return weight.shape[0], weight.shape[1]

    def _check_vector(self, bias: "Tensor | None", n: int, name: str = "bias") -> None:
        if bias is None:
            return
        if bias.dtype not in self._codes or bias.shape != (n,) or not bias.is_contiguous() or bias.device.type != "cpu":
            raise ValueError(f"{name} has to be a contiguous CPU tensor of {n} floats")

    def check_quantized(self, bits: int, qweight: "Tensor", scales: "Tensor", n: int, k: int) -> None:
        """Raise ValueError where codes and scales are no weights [n, k]."""
        if not self._codes:
            self._prepare()
        groups, blocks = -(-n // GROUP), -(-k // BLOCK)
        if qweight.shape != (groups, blocks, 64 * bits) or scales.shape != (groups, blocks, GROUP):
            found = f"qweight {tuple(qweight.shape)} and scales {tuple(scales.shape)}"
            raise ValueError(f"{found} are no {bits}-bit weights of [{n}, {k}]")
        if qweight.dtype != self._bytes or scales.dtype != self._half:
            raise ValueError("qweight has to be of uint8 and scales of float16")
        if not (qweight.is_contiguous() and scales.is_contiguous()) or qweight.device.type != "cpu":
            raise ValueError("qweight and scales have to be contiguous CPU tensors")

    def _check_attention(
        self,
        q: "Tensor",
        k_pool: "Tensor",
        v_pool: "Tensor",
        block_table: "Tensor",
        query_start: "Tensor",
        kv_len: "Tensor",
        window: int,
    ) -> int:
        """Raise where shapes or types do not fit; what the tables say is checked too, they are short."""
        if q.dtype not in self._codes or k_pool.dtype not in self._codes or k_pool.dtype != v_pool.dtype:
            raise ValueError("q and the pools have to be of float32, bfloat16 or float16, both pools of the same")
        if q.ndim != 3 or k_pool.ndim != 4 or v_pool.ndim != 4 or not q.is_contiguous():
            raise ValueError(
                "q has to be a contiguous [tokens, heads, width], pools [blocks, block_size, heads, width]"
            )
        if k_pool.shape[:3] != v_pool.shape[:3] or k_pool.shape[3] != q.shape[2] or q.shape[1] % k_pool.shape[2]:
            raise ValueError(
                f"q {tuple(q.shape)}, k_pool {tuple(k_pool.shape)} and v_pool {tuple(v_pool.shape)} do not fit together"
            )
        if k_pool.stride(3) != 1 or v_pool.stride(3) != 1:
            raise ValueError("the last dimension of the pools has to be contiguous")
        tables = (block_table, query_start, kv_len)
        if any(t.dtype != self._int or not t.is_contiguous() for t in tables):
            raise ValueError("block_table, query_start and kv_len have to be contiguous tensors of int32")
        if any(t.device.type != "cpu" for t in (q, k_pool, v_pool, *tables)):
            raise ValueError("all tensors have to be on the CPU")
        starts, lengths = query_start.tolist(), kv_len.tolist()
        if block_table.ndim != 2 or len(starts) != len(lengths) + 1 or len(lengths) != block_table.shape[0]:
            raise ValueError("block_table needs a row, kv_len a number and query_start one more for each sequence")
        if starts[0] != 0 or starts[-1] != q.shape[0]:
            raise ValueError(f"query_start has to run from 0 to {q.shape[0]}")
        blocks, block_size = k_pool.shape[:2]
        capacity = block_table.shape[1] * block_size
        for table, first, after, length in zip(block_table.tolist(), starts, starts[1:], lengths, strict=False):
            if not 0 <= after - first <= length <= capacity:
                raise ValueError(f"{after - first} queries of {length} tokens do not fit a table of {capacity} tokens")
            seen = max(0, length - (after - first) - window + 1) if window else 0
            used = table[seen // block_size : -(-length // block_size)] if after > first else []
            if used and not 0 <= min(used) <= max(used) < blocks:
                raise ValueError(f"block_table leads outside of the pool of {blocks} blocks")
        return len(lengths)


def _as_matrix(codes: "Tensor", scales: "Tensor", n: int, k: int) -> "Tensor":
    """Codes [n/16, k/32, 8 quads * 16 rows * 4] times their scales, as [n, k]."""
    groups, blocks, _ = codes.shape
    values = codes.view(groups, blocks, 8, GROUP, 4) * scales.float()[:, :, None, :, None]
    return values.permute(0, 3, 1, 2, 4).reshape(groups * GROUP, blocks * BLOCK)[:n, :k].contiguous()


def _openmp_region(torch_folder: Path) -> int | None:
    """The address of the function that starts a parallel region in the OpenMP runtime that torch has loaded, or None.

    Only Linux lists the libraries of a process; elsewhere the library has threads of its own.
    """
    names = ("libgomp", "libiomp5", "libomp")
    loaded = {Path(region.path) for region in mapped_regions() if Path(region.path).name.startswith(names)}
    of_torch = sorted(loaded, key=lambda path: not path.is_relative_to(torch_folder.parent))
    for path in of_torch:
        try:
            return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None
