"""A folder that is written completely or not at all, however the process that writes it ends."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from llmctl.platform_support import lock_folder, sync_to_disk

SUFFIX = ".llmctl-incomplete"


class NewFolder:
    """A folder under a hidden name beside its target, renamed to it once it is complete.

    The hidden folder is locked while it is written, so another process that can lock it knows that its writer is gone.
    """

    def __init__(self, target: Path) -> None:
        """Create the hidden folder, without anything that a killed run left there.

        Raises:
            BlockingIOError: another process is writing it.
            OSError: the folder cannot be written.
        """
        self.target = target
        self.path = target.with_name(f".{target.name}{SUFFIX}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = _claim(self.path)

    def place(self) -> None:
        """Write everything to the disk, then rename the folder to its target, which is absent or an empty folder."""
        for file in sorted(self.path.rglob("*")):
            if file.is_file():
                sync_to_disk(file)
        sync_to_disk(self.path)
        self.path.replace(self.target)
        sync_to_disk(self.target.parent)
        self._release()

    def drop(self) -> None:
        """Remove the hidden folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._release()

    def _release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def abandoned(parent: Path) -> tuple[Path, ...]:
    """Return the unfinished folders in `parent` whose writers are gone."""
    folders = []
    for path in sorted(parent.glob(f".*{SUFFIX}")):
        try:
            descriptor = lock_folder(path)
        except OSError:  # it is being written, or was placed this moment
            continue
        if descriptor is not None:
            os.close(descriptor)
            folders.append(path)
    return tuple(folders)


def remove_abandoned(parent: Path) -> None:
    """Remove the unfinished folders in `parent` whose writers are gone."""
    for path in abandoned(parent):
        with suppress(OSError):
            NewFolder(parent / path.name.removeprefix(".").removesuffix(SUFFIX)).drop()


def _claim(path: Path) -> int | None:
    """Create the folder, empty it and lock it. Return None if the system has no such locks."""
    while True:
        path.mkdir(exist_ok=True)
        descriptor = lock_folder(path)
        if descriptor is None:
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
            return None
        try:
            if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
                for entry in path.iterdir():
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # another process removed or placed it between the two lines above
