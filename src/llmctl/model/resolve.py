"""The resolution of a model's name to its files: a folder, the Hub's cache, the Hub, or the small default."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmctl.config import Config, Settings
from llmctl.errors import (
    LlmctlError,
    MachineError,
    ModelError,
    OfflineError,
    RemoteError,
    UnreachableError,
    UserError,
)
from llmctl.model import demo
from llmctl.model.adapters import AdapterInfo, read_adapter
from llmctl.model.checkpoint import GGUF_HINT
from llmctl.model.draft import draft_settings
from llmctl.model.info import ModelInfo, check_generates_text, read_model_info
from llmctl.paths import expand

if TYPE_CHECKING:
    from llmctl.hub.download.progress import Progress

_WORD = re.compile("[A-Za-z][A-Za-z0-9._-]*")
EXAMPLE = "--model HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class ResolvedModel:
    """A model whose files are on this machine.

    Attributes:
        source: Name for people: the Hub id, or the folder as it was written.
        folder: Folder of config.json and the weights.
        commit: Commit on the Hub, or None for a plain folder.
        reason: Layer that named the model, or why the default was used.
        demo: True for the copy that the demo extra contains.
    """

    source: str
    folder: Path
    commit: str | None
    reason: str
    demo: bool = False


@dataclass(frozen=True)
class ModelPreview:
    """A model that is described without downloading its weights.

    Attributes:
        info: Configuration and headers of the weights.
        reason: Layer that named the model, or why the default was used.
        download_bytes: Bytes still to download; 0 for a model on this machine.
        draft: The same for the draft model, or None.
        adapters: Adapters of the configuration. They are small, so they are downloaded in full.
    """

    info: ModelInfo
    reason: str
    download_bytes: int
    draft: "ModelPreview | None" = None
    adapters: tuple[AdapterInfo, ...] = ()


def resolve_model(settings: Settings, *, offline: bool = False, progress: "Progress | None" = None) -> ResolvedModel:
    """Find the model that the settings name, and download it if needed.

    Args:
        offline: Never use the network, whatever the environment says.
        progress: Receives the progress of a download.

    Raises:
        UserError: the name is neither a folder nor a Hub id.
        RemoteError: the model has to be downloaded and cannot be.
    """
    model = settings.config.model
    if model.id is None or (model.id == demo.MODEL_ID and model.revision is None and not is_path(model.id)):
        return _resolve_default(settings.config, _reason(settings), offline=offline, progress=progress)
    if is_path(model.id):
        return ResolvedModel(model.id, local_folder(model.id), None, _reason(settings))
    return _resolve_hub_id(
        settings.config, model.id, model.revision, _reason(settings), offline=offline, progress=progress
    )


def preview_model(settings: Settings, *, offline: bool = False) -> ModelPreview:
    """Read the headers of the model that the settings name; from the Hub that is a few hundred kilobytes.

    Raises:
        LlmctlError: the Hub refuses, or the files cannot be used.
    """
    preview = _preview(settings, offline=offline)
    check_generates_text(preview.info)
    preview = replace(preview, adapters=resolve_adapters(settings.config, offline=offline))
    if settings.config.draft.id is None:
        return preview
    return replace(preview, draft=_preview(draft_settings(settings), offline=offline))


def resolve_adapters(
    config: Config, *, offline: bool = False, progress: "Progress | None" = None
) -> tuple[AdapterInfo, ...]:
    """Find and read the adapters that a configuration names, and download them if needed.

    Raises:
        UserError: a name is neither a folder nor a Hub id, or not an adapter that llmctl loads.
        RemoteError: an adapter has to be downloaded and cannot be.
    """
    from llmctl.hub.download.run import ensure

    adapters = []
    for spec in config.model.adapters:
        if is_path(spec.id):
            folder, commit = local_folder(spec.id), None
        else:
            check_id(spec.id, "--adapter org/name")
            snapshot = ensure(spec.id, revision=spec.revision, offline=offline, progress=progress)
            folder, commit = snapshot.folder, snapshot.commit
        adapters.append(read_adapter(folder, source=spec.id, commit=commit, scale=spec.scale))
    return tuple(adapters)


def is_path(model: str) -> bool:
    """Return True if the name of a model is a folder: one exists, or the name can only be a path."""
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or Path(model).is_dir()


def names_of(model: str, model_name: str | None) -> list[str]:
    """Return the names by which clients of a server can ask for a model: the configured name first, then its id.

    Only the last part of a folder is shown: its path stays private.
    """
    model_id = expand(model).resolve().name if is_path(model) else model
    return list(dict.fromkeys([model_name or model_id, model_id]))


def _reason(settings: Settings) -> str:
    if settings.config.model.id is None:
        return "the small default, since no model was named"
    return f"named by {settings.origin('model.id')}"


def check_id(name: str, example: str) -> None:
    """Raise UserError for a name that cannot be a Hub id."""
    if name.count("/") != 1 or ":" in name or name.lower().endswith(".gguf"):
        raise _neither_folder_nor_id(name, example)


def _neither_folder_nor_id(name: str, example: str) -> UserError:
    """Return the error for a name that is neither a folder nor a Hub id: a GGUF file, or its tag, among others."""
    if name.lower().endswith(".gguf"):
        return ModelError(f"{name} is a GGUF file, which llmctl does not read", hint=GGUF_HINT)
    if ":" in name:
        return ModelError(f"{name} names a GGUF file by its tag, and llmctl does not read GGUF", hint=GGUF_HINT)
    search = f"; to find a model's id: https://huggingface.co/models?search={name}" if _WORD.fullmatch(name) else ""
    return UserError(
        f"{name!r} is neither a folder here nor a Hub id of the form org/name", hint=f"for example: {example}{search}"
    )


def local_folder(name: str) -> Path:
    """Return the folder that a model's name means. Raises UserError if there is none."""
    folder = expand(name).absolute()
    if folder.is_dir():
        return folder
    if name.lower().endswith(".gguf"):
        raise ModelError(f"{name} is a GGUF file, which llmctl does not read", hint=GGUF_HINT)
    if folder.is_file():
        raise UserError(f"{folder} is a file", hint=f"give the folder that holds it: {folder.parent}")
    raise UserError(
        f"there is no folder {folder}",
        hint="give the folder that holds config.json, or a Hub id of the form org/name",
    )


def _resolve_hub_id(
    config: Config, repo_id: str, revision: str | None, reason: str, *, offline: bool, progress: "Progress | None"
) -> ResolvedModel:
    from llmctl.hub.download.run import ensure

    check_id(repo_id, EXAMPLE)
    snapshot = ensure(
        repo_id,
        revision=revision,
        offline=offline,
        progress=progress,
        trust_remote_code=config.model.trust_remote_code,
    )
    return ResolvedModel(repo_id, snapshot.folder, snapshot.commit, reason)


def _resolve_default(config: Config, reason: str, *, offline: bool, progress: "Progress | None") -> ResolvedModel:
    """Take the small default from the cache, from the Hub, or from the demo extra."""
    from llmctl.hub.cache.snapshot import find_snapshot

    cached = find_snapshot(demo.MODEL_ID)
    if cached is not None:
        return ResolvedModel(demo.MODEL_ID, cached.folder, cached.commit, reason)
    unreachable = _why_unreachable(offline=offline)
    folder, gguf = demo.demo_folder(), demo.bundled_gguf()
    if unreachable is None or (folder is None and gguf is None):
        return _resolve_hub_id(config, demo.MODEL_ID, None, reason, offline=offline, progress=progress)
    if folder is None and gguf is not None:
        if progress is not None:
            progress.note("converting the demo model to safetensors, once")
        folder = demo.convert_demo(gguf)
    assert folder is not None  # noqa: S101 (one of the two exists)
    return ResolvedModel(demo.MODEL_ID, folder, None, f"{reason}; {unreachable}: the demo extra's copy", demo=True)


def _why_unreachable(*, offline: bool) -> str | None:
    """Return why the Hub does not answer, or None if it does. Asks only once, as a copy may be on this machine."""
    from llmctl.hub import http, settings
    from llmctl.hub.http_library import http_library

    if offline or settings.is_offline():
        return "offline"
    from huggingface_hub.errors import HfHubHTTPError

    httpx = http_library()
    try:
        http.get_json(f"/api/models/{demo.MODEL_ID}", token=False, patience=http.Patience(attempts=1))
    except (httpx.TransportError, http.NotJsonError, LlmctlError):
        return "the Hub cannot be reached"
    except HfHubHTTPError as error:
        return "the Hub is down" if error.response.status_code >= 500 else None
    return None


def _preview(settings: Settings, *, offline: bool) -> ModelPreview:
    from llmctl.hub.cache.snapshot import find_snapshot
    from llmctl.hub.settings import is_offline

    model = settings.config.model
    repo_id = model.id or demo.MODEL_ID
    if not is_path(repo_id):
        check_id(repo_id, EXAMPLE)
    is_local = is_path(repo_id) or find_snapshot(repo_id, revision=model.revision) is not None
    is_default = repo_id == demo.MODEL_ID and model.revision is None
    if not is_local and not (offline or is_offline()):
        try:
            return _preview_on_hub(repo_id, model.revision, _reason(settings))
        except (UnreachableError, UserError, MachineError):  # the last two: of a proxy, for example
            if not (is_default and (demo.demo_folder() or demo.bundled_gguf())):
                raise
    if not is_local and not is_default:
        raise OfflineError(
            f"{repo_id} is not on this machine, and its headers cannot be read offline",
            hint=f"llmctl download {repo_id}   (or run this without --offline)",
        )
    resolved = resolve_model(settings, offline=offline)
    info = read_model_info(resolved.folder, source=resolved.source, commit=resolved.commit)
    return ModelPreview(info, resolved.reason, 0)


def _preview_on_hub(repo_id: str, revision: str | None, reason: str) -> ModelPreview:
    from llmctl.hub.describe import describe

    remote = describe(repo_id, revision=revision)
    if remote.info is None or remote.why_not is not None:
        raise RemoteError(f"{repo_id} cannot be planned: {remote.why_not}", hint=f"see its page: {remote.page}")
    return ModelPreview(remote.info, reason, remote.download_bytes)
