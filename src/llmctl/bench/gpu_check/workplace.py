"""The workplace that the steps of one process share: folders, sizes, and a loaded model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.config import settings_from_mapping

if TYPE_CHECKING:
    import torch

    from llmctl.loading.model import LoadedModel


class SkippedError(Exception):
    """A reason why a step is not run, which is no fault."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of models and measurements.

    Attributes:
        batches: Numbers of concurrent sequences.
        prompt_tokens: Tokens of a prompt where many sequences run.
        new_tokens: Tokens of each answer.
        long_prompts: Tokens of long prompts.
        clients: Concurrent clients of the server.
    """

    batches: tuple[int, ...] = (1, 8, 64, 256)
    prompt_tokens: int = 512
    new_tokens: int = 64
    long_prompts: tuple[int, ...] = (8192, 32768)
    clients: int = 64


_TINY = Sizes(batches=(1, 3), prompt_tokens=24, new_tokens=6, long_prompts=(96,), clients=4)


@dataclass
class Workplace:
    """The folder of checkpoints, the sizes, and the model in memory. Its state: that model, and a line for the report.

    Attributes:
        tiny: True for tiny models on the CPU.
    """

    folder: Path
    tiny: bool
    sizes: Sizes
    headline: str = ""
    _loaded: "LoadedModel | None" = field(default=None, repr=False)

    @classmethod
    def make(cls, folder: str, *, tiny: bool) -> "Workplace":
        """Return a workplace."""
        return cls(Path(folder), tiny, _TINY if tiny else Sizes())

    @property
    def device(self) -> "torch.device":
        """The device that is checked."""
        import torch

        return torch.device("cpu") if self.tiny else torch.device("cuda", 0)

    @property
    def dtype(self) -> str:
        """The dtype of the models."""
        import torch

        if self.tiny:
            return "float32"
        return "bfloat16" if torch.cuda.get_device_capability(self.device) >= (8, 0) else "float16"

    def checkpoint(self, name: str) -> Path:
        """Return the folder of a checkpoint.

        Raises:
            SkippedError: an earlier step could not write it.
        """
        folder = self.folder / name
        if not (folder / "config.json").is_file():
            raise SkippedError(f"the checkpoint {name} was not written")
        return folder

    def load(self, name: str, **sections: dict[str, Any]) -> "LoadedModel":
        """Load a checkpoint as a user would, on the device that is checked."""
        from llmctl.loading.loader import load

        values = {
            **sections,
            "model": {"id": str(self.checkpoint(name))},
            "load": {
                "device_map": "cpu" if self.tiny else "auto",
                "dtype": "float32" if self.tiny else "auto",
                **sections.get("load", {}),
            },
        }
        return load(settings_from_mapping(values), offline=True)

    def large(self) -> "LoadedModel":
        """Return the large model, which is loaded once."""
        if self._loaded is None:
            self._loaded = self.load("large")
        return self._loaded

    def release(self) -> None:
        """Drop the large model, and give unused memory back."""
        from llmctl.loading.device_memory import release_memory

        self._loaded = None
        release_memory()

    def take_headline(self) -> str:
        """Return the line for the report, and clear it."""
        headline, self.headline = self.headline, ""
        return headline


def attention_facts(loaded: "LoadedModel") -> dict[str, Any]:
    """Return what has computed the attention of packed passes, and why other backends were passed over."""
    from llmctl.gpu.paged_attention import attention_of_model

    attention = attention_of_model(loaded.model)
    return {
        "implementation": loaded.measured.attn_implementation,
        "packed": sorted(attention.used),
        "passed over": dict(attention.failures),
        "page_tokens": attention.page_tokens,
    }


def rounded(value: Any) -> Any:
    """Return JSON values with every number rounded to four digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return value
