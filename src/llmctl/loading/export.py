"""Export of a quantised model as a folder that loads without quantising (`llmctl quantize`)."""

import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmctl.config import Config
from llmctl.errors import MachineError, UserError
from llmctl.hub.cache.disk import check_room, explain
from llmctl.hub.selection import needed
from llmctl.loading.loader import load_prepared
from llmctl.loading.prepare import Prepared
from llmctl.model import generation_config
from llmctl.model.checkpoint import lies_inside
from llmctl.paths import check_writable, expand
from llmctl.plan.quantized_cache import weight_bytes
from llmctl.quant.atomic_folder import NewFolder
from llmctl.quant.cache import save_weights
from llmctl.transformers_compat import quiet_libraries

if TYPE_CHECKING:
    from llmctl.loading.model import LoadedModel

# Files about the model that are copied beside those that loading needs.
_ABOUT = ("README.md", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
_SMALL_FILES_BYTES = 50_000_000


@dataclass(frozen=True)
class ExportedModel:
    """A folder with a quantised model.

    Attributes:
        folder: The folder.
        quantization: The quantisation, read from the layers: `bitsandbytes 4-bit nf4, computing in bfloat16`.
        dtype: The dtype of weights that are not quantised.
        size_bytes: The size of its files.
        original_bytes: The size of the original weights.
        seconds: The duration of the export.
        files: The names of its files.
    """

    folder: Path
    quantization: str
    dtype: str
    size_bytes: int
    original_bytes: int
    seconds: float
    files: tuple[str, ...]


def check_output(config: Config, output: Path) -> None:
    """Check the settings before anything is downloaded.

    Raises:
        UserError: the number of bits is missing, or `output` is a file or a folder that is not empty.
        MachineError: this user may not write there.
    """
    if config.quantization.bits is None:
        raise UserError("the number of bits is missing", hint="add --quant 4bit or --quant 8bit")
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"{output} is not empty, and nothing in it is overwritten", hint="choose a new folder")
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file", hint="choose a new folder")
    try:
        check_writable(output.parent)
    except OSError as error:
        raise _unwritable(output, error) from error


def quantize(prepared: Prepared, output: Path) -> ExportedModel:
    """Load the model quantised, and write it with its tokenizer to `output`, completely or not at all.

    Raises:
        UserError: it is already quantised, or see `check_output`.
        MachineError: the disk or the memory is too small, or another process writes to `output`.
    """
    started = time.perf_counter()
    check_output(prepared.config, output)
    _check_model(prepared)
    plan = prepared.plan
    output = expand(output).absolute()
    needed_bytes = weight_bytes(plan) + _SMALL_FILES_BYTES
    check_room(needed_bytes, output)
    new = _begin(output)
    try:
        # not from the cache: transformers 5 cannot save bitsandbytes weights that it loaded quantised
        loaded = load_prepared(replace(prepared, plan=replace(plan, fills_quantized_cache=False, quantized_cache=None)))
        _write(loaded, new.path)
        new.place()
    except OSError as error:
        new.drop()
        raise explain(error, output, needed_bytes=needed_bytes) or error from error
    except BaseException:
        new.drop()
        raise
    files = {path.relative_to(output).as_posix(): path.stat().st_size for path in output.rglob("*") if path.is_file()}
    return ExportedModel(
        folder=output,
        quantization=loaded.measured.quantization,
        dtype=loaded.measured.dtype,
        size_bytes=sum(files.values()),
        original_bytes=prepared.info.size_bytes,
        seconds=time.perf_counter() - started,
        files=tuple(sorted(files)),
    )


def _check_model(prepared: Prepared) -> None:
    """Raise UserError or MachineError if the model cannot be quantised and saved."""
    plan, stored = prepared.plan, prepared.info.stored_quantization
    if stored is not None:
        raise UserError(
            f"{plan.source} is already quantised ({stored.name})",
            hint="use it as it is, or quantise the unquantised original",
        )
    obstacle = plan.quantization.backend.save_obstacle() if plan.quantization is not None else None
    if obstacle is not None:
        raise obstacle
    if prepared.adapters:
        raise UserError("adapters cannot be written with the model", hint="omit the adapters")
    if plan.is_split:
        raise MachineError(
            "the model does not fit on the GPU, and its part in RAM would stay unquantised",
            hint="--device-map cpu quantises all of it in RAM",
        )


def _begin(output: Path) -> NewFolder:
    try:
        return NewFolder(output)
    except BlockingIOError as error:
        raise MachineError(
            f"another process is writing {output}", hint="wait for it, or choose another folder"
        ) from error
    except OSError as error:
        raise _unwritable(output, error) from error


def _unwritable(output: Path, error: OSError) -> MachineError:
    return MachineError(f"{output} cannot be written: {error.strerror}", hint="choose a folder that you may write to")


def _write(loaded: "LoadedModel", folder: Path) -> None:
    """Write weights and configuration, and copy everything else from the model's own folder."""
    with quiet_libraries():
        save_weights(loaded.model, folder)
    source = loaded.resolved.folder
    names = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    copied = {name for name in needed(names) if ".safetensors" not in name and name != "config.json"}
    if generation_config.FILE not in copied:  # an older model has its settings in config.json, which loses them
        content = json.dumps(dict(loaded.info.generation.values), indent=2)
        (folder / generation_config.FILE).write_text(f"{content}\n", encoding="utf-8")
    copied |= {path.name for pattern in _ABOUT for path in source.glob(pattern) if path.is_file()}
    for name in sorted(copied):
        if lies_inside(source, source / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)
