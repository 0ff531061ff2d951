"""The rule that decides which weights are quantised. It needs their names and shapes only.

The plan applies it to the headers of a checkpoint, and the packer to the parameters of an empty model, so that both
agree before any weight is read. `docs/how-to/quantization.md` has the measurements behind the limits.
"""

from collections.abc import Sequence
from enum import Enum

# A matrix whose shorter side is less than this part of the longer one stays unquantised.
NARROW = 8
# A matrix with fewer rows or columns than this stays unquantised: it has less than one block of 32 in that direction,
# or gives one score per expert or head.
SMALLEST_SIDE = 32

_LOOKUPS = ("emb", "wte", "wpe")  # parts of the names of modules that look up rows
_TOKEN_EMBEDDINGS = (
    "embed_tokens", "tokens_embed", "wte", "word_embeddings", "word_embedding", "embed_in", "embeddings", "embedding",
    "input_embedding", "tok_embeddings", "w",
)  # fmt: skip
HEADS = ("lm_head", "embed_out", "generator_lm_head", "output_projection", "lm_loss", "decoder", "head", "output")
_ROUTERS = ("gate", "router", "classifier")
_STACKS = ("input_linear", "output_linear")  # modules with a matrix for each expert that are not in `experts`


class Kind(Enum):
    """The kinds of weights that quantisation tells apart."""

    LINEAR = "linear"
    EXPERTS = "experts"
    HEAD = "head"
    EMBEDDING = "embedding"
    KEPT = "kept"
    OTHER = "other"


def kind_of(name: str, shape: Sequence[int]) -> Kind:
    """Return the kind of a weight. `KEPT` is a matrix of a linear layer that is not quantised, `OTHER` no such matrix.

    The head is quantised if the model has a linear layer there; a token embedding, if the head shares its weights.
    """
    *modules, own = name.split(".")
    if is_expert_matrix(name, shape):
        return Kind.EXPERTS
    if own != "weight" and len(shape) == 2 and "experts" in modules and not own.endswith("bias"):
        return Kind.KEPT  # the matrices of all experts, one below the other, as DBRX has them
    if own != "weight" or len(shape) != 2 or not modules:
        return Kind.OTHER
    is_outside = not any(module.isdecimal() for module in modules)
    if is_outside and modules[-1] in HEADS:
        return Kind.HEAD
    if is_outside and modules[-1] in _TOKEN_EMBEDDINGS:
        return Kind.EMBEDDING
    if any("norm" in module or any(part in module for part in _LOOKUPS) for module in modules):
        return Kind.OTHER
    return Kind.KEPT if modules[-1] in _ROUTERS or is_narrow(shape) else Kind.LINEAR


def is_expert_matrix(name: str, shape: Sequence[int]) -> bool:
    """Return True for the weights of experts: the matrix of one of them, or the matrices of all in one tensor."""
    parts = name.split(".")
    if parts[-1].endswith("bias") or len(shape) not in (2, 3) or not {*parts}.isdisjoint(_ROUTERS):
        return False
    if len(shape) == 2:
        return "experts" in parts and parts[-1] == "weight"
    return "experts" in parts or (len(parts) > 1 and parts[-2] in _STACKS)


def is_narrow(shape: Sequence[int]) -> bool:
    """Return True for a matrix so narrow that it costs few bytes, while its error reaches every feature.

    These are routers, gates and decays with a score for each head, the step sizes of state space models (dt, A, B), and
    projections to and from a low rank.
    """
    short, long = min(shape), max(shape)
    return short < SMALLEST_SIDE or short * NARROW < long
