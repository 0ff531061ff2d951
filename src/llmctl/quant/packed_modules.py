"""The choice of the modules of an empty model that are packed, and their replacement."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizers_utils import should_convert_module

from llmctl.cpu.expert_layers import EXPERT_WEIGHTS, has_expert_layout, pack_experts
from llmctl.cpu.expert_stacks import pack_stacks
from llmctl.cpu.layers import Packed, PackedEmbedding, PackedHead, PackedLinear
from llmctl.quant.precision import Kind, is_expert_matrix, kind_of
from llmctl.transformers_compat import embedding_scale, tied_weights


@dataclass(frozen=True)
class Packing:
    """How the weights of a model are packed.

    Attributes:
        packed_class: The layout.
        bits: Bits of linear layers and experts.
        head_bits: Bits of the output head and of an embedding tied to it; None leaves them unquantised.
        skipped: Names and patterns of modules that stay unquantised.
        stored: Bytes of each packed matrix of a checkpoint that was saved in this format, by name: it decides what is
            packed. None to decide by `precision.kind_of`.
    """

    packed_class: type[Packed]
    bits: int
    head_bits: int | None
    skipped: Sequence[str] = ()
    stored: Mapping[str, int] | None = None


def pack_modules(model: Any, packing: Packing, *, dtype: torch.dtype) -> None:
    """Replace modules of an empty model by packed ones. Call it on the meta device."""
    modules = dict(model.named_modules())
    ends = _ends(model, modules, packing)
    chosen = {}
    for name, module in modules.items():
        bits = ends[name] if name in ends else _bits(name, module, packing)
        if bits is not None:
            chosen[name] = bits
    _drop_half_packed(model, chosen)
    parents: dict[int, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for child_name, child in parent.named_children():
            parents.setdefault(id(child), []).append((parent, child_name))
    for name, bits in chosen.items():
        module = modules[name]
        if matrix_shape(module) is None and not isinstance(module, nn.Embedding):
            _pack_experts(name, module, packing.packed_class, bits)
            continue
        packed = _packed(module, packing.packed_class, bits, dtype)
        if name in ends and isinstance(packed, PackedLinear):
            packed.__class__ = PackedHead
        for parent, child_name in parents[id(module)]:  # a shared module has several
            setattr(parent, child_name, packed)


def stored_sizes(files: Iterable[str]) -> dict[str, int]:
    """Return the bytes of each packed matrix in files that were saved in this format, by the weight's name."""
    from safetensors import safe_open

    sizes = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                part = opened.get_slice(name)
                if part.get_dtype() == "U8":
                    sizes[name] = int(part.get_shape()[-1])
    return sizes


def unpacked_shape(module: Any, name: str) -> tuple[int, ...]:
    """Return the shape that a packed parameter has before it is packed."""
    is_dict = isinstance(module.packed, dict)
    packed: Packed = module.packed[name] if is_dict else module.packed
    matrix = (packed.k, packed.n) if getattr(module, "is_transposed", False) else (packed.n, packed.k)
    return (len(module._parameters[name]), *matrix) if is_dict else matrix


def packed_names(module: nn.Module) -> Iterator[str]:
    """Yield the names of the packed parameters of a module."""
    packed = getattr(module, "packed", None)
    yield from packed if isinstance(packed, dict) else () if packed is None else ("weight",)


def matrix_shape(module: nn.Module) -> tuple[int, int] | None:
    """Return the outputs and inputs of a linear layer, as GPT-2's transposed ones are too; None for another module."""
    if isinstance(module, Conv1D):
        inputs, outputs = module.weight.shape
        return outputs, inputs
    if not isinstance(module, nn.Linear) or module.weight.dim() != 2 or not _computes_a_product(module):
        return None
    return module.out_features, module.in_features


def _computes_a_product(module: nn.Linear) -> bool:
    """Return True if a linear layer, or a subclass of it, computes x W^T + b and nothing else: a small one shows it."""
    if type(module) is nn.Linear:
        return True
    if isinstance(module, NonDynamicallyQuantizableLinear):  # torch's attention reads its weight
        return False
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.no_grad():
        x, weight = torch.randn(1, 2, 5), torch.randn(3, 5)
        bias = None if module.bias is None else torch.randn(3)
        probe = copy.copy(module)
        probe.__dict__["_parameters"] = {
            "weight": nn.Parameter(weight),
            "bias": None if bias is None else nn.Parameter(bias),
        }
        probe.in_features, probe.out_features = 5, 3
        try:
            out = probe(x)
        except Exception:  # noqa: BLE001 (whatever it does with other sizes, it is no plain product)
            return False
        expected = nn.functional.linear(x, weight, bias)
        return isinstance(out, torch.Tensor) and out.shape == expected.shape and torch.allclose(out, expected)


def _ends(model: Any, modules: Mapping[str, nn.Module], packing: Packing) -> dict[str, int | None]:
    """Return the bits of the output head, and of the embedding if it is tied to the head: both are packed or none."""
    head, embedding = (
        next((name for name, module in modules.items() if end is not None and module is end), "")
        for end in (model.get_output_embeddings(), model.get_input_embeddings())
    )
    tied = {name for pair in tied_weights(model).items() for name in pair}
    lookups = [
        name
        for name, module in modules.items()
        if f"{name}.weight" in tied and name != head and isinstance(module, nn.Embedding)
    ]
    if f"{embedding}.weight" not in tied:
        lookups = []
    names = [name for name in (head, *lookups) if name]
    shape = matrix_shape(modules[head]) if head else None
    if shape is None or not all(_is_lookup(modules[name]) for name in lookups):
        return dict.fromkeys(names)
    if packing.stored is not None:
        sizes = [packing.stored[f"{name}.weight"] for name in names if f"{name}.weight" in packing.stored]
        return dict.fromkeys(names, _bits_of_size(packing.packed_class, shape, sizes[0]) if sizes else None)
    is_skipped = not all(should_convert_module(name, list(packing.skipped)) for name in names)
    return dict.fromkeys(names, None if is_skipped else packing.head_bits)


def _is_lookup(module: nn.Module) -> bool:
    """Return True if a module looks up rows, scaled or not: `PackedEmbedding` does the same."""
    return isinstance(module, nn.Embedding) and (
        type(module).forward is nn.Embedding.forward or embedding_scale(module) is not None
    )


def _bits(name: str, module: nn.Module, packing: Packing) -> int | None:
    """Return the bits of a linear layer or of experts; None for every other module, and for those that are kept."""
    shape = matrix_shape(module)
    if shape is not None:
        names: tuple[str, ...] = ("weight",)
    else:
        names = _expert_names(name, module)
        if not names:
            return None
        *_, rows, columns = cast("nn.Parameter", getattr(module, names[0])).shape
        shape = rows, columns
    if packing.stored is not None:
        return _bits_of_size(packing.packed_class, shape, packing.stored.get(f"{name}.{names[0]}"))
    if not should_convert_module(name, list(packing.skipped)):
        return None
    kind = kind_of(f"{name}.{names[0]}", shape) if names == ("weight",) else Kind.EXPERTS
    return packing.head_bits if kind is Kind.HEAD else packing.bits if kind in (Kind.LINEAR, Kind.EXPERTS) else None


def _bits_of_size(packed_class: type[Packed], matrix: Sequence[int], size_bytes: int | None) -> int | None:
    """Return the bits in which a matrix takes so many bytes."""
    if size_bytes is None:
        return None
    sides = (tuple(matrix), tuple(reversed(matrix)))  # experts may be transposed
    return next((bits for bits in (4, 8) for n, k in sides if packed_class(bits, n, k).size_bytes == size_bytes), None)


def _expert_names(name: str, module: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters that hold the matrices of a module's experts."""
    if has_expert_layout(module):
        return EXPERT_WEIGHTS
    parameters = module._parameters.items()
    return tuple(
        own
        for own, parameter in parameters
        if parameter is not None and parameter.dim() == 3 and is_expert_matrix(f"{name}.{own}", parameter.shape)
    )


def _drop_half_packed(model: Any, chosen: dict[str, int]) -> None:
    """Leave weights unquantised that share their memory with an unquantised one."""
    pairs = [tuple(name.rpartition(".")[0] for name in pair) for pair in tied_weights(model).items()]
    weights = [
        pair for pair, (one, _) in zip(pairs, tied_weights(model).items(), strict=True) if not one.endswith("bias")
    ]
    changed = True
    while changed:
        changed = False
        for one, other in weights:
            if (one in chosen) != (other in chosen):
                chosen.pop(one, None)
                chosen.pop(other, None)
                changed = True


def _pack_experts(name: str, module: Any, packed_class: type[Packed], bits: int) -> None:
    if has_expert_layout(module):
        pack_experts(module, packed_class, bits)
    else:
        pack_stacks(module, _expert_names(name, module), packed_class, bits)


def _packed(module: Any, packed_class: type[Packed], bits: int, dtype: torch.dtype) -> nn.Module:
    """Return the packed layer for a linear layer, GPT-2's transposed one, or an embedding."""
    if isinstance(module, nn.Embedding):
        return PackedEmbedding(module, packed_class(bits, module.num_embeddings, module.embedding_dim), dtype=dtype)
    shape = matrix_shape(module)
    assert shape is not None  # noqa: S101 (only such modules are chosen)
    layer = PackedLinear(packed_class(bits, *shape), bias=module.bias is not None, dtype=dtype)
    layer.is_transposed = isinstance(module, Conv1D)
    return layer
