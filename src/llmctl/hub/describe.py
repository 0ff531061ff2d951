"""A model on the Hub, described without downloading it: listing, configuration, headers of the weights."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.errors import LlmctlError, RemoteError
from llmctl.hub import error_translation, settings
from llmctl.hub.http import get_bytes, get_json, refuse_if_offline
from llmctl.hub.listing import Listing, RemoteFile, fetch_listing
from llmctl.hub.selection import needed, no_weights
from llmctl.model import generation_config
from llmctl.model.checkpoint import parse_header
from llmctl.model.info import ModelInfo, check_bounds, check_kernels
from llmctl.model.towers import split_towers

_JSON_LIMIT = 50_000_000
_HEADER_LIMIT = 100_000_000


@dataclass(frozen=True)
class RemoteModel:
    """A model as the Hub describes it.

    Attributes:
        page: Address of its page.
        licence: Licence named by its card, or None.
        gated: False, `auto` or `manual`.
        download_bytes: Size of the files needed for loading; 0 if there are no weights that llmctl can load.
        info: Properties from the configuration and the headers of the weights; None if these cannot be read.
        why_not: Reason why `info` is None, or why there are no weights that llmctl loads.
    """

    repo_id: str
    commit: str
    page: str
    licence: str | None
    gated: bool | str
    download_bytes: int
    info: ModelInfo | None
    why_not: str | None


def describe(repo_id: str, *, revision: str | None = None) -> RemoteModel:
    """Return the Hub's description of a model. Only the headers of the weights are downloaded.

    Raises:
        RemoteError: the Hub refuses, or cannot be reached.
    """
    refuse_if_offline(f"what the Hub says about {repo_id}")
    listing = fetch_listing(repo_id, revision=revision, check_access=False)
    sizes = {file.path: file.size_bytes for file in listing.files}
    info, why_not = None, None
    try:
        if not needed(sizes):
            why_not = no_weights(listing.repo_id, tuple(sizes)).message
        info = _model_info(listing)
    except LlmctlError as error:
        why_not = why_not or error.message
    return RemoteModel(
        repo_id=repo_id,
        commit=listing.commit,
        page=settings.model_page(repo_id),
        licence=_licence(listing),
        gated=listing.gated,
        download_bytes=sum(sizes[name] for name in needed(sizes)),
        info=info,
        why_not=why_not,
    )


def fetch_processor(repo_id: str, *, commit: str | None, folder: Path) -> None:
    """Write the files of a model's tokenizer and processor into a folder.

    Raises:
        RemoteError: the Hub refuses, or cannot be reached.
    """
    refuse_if_offline(f"the processor of {repo_id}")
    listing = fetch_listing(repo_id, revision=commit, check_access=False)
    wanted = set(needed([file.path for file in listing.files]))
    for file in listing.files:
        is_small = "/" not in file.path and ".safetensors" not in file.path and file.size_bytes <= _JSON_LIMIT
        if file.path in wanted and is_small:
            (folder / file.path).write_bytes(_bytes(listing, file, 0, file.size_bytes) if file.size_bytes else b"")


def licence_of_tags(tags: Any) -> str | None:
    """Return the licence among a model's tags (`license:apache-2.0`), or None."""
    licences = [t.removeprefix("license:") for t in tags or () if isinstance(t, str) and t.startswith("license:")]
    return licences[0] if licences else None


def _licence(listing: Listing) -> str | None:
    try:
        answer = get_json(f"/api/models/{listing.repo_id}?expand=tags")
    except Exception as error:
        raise error_translation.translate(error, repo_id=listing.repo_id) from error
    return licence_of_tags(answer.get("tags") if isinstance(answer, dict) else None)


def _model_info(listing: Listing) -> ModelInfo:
    config = _json(listing, "config.json")
    if config is None:
        raise RemoteError(f"{listing.repo_id} has no config.json")
    check_bounds(config, name=f"config.json of {listing.repo_id}")
    check_kernels(config, name=f"config.json of {listing.repo_id}")
    tokenizer = _json(listing, "tokenizer_config.json") or {}
    files = [f for f in listing.files if f.path.endswith(".safetensors")]
    wanted = set(needed([f.path for f in listing.files]))
    headers = [tensor for f in files if f.path in wanted for tensor in _header(listing, f)]
    tensors, left_out = split_towers(config, headers)
    return ModelInfo(
        source=listing.repo_id,
        config=config,
        tensors=tensors,
        left_out=left_out,
        commit=listing.commit,
        generation=generation_config.parse_generation_defaults(_generation_config(listing), config),
        has_chat_template=listing.find("chat_template.jinja") is not None
        or listing.find("chat_template.json") is not None
        or bool(tokenizer.get("chat_template")),
    )


def _header(listing: Listing, file: RemoteFile) -> Any:
    """Return the tensors of one safetensors file, from its first bytes."""
    (length,) = struct.unpack("<Q", _bytes(listing, file, 0, 8).ljust(8, b"\0"))
    if not 2 <= length <= min(_HEADER_LIMIT, file.size_bytes):
        raise RemoteError(f"{file.path} of {listing.repo_id} is not a safetensors file")
    header = _bytes(listing, file, 8, length)
    return parse_header(header, data_bytes=file.size_bytes - 8 - length, name=file.path)


def _json(listing: Listing, path: str) -> Mapping[str, Any] | None:
    import json

    file = listing.find(path)
    if file is None or file.size_bytes > _JSON_LIMIT:
        return None
    try:
        document = json.loads(_bytes(listing, file, 0, file.size_bytes))
    except ValueError:
        raise RemoteError(f"{path} of {listing.repo_id} is not JSON") from None
    return document if isinstance(document, dict) else None


def _generation_config(listing: Listing) -> bytes | None:
    """Return the content of generation_config.json, or None if there is no such file."""
    file = listing.find(generation_config.FILE)
    size = min(file.size_bytes, generation_config.LIMIT_BYTES + 1) if file is not None else 0
    return _bytes(listing, file, 0, size) if file is not None else None


def _bytes(listing: Listing, file: RemoteFile, start: int, count: int) -> bytes:
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(listing.repo_id, file.path, revision=listing.commit, endpoint=settings.endpoint())
    try:
        return get_bytes(url, start=start, count=count)
    except Exception as error:
        raise error_translation.translate(error, repo_id=listing.repo_id, revision=listing.commit) from error
