"""The files of a repository at one commit: names, sizes and hashes, from one request."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import quote

from llmctl.errors import RemoteError
from llmctl.hub import error_translation, settings
from llmctl.hub.http import Patience, get_json

Algorithm = Literal["sha256", "git_sha1"]
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository.

    Attributes:
        path: Path in the repository, with forward slashes.
        algorithm: `sha256` of the content (large files) or git's blob sha1 (the rest).
        digest: Hash in hexadecimal, which is also the name of its blob in the cache.
    """

    path: str
    size_bytes: int
    algorithm: Algorithm
    digest: str


@dataclass(frozen=True)
class Listing:
    """A repository at one commit.

    Attributes:
        commit: Commit, 40 hexadecimal digits.
        gated: False, `auto` or `manual`: how access is granted.
    """

    repo_id: str
    commit: str
    gated: bool | str
    files: tuple[RemoteFile, ...]

    def find(self, path: str) -> RemoteFile | None:
        """Return the file at `path`, or None."""
        return next((file for file in self.files if file.path == path), None)


def check_id(repo_id: str) -> str:
    """Return `repo_id` after checking that it is a valid id.

    Raises:
        UserError: it is not.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise error_translation.bad_id(repo_id) from None
    return repo_id


def fetch_listing(
    repo_id: str,
    *,
    revision: str | None = None,
    patience: Patience | None = None,
    note: Callable[[str], None] | None = None,
    check_access: bool = True,
) -> Listing:
    """Ask the Hub for the files of `repo_id` at `revision` (None: the default branch).

    With `check_access`, a gated model whose files may not be read is refused here already.

    Raises:
        RemoteError: the Hub refuses, cannot be reached, or lists a file outside the model's folder.
    """
    check_id(repo_id)
    path = f"/api/models/{repo_id}/revision/{quote(revision or 'main', safe='')}?blobs=true"
    try:
        answer = get_json(path, patience=patience, note=note)
        if check_access and isinstance(answer, dict) and answer.get("gated"):
            get_json(f"/api/models/{repo_id}/auth-check", patience=patience, note=note)
    except Exception as error:
        raise error_translation.translate(error, repo_id=repo_id, revision=revision) from error
    return _listing(repo_id, answer)


def _listing(repo_id: str, answer: Any) -> Listing:
    if not isinstance(answer, dict) or not _COMMIT.fullmatch(str(answer.get("sha"))):
        raise error_translation.not_the_hub("the description of a model has no commit in it")
    files = tuple(_file(repo_id, entry) for entry in answer.get("siblings") or ())
    return Listing(repo_id=repo_id, commit=answer["sha"], gated=answer.get("gated") or False, files=files)


def _file(repo_id: str, entry: dict[str, Any]) -> RemoteFile:
    path, lfs = str(entry.get("rfilename")), entry.get("lfs") or {}
    if not is_safe_path(path):
        raise RemoteError(
            f"the listing of {repo_id} names a file outside the model's own folder: {path!r}",
            hint=f"do not use this model; its page: {settings.model_page(repo_id)}",
            details={"path": path},
        )
    digest = str(lfs.get("sha256") or entry.get("blobId"))
    size = lfs.get("size", entry.get("size"))
    if not isinstance(size, int) or size < 0 or not (_SHA256 if lfs else _COMMIT).fullmatch(digest):
        raise error_translation.not_the_hub(f"the listing of {repo_id} has no size or no hash for {path!r}")
    return RemoteFile(path=path, size_bytes=size, algorithm="sha256" if lfs else "git_sha1", digest=digest)


def is_safe_path(path: str) -> bool:
    """Return True if `path` stays inside the folder that it is joined to, on every platform."""
    parts = PurePosixPath(path).parts
    return (
        bool(parts)
        and not path.startswith("/")
        and "\\" not in path
        and ":" not in parts[0]
        and not _CONTROL.search(path)
        and all(part not in ("..", ".", "") for part in path.split("/"))
    )
