"""The names under which a blob is found: the links of a snapshot, and the refs."""

import os
import re
import shutil
from pathlib import Path

from llmctl.hub import settings
from llmctl.hub.partial import OURS
from llmctl.paths import write_atomically

# `.NAME.PID.link` of `link` below, and `.NAME.xxxxxxxx` of `paths.write_atomically`.
_TEMPORARY = re.compile(r"\..+\.(\d+\.link|[a-z0-9_]{8})")


def link(blob: Path, folder: Path, path: str) -> None:
    """Let `folder/path` be a link to `blob`, as huggingface_hub makes it; a copy where the disk has no links."""
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
    """Remember that `revision` is `commit`. Written last, so a ref never points to a snapshot that is not complete."""
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
    """Write atomically, readable by whom the umask allows: a cache may be shared by several users."""
    write_atomically(file, text)
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)


def leftovers(repo: Path) -> list[Path]:
    """What killed runs left behind. To be removed only under the lock and only when everything has arrived: until
    then a partial is what the next run goes on from.
    """
    found = list(repo.glob(f"blobs/*{OURS}*incomplete"))
    for folder in ("refs", "llmctl", "snapshots"):
        hidden = (repo / folder).rglob(".*")
        found += [p for p in hidden if not p.is_dir() and _TEMPORARY.fullmatch(p.name)]
    return found
