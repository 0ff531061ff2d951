"""Faster decoding on the command line: statistics after the answer and in JSON, and the equivalent script."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Tiny = Callable[[str], Path]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_statistics_are_after_the_answer_and_in_json(run: Run, tiny_models: Tiny) -> None:
    asked = ("generate", "-p", "the capital", "-n", "20", "--model", str(tiny_models("gemma3")), "--dtype", "fp32")
    shown = run(*asked, "--prompt-lookup", "4")
    assert shown.returncode == 0, shown.stderr
    assert "proposed tokens accepted" in shown.stderr
    assert "tokens per pass of the model" in shown.stderr
    draft = str(tiny_models("gemma3"))
    body = json.loads(run(*asked, "--draft", draft, "--json").stdout)
    gains = body["completions"][0]["gains"]
    assert gains["accepted_tokens"] == round(gains["acceptance_rate"] * gains["drafted_tokens"])
    assert gains["tokens_per_forward"] == pytest.approx(20 / gains["forward_passes"], abs=0.001)
    assert body["manifest"]["draft"]["source"] == draft


def test_invalid_values_are_reported_with_valid_ones(run: Run, tiny_models: Tiny) -> None:
    folder = str(tiny_models("llama"))
    for flags, code, text in (
        (("--cache", "statik"), 2, "did you mean static?"),
        (("--prompt-lookup", "0"), 2, "must be at least 1"),
        (("--cache", "offloaded"), 3, "moves keys and values from a GPU to RAM"),
        (("--draft", str(tiny_models("llama") / "nowhere")), 2, "there is no folder"),
        (("--set", "generation.cache_config={bits: 4}"), 2, "unknown key bits"),
    ):
        result = run("generate", "-p", "x", "--model", folder, *flags)
        assert (result.returncode, result.stdout) == (code, "")
        assert text in result.stderr


def test_the_script_uses_the_draft_and_prints_the_same_text(run: Run, tiny_models: Tiny, tmp_path: Path) -> None:
    model = str(tiny_models("llama"))
    asked = ("--model", model, "--draft", model, "--set", "generation.max_new_tokens=12", "--set", "load.dtype=float32")
    code = run("load", *asked, "--set", "draft.num_assistant_tokens=3", "--show-code", "--prompt", "the capital").stdout
    script = tmp_path / "plain.py"
    script.write_text(code, encoding="utf-8")
    printed = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=120)
    assert printed.returncode == 0, printed.stderr
    settings = [part for part in asked if part != "--draft"][:2] + list(asked[4:])
    assert printed.stdout == run("generate", "-p", "the capital", *settings).stdout
    assert "assistant_model=draft" in code


def test_load_and_plan_show_the_draft_and_count_it(run: Run, tiny_models: Tiny) -> None:
    model, draft = str(tiny_models("llama")), str(tiny_models("qwen3"))
    shown = run("load", "--model", model, "--draft", draft)
    assert shown.returncode == 0, shown.stderr
    assert f"{draft}: Qwen3ForCausalLM" in shown.stdout
    alone, both = (
        json.loads(run("plan", model, *more, "--json").stdout)["machines"][0]["ways"][0]["memory"]
        for more in ((), ("--draft", draft))
    )
    assert both["draft_bytes"] > 0
    assert both["total_bytes"] - alone["total_bytes"] == both["draft_bytes"]
