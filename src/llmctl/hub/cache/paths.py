"""The names in the cache: blobs, the links of a snapshot, refs, and leftovers of killed downloads."""

import difflib
import os
import re
import shutil
from pathlib import Path

from llmctl.hub import settings
from llmctl.paths import write_atomically

OURS = ".llmctl."  # part of the names of llmctl's unfinished files

# `.NAME.PID.link` of `link` below, and `.NAME.xxxxxxxx` of `paths.write_atomically`.
_TEMPORARY = re.compile(r"\..+\.(\d+\.link|[a-z0-9_]{8})")


def link(blob: Path, folder: Path, path: str) -> None:
    """Make `folder/path` a link to `blob`, like huggingface_hub, or a copy if the file system has no links."""
    name = folder / path
    name.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(blob, name.parent)
    if name.is_symlink() and name.readlink() == Path(target):
        return
    beside = name.with_name(f".{name.name}.{os.getpid()}.link")
    beside.unlink(missing_ok=True)
    try:
        beside.symlink_to(target)
    except OSError:
        if beside.is_symlink() or not blob.is_file():
            raise
        shutil.copyfile(blob, beside)
    beside.replace(name)


def write_ref(repo_id: str, revision: str, commit: str) -> None:
    """Record that `revision` is `commit`. Call it last, so that a ref never points to an incomplete snapshot."""
    if revision == commit:
        return
    refs = settings.repo_dir(repo_id) / "refs"
    file = refs / revision
    if refs not in file.parents or ".." in file.parts:
        return
    try:
        if file.read_text(encoding="utf-8") == commit:
            return
    except (OSError, ValueError):
        pass
    write_shared(file, commit)


def write_shared(file: Path, text: str) -> None:
    """Write atomically, with the permissions of the umask: several users may share a cache."""
    write_atomically(file, text)
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)


def leftovers(repo: Path) -> list[Path]:
    """Return the files that killed runs left behind.

    They may be removed only under the lock and only once everything has arrived: until then the next run resumes from
    a partial file.
    """
    files = list(repo.glob(f"blobs/*{OURS}*incomplete"))
    for folder in ("refs", "llmctl", "snapshots"):
        hidden = (repo / folder).rglob(".*")
        files += [p for p in hidden if not p.is_dir() and _TEMPORARY.fullmatch(p.name)]
    return files


def near_names(repo_id: str) -> list[str]:
    """Return models in the cache whose names are close to `repo_id`."""
    try:
        names = [settings.repo_id_of(folder) for folder in settings.cache_dir().glob("models--*")]
    except OSError:
        return []
    by_lower = {name.lower(): name for name in names if name != repo_id}
    return [by_lower[n] for n in difflib.get_close_matches(repo_id.lower(), by_lower, n=3, cutoff=0.75)]
