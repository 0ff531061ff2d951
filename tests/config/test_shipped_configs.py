"""The files in configs/ are valid, and their headers are true."""

import re
from pathlib import Path

import pytest

from llmctl.config import Config
from llmctl.config.layers import read_only_file
from llmctl.model.checkpoint import Tensor
from llmctl.model.info import ModelInfo
from llmctl.plan.cache_memory import kv_cache_bytes
from llmctl.plan.memory import module_bytes
from llmctl.quant.backend import Quantization
from llmctl.quant.bitsandbytes import BACKEND as BITSANDBYTES
from support.machines import RTX_4090

FOLDER = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(FOLDER.glob("*.yaml"))
_FIGURES = re.compile(r"^# Memory: ([\d.]+) GB of weights.*?([\d.]+) GB of KV cache for its (\d+) tokens", re.MULTILINE)


def llama(
    source: str, *, layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, vocab: int, tied: bool
) -> ModelInfo:
    """Return the facts of a Llama as its config.json and headers give them."""
    wide, narrow = hidden, hidden // heads * kv_heads
    shapes = {"model.embed_tokens": (vocab, hidden), "model.norm": (hidden,)}
    if not tied:
        shapes["lm_head"] = (vocab, hidden)
    for number in range(layers):
        block = f"model.layers.{number}"
        shapes |= {f"{block}.self_attn.{name}_proj": (wide, hidden) for name in "qo"}
        shapes |= {f"{block}.self_attn.{name}_proj": (narrow, hidden) for name in "kv"}
        shapes |= {f"{block}.mlp.{name}_proj": (intermediate, hidden) for name in ("gate", "up")}
        shapes |= {f"{block}.mlp.down_proj": (hidden, intermediate)}
        shapes |= {f"{block}.{name}_layernorm": (hidden,) for name in ("input", "post_attention")}
    config = {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": tied,
    }
    return ModelInfo(source, config, tuple(Tensor(f"{name}.weight", "BF16", shape) for name, shape in shapes.items()))


MODELS = {
    model.source: model
    for model in (
        llama(
            "meta-llama/Meta-Llama-3-8B-Instruct",
            layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, vocab=128256, tied=False,
        ),
        llama(
            "meta-llama/Meta-Llama-3-70B-Instruct",
            layers=80, hidden=8192, intermediate=28672, heads=64, kv_heads=8, vocab=128256, tied=False,
        ),
        llama(
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3, vocab=49152, tied=True,
        ),
    )
}  # fmt: skip


def header(file: Path) -> str:
    return "".join(line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.startswith("#"))


def commands(file: Path) -> list[str]:
    return re.findall(r"^#   (llmctl .*)$", header(file), re.MULTILINE)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_loads_and_names_its_model(file: Path) -> None:
    settings = read_only_file(file)
    assert settings.config.model.id in MODELS
    assert not settings.config.model.trust_remote_code


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_header_downloads_the_model_and_runs_the_file(file: Path) -> None:
    model = read_only_file(file).config.model.id
    lines = commands(file)
    assert f"llmctl download {model}" in lines
    runs = [line for line in lines if line.startswith("llmctl generate")]
    assert runs
    assert all(f"--config configs/{file.name} " in line for line in runs)


def _quantization(config: Config) -> Quantization:
    return BITSANDBYTES.plan(config, RTX_4090, devices=("cuda:0",), product_dtype="bfloat16")[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_memory_in_the_header_equals_the_computed_memory(file: Path) -> None:
    config = read_only_file(file).config
    found = _FIGURES.search(header(file))
    assert found is not None
    weights_text, cache_text, context = found.groups()
    info, bits = MODELS[config.model.id or ""], config.quantization.bits
    quantization = _quantization(config) if bits else None
    weights = sum(module_bytes(info, dtype="bfloat16", quantization=quantization).values())
    cache = kv_cache_bytes(info, context=int(context), dtype="bfloat16")
    assert f"{weights / 1e9:.{len(weights_text.partition('.')[2])}f}" == weights_text
    assert f"{cache / 1e9:.{len(cache_text.partition('.')[2])}f}" == cache_text


def test_hand_written_models_have_the_published_number_of_parameters() -> None:
    millions = {name.rpartition("/")[2]: round(model.parameters / 1e6) for name, model in MODELS.items()}
    assert millions == {
        "Meta-Llama-3-8B-Instruct": 8030,
        "Meta-Llama-3-70B-Instruct": 70554,
        "SmolLM2-135M-Instruct": 135,
    }


def test_every_variant_of_the_readme_model_has_a_configuration() -> None:
    loads = {file.stem: read_only_file(file).config for file in FILES}
    assert loads["llama3-8b-bf16"].load.dtype == "bfloat16"
    assert loads["llama3-8b-8bit"].quantization.bits == 8
    assert (loads["llama3-8b-4bit"].quantization.bits, loads["llama3-8b-4bit"].quantization.quant_type) == (4, "nf4")
    assert loads["llama3-8b-flash-attention-2"].load.attn_implementation == "flash_attention_2"
    assert loads["llama3-70b-two-gpus"].load.device_map == "balanced"
    assert loads["small-cpu"].load.device_map == "cpu"
