"""The installed packages, as far as they can be used."""

import importlib
import sysconfig
from pathlib import Path

import pytest

from llmctl.machine.detection import read_machine


@pytest.mark.parametrize(
    ("compiled", "counts"),
    [
        (None, False),
        ("flash_attn_2_cuda.cpython-37m-x86_64-linux-gnu.so", False),
        (f"flash_attn_2_cuda{sysconfig.get_config_var('EXT_SUFFIX')}", True),
    ],
    ids=["not built", "for another Python", "for this Python"],
)
def test_flash_attn_counts_only_with_a_compiled_part_for_this_python(
    compiled: str | None, *, counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "flash_attn-2.8.3.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: flash_attn\nVersion: 2.8.3\n")
    if compiled is not None:
        (tmp_path / compiled).touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert ("flash_attn" in read_machine().packages) == counts
