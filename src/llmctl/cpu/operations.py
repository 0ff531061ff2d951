"""The functions of the compiled library, applied to tensors. Shapes and types are checked here, not in the library."""

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.cpu.packing import BLOCK, GROUP, Encoding
from llmctl.cpu.row_operations import RowOperations
from llmctl.cpu.structs import ENCODINGS, Operation, Pass
from llmctl.cpu.tensors import (
    check_paged_attention,
    check_quantized,
    check_vector,
    dtype_codes,
    matrix_shape,
    row_count,
)
from llmctl.platform_support import mapped_regions

if TYPE_CHECKING:
    from torch import Tensor, dtype


_FLOAT32, _BFLOAT16 = 0, 1  # Dtype in native/kernels.h


class Kernels(RowOperations):
    """The kernels of one instruction set.

    Unless stated otherwise, tensors are contiguous on the CPU, of float32, bfloat16 or float16, and without gradients.
    A tensor of a wrong shape or type raises ValueError.

    Attributes:
        isa: The instruction set in use: amxbf16, avx512bf16, avx512vnni, avx512vl, avxvnni, avx2, neon or portable.
        usable: The compiled instruction sets that can run on this processor, best first.
    """

    def __init__(self, library: ctypes.CDLL, isa: str, usable: tuple[str, ...]) -> None:
        self.isa = isa
        self.usable = usable
        self._library = library
        self._get_num_threads: Any = None

    def use(self, isa: str) -> None:
        """Switch the whole process to another `usable` instruction set, for tests and measurements."""
        if self._library.llmctl_select(isa.encode()) is None:
            raise ValueError(f"{isa} is not one of {', '.join(self.usable)}")
        self.isa = isa

    def threads(self) -> int:
        """Return torch's number of threads. The first call makes the library use torch's thread pool."""
        if self._get_num_threads is None:
            import torch

            region = _openmp_region(Path(torch.__file__).parent)
            if region is not None:
                self._library.llmctl_use_region(region)
            self._get_num_threads = torch.get_num_threads
        count: int = self._get_num_threads()
        return count

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
        """Multiply x [..., k] by the weights [n, k] of `quantize_q4` and add a bias [n].

        x is first rounded to 8 bits, in blocks of 32 with one scale each.

        Returns:
            [..., n] in `dtype`, or by default in x's dtype.
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
        """Do the same as `linear_q4` with the weights of `quantize_q8`."""
        return self._linear_quantized(8, x, qweight, scales, n, k, bias, dtype)

    def linear_mxfp4(
        self,
        x: "Tensor",
        qweight: "Tensor",
        scales: "Tensor",
        n: int,
        k: int,
        bias: "Tensor | None" = None,
        dtype: "dtype | None" = None,
    ) -> "Tensor":
        """Do the same as `linear_q4` with the weights of `pack_mxfp4`."""
        return self._linear_quantized(4, x, qweight, scales, n, k, bias, dtype, "mxfp4")

    def linear(
        self, x: "Tensor", weight: "Tensor", bias: "Tensor | None" = None, dtype: "dtype | None" = None
    ) -> "Tensor":
        """Multiply x [..., k] by a weight [n, k] in torch's layout and add a bias [n]. Sums are float32.

        If x and the weight are bfloat16, the processor's bfloat16 dot product is used if it has one.
        """
        codes = dtype_codes()
        n, k = matrix_shape(weight)
        rows = row_count(x, k)
        y = x.new_empty((*x.shape[:-1], n), dtype=dtype or x.dtype)
        check_vector(bias, n)
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
            self.threads(),
        )
        return y

    def multiply_addresses(
        self, kind: str, x: Any, weight: int, y: Any, *, rows: int, inputs: int, outputs: int, threads: int
    ) -> None:
        """Multiply x [rows, inputs] by weights at an address, without torch and unchecked, to measure the kernels.

        Args:
            kind: `float32` or `bfloat16` for x, weights and y; `8-bit` or `4-bit` for the weights, whose scales follow
                them, with x and y in bfloat16.
        """
        if kind in ("8-bit", "4-bit"):
            bits = int(kind[0])
            scales = weight + outputs * inputs * bits // 8
            self._library.llmctl_linear_quantized(
                bits, 0, x, _BFLOAT16, rows, inputs, weight, scales, outputs, None, 0, y, _BFLOAT16, threads
            )
        else:
            dtype = _BFLOAT16 if kind == "bfloat16" else _FLOAT32
            self._library.llmctl_linear(x, dtype, rows, inputs, weight, dtype, outputs, None, 0, y, dtype, threads)

    def run_program(self, operations: "ctypes.Array[Operation]", data: Pass) -> None:
        """Run a forward pass that `llmctl.cpu.program` has prepared."""
        self._library.llmctl_run_program(operations, len(operations), ctypes.byref(data))

    def quantize_q4(self, weight: "Tensor") -> "tuple[Tensor, Tensor]":
        """Quantise weights [n, k] to 4.5 bits each: 16 unevenly spaced values, a float16 scale per block of 32 inputs.

        Returns:
            `qweight` uint8 [n/16, k/32, 256] and `scales` float16 [n/16, k/32, 16], n and k rounded up.
        """
        return self._quantize(4, weight)

    def quantize_q8(self, weight: "Tensor") -> "tuple[Tensor, Tensor]":
        """Quantise weights [n, k] to 8.5 bits each.

        Returns:
            `qweight` uint8 [n/16, k/32, 512] and `scales` float16 [n/16, k/32, 16], n and k rounded up.
        """
        return self._quantize(8, weight)

    def dequantize_q4(self, qweight: "Tensor", scales: "Tensor", n: int, k: int) -> "Tensor":
        """Return the weights [n, k] of 4-bit codes, as float32."""
        import torch

        check_quantized(4, qweight, scales, n, k)
        code = torch.tensor(self._library.llmctl_code4()[:16], dtype=torch.float32)
        return _as_matrix(_nibbles(qweight, code), scales, n, k)

    def dequantize_q8(self, qweight: "Tensor", scales: "Tensor", n: int, k: int) -> "Tensor":
        """Return the weights [n, k] of 8-bit codes, as float32."""
        check_quantized(8, qweight, scales, n, k)
        return _as_matrix(qweight.float() - 128.0, scales, n, k)

    def pack_mxfp4(self, blocks: "Tensor", exponents: "Tensor") -> "tuple[Tensor, Tensor]":
        """Return weights of an MXFP4 checkpoint in the layout of the kernels, unchanged in value: 4.25 bits each.

        Args:
            blocks: uint8 [n, k/32, 16], two consecutive inputs in each byte, the first in the low bits.
            exponents: uint8 [n, k/32], of the powers of two by which a block is multiplied, 127 too large.

        Returns:
            `qweight` uint8 [n/16, k/32, 256] and `scales` uint8 [n/16, k/32, 16], n rounded up.
        """
        import torch

        n, count = exponents.shape
        if blocks.shape != (n, count, BLOCK // 2) or {blocks.dtype, exponents.dtype} != {torch.uint8}:
            raise ValueError(f"blocks {tuple(blocks.shape)} and exponents {tuple(exponents.shape)} do not match")
        if not (blocks.is_contiguous() and exponents.is_contiguous()) or blocks.device.type != "cpu":
            raise ValueError("blocks and exponents must be contiguous CPU tensors")
        groups = -(-n // GROUP)
        qweight = torch.empty((groups, count, GROUP * BLOCK // 2), dtype=torch.uint8)
        scales = torch.empty((groups, count, GROUP), dtype=torch.uint8)
        self._library.llmctl_pack_mxfp4(
            blocks.data_ptr(),
            exponents.data_ptr(),
            n,
            count,
            qweight.data_ptr(),
            scales.data_ptr(),
            self.threads(),
        )
        return qweight, scales

    def dequantize_mxfp4(self, qweight: "Tensor", scales: "Tensor", n: int, k: int) -> "Tensor":
        """Return the weights [n, k] of `pack_mxfp4`, as float32."""
        import torch

        check_quantized(4, qweight, scales, n, k, "mxfp4")
        code = torch.tensor(self._library.llmctl_code_e2m1()[:16], dtype=torch.float32)
        factors = torch.ldexp(torch.ones(scales.shape), scales.int() - 128)
        return _as_matrix(_nibbles(qweight, code), factors, n, k)

    def paged_attention(
        self,
        q: "Tensor",
        keys: "Tensor",
        values: "Tensor",
        page_table: "Tensor",
        query_start: "Tensor",
        kv_length: "Tensor",
        *,
        scale: float,
        window: int = 0,
        chunk: int = 0,
        softcap: float = 0.0,
        sinks: "Tensor | None" = None,
        visible_end: "Tensor | None" = None,
    ) -> "Tensor":
        """Compute causal attention of each sequence's last tokens over its keys and values in pages.

        Args:
            q: The queries of all sequences, concatenated: [tokens, query heads, size].
            keys: [pages, tokens per page, key heads, size]. The last dimension is contiguous; the dtype may differ from
                q's.
            values: [pages, tokens per page, key heads, value size], likewise.
            page_table: int32 [sequences, max pages]: entry i is the page of the tokens from i * tokens per page.
                Entries of pages without visible tokens are not read.
            query_start: int32 [sequences + 1]: the index of each sequence's first query, then the number of tokens.
            kv_length: int32 [sequences].
            scale: The factor of q·k.
            window: The number of tokens that a token sees, including itself; 0 means all.
            chunk: The tokens of a chunk, counted from the beginning of the sequence: a token sees only those of its own
                chunk. 0 means no chunks.
            softcap: Scores s become softcap * tanh(s / softcap); 0 leaves them unchanged.
            sinks: [query heads]: a further logit in the softmax of every query of a head, which takes no value.
            visible_end: int32 [tokens], the end of the tokens of its sequence that each token sees; None for the token
                itself.

        Returns:
            [tokens, query heads, value size] in q's dtype.
        """
        codes = dtype_codes()
        check_paged_attention(
            q, keys, values, page_table, query_start, kv_length, window=window, chunk=chunk, visible_end=visible_end
        )
        tokens, query_heads, size = q.shape
        check_vector(sinks, query_heads, "sinks")
        sinks = None if sinks is None else sinks.float()
        _, page_tokens, kv_heads, value_size = values.shape
        out = q.new_empty((tokens, query_heads, value_size))
        sizes = (ctypes.c_int64 * 15)(
            kv_length.numel(),
            page_table.shape[1],
            page_tokens,
            query_heads,
            kv_heads,
            size,
            value_size,
            *keys.stride()[:3],
            *values.stride()[:3],
            window,
            chunk,
        )
        self._library.llmctl_attention(
            q.data_ptr(),
            codes[q.dtype],
            keys.data_ptr(),
            values.data_ptr(),
            codes[keys.dtype],
            out.data_ptr(),
            page_table.data_ptr(),
            query_start.data_ptr(),
            kv_length.data_ptr(),
            sizes,
            scale,
            softcap,
            None if sinks is None else sinks.data_ptr(),
            None if visible_end is None else visible_end.data_ptr(),
            self.threads(),
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
        encoding: Encoding = "llmctl",
    ) -> "Tensor":
        codes = dtype_codes()
        check_quantized(bits, qweight, scales, n, k, encoding)
        rows = row_count(x, k)
        y = x.new_empty((*x.shape[:-1], n), dtype=dtype or x.dtype)
        check_vector(bias, n)
        self._library.llmctl_linear_quantized(
            bits,
            ENCODINGS.index(encoding),
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
            self.threads(),
        )
        return y

    def _quantize(self, bits: int, weight: "Tensor") -> "tuple[Tensor, Tensor]":
        import torch

        n, k = matrix_shape(weight)
        groups, blocks = -(-n // GROUP), -(-k // BLOCK)
        qweight = torch.empty((groups, blocks, GROUP * BLOCK * bits // 8), dtype=torch.uint8)
        scales = torch.empty((groups, blocks, GROUP), dtype=torch.float16)
        self._library.llmctl_quantize(
            bits,
            weight.data_ptr(),
            dtype_codes()[weight.dtype],
            n,
            k,
            qweight.data_ptr(),
            scales.data_ptr(),
            self.threads(),
        )
        return qweight, scales


def _nibbles(qweight: "Tensor", code: "Tensor") -> "Tensor":
    """Return the values of 4-bit codes: those in the low bits of a block, then those in the high ones."""
    import torch

    return torch.cat([code[(qweight & 15).int()], code[(qweight >> 4).int()]], dim=-1)


def _as_matrix(codes: "Tensor", scales: "Tensor", n: int, k: int) -> "Tensor":
    """Return codes [n/16, k/32, 8 quads * 16 rows * 4] multiplied by their scales, as a matrix [n, k]."""
    groups, blocks, _ = codes.shape
    values = codes.view(groups, blocks, 8, GROUP, 4) * scales.float()[:, :, None, :, None]
    return values.permute(0, 3, 1, 2, 4).reshape(groups * GROUP, blocks * BLOCK)[:n, :k].contiguous()


def _openmp_region(torch_folder: Path) -> int | None:
    """Return the address of the function that starts a parallel region in torch's OpenMP runtime, or None.

    Only Linux lists the libraries of a process. On other systems, the kernels use their own threads.
    """
    names = ("libgomp", "libiomp5", "libomp")
    loaded = {Path(region.path) for region in mapped_regions() if Path(region.path).name.startswith(names)}
    for path in sorted(loaded, key=lambda path: not path.is_relative_to(torch_folder.parent)):  # torch's own first
        try:
            return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None
