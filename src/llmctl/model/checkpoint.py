"""The weight files of a model: their names, their tensors, and checks that they are safe to open.

Only the headers of safetensors files are read (https://github.com/huggingface/safetensors#format): 8 bytes with the
length of a JSON text, then that text with the dtype, shape and offsets of every tensor.
"""

import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from llmctl.errors import MachineError, ModelError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
HEADER_LIMIT_BYTES = 100_000_000  # the format's own limit
JSON_LIMIT_BYTES = 50_000_000
_BLOCK = re.compile(r"^(.*?(?:^|\.)(?:layers|h|blocks|block)\.\d+)\.")
GGUF_HINT = "use the safetensors original; the page of a GGUF repository names it under 'Model tree'"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Bits of one element, by the format's dtype names.
DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32,
    "U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint.

    Attributes:
        name: Key in the checkpoint.
        dtype: Name in the format: `BF16`, `F32`, …
        shape: Dimensions.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def block(self) -> str | None:
        """The decoder block of the tensor, `model.layers.3`, or None."""
        match = _BLOCK.match(self.name)
        return match[1] if match else None

    @property
    def is_expert(self) -> bool:
        """True for a tensor of an expert in a mixture of experts."""
        return "experts" in self.name.split(".")

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return self.numel * DTYPE_BITS[self.dtype] // 8


def read_json(path: Path) -> Any:
    """Read a JSON file of a repository.

    Raises:
        ModelError: it is absurdly large or not JSON.
        MachineError: this user may not read it.
    """
    try:
        if path.stat().st_size > JSON_LIMIT_BYTES:
            raise ModelError(f"{path} is {path.stat().st_size} bytes: no model needs that", details={"file": str(path)})
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MachineError(f"{path}: {error.strerror}", hint="correct its owner or permissions") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}", hint="download it again", details={}) from error


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors files that transformers would load from `folder`, checked to be safe to open.

    Raises:
        ModelError: there are none; or the index names a file that is missing, outside the folder or not safetensors.
    """
    if (folder / SINGLE_FILE).is_file():
        return (_contained(folder, SINGLE_FILE),)
    if not (folder / INDEX_FILE).is_file():
        raise _no_safetensors(folder)
    index = read_json(folder / INDEX_FILE)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise ModelError(f"{folder / INDEX_FILE} has no weight_map of names to files")
    files = tuple(_contained(folder, name) for name in sorted(set(weight_map.values())))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of its {len(files)} weight files: {', '.join(missing[:3])}",
            hint="download it again: files that are complete are kept",
            details={"missing": missing},
        )
    return files


def fingerprint(folder: Path) -> str:
    """Return a hash of the weights in a plain folder: names, sizes, times and headers of the files, and config.json.

    Raises:
        ModelError: there are no weights.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in weight_files(folder):
        stat = file.stat()
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns} ".encode() + read_header(file))
    return digest.hexdigest()


def _contained(folder: Path, name: str) -> Path:
    """Return `folder/name` if it is a safetensors file inside the folder."""
    path = folder / name
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or (os.name == "nt" and ":" in name):
        raise ModelError(f"the weight index of {folder} points outside its folder: {name!r}", hint=_DISTRUST)
    if parts.suffix != ".safetensors":
        raise ModelError(
            f"the weight index of {folder} names {name!r}, which is not safetensors: pickled weights can run code",
            hint=_DISTRUST,
        )
    if not lies_inside(folder, path):
        raise ModelError(f"{path} is a link that leads outside its folder", hint=_DISTRUST)
    return path


def lies_inside(folder: Path, path: Path) -> bool:
    """Return True if a file, with links followed, is in the folder or in the Hub cache's store of blobs."""
    allowed = [folder.resolve()]
    if folder.parent.name == "snapshots":  # the Hub cache: files are links into ../../blobs
        allowed.append((folder.parent.parent / "blobs").resolve())
    return any(path.resolve().is_relative_to(parent) for parent in allowed)


_DISTRUST = "nothing was read from it; choose a model from a source you trust"


def _no_safetensors(folder: Path) -> ModelError:
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    gguf = [name for name in names if name.endswith(".gguf")]
    if pickles:
        return ModelError(
            f"{folder} has its weights only as pickles ({', '.join(pickles[:3])}), which can run code when read; "
            "llmctl loads safetensors only",
            hint="look for a safetensors revision of the model, or convert it on a machine without valuable data",
            details={"pickles": pickles},
        )
    if gguf:
        return ModelError(
            f"{folder} has its weights only as GGUF ({gguf[0]}), which llmctl does not read", hint=GGUF_HINT
        )
    return ModelError(f"{folder} has no {SINGLE_FILE} and no {INDEX_FILE}", hint="is it the folder of a model?")


def read_header(file: Path) -> bytes:
    """Return the JSON text at the head of a safetensors file. Raises ModelError for a damaged or truncated file."""
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(HEADER_LIMIT_BYTES, file.stat().st_size - 8):
            raise ModelError(f"{file} is not a safetensors file, or is truncated", hint=_AGAIN)
        return stream.read(length)


def read_tensors(files: tuple[Path, ...]) -> tuple[Tensor, ...]:
    """Return the tensors of the files from their headers. Raises ModelError for a damaged or truncated file."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        header = read_header(file)
        for tensor in parse_header(header, data_bytes=file.stat().st_size - 8 - len(header), name=str(file)):
            if tensor.name in tensors:
                raise ModelError(f"{file} and another file both have the tensor {tensor.name}")
            tensors[tensor.name] = tensor
    return tuple(tensors.values())


_AGAIN = "download it again: llmctl download --help"


def parse_header(header: bytes, *, data_bytes: int | None, name: str) -> tuple[Tensor, ...]:
    """Return the tensors that a header describes.

    Args:
        data_bytes: Number of bytes after the header, or None if it is not known.
        name: Name of the file in messages.

    Raises:
        ModelError: the header contradicts itself or the file.
    """
    try:
        entries = json.loads(header)
        tensors, end = [], 0
        for key, entry in entries.items():
            if key == "__metadata__":
                continue
            tensor = Tensor(key, entry["dtype"], tuple(entry["shape"]))
            start, stop = entry["data_offsets"]
            if any(not isinstance(n, int) or n < 0 for n in (*tensor.shape, start, stop)):
                raise ValueError(f"{key} has a negative size")
            if stop - start != tensor.size_bytes:
                raise ValueError(f"{key} of shape {tensor.shape} cannot be {stop - start} bytes")
            end = max(end, stop)
            tensors.append(tensor)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{name} has a damaged safetensors header: {error}", hint=_AGAIN) from error
    if data_bytes is not None and end != data_bytes:
        raise ModelError(f"{name} is truncated: it has {data_bytes} bytes of weights instead of {end}", hint=_AGAIN)
    return tuple(tensors)


def dtype_bytes(tensors: tuple[Tensor, ...]) -> Mapping[str, int]:
    """Return the bytes by dtype name, the largest first."""
    sums: dict[str, int] = {}
    for tensor in tensors:
        sums[tensor.dtype] = sums.get(tensor.dtype, 0) + tensor.size_bytes
    return dict(sorted(sums.items(), key=lambda item: -item[1]))
