"""Every pre-quantised format without and with the package that the package index has for CPUs: a table.

`make test-prequantized` installs the packages into a folder and names it in LLMCTL_PREQUANTIZED_PACKAGES. Each row runs
llmctl in processes of its own, and plain transformers beside it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.prequantized import BITSANDBYTES, FORMATS, write_checkpoint

pytestmark = [pytest.mark.prequantized, pytest.mark.timeout(900)]
PACKAGES = os.environ.get("LLMCTL_PREQUANTIZED_PACKAGES", "")  # every test removes such variables
PROMPTS = ("the capital of france", "once upon a time there")
NOTHING = ("fp8", "mxfp8", "mxfp4", "metal", "gemma", "bitnet", "bitnet autobitlinear", *BITSANDBYTES)
WITH_PACKAGE = (
    *(name for name in FORMATS if name.startswith("compressed-tensors")),
    "torchao",
    "gptq",
    "awq",
    "auto-round",
    "aqlm",
    "quark",
)
NEVER = tuple(FORMATS.keys() - {*NOTHING, *WITH_PACKAGE})
# transformers itself fails on these in float32, or leaves them in bfloat16
ONLY_BFLOAT16 = ("bitnet autobitlinear", "compressed-tensors nvfp4", "metal", *BITSANDBYTES)

OURS = """
import contextlib, io, json, sys
from llmctl.cli.main import main
def run(*arguments):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = main([*arguments, "--json"])
    return code, json.loads(out.getvalue())
folder, dtype, prompts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
facts = {"plan": run("plan", folder)[1]["machines"][0]["ways"][0]}
for _ in range(3):  # on a busy machine the import of psutil can end before its time, and the plan is skipped
    checks = run("doctor", "--model", folder, "--offline", "--time-limit", "300")[1]["checks"]
    if not any(check["name"] == "plan" and check["status"] == "skipped" for check in checks):
        break
facts["broken"] = [check["name"] for check in checks if check["status"] == "broken"]
facts["code"], facts["load"] = run("load", "--model", folder, "--dtype", dtype)
if facts["code"] == 0:
    import llmctl
    loaded = llmctl.load(folder, load={"dtype": dtype, "cpu_kernels": False}, chat={"raw": True})
    facts["ids"] = [loaded.tokenizer(prompt).input_ids for prompt in prompts]
    facts["texts"] = [list(llmctl.generate(loaded, prompt, max_new_tokens=12).token_ids) for prompt in prompts]
print("FACTS" + json.dumps(facts))
"""
PLAIN = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM
transformers.logging.set_verbosity_error()
folder, dtype, prompts = sys.argv[1], getattr(torch, sys.argv[2]), json.loads(sys.argv[3])
model, report = AutoModelForCausalLM.from_pretrained(
    folder, dtype=dtype, device_map={"": "cpu"}, output_loading_info=True, local_files_only=True
)
assert not report["missing_keys"] and not report["unexpected_keys"], "the weights are not read"
texts = []
for prompt in prompts:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=0
    )
    texts.append(out[0, ids.shape[1]:].tolist())
print("FACTS" + json.dumps({"texts": texts}))
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("prequantized")

    def make(name: str) -> Path:
        folder = root / name.replace(" ", "-")
        return folder if folder.exists() else write_checkpoint(folder, name)

    return make


def child(code: str, *arguments: str, packages: bool) -> dict[str, Any]:
    """Return the findings of a child process, or the last line of its traceback."""
    paths = [PACKAGES] if packages else []
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "NUMBA_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment)
    line = next((line for line in done.stdout.splitlines() if "FACTS" in line), None)
    if line is None:
        return {"error": (done.stderr.strip().splitlines() or ["nothing"])[-1][:100]}
    facts: dict[str, Any] = json.loads(line.split("FACTS", 1)[1])
    return facts


def dtype_of(name: str) -> str:
    return "bfloat16" if name in ONLY_BFLOAT16 else "float32"


def ours(folder: Path, name: str, *, packages: bool) -> dict[str, Any]:
    return child(OURS, str(folder), dtype_of(name), json.dumps(PROMPTS), packages=packages)


def row(name: str, packages: str, facts: dict[str, Any], *more: str) -> None:
    verdict, doctor = facts["plan"]["verdict"], "broken" if "plan" in facts["broken"] else "healthy"
    said = facts["load"]["error"]["message"] if facts["code"] else "loads"
    print(" | ".join((f"{name:<24}", f"{packages:<7}", f"{verdict:<10}", f"{doctor:<7}", said, *more)))  # noqa: T201


def check_refusal(name: str, facts: dict[str, Any]) -> None:
    """plan, doctor and load refuse it with the same words."""
    assert facts["plan"]["verdict"] == "impossible"
    assert "plan" in facts["broken"]
    assert facts["code"] in (2, 3)
    assert facts["load"]["error"]["message"] == facts["plan"]["reason"]


def check_loaded(name: str, folder: Path, facts: dict[str, Any], *, packages: bool) -> None:
    """plan, doctor and load agree, the planned bytes are there, and the text is that of transformers."""
    assert facts["code"] == 0, facts
    decided, measured = facts["load"]["decided"], facts["load"]["measured"]
    planned, found = sum(decided["memory"]["weights"].values()), sum(measured["device_bytes"].values())
    plain = child(PLAIN, *plain_arguments(name, folder, facts), packages=packages)
    same = [text[: len(mine)] for text, mine in zip(plain.get("texts", ()), facts["texts"], strict=False)]
    text = "same text" if same == facts["texts"] else f"text differs: {plain}"
    row(name, "with" if packages else "none", facts, f"{100 * (planned / found - 1):+.2f} %", text)
    assert facts["plan"]["verdict"] == "fits"
    # on a busy machine the check of the Hub may time out
    assert set(facts["broken"]) <= {"huggingface_hub"}
    assert planned == pytest.approx(found, rel=0.02)
    assert same == facts["texts"]


def plain_arguments(name: str, folder: Path, facts: dict[str, Any]) -> tuple[str, str, str]:
    if name == "aqlm":  # transformers 5 expects a quantised head where the checkpoint names `lm_head.weight`
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"]["linear_weights_not_to_quantize"] = ["lm_head"]
        other = folder.with_name("aqlm-for-transformers")
        other.mkdir(exist_ok=True)
        for file in folder.iterdir():
            (other / file.name).write_bytes(file.read_bytes())
        (other / "config.json").write_text(json.dumps(config))
        folder = other
    return str(folder), dtype_of(name), json.dumps(facts["ids"])


@pytest.mark.parametrize("name", NOTHING)
def test_a_format_that_needs_no_package_loads(name: str, checkpoints: Callable[[str], Path]) -> None:
    folder = checkpoints(name)
    check_loaded(name, folder, ours(folder, name, packages=False), packages=False)


@pytest.mark.parametrize("name", WITH_PACKAGE)
def test_a_format_loads_with_its_package_and_is_refused_without(name: str, checkpoints: Callable[[str], Path]) -> None:
    folder = checkpoints(name)
    without = ours(folder, name, packages=False)
    row(name, "without", without)
    check_refusal(name, without)
    assert without["load"]["error"]["hint"].startswith("pip install ")
    check_loaded(name, folder, ours(folder, name, packages=True), packages=True)


@pytest.mark.parametrize("name", sorted(NEVER))
def test_any_other_format_is_refused_with_every_package_and_transformers_fails_too(
    name: str, checkpoints: Callable[[str], Path]
) -> None:
    folder = checkpoints(name)
    facts = ours(folder, name, packages=True)
    plain = child(PLAIN, str(folder), "bfloat16", "[[5, 6, 7]]", packages=True)
    row(name, "with", facts, f"transformers: {plain.get('error', 'loads it')}")
    check_refusal(name, facts)
    assert "error" in plain
