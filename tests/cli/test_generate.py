"""`llmctl generate` and `llmctl load` with the real SmolLM2, through pipes and on a terminal."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from llmctl.cpu import kernels
from support import forkserver
from support.terminal import Terminal

Run = Callable[..., Any]
pytestmark = [pytest.mark.smollm]
CAPITAL = "What is the capital of France?"


@pytest.fixture
def ask(run: Run, smollm: Path) -> Run:
    """`llmctl COMMAND … --model SmolLM2`."""
    return lambda command, *arguments, **more: run(command, "--model", str(smollm), *arguments, **more)


def test_a_real_model_answers_in_a_process_that_starts_from_nothing(smollm: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llmctl", "generate", "--model", str(smollm), "--prompt", CAPITAL]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0
    assert "Paris" in done.stdout
    assert done.stdout.endswith("\n")
    assert "model: " in done.stderr
    assert "\x1b" not in done.stdout + done.stderr, "no colours and no cursor moves in a pipe"


def test_quiet_gives_only_the_answer(ask: Run) -> None:
    done = ask("generate", "--quiet", "--prompt", CAPITAL)
    assert "Paris" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("backend", "quant", "kind"),
    [
        ("bitsandbytes", "4bit", "bitsandbytes 4-bit nf4, computing in bfloat16"),
        ("bitsandbytes", "8bit", "bitsandbytes 8-bit"),
        ("llmctl", "4bit", "llmctl 4-bit, output head 8-bit"),
    ],
)
def test_a_quantised_model_answers(backend: str, quant: str, kind: str, ask: Run) -> None:
    if backend == "llmctl" and kernels.load() is None:
        pytest.skip(f"no kernels: {kernels.missing()}")
    chosen = ("--quant", quant, "--set", f"quantization.backend={backend}")
    done = ask("generate", *chosen, "--json", "--prompt", CAPITAL)
    document = json.loads(done.stdout)
    assert "Paris" in document["completions"][0]["text"]
    assert document["load"]["quantization"] == kind
    assert "MatMul8bitLt" not in done.stderr


def test_standard_input_is_a_prompt_and_standard_output_nothing_but_the_document(ask: Run) -> None:
    done = ask("generate", "--json", stdin="2+2=\n")
    document = json.loads(done.stdout)
    assert document["schema"] == "llmctl.generate/1"
    assert document["prompt"] == "2+2="
    [answer] = document["completions"]
    assert answer["finish_reason"] in ("stop", "length")
    assert len(answer["token_ids"]) == answer["completion_tokens"]
    assert answer["first_token_seconds"] > 0
    manifest = document["manifest"]
    assert manifest["seed"] == 0, "without sampling there is no seed to draw"
    assert manifest["versions"]["transformers"].startswith("5.")
    assert manifest["model_kwargs"]["dtype"] == "bfloat16"
    assert manifest["generation_kwargs"]["eos_token_id"] == [2]


def test_flag_file_and_standard_input_are_joined(ask: Run, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("second\n")
    done = ask("generate", "--json", "-n", "1", "--prompt", "first", "--prompt-file", str(file), stdin="third\n")
    assert json.loads(done.stdout)["prompt"] == "first\n\nsecond\n\nthird"


def test_the_same_seed_gives_the_same_text_and_another_seed_a_different_one(ask: Run) -> None:
    def story(seed: int) -> str:
        arguments = ["--set", "generation.do_sample=true", "-n", "24", "--prompt", "Tell me a story"]
        return str(ask("generate", "--quiet", "--seed", str(seed), *arguments).stdout)

    first = story(7)
    assert first == story(7)
    assert first != story(8)


def test_several_answers_and_a_stop_string(ask: Run) -> None:
    done = ask(
        "generate", "--json", "--num-return", "2", "-t", "1", "--stop", ".", "-n", "40", "--prompt", "Tell me a story"
    )
    answers = json.loads(done.stdout)["completions"]
    first, second = (answer["seed"] for answer in answers)
    assert second == (first + 1) % 2**32
    assert answers[0]["text"] != answers[1]["text"]
    assert all("." not in answer["text"] for answer in answers)


def test_load_shows_requested_decided_and_measured(ask: Run) -> None:
    document = json.loads(ask("load", "--quant", "4bit", "--set", "quantization.quant_type=nf4", "--json").stdout)
    assert document["asked"]["quantization"]["bits"] == 4
    arguments = document["decided"]["model_kwargs"]["quantization_config"]
    assert arguments["bnb_4bit_quant_type"] == "nf4"
    assert arguments["bnb_4bit_compute_dtype"] == "bfloat16"
    measured = document["measured"]
    assert measured["model_class"] == "LlamaForCausalLM"
    assert measured["parameters"] == 134_515_008
    planned = document["decided"]["memory"]["weights"]["cpu"]
    assert planned == pytest.approx(measured["device_bytes"]["cpu"], rel=0.01)
    assert all(decision["reason"] for decision in document["decided"]["decisions"])
    text = ask("load").stdout
    assert [line for line in text.splitlines() if not line.startswith(" ")] == ["requested", "decided", "measured"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--quant", "4bit", "--set", "quantization.backend=bitsandbytes"],
        ["--seed", "7", "--set", "generation.temperature=0.9"],
        ["--set", "chat.system=Be brief."],
    ],
)
def test_the_script_that_load_shows_prints_what_generate_prints(
    arguments: list[str], run: Run, smollm: Path, tiny_models: Callable[[str], Path], tmp_path: Path
) -> None:
    model = str(tiny_models("llama") if arguments else smollm)
    short = ["--model", model, "--set", "generation.max_new_tokens=16", "--set", "load.cpu_kernels=false", *arguments]
    script = tmp_path / "s.py"
    script.write_text(run("load", "--show-code", *short).stdout)
    assert "llmctl" not in script.read_text().split("\n", 1)[1].replace(model, "")  # the folder may be named so
    plain = forkserver.run(program=(str(script),))
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout.strip()
    assert plain.stdout == run("generate", "--quiet", "--prompt", CAPITAL, *short).stdout


def test_without_the_hub_the_default_model_is_the_copy_of_the_demo_extra(run: Run, smollm: Path) -> None:
    done = run("generate", "--prompt", CAPITAL, LLMCTL_HOME=str(smollm.parents[2]))
    assert "Paris" in done.stdout
    assert (
        "model: HuggingFaceTB/SmolLM2-135M-Instruct (the small default, since no model was named; offline"
        in done.stderr
    )


def test_the_model_of_use_is_the_default_and_the_environment_overrides_it(
    run: Run, smollm: Path, tiny_models: Callable[[str], Path]
) -> None:
    assert run("use", str(tiny_models("llama"))).returncode == 0
    assert "(named by llmctl use, " in run("generate", "-n", "1", "--prompt", "x").stderr
    done = run("generate", "-n", "1", "--prompt", "x", LLMCTL_MODEL=str(smollm))
    assert "(named by LLMCTL_MODEL)" in done.stderr


@pytest.fixture
def terminal(smollm: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """llmctl in a pseudo-terminal of 80 columns."""
    children = []

    def start(*arguments: str) -> Any:
        children.append(Terminal(*arguments, cwd=tmp_path))
        return children[-1]

    yield start
    for child in children:
        child.close(force=True)


def test_on_a_terminal_text_is_streamed_and_messages_are_coloured(terminal: Callable[..., Any], smollm: Path) -> None:
    child = terminal("generate", "--model", str(smollm), "--prompt", CAPITAL)
    child.expect("loading")
    child.expect("The capital of France is Paris")
    child.expect(r"\x1b\[2m37 tokens in, 8 out")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_control_characters_from_a_model_do_not_reach_the_terminal(
    terminal: Callable[..., Any], tiny_copy: Callable[..., Path]
) -> None:
    """Every token of this model decodes to an escape sequence."""
    folder = tiny_copy()
    data = json.loads((folder / "tokenizer.json").read_text())
    data["decoder"] = {"type": "Sequence", "decoders": [
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True},
        {"type": "Replace", "pattern": {"Regex": ".+"}, "content": "\x1b]52;c;evil\x07"},
    ]}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(data))
    child = terminal("generate", "--model", str(folder), "-n", "4", "--prompt", "x")
    child.expect(pexpect.EOF)
    assert "\x1b]52" not in child.before
    assert "\\x1b]52;c;evil\\x07" in child.before


def test_ctrl_c_stops_the_answer_with_130(terminal: Callable[..., Any], smollm: Path) -> None:
    child = terminal("generate", "--model", str(smollm), "-n", "2000", "--prompt", "Count from one to one thousand.")
    child.expect("loading")
    child.expect(r"[a-z]{2,} [a-z]{2,} [a-z]{2,}")  # the first words of the answer
    child.sendintr()
    child.expect("interrupted")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
