"""Through the whole command line: an unusable or untrusted model is refused in one message, and no code of it runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.tiny import edit_json

Run = Callable[..., Any]
Copy = Callable[..., Path]


def test_flash_attention_without_a_gpu(run: Run, tiny_models: Callable[[str], Path]) -> None:
    done = run("load", "--model", str(tiny_models("llama")), "--attn", "flash_attention_2")
    assert done.returncode == 3
    assert "error: flash_attention_2 needs an NVIDIA GPU of compute capability 8.0 or more" in done.stderr
    assert "--attn sdpa" in done.stderr


def test_flash_attention_in_float32(run: Run, tiny_models: Callable[[str], Path]) -> None:
    done = run("load", "--model", str(tiny_models("llama")), "--attn", "flash_attention_2", "--dtype", "fp32")
    assert done.returncode == 2
    assert "computes only in float16 or bfloat16, not in float32" in done.stderr


def only_pickles(folder: Path, mark: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (eval, (f"open({str(mark)!r}, 'w')",))

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


def index_outside(folder: Path, mark: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}')


def half_the_keys(folder: Path, mark: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    for name in sorted(tensors)[::2]:
        del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def own_code(folder: Path, mark: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    edit_json(
        folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    )


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (only_pickles, "only as pickles (pytorch_model.bin)"),
        (index_outside, "points outside its folder: '../x.safetensors'"),
        (half_the_keys, "missing weights"),
        (own_code, "needs Python code from its repository"),
    ],
)
def test_a_model_that_cannot_be_trusted(
    damage: Callable[[Path, Path], None], words: str, run: Run, tiny_copy: Copy, tmp_path: Path
) -> None:
    folder, mark = tiny_copy(), tmp_path / "it-ran"
    damage(folder, mark)
    done = run("load", "--model", str(folder), stdin="y\ny\n")
    assert done.returncode == 2
    assert words in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1
    assert "Traceback" not in done.stderr
    assert not mark.exists(), "nothing was executed"
