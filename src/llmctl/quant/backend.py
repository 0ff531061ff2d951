"""The protocol of a quantisation backend, and the nouns that it shares with a plan.

Importable without torch. A backend decides without looking at anything but its arguments; the methods that act on a
loaded model import what they need when they are called. Everything else in llmctl goes through this protocol and never
asks which backend it has.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from llmctl.errors import LlmctlError

if TYPE_CHECKING:
    from llmctl.config import Config
    from llmctl.machine.detection import Machine
    from llmctl.model.checkpoint import Tensor


@dataclass(frozen=True)
class Quantization:
    """How the weights of a model are quantised: as the checkpoint stores them, or while they are loaded.

    Attributes:
        backend: The backend that makes or reads them.
        bits: Bits of a weight in a linear layer; None where the format does not say.
        label: Its name with the settings that matter: `bitsandbytes 4-bit nf4 double`.
        arguments: transformers' `quantization_config` in plain values, dtypes by name.
        is_stored: Whether the checkpoint is stored this way, so that nothing is quantised while loading.
    """

    backend: "QuantBackend"
    bits: int | None
    label: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    is_stored: bool = False

    @property
    def name(self) -> str:
        """The backend or method, and the bits where they are known: `bitsandbytes 4-bit`, `gptq`."""
        return self.backend.name if self.bits is None else f"{self.backend.name} {self.bits}-bit"


class Choice(NamedTuple):
    """One thing that a backend decided, and why: the parts of a plan's `Decision`."""

    key: str
    value: Any
    reason: str


class Variant(NamedTuple):
    """One way of using a backend, for `llmctl plan` to compare.

    Attributes:
        name: `4-bit nf4`.
        section: The keys of the `quantization` section that choose it.
    """

    name: str
    section: Mapping[str, Any]


class ScriptLines(NamedTuple):
    """The part of a backend in a script that `--show-code` prints.

    Attributes:
        classes: Names to import from transformers.
        imports: Further lines of imports.
        config: The expression for `quantization_config=`; None where the checkpoint brings its own.
    """

    classes: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    config: str | None = None


class BackendPackage(NamedTuple):
    """The package that a backend needs, for `llmctl doctor`.

    Attributes:
        name: The module's name.
        tested_up_to: The newest release that the tests ran with.
        probe: `module:function` that imports it in a child process and returns facts as JSON values.
    """

    name: str
    tested_up_to: str
    probe: str


class Finding(NamedTuple):
    """A fault of a backend's package.

    Attributes:
        is_fault: Whether the backend does not work at all; otherwise it works slowly.
        reason: What is wrong.
        fix: The command that repairs it.
    """

    is_fault: bool
    reason: str
    fix: str


class QuantBackend(Protocol):
    """A quantisation backend. Stateless; one instance each, listed in `quant.registry`.

    Attributes:
        name: The value of `quantization.backend`, and the first word of every description.
        own_keys: Keys of the `quantization` section that only this backend has; setting one of them chooses it.
        can_compile: Whether transformers compiles models with its layers.
        slows_prompts: Whether reading a prompt on a CPU is much slower than with unquantised weights.
        cache_versions: Packages whose versions change the quantised bytes, with the number of version parts that do.
        package: The package it needs, or None.
        vllm_method: What vLLM calls weights that are stored in its format, or None where vLLM cannot read them.
    """

    name: str
    own_keys: frozenset[str] = frozenset()
    can_compile: bool = False
    slows_prompts: bool = False
    cache_versions: Mapping[str, int] = MappingProxyType({})
    package: BackendPackage | None = None
    vllm_method: str | None = None

    # -- decisions: pure

    def refusal(self, config: "Config", machine: "Machine", *, devices: tuple[str, ...]) -> LlmctlError | None:
        """Return the error that says why it cannot serve this configuration here and what to type, or None."""
        return None

    def plan(self, config: "Config", machine: "Machine", *, dtype: str) -> tuple[Quantization, tuple[Choice, ...]]:
        """Return the quantisation that a configuration asks for, and the reasons."""
        ...

    def scheme(self, bits: int) -> Quantization:
        """Return its quantisation to `bits` with default settings, for estimates."""
        ...

    def variants(self) -> tuple[Variant, ...]:
        """Return the ways of using it, the most exact first."""
        ...

    def recognise(self, stored: Mapping[str, Any]) -> Quantization | None:
        """Return the quantisation that a `quantization_config` of config.json means, or None if it is not its own."""
        ...

    def explain_stored(self, quantization: Quantization) -> tuple[Choice, ...]:
        """Return the decisions for a checkpoint that is stored this way."""
        return (Choice("quantization", quantization.label, STORED),)

    def offloaded(self, quantization: Quantization) -> tuple[Quantization, tuple[Choice, ...]]:
        """Return the quantisation for a model that lies partly in RAM beside a GPU, and the reasons."""
        return quantization, ()

    def weight_bytes(self, tensor: "Tensor", quantization: Quantization, *, is_tied: bool) -> int | None:
        """Return the bytes of a tensor once it is loaded, or None where it gets the model's dtype.

        Args:
            tensor: A tensor of the checkpoint.
            quantization: The quantisation of the model.
            is_tied: Whether the output head shares the weights of the embedding.
        """
        return None

    def mapped_bytes(self, quantization: Quantization) -> int | None:
        """Return the bytes of weight files in memory beside the weights while loading; None means all it converts."""
        return None

    def decode_share(self, quantization: Quantization, device: str, machine: "Machine") -> tuple[float, float] | None:
        """Return the lowest and highest share of the memory bandwidth that decoding reaches; None means as bfloat16.

        `device` is `cpu`, `cuda` or `mps`.
        """
        return None

    def cache_obstacle(self) -> str | None:
        """Return why its weights cannot be cached on disk, or None."""
        return None

    def save_obstacle(self) -> LlmctlError | None:
        """Return the error that says why its weights cannot be saved, or None."""
        return None

    def script(self, quantization: Quantization) -> ScriptLines:
        """Return its part of a plain transformers script."""
        return ScriptLines()

    def examine(self, facts: Mapping[str, Any], *, cuda: str | None, cuda_works: bool) -> tuple[Finding | None, str]:
        """Return a fault of its package, and a remark that follows the version of a package without one.

        Args:
            facts: What `package.probe` returned.
            cuda: The CUDA version that torch was built for, or None.
            cuda_works: Whether torch can use the GPU.
        """
        return None, ""

    # -- actions: on this machine, on a loaded model

    def import_package(self) -> None:
        """Import its package the way llmctl needs it. Raises ImportError."""
        return

    def transformers_config(self, quantization: Quantization) -> Any:
        """Return the object for `from_pretrained(quantization_config=…)`."""
        ...

    def describe(self, model: Any) -> str | None:
        """Return what the layers of a loaded model are, or None where none is its own."""
        return None

    def parameter_count(self, model: Any) -> int | None:
        """Return the parameters of a loaded model, each as one weight; None where transformers counts them right."""
        return None

    def scales(self, model: Any) -> Iterator[tuple[str, Any]]:
        """Yield the scales by name that show NaN or infinity of quantised weights."""
        return iter(())

    def extra_tensors(self, parameter: Any) -> list[Any]:
        """Return the tensors that a quantised parameter keeps beside itself, to count their memory."""
        return []

    def check_saveable(self, model: Any) -> None:
        """Raise ValueError if a loaded model can no longer be saved."""
        return


STORED = "the checkpoint is stored this way"
EMBEDDINGS = (
    "embed_tokens",
    "wte",
    "wpe",
    "embed_positions",
    "word_embeddings",
    "embed_in",
    "embed_out",
)


def is_skipped(tensor: "Tensor", skip_modules: Sequence[str]) -> bool:
    """Return whether a tensor belongs to one of the modules that stay as they are."""
    parts = tensor.name.split(".")
    return any(name in parts or tensor.name.startswith(f"{name}.") for name in skip_modules)


def is_linear_weight(tensor: "Tensor") -> bool:
    """Return whether a tensor is the matrix of a linear layer inside a decoder block.

    Embeddings, the output head, experts and the router of a mixture of experts are not. A shared expert is.
    """
    if len(tensor.shape) != 2 or not tensor.name.endswith(".weight") or tensor.block is None or tensor.is_expert:
        return False
    parts = tensor.name.split(".")
    if any(part in (*EMBEDDINGS, "lm_head") or "norm" in part for part in parts):
        return False
    return not (len(parts) > 2 and parts[-2] in ("gate", "router"))
