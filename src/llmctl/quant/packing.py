"""What can be said of a model with packed weights without importing torch: see `layers` for what they are."""

from collections.abc import Iterator
from typing import Any


def describe(model: Any) -> str | None:
    """What the layers of a loaded model really are: `llmctl 4-bit, output head 8-bit`, or None. `torch` likewise."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    inner = {packed.bits for module, _, packed in _packed(model) if module is not head and module is not embedding}
    if not inner and not hasattr(head, "packed"):
        return None
    bits = " and ".join(f"{count}-bit" for count in sorted(inner))
    made_by = next(packed.made_by for _, _, packed in _packed(model))
    return f"{made_by} {bits}" + (f", output head {head.packed.bits}-bit" if hasattr(head, "packed") else "")


def parameters(model: Any) -> int:
    """Parameters of any model, tied ones once, packed ones as the weights that they stand for."""
    counts = {}
    for module, name, packed in _packed(model):
        parameter = getattr(module, name)
        counts[id(parameter)] = (parameter.shape[0] if parameter.dim() == 2 else 1) * packed.n * packed.k
    if not counts:
        return int(model.num_parameters())
    return sum(counts.get(id(parameter), parameter.numel()) for parameter in model.parameters())


def scales(model: Any) -> Iterator[tuple[str, Any]]:
    """The scales of packed weights by name: what is wrong with a weight shows in them."""
    names = {id(module): name for name, module in model.named_modules()}
    for module, name, packed in _packed(model):
        parameter = getattr(module, name)
        for row in parameter if parameter.dim() == 2 else (parameter,):
            yield f"{names[id(module)]}.{name}", packed.views(row)[1]


def _packed(model: Any) -> Iterator[tuple[Any, str, Any]]:
    """Modules, the names of their packed parameters, and how these are packed."""
    for module in model.modules():
        found = getattr(module, "packed", None)
        if isinstance(found, dict):
            yield from ((module, name, packed) for name, packed in found.items())
        elif found is not None:
            yield module, "weight", found
