"""Tests with a real vLLM (`make test-vllm`)."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmctl.cli.main import main
from llmctl.config import settings_from_mapping
from llmctl.config.layers import read_only_file
from llmctl.errors import MachineError, ModelError, UserError
from llmctl.server.security.guard import Rules
from llmctl.vllm.arguments import Target
from llmctl.vllm.command import make_launch
from llmctl.vllm.detection import detect_vllm
from llmctl.vllm.process import VllmProcess, free_port
from llmctl.vllm.translate import translate
from support.tiny import edit_json, write_model
from support.vision.build import build
from support.vision.families import FAMILIES
from support.vision.pictures import picture

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("LLMCTL_VLLM_PYTHON", "")
# Runs in vLLM's Python: parses lists of arguments with vLLM's own parser.
_PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
known = sorted(option for action in parser._actions for option in action.option_strings)
print(json.dumps([known, [vars(parser.parse_args(arguments)) for arguments in json.load(sys.stdin)]], default=str))
"""
EVERYTHING: list[dict[str, Any]] = [
    {
        "model": {"id": "org/name", "revision": "v1", "trust_remote_code": True, "adapters": "org/adapter"},
        "load": {"dtype": "float16", "attn_implementation": "flash_attention_2"},
        "tokenizer": {"model_max_length": 4096},
        "generation": {"temperature": 0.7, "max_new_tokens": 9, "prompt_lookup_num_tokens": 4,
                       "cache_implementation": "quantized"},
        "chat": {"template": "/x.jinja", "template_kwargs": {"enable_thinking": False}},
        "serve": {"max_sequences": 8},
        "vllm": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "distributed_executor_backend": "ray",
                 "gpu_memory_utilization": 0.5, "extra": {"enforce_eager": True, "enable_prefix_caching": False}},
    },
    {
        "draft": {"id": "org/draft", "num_assistant_tokens": 3, "revision": "v2"},
        "load": {"attn_implementation": "flex_attention"},
    },
]  # fmt: skip


def test_every_translated_argument_exists_and_has_the_right_meaning() -> None:
    configs = [settings_from_mapping(sections).config for sections in EVERYTHING]
    configs += [read_only_file(file).config for file in sorted((ROOT / "configs").glob("*.yaml"))]
    batches = [settings_from_mapping({"generation": {"logprobs": 30}}).config]
    target = Target(adapter="/adapter", adapter_rank=10)
    asked = [translate(config, target).arguments for config in configs]
    asked += [translate(config, Target("batch")).arguments for config in batches]
    done = subprocess.run(
        [PYTHON, "-c", _PARSE], input=json.dumps(asked), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    known, parsed = json.loads(done.stdout.splitlines()[-1])
    used = {text for arguments in asked for text in arguments if text.startswith("--")}
    assert sorted(used - set(known)) == []
    first = parsed[0]
    assert (first["dtype"], first["max_model_len"], first["kv_cache_dtype"]) == ("float16", 4096, "fp8")
    assert (first["tensor_parallel_size"], first["distributed_executor_backend"]) == (2, "ray")
    assert first["override_generation_config"]["max_new_tokens"] == 9
    assert first["speculative_config"]["num_speculative_tokens"] == 4
    assert (first["enforce_eager"], first["enable_prefix_caching"], first["trust_remote_code"]) == (True, False, True)
    assert parsed[-1]["max_logprobs"] == 30


def start_and_wait(folder: Path, **sections: Any) -> None:
    """Start vLLM as the command does, and wait until it fails to start."""
    asked = {"model": {"id": str(folder)}, "load": {"dtype": "float32"}, **sections}
    config = settings_from_mapping(asked).config
    target = Target(model=str(folder), port=free_port())
    start = make_launch(detect_vllm(PYTHON), config, translate(config, target), target, Rules())
    with VllmProcess(start) as child:
        child.wait_until_healthy(120)


def test_an_unknown_argument_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unrecognized arguments: --such-a-thing"):
        start_and_wait(tmp_path, vllm={"extra": {"such_a_thing": True}})


def test_an_unknown_architecture_is_reported(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    edit_json(folder / "config.json", architectures=["NobodyKnowsForCausalLM"])
    with pytest.raises(ModelError, match="NobodyKnowsForCausalLM"):
        start_and_wait(folder)


def test_too_many_gpus_are_reported(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    with pytest.raises((MachineError, UserError)) as caught:
        start_and_wait(folder, vllm={"tensor_parallel_size": 3})
    assert "divisible by tensor parallel size" in caught.value.message.splitlines()[0]


@pytest.mark.smollm
def test_a_batch_gives_the_answers_of_transformers_and_a_killed_one_is_resumed(
    smollm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows: list[dict[str, Any]] = [
        {"prompt": "What is the capital of France?"},
        {"prompt": "Is the sky blue?", "structure": {"choices": ["yes", "no"]}},
        {"prompt": "What is the capital of Italy?", "generation": {"stop_strings": ["Rome"]}},
        *({"prompt": f"Tell me a fact about the number {number}"} for number in range(20)),
    ]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ["generate", "--model", str(smollm), "--dtype", "fp32", "-n", "24", "--offline", "--input", "in.jsonl"]
    eager = ["--set", "vllm.extra={enforce_eager: true}", "--set", "vllm.max_model_len=2048"]
    on_vllm = [*common, "--output", "vllm.jsonl", "--engine", "vllm", "--vllm-python", PYTHON, *eager]
    process = subprocess.Popen([sys.executable, "-m", "llmctl", *on_vllm])
    partial = Path("vllm.jsonl.partial")
    while not (partial.exists() and partial.read_bytes().count(b"\n") > 1):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main([*on_vllm, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["resumed"] > 1
    assert main([*common, "--output", "here.jsonl"]) == 0
    theirs, ours = (
        [json.loads(line) for line in Path(name).read_text().splitlines()] for name in ("vllm.jsonl", "here.jsonl")
    )
    assert [one["text"] for one in theirs] == [one["text"] for one in ours]
    assert [one["stop_string"] for one in theirs] == [one["stop_string"] for one in ours]


def test_rows_with_images_give_the_answers_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES["idefics3"]  # vLLM for CPUs computes heads of 32 and more, and this family without torchvision
    heads = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "pad_token_id": 0}
    monkeypatch.setitem(FAMILIES, "idefics3", replace(family, config={**family.config, "text_config": heads}))
    folder = build("idefics3", tmp_path / "idefics3")
    monkeypatch.chdir(tmp_path)
    picture(0).save("a.png")
    picture(4).save("b.png")
    rows: list[dict[str, Any]] = [
        {"prompt": "say it", "images": ["a.png"]},
        {"prompt": "say it", "images": ["b.png"]},
        {"prompt": "say it"},
        {"prompt": "compare", "images": ["a.png", "b.png"]},
    ]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ["generate", "--model", str(folder), "--dtype", "fp32", "-n", "6", "-t", "0", "--offline", "--token-ids"]
    files = [*common, "--input", "in.jsonl", "--output"]
    extra = "vllm.extra={enforce_eager: true, limit_mm_per_prompt: {image: 2}, skip_mm_profiling: true}"
    assert main([*files, "vllm.jsonl", "--engine", "vllm", "--vllm-python", PYTHON, "--set", extra]) == 0
    assert main([*files, "here.jsonl"]) == 0
    theirs, ours = (
        [json.loads(line)["token_ids"] for line in Path(name).read_text().splitlines()]
        for name in ("vllm.jsonl", "here.jsonl")
    )
    assert theirs == ours
    assert len({tuple(ids) for ids in ours}) == len(rows)
