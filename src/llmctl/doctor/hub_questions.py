"""Requests to the Hub, made in a child process because the import of huggingface_hub or the network may hang.

Each fact is reported as soon as it is known, so that a hang loses only what comes after it.
"""

import time
from collections.abc import Callable
from typing import Any

from llmctl.errors import LlmctlError
from llmctl.hub import error_translation, settings
from llmctl.hub.cache.snapshot import Snapshot, find_snapshot
from llmctl.hub.http import Patience, get_json
from llmctl.hub.listing import fetch_listing
from llmctl.hub.login.account import whoami
from llmctl.hub.login.tokens import token_source
from llmctl.hub.selection import needed, no_weights
from llmctl.model import demo

_ONCE = Patience(attempts=1)


def ask(say: Callable[..., None], *, model: str | None, revision: str | None, offline: bool, fetches: bool) -> None:
    """Report the cache, the cached snapshot of `model`, whether the Hub answers, and what the token may read.

    Args:
        say: Called with the facts.
        model: A Hub id, or None for a folder.
        fetches: The model must be downloaded if it is not in the cache.
    """
    offline = offline or settings.is_offline()
    say(cache=str(settings.cache_dir()), endpoint=settings.endpoint(), offline=offline)
    source = _source(say)
    snapshot = _snapshot(model, revision) if model and model.count("/") == 1 else None
    if snapshot is not None:
        say(folder=str(snapshot.folder), commit=snapshot.commit)
    say(looked=True)
    if offline or not _reach(say):
        return
    if source is not None:
        _token(say)
    if model is not None and snapshot is None and fetches:
        _access(say, model, revision)


def _source(say: Callable[..., None]) -> str | None:
    try:
        source = token_source()
    except LlmctlError as error:
        say(token_refused=_refusal(error))
        return None
    say(token_source=source)
    return source


def _snapshot(model: str, revision: str | None) -> Snapshot | None:
    try:
        return find_snapshot(model, revision=revision)
    except OSError:
        return None  # the check of the cache folder reports it


def _reach(say: Callable[..., None]) -> bool:
    """Try once to reach the Hub. Any response of the Hub counts, even a refusal."""
    from huggingface_hub.errors import HfHubHTTPError

    began = time.monotonic()
    try:
        get_json(f"/api/models/{demo.MODEL_ID}", token=False, patience=_ONCE)
    except HfHubHTTPError as error:
        if error.response.status_code >= 500 or error.response.status_code == 407:
            say(unreachable=_refusal(error_translation.translate(error)))
            return False
    except Exception as error:  # noqa: BLE001 (translate re-raises errors of other origins)
        say(unreachable=_refusal(error_translation.translate(error)))
        return False
    say(seconds=time.monotonic() - began)
    return True


def _token(say: Callable[..., None]) -> None:
    try:
        account = whoami()
        say(role=account.role)
        if account.role == "fineGrained":
            described = get_json("/api/whoami-v2", patience=_ONCE)
            grants = ((described.get("auth") or {}).get("accessToken") or {}).get("fineGrained") or {}
            say(reads_gated=bool(grants.get("canReadGatedRepos")))
    except LlmctlError as error:
        say(token_refused=_refusal(error))


def _access(say: Callable[..., None], model: str, revision: str | None) -> None:
    try:
        listing = fetch_listing(model, revision=revision, patience=_ONCE)
        names = [file.path for file in listing.files]
        wanted = set(needed(names))
        if not wanted:
            raise no_weights(model, names)
    except LlmctlError as error:
        say(access_refused=_refusal(error))
        return
    say(download_bytes=sum(file.size_bytes for file in listing.files if file.path in wanted))


def _refusal(error: LlmctlError) -> dict[str, Any]:
    return {"kind": error.kind, "message": error.message, "hint": error.hint}
