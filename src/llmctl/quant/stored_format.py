"""A format of pre-quantised checkpoints: where transformers loads it, what it needs, and its memory.

transformers either keeps such weights packed and multiplies by them with the layers of a package, or unpacks them to
the model's dtype while it loads. `checkpoint_formats` has a row for each format. A format that llmctl reads into its
own kernels is a subclass with another `adapt_config`, as in `mxfp4`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from llmctl.errors import LlmctlError, MachineError, ModelError, UserError
from llmctl.quant.backend import FLOATS, Choice, Quantization, ScriptLines, WeightFormat
from llmctl.versions import is_inside

if TYPE_CHECKING:
    from llmctl.config import Config
    from llmctl.machine.detection import Gpu, Machine
    from llmctl.model.checkpoint import Tensor

Settings = Mapping[str, Any]  # the quantization_config of config.json
ORIGINAL = "use the unquantised original of the model"


class Package(NamedTuple):
    """A package that a format needs.

    Attributes:
        name: Name of the distribution.
        module: Name of the module to import.
        minimum: The oldest version that transformers accepts, or None.
        extra: Extra to install with it: `[cpu]`.
        options: Options of `pip install`.
    """

    name: str
    module: str
    minimum: str | None = None
    extra: str = ""
    options: str = ""

    @property
    def requirement(self) -> str:
        """The argument of `pip install`, quoted for a shell."""
        text = self.name + self.extra + (f">={self.minimum}" if self.minimum else "")
        return f"'{text}'" if set(text) & set("[>") else text

    def obstacle(self, packages: Mapping[str, str]) -> str | None:
        """Return what is wrong with the installed package, or None."""
        version = packages.get(self.name)
        if version is None:
            return "is not installed"
        if self.minimum is not None and not is_inside(version, f">={self.minimum}"):
            return f"is installed as {version}, which is too old"
        return None


@dataclass(frozen=True)
class Support:
    """The support for a format on one kind of device.

    Attributes:
        refusal: Why the format cannot be loaded there; None if it can. Continues "weights in the format X".
        packages: The packages that it needs.
        capability: Minimum compute capability of the GPU.
        dtypes: Dtypes that its layers compute in, the preferred one first; empty for all.
        reason: Who multiplies by the packed weights, or why they are unpacked.
        needs_compiler: True if its layers are compiled by torch when they first run.
        environment: Environment variables that the packages need.
    """

    refusal: str | None = None
    packages: tuple[Package, ...] = ()
    capability: tuple[int, int] | None = None
    dtypes: tuple[str, ...] = ()
    reason: str = ""
    needs_compiler: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def install(self) -> str:
        """The command that installs its packages."""
        options = [package.options for package in self.packages if package.options]
        return " ".join(["pip install", *options, *(package.requirement for package in self.packages)])


_UNEXAMINED = Support(refusal="are not known to load on this kind of GPU")


@dataclass(frozen=True)
class Layout:
    """The tensors of a format.

    Attributes:
        packed: Endings of the names of packed weights.
        beside: Endings of the names of tensors that describe packed weights, and that unpacking leaves out.
        bits: Returns the bits of one packed weight; 0 if the format does not say.
        repacked: Returns the bytes of a tensor once its package has repacked it; None if it stays as it is stored.
    """

    packed: tuple[str, ...]
    beside: tuple[str, ...]
    bits: Callable[["Tensor", Settings], int]
    repacked: Callable[["Tensor", Settings], int | None] = lambda tensor, settings: None


NO_LAYOUT = Layout((), (), lambda tensor, settings: 0)


@dataclass(frozen=True, eq=False)
class StoredFormat(WeightFormat):
    """A format that llmctl does not quantise to; transformers loads it on some devices, or on none.

    Attributes:
        name: transformers' name of it, `quant_method`.
        support: The support by kind of device: `cpu`, `cuda`, `mps`. Others are refused.
        layout: The tensors.
        label_of: Returns the label for a configuration.
        unpacks: True if the weights are unpacked while loading.
        adapt: Changes the configuration that transformers reads; None for none.
        edits: The same change as statements on a dict named `settings`, for a script.
        finish: Completes a model that transformers has loaded; None for none.
        can_split: True if a part of the model can be in RAM beside a GPU.
        imports_compiler: True if its layers import parts of torch.compile.
    """

    name: str
    support: Mapping[str, Support]
    layout: Layout = NO_LAYOUT
    label_of: Callable[[Settings], str] | None = None
    unpacks: bool = False
    adapt: Callable[[dict[str, Any]], None] | None = None
    edits: tuple[str, ...] = ()
    finish: Callable[[Any], None] | None = None
    can_split: bool = False
    imports_compiler: bool = True
    vllm_method: str | None = None
    can_compile: bool = True

    def recognise(self, stored: Settings) -> Quantization:
        """Return the quantisation that a configuration of this format means."""
        bits = None if self.unpacks else stored.get("bits")
        bits = bits if isinstance(bits, int) and not isinstance(bits, bool) and 1 <= bits <= 8 else None
        label = self.label_of(stored) if self.label_of is not None else self.name
        if bits is not None:
            label += f" {bits}-bit"
        return Quantization(self, bits, label, stored, is_stored=True)

    def support_on(self, devices: tuple[str, ...]) -> Support:
        """Return the support on the first of the devices, which is a GPU if there is one."""
        kind = devices[0].partition(":")[0] if devices else "cpu"
        if kind == "xpu" and self.unpacks:
            return self.support["cuda"]
        return self.support.get(kind, _UNEXAMINED)

    # -- decisions

    def refusal(self, config: "Config", machine: "Machine", *, devices: tuple[str, ...]) -> LlmctlError | None:
        support = self.support_on(devices)
        if support.refusal is not None:
            return self._unsupported(support.refusal, machine, devices)
        if self.support["cpu"].refusal and any(gpu.kind == "rocm" and gpu.device in devices for gpu in machine.gpus):
            return self._unsupported("can be loaded on an NVIDIA GPU only", machine, devices)
        old = next((gpu for gpu in machine.gpus if gpu.device in devices and _is_older(gpu, support.capability)), None)
        if old is not None:
            return self._too_old(old, support)
        return self._lacking(support, machine) or self._other_dtype(support, config.load.dtype)

    def _lacking(self, support: Support, machine: "Machine") -> LlmctlError | None:
        """Return the error for packages or a compiler that this machine lacks, or None."""
        missing = [(package, text) for package in support.packages if (text := package.obstacle(machine.packages))]
        if missing:
            listed = ", and ".join(f"the package {package.name}, which {text}" for package, text in missing)
            names = [package.name for package, _ in missing]
            return MachineError(
                f"weights in the format {self.name} need {listed}",
                hint=support.install,
                details={"quantization_method": self.name, "packages": names},
            )
        if support.needs_compiler and not machine.compiler:
            return MachineError(
                f"layers in the format {self.name} are compiled when they first run, and there is no C++ compiler",
                hint="install one, for example: apt-get install g++",
                details={"quantization_method": self.name},
            )
        return None

    def _other_dtype(self, support: Support, wanted: str) -> LlmctlError | None:
        """Return the error for a requested dtype that the layers do not compute in, or None."""
        if wanted == "auto" or not support.dtypes or wanted in support.dtypes:
            return None
        return UserError(
            f"weights in the format {self.name} compute in {' or '.join(support.dtypes)} here, not in {wanted}",
            hint=f"omit --dtype, or use --dtype {support.dtypes[0]}",
            details={"quantization_method": self.name},
        )

    def _unsupported(self, reason: str, machine: "Machine", devices: tuple[str, ...]) -> LlmctlError:
        """Return the error for a kind of device on which the format cannot be loaded."""
        details = {"quantization_method": self.name}
        message = f"weights in the format {self.name} {reason}"
        kinds = [kind for kind, support in self.support.items() if support.refusal is None]
        if not kinds:
            engine = "; vLLM may read it: llmctl serve --engine vllm" if self.vllm_method else ""
            return ModelError(message, hint=ORIGINAL + engine, details=details)
        if "cpu" in kinds and devices != ("cpu",):
            return UserError(message, hint="use --device-map cpu", details=details)
        if any(gpu.kind in kinds for gpu in machine.gpus):
            return UserError(message, hint="use --device-map auto", details=details)
        return MachineError(message, hint=f"{ORIGINAL}, or a machine with an NVIDIA GPU", details=details)

    def _too_old(self, gpu: "Gpu", support: Support) -> LlmctlError:
        wanted = ".".join(map(str, support.capability or ()))
        has = ".".join(map(str, gpu.capability))
        return MachineError(
            f"weights in the format {self.name} need a GPU of compute capability {wanted} or more, "
            f"{gpu.name} has {has}",
            hint=ORIGINAL,
            details={"quantization_method": self.name, "compute_capability": wanted},
        )

    def dtypes(self, devices: tuple[str, ...]) -> tuple[str, ...]:
        return self.support_on(devices).dtypes

    def needed_packages(self, devices: tuple[str, ...]) -> tuple[Package, ...]:
        return self.support_on(devices).packages

    def environment(self, devices: tuple[str, ...]) -> Mapping[str, str]:
        return self.support_on(devices).environment

    def split_obstacle(self) -> str | None:
        return None if self.can_split else f"weights in the format {self.name} cannot be partly in RAM beside a GPU"

    def is_unpacked(self, quantization: Quantization) -> bool:
        return self.unpacks

    def explain_stored(self, quantization: Quantization, *, dtype: str, devices: tuple[str, ...]) -> tuple[Choice, ...]:
        support = self.support_on(devices)
        treatment = f"unpacked to {dtype} while loading" if self.is_unpacked(quantization) else "kept packed"
        names = ", ".join(package.name for package in support.packages)
        text = f"stored this way, {treatment}: {support.reason}" + (f"; packages: {names}" if names else "")
        return (Choice("quantization", quantization.label, text),)

    def stored_bytes(self, tensor: "Tensor", quantization: Quantization, *, dtype_bytes: int) -> int:
        if not self.is_unpacked(quantization):
            repacked = self.layout.repacked(tensor, quantization.arguments)
            if repacked is not None:
                return repacked
            return super().stored_bytes(tensor, quantization, dtype_bytes=dtype_bytes)
        weights = self._packed_weights(tensor, quantization)
        if weights is not None:
            return weights * dtype_bytes
        if self._is_beside(tensor):
            return 0
        if tensor.dtype.startswith("F8"):
            return tensor.numel * dtype_bytes
        return super().stored_bytes(tensor, quantization, dtype_bytes=dtype_bytes)

    def stored_parameters(self, tensor: "Tensor", quantization: Quantization) -> int:
        weights = self._packed_weights(tensor, quantization)
        if weights is not None:
            return weights
        return 0 if self._is_beside(tensor) else tensor.numel

    def _packed_weights(self, tensor: "Tensor", quantization: Quantization) -> int | None:
        """Return how many weights a packed tensor holds; None if it is not one, or the format does not say."""
        if tensor.dtype in FLOATS or not tensor.name.endswith(self.layout.packed) or not self.layout.packed:
            return None
        bits = self.layout.bits(tensor, quantization.arguments)
        return tensor.size_bytes * 8 // bits if bits else None

    def _is_beside(self, tensor: "Tensor") -> bool:
        return bool(self.layout.beside) and tensor.name.endswith(self.layout.beside)

    def script(self, quantization: Quantization) -> ScriptLines:
        return ScriptLines(classes=("AutoConfig",), edits=self.edits) if self.edits else ScriptLines()

    # -- actions

    def adapt_config(self, settings: dict[str, Any]) -> None:
        if self.adapt is not None:
            self.adapt(settings)

    def complete(self, model: Any) -> None:
        if self.finish is not None:
            self.finish(model)


def _is_older(gpu: "Gpu", capability: tuple[int, int] | None) -> bool:
    return gpu.kind == "cuda" and capability is not None and gpu.capability < capability
