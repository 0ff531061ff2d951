"""Adapters on the command line: shown, recorded, in the script; one clear error if they are wrong."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.lora import write_adapter

Tiny = Callable[[str], Path]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture(scope="module")
def asked(tiny_models: Tiny, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return flags that name the tiny Llama with an adapter."""
    base = tiny_models("llama")
    adapter = write_adapter(tmp_path_factory.mktemp("cli") / "adapter", base)
    return ["--model", str(base), "--adapter", str(adapter)]


def test_an_adapter_is_recorded_and_replayed_and_shown_by_load(run: Run, asked: list[str], tmp_path: Path) -> None:
    done = run("generate", "-p", "the capital", "-n", "4", *asked, "--json")
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)["manifest"]["adapters"]
    assert (record["source"], record["scale"], record["base_model"]) == (asked[3], 1.0, asked[1])
    assert [file["path"] for file in record["files"]] == ["adapter_config.json", "adapter_model.safetensors"]
    recorded = tmp_path / "answer.json"
    recorded.write_text(done.stdout, encoding="utf-8")
    again = run("replay", str(recorded))
    assert again.returncode == 0, again.stderr
    shown = run("load", *asked, "--merge").stdout
    assert f"{asked[3]}: 0.00179 million parameters, merged" in shown
    assert "made for this model" in shown


def test_plan_counts_an_adapter(run: Run, asked: list[str]) -> None:
    base, adapter = asked[1], asked[3]
    memory = json.loads(run("plan", base, "--adapter", adapter, "--json").stdout)["machines"][0]["ways"][0]["memory"]
    assert memory["adapter_bytes"] == 4 * 1792
    alone = json.loads(run("plan", base, "--json").stdout)["machines"][0]["ways"][0]["memory"]
    assert memory["total_bytes"] - alone["total_bytes"] == memory["adapter_bytes"]


def test_the_script_applies_the_adapter_and_prints_the_same_text(run: Run, asked: list[str], tmp_path: Path) -> None:
    flags = [*asked[:2], "--set", "generation.max_new_tokens=8", "--set", "load.dtype=float32"]
    flags += ["--set", f"model.adapters=[{{id: {asked[3]}, scale: 1.5}}]"]
    script = tmp_path / "plain.py"
    script.write_text(run("load", *flags, "--show-code", "--prompt", "the capital").stdout, encoding="utf-8")
    printed = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=120)
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout == run("generate", "-p", "the capital", *flags).stdout
    assert "merge_and_unload(safe_merge=True)" in run("load", *flags, "--merge", "--show-code").stdout


def test_an_adapter_path_is_relative_to_its_file_and_belongs_to_its_model(
    run: Run, asked: list[str], tiny_models: Tiny, tmp_path: Path
) -> None:
    (tmp_path / "beside").symlink_to(asked[3])
    file = tmp_path / "run.yaml"
    file.write_text(f"model:\n  id: {asked[1]}\n  adapters: ./beside\n", encoding="utf-8")
    shown = json.loads(run("config", "show", "--config", str(file), "--json").stdout)
    assert str(Path(asked[3]).resolve()) in json.dumps(shown)
    other = json.loads(
        run("config", "show", "--config", str(file), "--set", f"model.id={tiny_models('qwen3')}", "--json").stdout
    )
    assert asked[3] not in json.dumps(other)


def test_each_invalid_adapter_is_a_one_line_error(run: Run, asked: list[str]) -> None:
    model = asked[:2]
    for flags, code, text in (
        (["--adapter", "nobody"], 2, "neither a folder here nor a Hub id"),
        (["--adapter", "nobody/none"], 4, "is not in the cache"),
        (["--adapter", asked[1]], 2, "is a whole model, not an adapter"),
        (["--merge"], 2, "is set without an adapter"),
        (["--set", "model.adapters=[{id: a/b, weight: 2}]"], 2, "model.adapters"),
    ):
        done = run("generate", "-p", "x", *model, *flags)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert text in done.stderr
