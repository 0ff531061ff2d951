"""The manifest of a run: the files, settings, versions and hardware needed to repeat it or to explain a difference."""

import platform
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from llmctl._version import __version__
from llmctl.config import Config
from llmctl.config.structure import written_out
from llmctl.errors import UserError
from llmctl.hub.listing import Algorithm, RemoteFile, is_safe_path
from llmctl.machine.detection import read_cpu_name, read_machine
from llmctl.machine.nvml import read_nvidia_driver
from llmctl.reproduce.hashes import adapter_files, model_files

if TYPE_CHECKING:
    from llmctl.loading.model import LoadedModel
    from llmctl.model.adapters import AdapterInfo

SCHEMA = "llmctl.manifest/1"
Text = Annotated[str, Field(max_length=4096)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class FileHash(_Record):
    """A file that is read to load the model.

    Attributes:
        path: Path in the model's folder, with forward slashes.
        algorithm: `sha256` of the content, or `git_sha1`, which the Hub uses for small files.
        digest: Hash in hexadecimal.
    """

    path: Text
    size_bytes: int = Field(ge=0)
    algorithm: Algorithm
    digest: str = Field(pattern=r"^[0-9a-f]{40}(?:[0-9a-f]{24})?$")

    @field_validator("path")
    @classmethod
    def _inside(cls, value: str) -> str:
        if not is_safe_path(value):
            raise ValueError("not a path inside a model's folder")
        return value

    def as_file(self) -> RemoteFile:
        """Return the entry as a `RemoteFile`."""
        return RemoteFile(self.path, self.size_bytes, self.algorithm, self.digest)


class Hardware(_Record):
    """The properties of the computer that can change a result.

    Attributes:
        system: `Linux`, `Darwin` or `Windows`.
        architecture: `x86_64`, `arm64`, …
        cpu: Name of the processor.
        cpu_isa: Instruction set that torch uses on the processor.
        threads: Number of torch threads.
        gpus: GPUs with their compute capability.
        driver: Version of NVIDIA's driver.
    """

    system: Text
    architecture: Text
    cpu: Text
    cpu_isa: Text
    threads: int = Field(ge=1)
    gpus: tuple[Text, ...] = ()
    driver: Text | None = None


class DraftRecord(_Record):
    """The draft model that proposed tokens.

    Attributes:
        source: Hub id or folder, as the user named it.
        commit: Commit on the Hub, or None.
        folder: Folder that was loaded.
        files: Every file that is read for loading.
        model_kwargs: Arguments of `from_pretrained`.
    """

    source: Text
    commit: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")
    folder: Text | None = None
    files: tuple[FileHash, ...] = Field(min_length=1, max_length=10_000)
    model_kwargs: dict[str, Any]


class AdapterRecord(_Record):
    """An adapter that was applied to the model.

    Attributes:
        source: Hub id or folder, as the user named it.
        commit: Commit on the Hub, or None.
        folder: Folder that was loaded.
        files: Every file that is read for loading.
        scale: Scale of the adapter.
        base_model: Base model that the adapter's configuration names.
    """

    source: Text
    commit: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")
    folder: Text | None = None
    files: tuple[FileHash, ...] = Field(min_length=1, max_length=10_000)
    scale: float = 1.0
    base_model: Text | None = None


class Manifest(_Record):
    """The record of a run without its prompt and answers, in plain values. A manifest from a file is not trusted.

    Attributes:
        schema_name: Name and version of this format.
        source: Hub id or folder, as the user named it.
        commit: Commit on the Hub, or None.
        folder: Folder that was loaded.
        files: Every file that is read for loading.
        config: The user's configuration, without defaults.
        seed: Seed of the first answer; each further answer adds 1. None if each answer has its own.
        deterministic: True if torch used deterministic algorithms where available.
        model_kwargs: Arguments of `from_pretrained`.
        tokenizer_kwargs: Arguments of `from_pretrained` of the tokenizer.
        generation_kwargs: Arguments of `GenerationConfig`, end tokens and stop strings included.
        environment: Environment variables that were set for the libraries.
        attn_implementation: Attention in use.
        quantization: Quantisation in use.
        quantized_copy: True if the weights came from the quantised cache of an earlier run.
        device_map: Device of each part of the model.
        draft: Draft model, or None.
        adapters: Adapters of the model, in order.
        versions: Versions of Python, llmctl and the libraries.
        hardware: Properties of the computer.
    """

    schema_name: Literal["llmctl.manifest/1"] = Field("llmctl.manifest/1", alias="schema")
    source: Text
    commit: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")
    folder: Text | None = None
    files: tuple[FileHash, ...] = Field(min_length=1, max_length=10_000)
    config: dict[str, Any]
    seed: int | None = Field(ge=0, le=2**32 - 1)
    deterministic: bool
    model_kwargs: dict[str, Any]
    tokenizer_kwargs: dict[str, Any]
    generation_kwargs: dict[str, Any]
    environment: dict[str, str]
    attn_implementation: Text
    quantization: Text
    quantized_copy: bool = False
    device_map: dict[str, str]
    draft: DraftRecord | None = None
    adapters: tuple[AdapterRecord, ...] = Field((), max_length=1000)
    versions: dict[str, str]
    hardware: Hardware

    def document(self) -> dict[str, Any]:
        """Return the manifest as JSON values."""
        return self.model_dump(mode="json", by_alias=True)


def make_manifest(loaded: "LoadedModel", *, seed: int | None = None) -> Manifest:
    """Return the manifest of a loaded model. Local files are hashed the first time, about one second per gigabyte.

    Args:
        seed: The seed of the first answer, if it was drawn.

    Raises:
        OSError: a file of the model can no longer be read.
    """
    plan, measured = loaded.plan, loaded.measured
    return Manifest(
        **_model(loaded),
        config=_user_config(loaded.config),
        seed=plan.seed if seed is None else seed,
        deterministic=plan.deterministic,
        tokenizer_kwargs=dict(plan.tokenizer_kwargs),
        generation_kwargs=_generation_kwargs(loaded),
        environment=dict(plan.environment),
        attn_implementation=measured.attn_implementation,
        quantization=measured.quantization,
        quantized_copy=plan.quantized_cache is not None,
        device_map=dict(measured.device_map),
        draft=DraftRecord(**_model(loaded.draft)) if loaded.draft else None,
        adapters=tuple(_adapter(adapter) for adapter in loaded.adapters),
        versions=read_versions(),
        hardware=read_hardware(),
    )


def _generation_kwargs(loaded: "LoadedModel") -> dict[str, Any]:
    arguments = {**loaded.plan.generation_kwargs, "eos_token_id": list(loaded.eos_token_ids)}
    stop_strings = loaded.plan.generation.stop_strings
    return {**arguments, "stop_strings": list(stop_strings)} if stop_strings else arguments


def _user_config(config: Config) -> dict[str, Any]:
    """Return the user's values, with a structure's file inlined, since a replay reads no file that a manifest names."""
    return config.model_copy(update={"structure": written_out(config.structure)}).model_dump(
        mode="json", exclude_unset=True
    )


def _model(loaded: "LoadedModel") -> dict[str, Any]:
    plan = loaded.plan
    files = model_files(loaded.resolved, trust_remote_code=bool(plan.model_kwargs.get("trust_remote_code")))
    return {
        "source": plan.source,
        "commit": plan.commit,
        "folder": str(loaded.resolved.folder),
        "files": _hashes(files),
        "model_kwargs": dict(plan.model_kwargs),
    }


def _adapter(adapter: "AdapterInfo") -> AdapterRecord:
    return AdapterRecord(
        source=adapter.source,
        commit=adapter.commit,
        folder=str(adapter.folder),
        files=_hashes(adapter_files(adapter)),
        scale=adapter.scale,
        base_model=adapter.base_model,
    )


def _hashes(files: Iterable[RemoteFile]) -> tuple[FileHash, ...]:
    return tuple(FileHash(path=f.path, size_bytes=f.size_bytes, algorithm=f.algorithm, digest=f.digest) for f in files)


def manifest_from(document: Any, *, where: str) -> Manifest:
    """Return the manifest in an untrusted document.

    Raises:
        UserError: the document is not a manifest, or a value in it is out of bounds.
    """
    if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
        raise UserError(f"{where} has no manifest of the form {SCHEMA}", hint="llmctl generate --json writes one")
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: the manifest is damaged: {key}: {first['msg']}") from None


def read_versions() -> dict[str, str]:
    """Return the versions of Python, llmctl, and the installed libraries."""
    return {"python": platform.python_version(), "llmctl": __version__, **read_machine().packages}


def read_hardware() -> Hardware:
    """Return the properties of this computer, as torch uses it."""
    import torch

    gpus = read_machine().gpus
    return Hardware(
        system=platform.system(),
        architecture=platform.machine(),
        cpu=read_cpu_name() or "unknown",
        cpu_isa=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        gpus=tuple(f"{gpu.name} ({'.'.join(map(str, gpu.capability))})" for gpu in gpus),
        driver=read_nvidia_driver().version if any(gpu.kind == "cuda" for gpu in gpus) else None,
    )
