"""Packed experts of classes that transformers' experts interface does not describe, or describes with another layout.

Such a module keeps its own forward. Where it reads a stack of matrices [experts, ...], it gets a `PackedStack`, which
multiplies by packed matrices: `linear(x, stack[i])`, `x @ stack[i]` and `bmm(x, stack)`. Every other use of a matrix
gets its dequantised values.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmctl.cpu.layers import Packed


class PackedStack:
    """Packed matrices [experts, rows, columns] of a module, in the place of a parameter.

    Attributes:
        shape: The shape of the unquantised parameter.
        dtype: Its dtype.
    """

    def __init__(self, codes: Tensor, packed: Packed, *, dtype: torch.dtype, is_transposed: bool) -> None:
        self.codes, self.packed, self.dtype, self.is_transposed = codes, packed, dtype, is_transposed
        rows, columns = (packed.k, packed.n) if is_transposed else (packed.n, packed.k)
        self.shape = torch.Size((len(codes), rows, columns))
        self.device = codes.device

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: Any) -> "PackedMatrix":
        return PackedMatrix(self, int(index))

    def __iter__(self) -> Iterator["PackedMatrix"]:
        return (self[index] for index in range(len(self)))

    def dequantized(self) -> Tensor:
        """Return all matrices in the model's dtype."""
        return torch.stack([matrix.dequantized() for matrix in self])

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is torch.bmm and not kwargs and isinstance(args[1], cls):
            return torch.stack([x @ matrix for x, matrix in zip(args[0], args[1], strict=True)])
        return _with_values(function, args, kwargs or {})


class PackedMatrix:
    """One matrix [rows, columns] of a `PackedStack`."""

    def __init__(self, stack: PackedStack, index: int) -> None:
        self.stack, self.index = stack, index
        self.shape, self.dtype, self.device = stack.shape[1:], stack.dtype, stack.device

    def dequantized(self) -> Tensor:
        """Return the matrix in the model's dtype."""
        packed = self.stack.packed
        weight = packed.rows(self.stack.codes[self.index], torch.arange(packed.n)).to(self.dtype)
        return weight.T if self.stack.is_transposed else weight

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x [..., inputs] times the weight, plus a bias [outputs]."""
        return self.stack.packed.multiply(x, self.stack.packed.parts(self.stack.codes[self.index]), bias)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        arguments = kwargs or {}
        if len(args) > 1 and isinstance(args[1], cls) and isinstance(args[0], Tensor):
            is_transposed = args[1].stack.is_transposed
            if function is functional.linear and not is_transposed:
                return args[1].multiply(args[0], args[2] if len(args) > 2 else arguments.get("bias"))
            if function in _PRODUCTS and is_transposed and not arguments:
                return args[1].multiply(args[0])
        return _with_values(function, args, arguments)


_PRODUCTS = (torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__)


def _with_values(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    def values(argument: Any) -> Any:
        return argument.dequantized() if isinstance(argument, PackedStack | PackedMatrix) else argument

    return function(*map(values, args), **{name: values(value) for name, value in kwargs.items()})


def pack_stacks(module: Any, names: Sequence[str], packing: type[Packed], bits: int) -> None:
    """Replace parameters [experts, rows, columns] of a module by empty packed ones."""
    is_transposed = _is_transposed(module, names)
    module.packed, module.stack_dtype, module.is_transposed = {}, getattr(module, names[0]).dtype, is_transposed
    for name in names:
        count, rows, columns = getattr(module, name).shape
        packed = packing(bits, columns, rows) if is_transposed else packing(bits, rows, columns)
        module.packed[name] = packed
        empty = torch.empty((count, packed.size_bytes), dtype=torch.uint8)
        setattr(module, name, nn.Parameter(empty, requires_grad=False))


def read_as_stacks(model: nn.Module) -> None:
    """Let the loaded modules that `pack_stacks` changed read their packed parameters as stacks."""
    for module in model.modules():
        if hasattr(module, "stack_dtype"):
            names: tuple[str, ...] = tuple(module.packed)  # type: ignore[arg-type]
            original: Any = type(module)
            module.__class__ = _reading_class(original, names)


@cache
def _reading_class(original: Any, names: tuple[str, ...]) -> Any:
    """Return a subclass whose attributes of these names are stacks. The parameters stay where torch registers them."""

    def reader(name: str) -> property:
        def read(module: Any) -> PackedStack:
            return PackedStack(
                module._parameters[name].detach(),
                module.packed[name],
                dtype=module.stack_dtype,
                is_transposed=module.is_transposed,
            )

        return property(read)

    # transformers' interface would replace the forward by one that reads all experts at once
    forward = getattr(original.forward, "__wrapped__", original.forward)
    return type(original.__name__, (original,), {"forward": forward, **{name: reader(name) for name in names}})


def _is_transposed(module: Any, names: Sequence[str]) -> bool:
    """Return True for matrices [inputs, outputs].

    transformers marks them on classes of its interface. Else the chain of a gated pair shows it: as [inputs, outputs],
    the columns of the last matrix are the rows of the first.
    """
    marked = getattr(module, "is_transposed", None)
    if marked is not None:
        return bool(marked)
    if len(names) < 2:
        return False
    first, last = getattr(module, names[0]).shape, getattr(module, names[-1]).shape
    return bool(first[1] == last[2] and first[2] != last[1])
