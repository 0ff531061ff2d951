"""The documentation is true: its commands run, and print what a page says that they print.

Each page's commands run in order, as written, in a folder that has the files which they read, against a stand-in for
the Hub whose models are tiny ones under the names that the pages use. What depends on the model's words is compared
with the real small model.
"""

import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest

import llmctl
from support.hub_standin import HubStandin
from support.pages import PAGES, ROOT, Block, blocks, commands, run_line, shell_lines
from support.served import served
from support.tiny import write_model
from support.vision.build import build
from support.vision.pictures import picture

MODELS = (
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-32B",
    "Qwen/Qwen3-4B",
    "Qwen/Qwen3-8B",
    "meta-llama/Meta-Llama-3-8B-Instruct",
)
VISION_MODELS = ("Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-8B-Instruct")
DEFAULT = MODELS[0]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
GUIDES = [page for page in PAGES if page.name != "CHANGELOG.md" and page.parent.name != "reference"]
# What the pages' commands read. A JSON or YAML file that a page shows is written as the page shows it.
FILES = {
    "question.txt": "What is the capital of France?\n",
    "report.txt": "The harvest was good. Wheat grew by 4 percent.\n",
    "letter.txt": "Correct the spelling: I writte to you. I writte to you.\n",
    "chapter.txt": "It was a bright cold day in April, and the clocks were striking thirteen.\n",
    "reviews.csv": "review,language,text,id\nA good boat.,German,hello,a\nA bad boat.,French,good night,b\n",
    "questions.txt": "What is two plus two?\n\nWhat is the capital of Italy?\n",
    "rows.jsonl": '{"text": "Paris is in France."}\n{"prompt": "Is it?", "completion": "Yes"}\n',
    "person.json": '{"type": "object", "required": ["age"], '
    '"properties": {"age": {"type": "integer", "minimum": 0, "maximum": 150}}}',
    "prompts.jsonl": "".join(
        json.dumps(json.loads(block.text)) + "\n"
        for block in blocks(ROOT / "docs" / "how-to" / "batch.md", "json")
        if not {"text", "error", "images"} & json.loads(block.text).keys()
    ),
    "talk.jsonl": '{"schema": "llmctl.chat/1", "model": "Qwen/Qwen3-4B", "commit": null, "system": null}\n'
    '{"role": "user", "content": "Hello"}\n{"role": "assistant", "content": "Hi"}\n',
    "token.txt": "hf_good\n",
}
# The commands that do not run here, as regular expressions, with the reason.
NOT_RUN = {
    "^make ": "creates environments",
    r"^(pip|python3 -m venv|\.|\.venv)": "installs",
    "^(cmake|LLMCTL_KERNELS_LIBRARY=)": "compiles",
    "^ray ": "needs vLLM on several machines",
    "^python benchmarks/": "takes minutes, and needs llama.cpp",
    "^python -c": "is not llmctl",
    "^llmctl bench": "takes minutes: tests/bench",
    "^llmctl doctor": "imports every package in a process of its own: tests/doctor",
    "^llmctl serve": "runs until it is stopped: test_the_clients_of_the_pages_get_answers",
    "^llmctl models rm": "asks on a terminal: tests/hub",
    "^llmctl generate --quiet": "needs a model that can end its JSON: test_a_structured_answer_is_json",
    "--vllm-python": "needs vLLM",
    "flash_attention_2|flash-attention-2": "needs a GPU",
}
LOADS = re.compile(r"llmctl (generate|load|score|chat|plan|prompt)\b")
SHORT = {"LLMCTL_GENERATION__MAX_NEW_TOKENS": "4"}


def exemption(line: str) -> str | None:
    """Return the row of the table that exempts a line."""
    return next((pattern for pattern in NOT_RUN if re.search(pattern, line)), None)


def pages_with_commands() -> list[Any]:
    """Return each page with the commands of it that run.

    A command that loads a model runs if it has a flag or a local model that no earlier one has, or writes a file.
    """
    seen: set[Any] = set()
    rows = []
    for page in GUIDES:
        lines = []
        for line in shell_lines(page):
            if exemption(line) is None and (not LOADS.search(line) or ">" in line or features(line) - seen):
                lines.append(line)
                seen |= features(line)
        if lines:
            rows.append(pytest.param(lines, id=str(page.relative_to(ROOT))))
    return rows


def features(line: str) -> set[Any]:
    """Return the commands of a line, each with each of its flags and local models."""
    return {(*command[:2], word) for command in commands(line) for word in command if re.match(r"-|\./|llmctl", word)}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubStandin]:
    """Serve tiny models under the names of the pages, and an adapter."""
    root = tmp_path_factory.mktemp("hub")
    first = write_model(root / MODELS[0], max_position_embeddings=2048)
    for name in MODELS[1:]:
        shutil.copytree(first, root / name)
    for name in VISION_MODELS:
        build("qwen3_vl", root / name)
    write_lora(root / "org" / "my-lora", outputs=64, inputs=64)
    gated = {"meta-llama/Meta-Llama-3-8B-Instruct": {"gated": "manual", "allow": ["alice"]}}
    (root / "hub.json").write_text(json.dumps({"repos": gated}))
    with HubStandin(root) as standin:
        yield standin


@pytest.fixture
def cache(smollm: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the small model into the Hub's cache, and forbid the network."""
    repo = Path(os.environ["HF_HOME"]) / "hub" / f"models--{DEFAULT.replace('/', '--')}"
    commit = "a" * 40
    folder = repo / "snapshots" / commit
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    try:
        shutil.copytree(smollm, folder, copy_function=os.link)
    except (OSError, shutil.Error):  # another file system
        shutil.copytree(smollm, folder, dirs_exist_ok=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """Return a folder with the files that the commands read."""
    folder = tmp_path / "desk"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    for number, name in enumerate(("cat.png", "before.png", "after.png")):
        picture(number).save(folder / name)
    (folder / "configs").symlink_to(ROOT / "configs")
    for name in ("one", "two"):
        write_lora(folder / name, outputs=64, inputs=64)
    write_model(folder / "my-model")
    return folder


def write_lora(folder: Path, *, outputs: int, inputs: int, base: str = "Qwen/Qwen3-4B") -> None:
    """Write a LoRA for the first query projection."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    weights = {f"{name}.lora_A.weight": (1, inputs), f"{name}.lora_B.weight": (outputs, 1)}
    save_file(
        {key: numpy.ones(shape, numpy.float32) for key, shape in weights.items()}, folder / "adapter_model.safetensors"
    )


def shown(page: str, language: str, start: str = "") -> Block:
    """Return the one block of a page that begins so."""
    [block] = [one for one in blocks(ROOT / "docs" / page, language) if one.text.startswith(start)]
    return block


def without_figures(text: str) -> str:
    """Return text with each measured time, speed or size as 0."""
    return re.sub(r"\d+(\.\d+)? ?(s|tokens/s|MB|GB)\b", r"0 \2", text)


def test_every_exemption_is_needed() -> None:
    assert {exemption(line) for page in GUIDES for line in shell_lines(page)} - {None} == set(NOT_RUN)


@pytest.mark.parametrize("lines", pages_with_commands())
def test_the_commands_of_a_page_run(lines: list[str], hub: HubStandin, desk: Path) -> None:
    env = {**os.environ, **SHORT, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_good"}
    for line in lines:
        own = env if "login" not in line and "whoami" not in line else {**env, "HF_TOKEN": ""}
        done = run_line(line, folder=desk, env=own, stdin="hf_good\n" if line == "llmctl login" else "Hello\n")
        assert (line, done.code, "Traceback" in done.err) == (line, 0, False), done.err


def test_the_first_decisions_of_a_load_are_those_of_the_tutorial(run: Run, tiny_models: Callable[[str], Path]) -> None:
    printed = run("load", "--quant", "4bit", "--model", str(tiny_models("llama"))).stdout
    decided = printed[printed.index("decided") : printed.index("  trust_remote_code")]
    page = shown("tutorial.md", "text", "decided").text
    depends_on_the_processor = re.compile(r"^  (dtype|linear_kernels) .*$", re.MULTILINE)
    assert depends_on_the_processor.sub(r"  \1", decided) == depends_on_the_processor.sub(r"  \1", page)
    assert "bitsandbytes" not in decided


@pytest.mark.smollm
def test_a_structured_answer_is_json(cache: Path, desk: Path) -> None:
    [line] = [line for line in shell_lines(ROOT / "README.md") if line.startswith("llmctl generate --quiet")]
    assert line in shell_lines(ROOT / "docs" / "how-to" / "structured-output.md")
    done = run_line(line, folder=desk, env=dict(os.environ))
    assert (done.code, json.loads(done.out).keys()) == (0, {"age"}), done.err


@pytest.mark.smollm
def test_a_second_turn_computes_the_tokens_that_the_page_of_chat_shows(cache: Path, desk: Path) -> None:
    [line] = [line for line in shell_lines(ROOT / "docs" / "how-to" / "chat.md") if line.startswith("printf")]
    done = run_line(line.removesuffix(" --no-stats"), folder=desk, env=dict(os.environ))
    assert re.findall("Paris|Rome", done.out) == ["Paris", "Rome"]
    assert without_figures(done.err.splitlines()[-1]) == without_figures(shown("how-to/chat.md", "text").text.strip())


@pytest.mark.smollm
def test_the_lines_of_a_batch_are_those_of_its_page(cache: Path, desk: Path) -> None:
    first, second, *_ = FILES["prompts.jsonl"].splitlines()
    (desk / "rows.jsonl").write_text(f"{first}\n{second}\n{{}}\n")
    done = run_line("llmctl generate --input rows.jsonl --quiet", folder=desk, env=dict(os.environ))
    answer, _, error = map(json.loads, done.out.splitlines())
    page = json.loads(shown("how-to/batch.md", "json", '{"id": "q1", "text"').text)
    assert {**answer, "text": "", "key": ""} == {**page, "text": "", "key": ""}
    assert list(answer) == list(page)
    assert error == json.loads(shown("how-to/batch.md", "json", '{"id": 3').text)


def test_an_edited_recording_is_reported_as_on_its_page(hub: HubStandin, desk: Path) -> None:
    env = {**os.environ, "HF_ENDPOINT": hub.url, "LLMCTL_SEED": "7", "LLMCTL_GENERATION__MAX_NEW_TOKENS": "16"}
    first, replay, *_ = shell_lines(ROOT / "docs" / "how-to" / "repeat.md")
    assert run_line(first, folder=desk, env=env).code == 0
    recording = json.loads((desk / "run.json").read_text(encoding="utf-8"))
    recording["completions"][0]["seed"] = 99
    (desk / "run.json").write_text(json.dumps(recording))
    done = run_line(replay, folder=desk, env=env)
    warning, *report = shown("how-to/repeat.md", "text").text.splitlines()
    words = re.compile(r"(then|now)( +)['\"].*")
    assert done.code == 1
    assert warning in done.err.splitlines()
    assert [words.sub(r"\1\2", line) for line in done.out.splitlines()] == [words.sub(r"\1\2", line) for line in report]


@pytest.mark.smollm
def test_an_adapter_of_another_model_is_refused_as_on_its_page(cache: Path, desk: Path) -> None:
    shutil.rmtree(desk / "one")
    write_lora(desk / "one", outputs=4096, inputs=2560)
    done = run_line(f"llmctl load --model {DEFAULT} --adapter ./one", folder=desk, env=dict(os.environ))
    page = " ".join(shown("how-to/adapters.md", "text").text.split())
    assert (done.code, page in " ".join(done.err.split())) == (2, True), done.err


def test_an_unsupported_schema_is_refused_as_on_its_page(run: Run) -> None:
    schema = {"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": True}}}
    done = run("generate", "--prompt", "x", "--json-schema", json.dumps(schema))
    assert (done.returncode, done.stderr) == (2, shown("how-to/structured-output.md", "text").text)


def test_a_machine_is_described_as_on_the_page_of_plan(
    run: Run, tiny_models: Callable[[str], Path], tmp_path: Path
) -> None:
    file = tmp_path / "machine.yaml"
    file.write_text(shown("how-to/plan.md", "text").text)
    done = run("plan", str(tiny_models("llama")), "--machine", str(file))
    assert done.returncode == 0, done.stderr
    assert "25.2 GB" in done.stdout


# -- Python and HTTP


@pytest.fixture(scope="module")
def load(smollm: Path, tiny_models: Callable[[str], Path]) -> Callable[..., llmctl.Model]:
    """Return llmctl.load for every id: a tiny model, or with words that matter the small one. Models are shared."""
    real, loaded = llmctl.load, {}

    def offline(_: str | None = None, *, words: bool, **sections: Any) -> llmctl.Model:
        key = json.dumps([words, sections])
        folder = smollm if words else tiny_models("llama")
        loaded[key] = loaded.get(key) or real(folder, **{"generation": {"max_new_tokens": 32}, **sections})
        return loaded[key]

    return offline


@pytest.mark.smollm
@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("README.md", ["Paris"]),
        ("docs/how-to/python-api.md", ["Paris", "Rome"]),
        ("docs/how-to/structured-output.md", []),
        ("docs/how-to/batch.md", None),
        ("docs/how-to/scores.md", None),
    ],
)
def test_the_python_of_a_page_runs(
    page: str, words: list[str] | None, load: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(llmctl, "load", partial(load, words=words is not None), raising=False)
    names: dict[str, Any] = {"__name__": "example"}
    for block in blocks(ROOT / page, "python"):
        exec(compile(block.text, page, "exec"), names)
    printed = capsys.readouterr().out
    assert [word for word in words or () if word not in printed] == []


def test_the_clients_of_the_pages_get_answers(hub: HubStandin, tmp_path: Path) -> None:
    how_to = ROOT / "docs" / "how-to"
    command, *_ = [line for line in shell_lines(how_to / "serve.md") if line.startswith("llmctl serve")]
    env = {**SHORT, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    with served(*command.split()[2:], **env) as address:
        for page in (how_to / "serve.md", how_to / "serve-tools.md"):
            names: dict[str, Any] = {}
            for block in blocks(page, "python"):
                exec(compile(block.text.replace("http://127.0.0.1:8000", address), str(page), "exec"), names)
            names["client"].close()
        request = urllib.request.Request(f"{address}/v1/chat/completions", data=b" " * 34_000_000)
        request.add_header("Content-Type", "application/json")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=60)
        page_error = json.loads(shown("how-to/serve-securely.md", "json").text)
        assert (refused.value.code, json.loads(refused.value.read())) == (413, page_error)
        refused.value.close()
