"""The names in the cache: blobs, the links of a snapshot, refs, and leftovers of killed downloads."""

import difflib
import errno
import os
import re
import shutil
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from llmctl.hub import settings
from llmctl.paths import write_atomically

OURS = ".llmctl."  # part of the names of llmctl's unfinished files

# Reasons for which a link cannot be made although the file system has links.
_OTHER_REASONS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENAMETOOLONG)
# `.NAME.PID.link` of `_beside` below, and `.NAME.xxxxxxxx` of `paths.write_atomically`.
_TEMPORARY = re.compile(r"\..+\.(\d+\.link|[a-z0-9_]{8})")


def give_names(blob: Path, folder: Path, paths: Sequence[str]) -> None:
    """Make each of `paths` in `folder` a link to `blob`, as huggingface_hub does.

    Where links cannot be made (Windows without developer mode, FAT, HF_HUB_DISABLE_SYMLINKS), the blob itself is moved
    to the first path, also as huggingface_hub does, so that no byte is stored twice.
    """
    for number, path in enumerate(paths):
        if not _link(blob, folder / path):
            move(blob, folder / path)
            for other in paths[number + 1 :]:
                share(folder / path, folder / other)
            return


def _link(blob: Path, name: Path) -> bool:
    """Make `name` a link to `blob`; return False where links cannot be made."""
    from huggingface_hub import constants

    if constants.HF_HUB_DISABLE_SYMLINKS:
        return False
    name.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(blob, name.parent)
    if name.is_symlink() and name.readlink() == Path(target):
        return True
    beside = _beside(name)
    try:
        beside.symlink_to(target)
    except OSError as error:
        if error.errno in _OTHER_REASONS:
            raise
        return False
    beside.replace(name)
    return True


def move(file: Path, name: Path) -> None:
    """Move a file of the cache to another name in it."""
    name.parent.mkdir(parents=True, exist_ok=True)
    file.replace(name)


def share(file: Path, name: Path) -> None:
    """Give a file of a snapshot a second name: a hard link, or a copy where there are none."""
    name.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(name)
    try:
        os.link(file, beside)
    except OSError:
        shutil.copyfile(file, beside)
    beside.replace(name)


def _beside(name: Path) -> Path:
    """Return the name of a temporary file that does not exist, beside `name`."""
    beside = name.with_name(f".{name.name}.{os.getpid()}.link")
    beside.unlink(missing_ok=True)
    return beside


def bytes_on_disk(files: Iterable[Path]) -> int:
    """Return the bytes of files, those with several names counted once; links count nothing."""
    return sum(identities(files).values())


def identities(files: Iterable[Path]) -> dict[tuple[int, int] | Path, int]:
    """Return the sizes of the regular files among `files` by what identifies their content on the disk."""
    sizes: dict[tuple[int, int] | Path, int] = {}
    for file in files:
        try:
            status = file.lstat()
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):  # some file systems of Windows number nothing
            sizes[(status.st_dev, status.st_ino) if status.st_ino else file] = status.st_size
    return sizes


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
