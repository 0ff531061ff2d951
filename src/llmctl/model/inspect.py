"""What a model is, without downloading it: from its folder, the cache, or the headers on the Hub."""

from dataclasses import dataclass, replace

from llmctl.config import Settings
from llmctl.errors import OfflineError, UnreachableError
from llmctl.model import demo
from llmctl.model.adapters import AdapterInfo
from llmctl.model.info import ModelInfo, read_model_info
from llmctl.model.resolve import draft_settings, is_path, locate, locate_adapters


@dataclass(frozen=True)
class Look:
    """A model as far as it can be known without its weights.

    Attributes:
        info: Its configuration and the headers of its weights.
        reason: Who named it.
        download_bytes: What would have to be fetched; 0 where it is here.
        draft: The same of the draft model, or None.
        adapters: Those that are asked for. They are small, and fetched whole.
    """

    info: ModelInfo
    reason: str
    download_bytes: int
    draft: "Look | None" = None
    adapters: tuple[AdapterInfo, ...] = ()


def look(settings: Settings, *, offline: bool = False) -> Look:
    """Read the headers of the model that the settings name. From the Hub a few hundred kilobytes come.

    Raises:
        LlmctlError: it is not here and the Hub says no, or its files cannot be used.
    """
    seen = replace(_look(settings, offline=offline), adapters=locate_adapters(settings.config, offline=offline))
    if settings.config.draft.id is None:
        return seen
    return replace(seen, draft=_look(draft_settings(settings), offline=offline))


def _look(settings: Settings, *, offline: bool) -> Look:
    from llmctl.hub.cache.snapshot import find_snapshot
    from llmctl.hub.settings import is_offline

    model = settings.config.model
    repo_id = model.id or demo.MODEL_ID
    reason = f"named by {settings.origin('model.id')}" if model.id else "the small default, since no model was named"
    here = is_path(repo_id) or find_snapshot(repo_id, revision=model.revision) is not None
    is_demo = repo_id == demo.MODEL_ID and model.revision is None
    if not here and not (offline or is_offline()):
        try:
            return _on_hub(repo_id, model.revision, reason)
        except UnreachableError:
            if not (is_demo and (demo.demo_folder() or demo.carried_gguf())):
                raise
    if not here and not is_demo:
        raise OfflineError(
            f"{repo_id} is not here, and its headers cannot be read offline",
            hint=f"llmctl download {repo_id}   (or run this without --offline)",
        )
    located = locate(settings, offline=offline)
    return Look(read_model_info(located.folder, source=located.source, commit=located.commit), located.reason, 0)


def _on_hub(repo_id: str, revision: str | None, reason: str) -> Look:
    from llmctl.errors import RemoteError
    from llmctl.hub.describe import describe

    remote = describe(repo_id, revision=revision)
    if remote.info is None:
        raise RemoteError(f"{repo_id} cannot be planned: {remote.why_not}", hint=f"its page: {remote.page}")
    return Look(remote.info, reason, remote.download_bytes)
