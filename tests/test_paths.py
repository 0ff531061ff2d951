"""Folders and paths from the user: expanded, checked before the work, and refused with the place named."""

import os
from pathlib import Path

import pytest

from llmctl import paths
from llmctl.errors import MachineError, UserError


def test_a_user_without_a_home_is_told_what_to_set_and_needs_none_with_a_folder_of_llmctl(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Homeless:
        @property
        def user_state_dir(self) -> str:
            raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr(paths, "_DIRS", Homeless())
    assert paths.state_dir() == Path(os.environ["LLMCTL_HOME"]) / "state"
    monkeypatch.delenv("LLMCTL_HOME")
    with pytest.raises(UserError, match="HOME is not set") as error:
        paths.state_dir()
    assert "LLMCTL_HOME" in str(error.value.hint)


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "a\0b", "a\ud800b"])
def test_what_cannot_be_a_path_is_refused(path: str) -> None:
    with pytest.raises(UserError, match=r"home|null|encoding"):
        paths.expand(path)


def test_writing_is_checked_where_the_folder_will_be_and_leaves_nothing(tmp_path: Path) -> None:
    paths.check_writable(tmp_path / "new" / "folder", tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r".") as error:
        paths.check_writable(tmp_path / "file" / "folder")
    assert error.value.filename == str(tmp_path / "file")
    with pytest.raises(MachineError, match="--output"):
        paths.check_output(tmp_path / "file" / "x.jsonl", flag="--output")
    with pytest.raises(UserError, match="is a folder"):
        paths.check_output(tmp_path, flag="--output")


def test_a_failed_write_names_the_file_and_not_its_temporary_neighbour(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r".") as error:
        paths.write_atomically(Path(os.devnull) / "x", "text")
    assert str(error.value.filename).startswith(os.devnull)
