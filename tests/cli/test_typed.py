"""Habits of other tools work: prompts and models without flags, other names of flags and commands."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmctl.cli.main import COMMANDS, main, typer_command
from llmctl.synonyms import COMMAND_ADVICE
from llmctl.synonyms import COMMANDS as COMMAND_SYNONYMS

Run = Callable[..., Any]


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, tuple[Any, str]]:
    """Return the keys that flags set, with their origins."""
    assert main(["config", "show", "--json", *arguments]) == 0
    values = json.loads(capsys.readouterr().out)["values"]
    return {key: (entry["value"], entry["from"]) for key, entry in values.items()}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        (("--device", "cpu"), "load.device_map", "cpu"),
        (("--cpu",), "load.device_map", "cpu"),
        (("--load-in-4bit",), "quantization.bits", 4),
        (("--load_in_8bit",), "quantization.bits", 8),
        (("--quantize=4bit",), "quantization.bits", 4),
        (("--torch-dtype", "bf16"), "load.dtype", "bfloat16"),
        (("--fp16",), "load.dtype", "float16"),
        (("--lora", "acme/a"), "model.adapters", [{"id": "acme/a", "revision": None, "scale": 1.0}]),
    ],
)
def test_a_flag_has_the_names_of_other_tools(
    arguments: tuple[str, ...], key: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(capsys, *arguments)[key][0] == value


def test_a_prompt_and_sampling_flags_as_other_tools_have_them(run: Run, tiny_models: Callable[[str], Path]) -> None:
    model = str(tiny_models("llama"))
    common = ("--model", model, "--json", "--seed", "3")
    sampling = ("--temp", "0.9", "--top_k", "5", "--min-p", "0.1", "--repeat-penalty", "1.1", "--num-predict", "4")
    done = run("generate", "the capital", *common, *sampling, "--stream")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["prompt"] == "the capital"
    assert document["completions"][0]["completion_tokens"] <= 4
    settings = {name: entry["value"] for name, entry in document["generation"]["settings"].items()}
    assert {name: settings[name] for name in ("temperature", "top_k", "min_p", "repetition_penalty")} == {
        "temperature": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1,
    }  # fmt: skip
    same = run(
        "generate", "--prompt", "the capital", *common, "--temperature", "0.9", "--top-k", "5", "--min-p", "0.1",
        "--repetition-penalty", "1.1", "--max-tokens", "4",
    )  # fmt: skip
    assert json.loads(same.stdout)["completions"][0]["token_ids"] == document["completions"][0]["token_ids"]


def test_run_answers_a_prompt_and_chats_without_one(run: Run, tiny_models: Callable[[str], Path]) -> None:
    model = str(tiny_models("llama"))
    answered = run("run", model, "the capital", "-n", "3")
    assert answered.returncode == 0, answered.stderr
    piped = run("run", model, "-n", "3", stdin="the capital")
    assert piped.stdout == answered.stdout


@pytest.mark.parametrize("command", ["chat", "run", "serve", "load", "plan", "bench", "score", "quantize", "doctor"])
def test_a_model_can_be_given_with_or_without_its_flag(command: str) -> None:
    names = {flag.long for flag in typer_command(command).callback.flags}
    assert {"MODEL", "--model"} <= names


def test_commands_of_other_tools_run_those_of_llmctl(run: Run, tiny_models: Callable[[str], Path]) -> None:
    listed = run("models", "list", "--json").stdout
    assert run("ls", "--json").stdout == run("list", "--json").stdout == run("models", "ls", "--json").stdout == listed
    service = run("ps", "--json")
    assert service.stdout == listed
    assert "as long as its command" in service.stderr
    for words in (("pull",), ("rm",), ("show",), ("models", "show")):
        refused = run(*words)
        assert refused.returncode == 2
        assert "No such command" not in refused.stderr


def test_a_shell_completes_only_the_names_in_the_help() -> None:
    command = typer_command("generate")
    with command.make_context("generate", ["x"], resilient_parsing=True) as context:
        found = {item.value for item in command.shell_complete(context, "--te")}
        device = {item.value for item in command.shell_complete(context, "--dev")}
    assert found == {"--temperature", "--template"}
    assert device == {"--device", "--device-map"}


def test_help_and_version_are_commands_too(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*arguments: str) -> str:
        assert main(arguments) == 0
        return capsys.readouterr().out

    assert printed("help", "models", "rm") == printed("models", "rm", "--help")
    assert printed("version") == printed("--version")


def test_no_name_of_another_tool_hides_a_command_or_leads_to_none() -> None:
    assert not {*COMMAND_SYNONYMS, *COMMAND_ADVICE} & COMMANDS.keys()
    for command, *inner in COMMAND_SYNONYMS.values():
        assert set(inner) <= getattr(typer_command(command), "commands", {}).keys()


def test_a_file_in_the_current_folder_is_announced_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "llmctl.yaml").write_text("seed: 5\n")
    assert shown_error(capsys).count("llmctl.yaml in the current folder") == 1
    (tmp_path / "llmctl.yaml").write_text("# nothing\n")
    assert "current folder" not in shown_error(capsys)


def shown_error(capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["config", "show"]) == 0
    return capsys.readouterr().err


def test_serve_names_its_extra_before_anything_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "fastapi" else real(name, *a))
    assert main(["serve", "./nowhere", "--port", "0"]) == 3
    assert "llmctl-hf[serve]" in capsys.readouterr().err


def test_a_model_chosen_with_use_exists(run: Run, tmp_path: Path) -> None:
    (tmp_path / "work" / "empty").mkdir()
    assert run("use", "nothere/x").returncode == 4
    assert run("use", "./empty").returncode == 2
    assert "none chosen" in run("use").stdout


@pytest.mark.parametrize(
    ("typed", "command"),
    [
        (("scan-cache", "--json"), ("models", "list", "--json")),
        (("cache", "ls", "--json"), ("models", "list", "--json")),
        (("model", "list", "--json"), ("models", "list", "--json")),
        (("auth", "login", "--help"), ("login", "--help")),
        (("server", "start", "--help"), ("serve", "--help")),
    ],
)
def test_a_command_of_one_or_two_words_of_another_tool_runs(
    typed: tuple[str, ...], command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(arguments: tuple[str, ...]) -> str:
        assert main(arguments) == 0
        return capsys.readouterr().out

    assert printed(typed) == printed(command)


def test_letters_after_one_dash_are_a_name_of_llama_cpp_only_where_a_flag_can_stand(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["generate", "x", "-n", "5", "-ngl", "99"]) == 2
    assert "layers go to the GPU" in capsys.readouterr().err
    assert main(["config", "show", "--model", "-fa"]) == 0, "a value may look like a flag"
    assert "-fa" in capsys.readouterr().out


def test_a_temperature_that_is_a_number_of_threads_elsewhere_is_warned_about(run: Run) -> None:
    usual = run("generate", "x", "-t", "2", "--model", "./none")
    assert "nearly random" not in usual.stderr
    warned = run("generate", "x", "-t", "8", "--model", "./none")
    assert "temperature of 8, text is nearly random; -t is not the number of threads" in warned.stderr
