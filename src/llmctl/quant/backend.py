"""The protocols of quantisation, and the objects that they share with a plan.

Imports no torch. The decisions of a backend depend on nothing but their arguments; the methods that act on a loaded
model import what they need when they are called. The rest of llmctl uses these protocols and does not depend on a
particular backend.
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
    from llmctl.quant.stored_format import Package


@dataclass(frozen=True)
class Quantization:
    """The quantisation of a model's weights: as the checkpoint stores them, or while they are loaded.

    Attributes:
        backend: The format of the weights, with its behaviour.
        bits: Bits of a weight in a linear layer; None if the format does not say.
        label: The name with the settings that matter: `bitsandbytes 4-bit nf4 double`.
        arguments: transformers' `quantization_config` in plain values, dtypes by name.
        is_stored: True if the checkpoint is stored this way, so that nothing is quantised while loading.
    """

    backend: "WeightFormat"
    bits: int | None
    label: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    is_stored: bool = False

    @property
    def name(self) -> str:
        """The format, and the bits if they are known: `bitsandbytes 4-bit`, `gptq`."""
        return self.backend.name if self.bits is None else f"{self.backend.name} {self.bits}-bit"


class Choice(NamedTuple):
    """A decision of a backend and its reason: the parts of a plan's `Decision`."""

    key: str
    value: Any
    reason: str


class Variant(NamedTuple):
    """A combination of a backend's settings that `llmctl plan` compares with others.

    Attributes:
        name: `4-bit nf4`.
        section: The keys of the `quantization` section that select it.
    """

    name: str
    section: Mapping[str, Any]


class ScriptLines(NamedTuple):
    """A backend's part of the script of `--show-code`.

    Attributes:
        classes: Names to import from transformers.
        imports: Further lines of imports.
        config: The expression for `quantization_config=`; None if the checkpoint has its own.
        edits: Statements that change the checkpoint's own settings, a dict named `settings`.
    """

    classes: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    config: str | None = None
    edits: tuple[str, ...] = ()


class BackendPackage(NamedTuple):
    """The package that a backend needs, for `llmctl doctor`.

    Attributes:
        name: The module's name.
        tested_up_to: The newest release that the tests ran with.
        probe: `module:function`, which imports it in a child process and returns facts as JSON values.
    """

    name: str
    tested_up_to: str
    probe: str


class Finding(NamedTuple):
    """A fault of a backend's package.

    Attributes:
        is_fault: True if the backend does not work, False if it is only slow.
        reason: The fault.
        fix: The command that repairs it.
    """

    is_fault: bool
    reason: str
    fix: str


class WeightFormat(Protocol):
    """A format of quantised weights: its memory, its speed, and its layers in a loaded model.

    Stateless. The defaults describe a format that transformers loads without help.

    Attributes:
        name: The first word of every description.
        can_compile: True if transformers can compile models with its layers.
        slows_prompts: True if reading a prompt on a CPU is much slower than with unquantised weights.
        uses_own_kernels: True if llmctl's own kernels multiply its weights, so that their speed is measured.
        cache_versions: Packages whose versions change the quantised bytes, with the number of version parts to compare.
        imports_compiler: True if transformers' support of stored weights imports parts of torch.compile.
        vllm_method: vLLM's name of weights that are stored in this format; None if vLLM cannot read them.
    """

    name: str
    can_compile: bool = False
    slows_prompts: bool = False
    uses_own_kernels: bool = False
    cache_versions: Mapping[str, int] = MappingProxyType({})
    imports_compiler: bool = False
    vllm_method: str | None = None

    # -- decisions: pure

    def refusal(self, config: "Config", machine: "Machine", *, devices: tuple[str, ...]) -> LlmctlError | None:
        """Return the error, with a hint, if it cannot serve this configuration on this machine."""
        return None

    def explain_stored(self, quantization: Quantization, *, dtype: str, devices: tuple[str, ...]) -> tuple[Choice, ...]:
        """Return the decisions for a checkpoint that is stored this way."""
        return (Choice("quantization", quantization.label, STORED),)

    def needed_packages(self, devices: tuple[str, ...]) -> tuple["Package", ...]:
        """Return the packages that a checkpoint stored this way needs; see also `QuantBackend.package`."""
        return ()

    def dtypes(self, devices: tuple[str, ...]) -> tuple[str, ...]:
        """Return the dtypes in which its layers compute, the preferred one first; empty for all."""
        return ()

    def environment(self, devices: tuple[str, ...]) -> Mapping[str, str]:
        """Return the environment variables that a checkpoint stored this way needs."""
        return {}

    def split_obstacle(self) -> str | None:
        """Return the reason if a checkpoint stored this way cannot be partly in RAM beside a GPU."""
        return None

    def loaded_as(self, quantization: Quantization, config: "Config", *, obstacle: str | None) -> Quantization:
        """Return the quantisation that the weights of a checkpoint stored this way have in memory.

        `obstacle` says why llmctl's own kernels do not compute; None if they do.
        """
        return quantization

    def is_unpacked(self, quantization: Quantization) -> bool:
        """Return True if the weights of a checkpoint stored this way are unpacked to the model's dtype."""
        return False

    def offloaded(self, quantization: Quantization) -> tuple[Quantization, tuple[Choice, ...]]:
        """Return the quantisation for a model that is partly in RAM beside a GPU, and the reasons."""
        return quantization, ()

    def weight_bytes(self, tensor: "Tensor", quantization: Quantization, *, is_tied: bool) -> int | None:
        """Return the bytes of a tensor once it is quantised; None if it gets the model's dtype.

        `is_tied` means that the output head shares the weights of the embedding.
        """
        return None

    def stored_bytes(self, tensor: "Tensor", quantization: Quantization, *, dtype_bytes: int) -> int:
        """Return the bytes of a tensor of a checkpoint that is stored this way, once it is loaded.

        `dtype_bytes` is the size of the model's dtype.
        """
        return tensor.numel * dtype_bytes if tensor.dtype in FLOATS else tensor.size_bytes

    def stored_parameters(self, tensor: "Tensor", quantization: Quantization) -> int:
        """Return the number of weights in a tensor of a checkpoint that is stored this way."""
        return tensor.numel

    def mapped_bytes(self, quantization: Quantization) -> int | None:
        """Return the bytes of weight files in memory beside the weights while loading; None: all converted ones."""
        return None

    def decode_share(self, quantization: Quantization, device: str, machine: "Machine") -> tuple[float, float] | None:
        """Return the lowest and highest share of the memory bandwidth that decoding reaches; None: as in bfloat16.

        `device` is `cpu`, `cuda`, `xpu` or `mps`.
        """
        return None

    def cache_obstacle(self) -> str | None:
        """Return the reason if its weights cannot be cached on disk."""
        return None

    def save_obstacle(self) -> LlmctlError | None:
        """Return the error, with a hint, if its weights cannot be saved."""
        return None

    def script(self, quantization: Quantization) -> ScriptLines:
        """Return its part of a plain transformers script."""
        return ScriptLines()

    # -- actions on this machine and on a loaded model

    def import_package(self) -> None:
        """Import its package with llmctl's precautions. Raises ImportError."""
        return

    def transformers_config(self, quantization: Quantization) -> Any:
        """Return the object for `from_pretrained(quantization_config=…)`; None if the checkpoint has its own."""
        return None

    def adapt_config(self, settings: dict[str, Any]) -> None:
        """Change the `quantization_config` that transformers reads from a checkpoint stored this way."""
        return

    def complete(self, model: Any) -> None:
        """Finish a model that transformers has loaded from a checkpoint stored this way."""
        return

    def describe(self, model: Any) -> str | None:
        """Return the quantisation of a loaded model, read from its layers; None if none of them is in this format."""
        return None

    def parameter_count(self, model: Any) -> int | None:
        """Return the parameters of a loaded model, each as one weight; None if transformers counts them correctly."""
        return None

    def scales(self, model: Any) -> Iterator[tuple[str, Any]]:
        """Yield the scales by name: they show NaN and infinity of quantised weights."""
        return iter(())

    def extra_tensors(self, parameter: Any) -> list[Any]:
        """Return the tensors that a quantised parameter keeps beside itself, to count their memory."""
        return []

    def check_saveable(self, model: Any) -> None:
        """Raise ValueError if a loaded model can no longer be saved."""
        return


class QuantBackend(WeightFormat, Protocol):
    """A format that llmctl quantises to. One instance each, listed in `quant.registry`; `name` is its YAML name.

    Attributes:
        own_keys: Keys of the `quantization` section that only this backend has; setting one of them selects it.
        package: The package it needs, or None.
    """

    own_keys: frozenset[str] = frozenset()
    package: BackendPackage | None = None

    def plan(
        self, config: "Config", machine: "Machine", *, devices: tuple[str, ...], product_dtype: str
    ) -> tuple[Quantization, tuple[Choice, ...]]:
        """Return the quantisation that a configuration asks for, and the reasons.

        `product_dtype` is the dtype to multiply in.
        """
        ...

    def keep(
        self,
        quantization: Quantization,
        *,
        heads: tuple[str, ...],
        read_directly: tuple[str, ...],
        kept: tuple[str, ...],
    ) -> Quantization:
        """Return the quantisation with further modules left unquantised.

        Args:
            heads: Names of the output heads, for backends that do not quantise them.
            read_directly: Ends of the names of modules whose weights other code reads.
            kept: Ends of the names of those that `quant.precision` keeps, for backends that do not apply it.
        """
        ...

    def scheme(self, bits: int) -> Quantization:
        """Return the quantisation to `bits` with default settings, for estimates."""
        ...

    def variants(self) -> tuple[Variant, ...]:
        """Return its variants, the most exact first."""
        ...

    def recognise(self, stored: Mapping[str, Any]) -> Quantization | None:
        """Return the quantisation that a `quantization_config` of config.json means; None if it is another format."""
        ...

    def examine(self, facts: Mapping[str, Any], *, cuda: str | None, cuda_works: bool) -> tuple[Finding | None, str]:
        """Return a fault of its package or None, and a remark to print after the version if there is no fault.

        Args:
            facts: The result of `package.probe`.
            cuda: The CUDA version that torch was built for, or None.
            cuda_works: True if torch can use the GPU.
        """
        return None, ""


STORED = "the checkpoint is stored this way"
FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names of the dtypes that are converted to the model's dtype
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
    """Return True if a tensor belongs to one of the modules that stay unquantised."""
    parts, module = tensor.name.split("."), tensor.name.rpartition(".")[0]
    return any(
        name in parts or tensor.name.startswith(f"{name}.") or module.endswith(f".{name}") for name in skip_modules
    )
