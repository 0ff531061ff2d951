"""`llmctl plan`: from headers alone, before any download."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmctl.cli.plan import verdict_text
from llmctl.plan.survey import Variant
from support import hub_standin
from support.hub_standin import HubStandin
from support.machines import LLAMA3_8B
from support.vision.build import build

Run = Callable[..., Any]
Tiny = Callable[[str], Path]


def write_llama3_8b(folder: Path) -> None:
    """Write Llama 3 8B with its real sizes: 16 GB in four sparse shards with true headers and no weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA3_8B.config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "x"}))
    (folder / "tokenizer.json").write_text("{}")
    names, weight_map = [f"model-{n:05}-of-00004.safetensors" for n in range(1, 5)], {}
    for number, name in enumerate(names):
        header, offset = {}, 0
        for tensor in LLAMA3_8B.tensors[number::4]:
            header[tensor.name] = {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "data_offsets": [offset, offset + tensor.size_bytes],
            }
            offset += tensor.size_bytes
            weight_map[tensor.name] = name
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + offset)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def digest_of_name(path: Path, hasher: Any) -> str:
    """Return a digest without reading 16 GB of zeros."""
    hasher.update(str(path).encode())
    return str(hasher.hexdigest())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandin]:
    """A stand-in with acme/llama3-8b. It is never downloaded, so the hashes of its files are those of their names."""
    monkeypatch.setattr(hub_standin, "digest_of", digest_of_name)
    write_llama3_8b(tmp_path / "models" / "acme" / "llama3-8b")
    with HubStandin(tmp_path / "models") as standin:
        yield standin


def test_a_model_of_16_gb_is_planned_from_less_than_2_mb(hub: HubStandin, run: Run) -> None:
    done = run("plan", "acme/llama3-8b", "--json", "--machine", "rtx4090", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["model"]["parameters"] == LLAMA3_8B.parameters
    assert document["model"]["download_bytes"] > 16_000_000_000
    [machine] = document["machines"]
    assert machine["recommended"] == "bfloat16"
    sent = sum(entry["sent"] for entry in hub.log)
    assert 0 < sent < 2_000_000
    assert len(hub.log) < 30


def test_planning_imports_neither_torch_nor_transformers(hub: HubStandin, tmp_path: Path) -> None:
    code = (
        "import sys; from llmctl.cli.main import main; code = main(['plan', 'acme/llama3-8b', '--machine', 't4']);"
        "print(code, [m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_the_verdicts_are_shown_in_words(hub: HubStandin, run: Run) -> None:
    more = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    text = run("plan", "acme/llama3-8b", "--machine", "t4", "--machine", "2xh100", **more).stdout
    rows = {tuple(line.split("\t")[1:2]): line.split("\t") for line in text.splitlines() if "\t" in line}
    assert "4 blocks in RAM" in rows["float16",][-1]
    assert "blocks in RAM" in rows["float16",][-1]
    assert rows["bfloat16",][-1] == "fits"
    assert "recommended: 8-bit" in text
    assert "recommended: bfloat16" in text
    assert "Tesla T4 has compute capability 7.5" in text
    assert "█" in text


@pytest.mark.parametrize(
    ("variant", "text"),
    [
        (Variant("a", {}, "fits"), "fits"),
        (Variant("a", {}, "spills", spilled_blocks=1, spilled_modules=("lm_head",)), "1 block in RAM"),
        (Variant("a", {}, "spills", spilled_modules=("lm_head",)), "lm_head in RAM"),
        (Variant("a", {}, "spills", spilled_modules=("model.norm", "lm_head")), "model.norm and lm_head in RAM"),
        (Variant("a", {}, "spills", spilled_blocks=3, largest_context=70), "3 blocks in RAM; fits: 70 tokens"),
        (Variant("a", {}, "too large", missing_bytes=2 * 10**9), "2 GB missing"),
        (
            Variant("a", {}, "too large", missing_bytes=10**9, largest_context=70, largest_batch=2),
            "1 GB missing; fits: 2 sequences or 70 tokens",
        ),
        (Variant("a", {}, "impossible", reason="why"), "not possible: why"),
    ],
)
def test_each_verdict_has_words(variant: Variant, text: str) -> None:
    assert verdict_text(variant) == text


def test_the_recommended_configuration_is_written_and_valid(hub: HubStandin, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    arguments = ["plan", "acme/llama3-8b", "--machine", "t4", "--write", str(file)]
    more = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    assert run(*arguments, **more).returncode == 0
    assert run("config", "validate", str(file)).returncode == 0
    from llmctl.config.layers import read_only_file

    config = read_only_file(file).config
    assert (config.model.id, config.quantization.bits, config.load.dtype) == ("acme/llama3-8b", 8, "auto")
    again = run(*arguments, **more)
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_a_local_model_is_planned_for_this_machine(run: Run, tiny_models: Tiny) -> None:
    done = run("plan", str(tiny_models("llama")), "--context", "999")
    assert done.returncode == 0
    assert "the context of" in done.stderr
    assert "ends at 256 tokens" in done.stderr
    assert "this machine, context 256" in done.stdout
    assert "tokens per second of one sequence after a short prompt, measured on " in done.stdout
    assert "nothing: the model is on this machine" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["plan", "acme/absent", "--offline"], 4, "its headers cannot be read offline"),
        (["plan", "./none"], 2, "there is no folder"),
        (["plan", "--machine", "h1000"], 2, "there is no machine 'h1000'"),
        (["plan", "--context", "0"], 2, "--context"),
    ],
)
def test_a_model_that_cannot_be_planned_is_an_error(
    arguments: list[str], code: int, words: str, run: Run, smollm: Path
) -> None:
    done = run(*arguments, LLMCTL_HOME=str(smollm.parents[2]))
    assert done.returncode == code
    assert words in done.stderr


def test_quantisation_and_dtype_choose_the_variants(hub: HubStandin, run: Run) -> None:
    more = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    done = run("plan", "acme/llama3-8b", "--machine", "t4", "--quant", "4bit", "--batch", "64", "--json", **more)
    [machine] = json.loads(done.stdout)["machines"]
    assert [way["name"] for way in machine["ways"]] == ["4-bit nf4", "4-bit nf4 double"]
    way = machine["ways"][0]
    assert way["verdict"] == "too large"
    assert way["missing_bytes"] > 0
    assert way["memory"]["total_bytes"] > way["free_bytes"]
    assert 0 < machine["recommended_batch"] < 64


def test_a_model_on_the_hub_that_names_a_kernel_is_refused(hub: HubStandin, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "models" / "acme" / "llama3-8b" / "config.json"
    file.write_text(json.dumps({**LLAMA3_8B.config, "_attn_implementation": "evil/kernel"}))
    hub.reload()
    done = run("plan", "acme/llama3-8b", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0")
    assert done.returncode != 0
    assert "asks for compiled code from the Hub" in done.stderr


def test_a_server_that_ignores_ranges_is_not_read_to_the_end(hub: HubStandin, run: Run) -> None:
    hub.fault(path=r"/cdn/", action="ignore_range", times=-1)
    done = run("plan", "acme/llama3-8b", "--json", "--machine", "h100", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"]["parameters"] == LLAMA3_8B.parameters
    assert sum(entry["sent"] for entry in hub.log) < 200_000_000


def test_images_are_planned_for_with_their_tokens_from_the_hub(hub: HubStandin, run: Run, tmp_path: Path) -> None:
    build("qwen3_vl", tmp_path / "models" / "acme" / "vlm")
    hub.reload()
    more = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    arguments = ("plan", "acme/vlm", "--context", "100", "--dtype", "fp32", "--images", "3", "--image-size", "64x100")
    done = run(*arguments, **more)
    assert done.returncode == 0, done.stderr
    assert "an image of 64 x 100 takes 26 tokens for this model; 3 take 78; Pillow resizes them" in " ".join(
        done.stdout.split()
    )
    document = json.loads(run(*arguments, "--json", **more).stdout)
    images = document["images"]
    assert (images["tokens"], images["all_tokens"], images["backend"]) == (26, 78, "Pillow")
    assert document["context"] == 178
    memory = document["machines"][0]["ways"][0]["memory"]
    assert memory["images"]["tower_bytes"] == sum(document["model"]["left_out"].values())
    assert memory["images"]["encoder_bytes"] > images["input_bytes"]
    without = json.loads(run(*arguments[:-4], "--json", **more).stdout)["machines"][0]["ways"][0]["memory"]
    assert memory["kv_cache_bytes"] == without["kv_cache_bytes"] * 178 / 100
    assert memory["total_bytes"] > without["total_bytes"] + memory["images"]["tower_bytes"]


def test_a_plan_without_the_package_of_the_images_says_what_is_missing(run: Run, tmp_path: Path) -> None:
    build("lfm2_vl", tmp_path / "vlm")
    done = run("plan", str(tmp_path / "vlm"), "--images", "1", "--json")
    document = json.loads(done.stdout)
    assert document["images"]["tokens"] is None
    assert "pip install torchvision" in document["images"]["unknown"]
    assert document["machines"][0]["ways"][0]["memory"]["images"]["tower_bytes"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--images", "1"], "takes no images"),
        (["--images", "1", "--image-size", "huge"], "huge is not the size of an image"),
        (["--images", "1", "--image-size", "90000x2"], "llmctl reads no image of 90000 x 2 pixels"),
        (["--images", "1", "--set", "load.images=never"], "load.images is never"),
        (["--image-size", "8x8"], "--images"),
    ],
)
def test_images_that_cannot_be_planned_for_are_errors(
    arguments: list[str], words: str, run: Run, tiny_models: Tiny
) -> None:
    done = run("plan", str(tiny_models("llama")), *arguments)
    assert done.returncode == 2
    assert words in done.stderr
