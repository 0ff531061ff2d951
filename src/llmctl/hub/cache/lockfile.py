"""The lock file of a model: the downloaded files with size and hash, and the patterns that selected them.

It is in the model's folder of the cache (`llmctl/COMMIT.json`), so it moves with the cache. With it, a model can be
checked for damage and completeness without the Hub, and the same files can be downloaded elsewhere.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.errors import UserError
from llmctl.hub import settings
from llmctl.hub.cache.paths import write_shared
from llmctl.hub.listing import _COMMIT, _SHA256, RemoteFile, is_safe_path
from llmctl.hub.selection import Patterns
from llmctl.text_files import read_text

SCHEMA = "llmctl.model-lock/1"


@dataclass(frozen=True)
class Record:
    """The files that downloads of one commit selected.

    Attributes:
        revision: Requested branch, tag or commit; None for the default branch.
        commit: Commit that the revision was then.
        files: All downloaded files, with size and hash.
        needed: Paths that loading needs; all of them are in `files` unless a pattern excluded one.
    """

    repo_id: str
    revision: str | None
    commit: str
    patterns: Patterns
    files: tuple[RemoteFile, ...]
    needed: tuple[str, ...]


def record_path(repo_id: str, commit: str) -> Path:
    """Return the path of a model's lock file."""
    return settings.repo_dir(repo_id) / "llmctl" / f"{commit}.json"


def to_json(record: Record) -> dict[str, Any]:
    """Return the lock file as a JSON document."""
    return {
        "schema": SCHEMA,
        "repo_id": record.repo_id,
        "revision": record.revision,
        "commit": record.commit,
        "patterns": {
            "include": list(record.patterns.include),
            "exclude": list(record.patterns.exclude),
            "trust_remote_code": record.patterns.trust_remote_code,
        },
        "files": [{"path": f.path, "size_bytes": f.size_bytes, f.algorithm: f.digest} for f in record.files],
        "needed": list(record.needed),
    }


def from_json(document: Any) -> Record:
    """Return the record in a JSON document.

    Raises:
        ValueError: the document is not a lock file, or names a file outside the model's folder.
    """
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"the schema is not {SCHEMA}")
    try:
        patterns = document["patterns"]
        record = Record(
            repo_id=str(document["repo_id"]),
            revision=document["revision"],
            commit=str(document["commit"]),
            patterns=Patterns(
                tuple(patterns["include"]), tuple(patterns["exclude"]), bool(patterns["trust_remote_code"])
            ),
            files=tuple(_file(entry) for entry in document["files"]),
            needed=tuple(str(path) for path in document["needed"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"a part is missing or has the wrong type: {error}") from None
    if not _COMMIT.fullmatch(record.commit):
        raise ValueError(f"{record.commit!r} is not a commit")
    return record


def _file(entry: dict[str, Any]) -> RemoteFile:
    path, size = entry["path"], entry["size_bytes"]
    if not isinstance(path, str) or not is_safe_path(path) or not isinstance(size, int) or size < 0:
        raise ValueError(f"{path!r} is not a file of a model")
    if "sha256" in entry and _SHA256.fullmatch(str(entry["sha256"])):
        return RemoteFile(path, size, "sha256", entry["sha256"])
    if "git_sha1" in entry and _COMMIT.fullmatch(str(entry["git_sha1"])):
        return RemoteFile(path, size, "git_sha1", entry["git_sha1"])
    raise ValueError(f"{path!r} has no hash")


def read_record(repo_id: str, commit: str) -> Record | None:
    """Return the lock file of a model in the cache; None if there is none or it is not readable."""
    try:
        record = from_json(json.loads(record_path(repo_id, commit).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
    return record if record.repo_id == repo_id and record.commit == commit else None


def read_file(path: Path) -> Record:
    """Read the lock file at a path.

    Raises:
        UserError: it cannot be read, or is no lock file.
    """
    try:
        return from_json(json.loads(read_text(path)))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(
            f"{path} is not a lock file of llmctl: {error}", hint="llmctl models lock MODEL prints one"
        ) from None


def write_record(record: Record) -> Path:
    """Write the lock file of a model, merged with the files of earlier downloads of the same commit."""
    before = read_record(record.repo_id, record.commit)
    files = {f.path: f for f in (before.files if before else ())} | {f.path: f for f in record.files}
    merged = Record(
        repo_id=record.repo_id,
        revision=record.revision,
        commit=record.commit,
        patterns=record.patterns,
        files=tuple(files[path] for path in sorted(files)),
        needed=record.needed,
    )
    path = record_path(record.repo_id, record.commit)
    text = json.dumps(to_json(merged), indent=1) + "\n"
    if before is None or to_json(before) != to_json(merged):
        write_shared(path, text)
    return path
