"""Which model, and where its files are: a folder, the Hub's cache, the Hub itself, or the small default."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmctl.config import Config, Settings
from llmctl.errors import UserError
from llmctl.model import demo
from llmctl.model.adapters import AdapterInfo, read_adapter
from llmctl.plan.draft import draft_config

if TYPE_CHECKING:
    from llmctl.hub.download.progress import Progress


@dataclass(frozen=True)
class Located:
    """A model whose files are on this machine.

    Attributes:
        source: What a person calls it: the Hub id, or the folder.
        folder: Where config.json and the weights are.
        commit: The commit on the Hub, or None for a plain folder.
        reason: Why this one: who named it, or why the default was taken.
        demo: Whether it is the copy that the demo extra carries.
    """

    source: str
    folder: Path
    commit: str | None
    reason: str
    demo: bool = False


def locate(settings: Settings, *, offline: bool = False, progress: "Progress | None" = None) -> Located:
    """Find the model that the settings name, downloading it if need be.

    Args:
        settings: The configuration, with the layer that named the model.
        offline: Never touch the network, whatever the environment says.
        progress: Told about a download.

    Raises:
        UserError: it names neither a folder nor a Hub id.
        RemoteError: it has to be fetched and cannot be.
    """
    model = settings.config.model
    if model.id is None:
        reason = "the small default, since no model was named"
        return _small_default(settings.config, reason, offline=offline, progress=progress)
    reason = f"named by {settings.origin('model.id')}"
    if is_path(model.id):
        return _folder(model.id, reason)
    if model.id == demo.MODEL_ID and model.revision is None:
        return _small_default(settings.config, reason, offline=offline, progress=progress)
    return _from_hub(settings.config, model.id, model.revision, reason, offline=offline, progress=progress)


def draft_settings(settings: Settings) -> Settings:
    """The settings of the draft model that `settings` ask for, with who named it."""
    return Settings(draft_config(settings.config), {"model.id": settings.origin("draft.id")})


def locate_adapters(
    config: Config, *, offline: bool = False, progress: "Progress | None" = None
) -> tuple[AdapterInfo, ...]:
    """Find and read the adapters that a configuration names, downloading them if need be.

    Raises:
        UserError: one is neither a folder nor a Hub id, or no adapter that llmctl loads.
        RemoteError: one has to be fetched and cannot be.
    """
    from llmctl.hub.download.run import ensure

    found = []
    for spec in config.model.adapters:
        folder, commit = Path(spec.id).expanduser().absolute(), None
        if not is_path(spec.id):
            if spec.id.count("/") != 1:
                raise _no_place(spec.id, "--adapter org/name")
            snapshot = ensure(spec.id, revision=spec.revision, offline=offline, progress=progress)
            folder, commit = snapshot.folder, snapshot.commit
        elif not folder.is_dir():
            raise UserError(f"there is no folder {folder}", hint="give the folder of an adapter, or a Hub id")
        found.append(read_adapter(folder, source=spec.id, commit=commit, scale=spec.scale))
    return tuple(found)


def _no_place(name: str, example: str) -> UserError:
    return UserError(
        f"{name!r} is neither a folder here nor a Hub id of the form org/name", hint=f"for example: {example}"
    )


def is_path(model: str) -> bool:
    """Whether a model's name means a folder: it exists, or it can only be a path."""
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or Path(model).is_dir()


def names_of(model: str, model_name: str | None) -> list[str]:
    """What clients of a server call a model: the configured name first, then its id.

    Of a folder they see the name alone: where it lies is nobody's business.
    """
    own = Path(model).expanduser().resolve().name if is_path(model) else model
    return list(dict.fromkeys([model_name or own, own]))


def _folder(name: str, reason: str) -> Located:
    folder = Path(name).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}",
            hint="give the folder that holds config.json, or a Hub id of the form org/name",
        )
    return Located(name, folder, None, reason)


def _from_hub(
    config: Config, repo_id: str, revision: str | None, reason: str, *, offline: bool, progress: "Progress | None"
) -> Located:
    from llmctl.hub.download.run import ensure

    if repo_id.count("/") != 1:
        raise _no_place(repo_id, "--model HuggingFaceTB/SmolLM2-135M-Instruct")
    snapshot = ensure(
        repo_id,
        revision=revision,
        offline=offline,
        progress=progress,
        trust_remote_code=config.model.trust_remote_code,
    )
    return Located(repo_id, snapshot.folder, snapshot.commit, reason)


def _small_default(config: Config, reason: str, *, offline: bool, progress: "Progress | None") -> Located:
    """The small default: from the cache, from the Hub, or the copy of the demo extra."""
    from llmctl.hub.cache.snapshot import find_snapshot

    cached = find_snapshot(demo.MODEL_ID)
    if cached is not None:
        return Located(demo.MODEL_ID, cached.folder, cached.commit, reason)
    missing = _why_no_hub(offline=offline)
    folder, gguf = demo.demo_folder(), demo.carried_gguf()
    if missing is None or (folder is None and gguf is None):
        return _from_hub(config, demo.MODEL_ID, None, reason, offline=offline, progress=progress)
    if folder is None and gguf is not None:
        if progress is not None:
            progress.note("converting the demo model to safetensors, once")
        folder = demo.convert_demo(gguf)
    assert folder is not None  # noqa: S101 (one of the two was there)
    return Located(demo.MODEL_ID, folder, None, f"{reason}; {missing}: the demo extra's copy", demo=True)


def _why_no_hub(*, offline: bool) -> str | None:
    """Ask the Hub once whether it is there; None when it is. A copy at hand is no reason to wait and try again."""
    from llmctl.hub import http, settings

    if offline or settings.is_offline():
        return "offline"
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    try:
        http.get_json(f"/api/models/{demo.MODEL_ID}", token=False, patience=http.Patience(attempts=1))
    except (httpx2.TransportError, http.NotJsonError):
        return "the Hub cannot be reached"
    except HfHubHTTPError as error:
        return "the Hub is down" if error.response.status_code >= 500 else None
    return None
