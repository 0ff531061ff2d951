"""The addresses of pages on the Hub, as they are pasted in place of a model's id.

A model's page is `https://huggingface.co/org/name`; its branches, files and commits are below it: `/tree/REVISION`,
`/blob/REVISION/FILE`, `/resolve/REVISION/FILE`, `/commit/REVISION`.
"""

import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit

from llmctl.errors import Problem, UserError
from llmctl.model.checkpoint import GGUF_HINT

if TYPE_CHECKING:
    from llmctl.config.layers import Layer

_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co", "www.hf.co")
_WITH_REVISION = ("tree", "blob", "resolve", "raw", "blame", "edit", "commit", "commits")
_PARTS_OF_A_MODEL = (*_WITH_REVISION, "discussions", "settings", "upload")
_OTHER_PAGES = ("datasets", "spaces", "collections", "papers", "docs", "blog", "models", "buckets", "organizations")
_REFS = re.compile(r"refs/(?:pr|convert|heads|tags)/[^/]+")


class HubAddress(NamedTuple):
    """A model on the Hub, and its revision if the address names one."""

    id: str
    revision: str | None


def parse_hub_address(text: str) -> HubAddress | None:
    """Return the model of a pasted address; None if the text is no address of the Hub.

    Raises:
        UserError: the address is not that of a model that llmctl loads.
    """
    path = _path_on_hub(text.strip())
    if path is None:
        return None
    parts = [unquote(part) for part in path.split("/") if part]
    if parts and parts[0] in _OTHER_PAGES:
        raise UserError(f"{text} is not the page of a model", hint=_EXAMPLE)
    if len(parts) < 2 or (len(parts) > 2 and parts[2] not in _PARTS_OF_A_MODEL):
        raise UserError(f"{text} is not the page of a model", hint=_EXAMPLE)
    name, colon, tag = parts[1].partition(":")
    if colon:
        raise UserError(f"{text} names a GGUF file by its tag {tag!r}, and llmctl does not read GGUF", hint=GGUF_HINT)
    revision, file = _below(parts[2:])
    if file.lower().endswith(".gguf"):
        raise UserError(f"{text} is a GGUF file, which llmctl does not read", hint=GGUF_HINT)
    return HubAddress(f"{parts[0]}/{name}", revision)


def id_and_revision(model: str, revision: str | None) -> tuple[str, str | None]:
    """Return the id and the revision of a model that is named by its id or a pasted address, or by a folder.

    Raises:
        UserError: the address is not that of a model, or names another revision.
    """
    address = parse_hub_address(model)
    if address is None:
        return model, revision
    if None not in (revision, address.revision) and revision != address.revision:
        raise UserError(
            f"the address names the revision {address.revision}, and {revision} is asked for", hint="omit one of them"
        )
    return address.id, revision or address.revision


_EXAMPLE = "paste the address of a model, as in https://huggingface.co/Qwen/Qwen3-4B, or its id: Qwen/Qwen3-4B"


def _path_on_hub(text: str) -> str | None:
    """Return the path of an address of the Hub, with or without its scheme; None for any other text."""
    has_scheme = text.lower().startswith(("https://", "http://"))
    try:
        address = urlsplit(text if has_scheme else f"https://{text}")
        host = (address.hostname or "").lower()
        own = urlsplit(os.environ.get("HF_ENDPOINT", "")) if has_scheme else urlsplit("")
        is_own = bool(own.netloc) and address.netloc.lower() == own.netloc.lower()
    except ValueError:
        return None
    if host not in _HOSTS and not is_own:
        if has_scheme:
            raise UserError(f"{text} is not an address of the Hub", hint=_EXAMPLE)
        return None
    return address.path.removeprefix(own.path.rstrip("/")) if is_own else address.path


def _below(parts: list[str]) -> tuple[str | None, str]:
    """Return the revision and the file of the part of an address below the model's page."""
    if len(parts) < 2 or parts[0] not in _WITH_REVISION:
        return None, ""
    rest = "/".join(parts[1:])
    match = _REFS.match(rest)
    revision = match[0] if match else parts[1]
    return revision, rest[len(revision) :].strip("/")


def with_ids(layer: "Layer", problems: list[Problem]) -> "Layer":
    """Return a layer with pasted addresses replaced by ids and revisions, and append the problems of others."""
    layer = dict(layer)
    for section in ("model", "draft"):
        entry = layer.get(f"{section}.id")
        address = _parsed(entry.value, f"{section}.id", entry.where, problems) if entry is not None else None
        if entry is None or address is None:
            continue
        layer[f"{section}.id"] = replace(entry, value=address.id)
        given = layer.get(f"{section}.revision")
        if given is not None and address.revision not in (None, given.value):
            message = f"is {given.value!r}, but the address of the model names {address.revision!r}"
            problems.append(Problem(given.where, f"{section}.revision", message))
        elif address.revision is not None:
            layer[f"{section}.revision"] = replace(entry, value=address.revision)
    adapters = layer.get("model.adapters")
    if adapters is not None:
        specs = adapters.value if isinstance(adapters.value, list) else [adapters.value]
        layer["model.adapters"] = replace(adapters, value=[_adapter(spec, adapters.where, problems) for spec in specs])
    return layer


def _adapter(spec: Any, where: str, problems: list[Problem]) -> Any:
    """Return an adapter with its pasted address replaced."""
    fields = spec if isinstance(spec, dict) else {"id": spec}
    address = _parsed(fields.get("id"), "model.adapters", where, problems)
    if address is None:
        return spec
    revision = fields.get("revision") or address.revision
    return {**fields, "id": address.id, **({"revision": revision} if revision is not None else {})}


def _parsed(value: Any, key: str, where: str, problems: list[Problem]) -> HubAddress | None:
    try:
        return parse_hub_address(value) if isinstance(value, str) else None
    except UserError as error:
        problems.append(Problem(where, key, f"{error.message}; {error.hint}"))
        return None
