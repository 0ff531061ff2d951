"""A quantised model as files."""

from pathlib import Path
from typing import Any

from llmctl.quant.registry import BACKENDS

# One file at a time is gathered in memory where it has to be copied there from a GPU.
SHARD_SIZE = "4GB"


def save_weights(model: Any, folder: Path) -> None:
    """Write weights, config.json and generation_config.json as transformers does, into a folder that is there.

    Raises:
        ValueError: the model has computed on a CPU already, after which bitsandbytes would write wrong scales.
        OSError, SafetensorError: the disk refuses.
    """
    for backend in BACKENDS:
        backend.check_saveable(model)
    model.save_pretrained(str(folder), max_shard_size=SHARD_SIZE)
    usual = (folder / "config.json").stat().st_mode & 0o777
    for file in folder.glob("*.safetensors"):  # safetensors writes them for the owner alone
        file.chmod(usual)
