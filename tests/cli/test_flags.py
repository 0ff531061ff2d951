"""The table of flags: its rows name real keys, belong to commands, and reach the configuration and `/set`."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmctl.cli._command import flags_of
from llmctl.cli._flag import Flag
from llmctl.cli._flags import FLAGS, generation_keys
from llmctl.cli.main import COMMANDS, main, typer_command
from llmctl.config.schema import all_keys


def commands() -> dict[str, tuple[Flag[Any], ...]]:
    """Return the flags of every command, subcommands included."""
    found = {}
    for name in COMMANDS:
        shown = typer_command(name)
        inner = getattr(shown, "commands", None) or {"": shown}
        found |= {
            f"{name} {inner_name}".strip(): flags_of(inner_command) for inner_name, inner_command in inner.items()
        }
    return found


def test_every_row_names_a_key_of_the_schema_and_belongs_to_a_command() -> None:
    assert [flag.long for flag in FLAGS if flag.key is not None and flag.key not in all_keys()] == []
    taken = {flag for flags in commands().values() for flag in flags}
    assert [flag.long for flag in FLAGS if flag not in taken] == []


def test_no_command_has_two_flags_of_the_same_name() -> None:
    for command, flags in commands().items():
        names = [part for flag in flags for name in flag.names for part in name.split("/")]
        assert [name for name in set(names) if names.count(name) > 1] == [], command


def test_a_flag_that_needs_or_excludes_another_names_one_that_exists() -> None:
    every = {flag.long for flags in commands().values() for flag in flags}
    for flags in commands().values():
        names = {flag.long for flag in flags}
        assert [flag.long for flag in flags if flag.needs is not None and flag.needs not in names] == []
        assert [name for flag in flags for name in flag.excludes if name not in every] == []


def test_set_in_a_conversation_takes_the_names_of_flags_and_of_keys() -> None:
    keys = generation_keys()
    assert keys["max-new-tokens"] == keys["max_new_tokens"] == "max_new_tokens"
    assert (keys["stop"], keys["seed"], keys["prompt-lookup"]) == ("stop_strings", "seed", "prompt_lookup_num_tokens")


def test_a_flag_sets_its_key_and_is_named_as_the_origin(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", "acme/tiny", "--quant", "4bit", "--no-quant-cache", "--seed", "7", "--set", "engine=vllm"]
    assert main(["config", "show", "--json", *arguments]) == 0
    values = json.loads(capsys.readouterr().out)["values"]
    assert {key: (entry["value"], entry["from"]) for key, entry in values.items()} == {
        "model.id": ("acme/tiny", "--model"),
        "quantization.bits": (4, "--quant"),
        "quantization.cache": (False, "--quant-cache"),
        "engine": ("vllm", "--set"),
        "seed": (7, "--seed"),
    }
