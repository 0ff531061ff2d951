"""Mixtures of experts as the compiled library computes them: the choice of experts, and their weights.

A program and the modules of its model describe both with these objects, so that they compute the same bits.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmctl.cpu.packing import Encoding, native_bytes
from llmctl.cpu.structs import ACTIVATIONS, ENCODINGS, SCORINGS, Activation, Scoring
from llmctl.cpu.tensors import check_vector, dtype_codes

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Routing:
    """The choice of a token's experts, and their weights, from the router's logits.

    Attributes:
        experts: The number of experts.
        top_k: The number of experts per token.
        scoring: The scores by which experts are chosen, which are also their weights: the softmax over all experts
            (`softmax`) or over the chosen ones (`top_softmax`), each logit's sigmoid (`top_sigmoid` chooses by the
            logits themselves), or Phi-MoE's `sparse_mixer`.
        normalize: True if the weights of a token's experts sum to one.
        round_weights: True if these weights are rounded to the model's dtype.
        correction: [experts], added to the scores for the choice only.
        groups: The number of groups of experts, of which only the best `top_groups` take part.
        group_best: The number of a group's best scores, 1 or 2, whose sum is the score of the group.
        multiplier: The factor of the weights.
        factors: [experts], a further factor of each expert's weight.
        epsilon: The least sum by which weights are divided; of `sparse_mixer`, the relative distance from the largest
            logit beyond which an expert does not take part.
        float_logits: True if the logits are float32 whatever the model's dtype.
    """

    experts: int
    top_k: int
    scoring: Scoring = "softmax"
    normalize: bool = False
    round_weights: bool = False
    correction: "Tensor | None" = None
    groups: int = 1
    top_groups: int = 1
    group_best: int = 2
    multiplier: float = 1.0
    factors: "Tensor | None" = None
    epsilon: float = 0.0
    float_logits: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.top_k <= self.experts or (self.scoring == "sparse_mixer" and self.top_k != 2):
            raise ValueError(f"{self.top_k} of {self.experts} experts cannot be chosen")
        if not 0 < self.top_groups <= self.groups or self.experts % self.groups:
            raise ValueError(f"{self.experts} experts cannot form {self.groups} groups, of which {self.top_groups}")
        check_vector(self.correction, self.experts, "the correction")
        check_vector(self.factors, self.experts, "the factors")

    def fields(self) -> dict[str, Any]:
        """Return the fields of an `Operation`. `correction` and `factors` must outlive it."""
        return {
            "experts": self.experts,
            "top_k": self.top_k,
            "scoring": SCORINGS.index(self.scoring),
            "normalize_top_k": self.normalize,
            "round_top_k": self.round_weights,
            "bias": None if self.correction is None else self.correction.data_ptr(),
            "bias_dtype": 0 if self.correction is None else dtype_codes()[self.correction.dtype],
            "groups": self.groups,
            "top_groups": self.top_groups,
            "group_best": self.group_best,
            "skip": None if self.factors is None else self.factors.data_ptr(),
            "head_dtype": 0 if self.factors is None else dtype_codes()[self.factors.dtype],
            "scale": self.multiplier,
            "epsilon": self.epsilon,
            "floats": self.float_logits,
        }


@dataclass(frozen=True)
class ExpertActivation:
    """The activation between an expert's projections.

    Attributes:
        name: The activation of the gate, which is multiplied by up; without a gate, that of up.
        is_interleaved: True if gate and up alternate in the outputs of gate_up_proj; otherwise all gates come first.
        alpha: The factor inside the sigmoid of `clamped_swiglu`.
        limit: Its bound of gate and up.
        is_gated: False if experts have an up_proj instead of a gate_up_proj.
    """

    name: Activation
    is_interleaved: bool = False
    alpha: float = 0.0
    limit: float = 0.0
    is_gated: bool = True


@dataclass(frozen=True)
class Experts:
    """The weights of all experts of a layer.

    Attributes:
        gate_up_proj: [experts, 2 * intermediate, hidden] in torch's layout, or packed as bytes [experts, ...]; without
            a gate, the up_proj [experts, intermediate, hidden].
        down_proj: [experts, hidden, intermediate], likewise.
        hidden: The size of a row of hidden states.
        intermediate: The size of a row between the projections.
        activation: The activation between them.
        bits: 4 or 8 for packed weights, else 0.
        encoding: The encoding of packed weights.
        gate_up_bias: [experts, 2 * intermediate].
        down_bias: [experts, hidden].
        weighs_inputs: True if the weights of a token's experts multiply their inputs instead of their outputs.
    """

    gate_up_proj: "Tensor"
    down_proj: "Tensor"
    hidden: int
    intermediate: int
    activation: ExpertActivation
    bits: int = 0
    gate_up_bias: "Tensor | None" = None
    down_bias: "Tensor | None" = None
    weighs_inputs: bool = False
    encoding: Encoding = "llmctl"

    def __post_init__(self) -> None:
        count = len(self.gate_up_proj)
        for name, n, k in (("gate_up_proj", self.up_width, self.hidden), ("down_proj", *self.down_shape)):
            self._check(name, (count, native_bytes(n, k, self.bits, self.encoding)) if self.bits else (count, n, k))
        for name, n in (("gate_up_bias", self.up_width), ("down_bias", self.hidden)):
            if getattr(self, name) is not None:
                self._check(name, (count, n))
        if self.gate_up_proj.dtype != self.down_proj.dtype:
            raise ValueError("gate_up_proj and down_proj must have one dtype")
        if (self.gate_up_bias is None) != (self.down_bias is None):
            raise ValueError("experts have both biases or none")

    @property
    def down_shape(self) -> tuple[int, int]:
        """The shape of one expert's down_proj."""
        return self.hidden, self.intermediate

    @property
    def up_width(self) -> int:
        """The outputs of one expert's gate_up_proj."""
        return self.intermediate * (2 if self.activation.is_gated else 1)

    @property
    def count(self) -> int:
        """The number of experts."""
        return len(self.gate_up_proj)

    def fields(self) -> dict[str, Any]:
        """Return the fields of an `Operation`, except those of the routing. The tensors must outlive it."""
        biased: dict[str, Any] = {}
        if self.gate_up_bias is not None and self.down_bias is not None:
            biased = {
                "bias": self.gate_up_bias.data_ptr(),
                "down_bias": self.down_bias.data_ptr(),
                "bias_dtype": dtype_codes()[self.gate_up_bias.dtype],
            }
        return {
            "experts": self.count,
            "n": self.hidden,
            "intermediate_size": self.intermediate,
            "bits": self.bits,
            "encoding": ENCODINGS.index(self.encoding),
            "weight": self.gate_up_proj.data_ptr(),
            "down_weight": self.down_proj.data_ptr(),
            "weight_dtype": 0 if self.bits else dtype_codes()[self.gate_up_proj.dtype],
            "activation": ACTIVATIONS.index(self.activation.name),
            "interleaved": self.activation.is_interleaved,
            "alpha": self.activation.alpha,
            "limit": self.activation.limit,
            "ungated": not self.activation.is_gated,
            "weighs_inputs": self.weighs_inputs,
            **biased,
        }

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        tensor: Tensor = getattr(self, name)
        is_packed = bool(self.bits) and name.endswith("proj")
        is_known = str(tensor.dtype) == "torch.uint8" if is_packed else tensor.dtype in dtype_codes()
        if tensor.shape != shape or not is_known or not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise ValueError(f"{name} must be a contiguous CPU tensor {list(shape)}")
