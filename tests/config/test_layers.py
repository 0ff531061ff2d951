"""The layers of a configuration: every problem at once, and the right precedence."""

from pathlib import Path

import pytest

from llmctl.config import read_settings, settings_from_mapping
from llmctl.config.last_model import remember_model
from llmctl.config.layers import Entry, read_only_file
from llmctl.errors import ConfigError
from llmctl.paths import config_file

BAD = """\
model:
  id: acme/tiny
  revison: main
generation:
  max_new_tokens: lots
  top_p: 1.5
quantisation:
  bits: 4
"""


def problems_of(text: str, tmp_path: Path) -> list[tuple[str, str, str]]:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_only_file(file)
    return [(p.where.removeprefix(str(file)), p.key, p.message) for p in caught.value.problems]


def test_reports_every_problem_at_once_with_lines_and_what_was_meant(tmp_path: Path) -> None:
    assert problems_of(BAD, tmp_path) == [
        (":3", "model.revison", "unknown key; did you mean model.revision?"),
        (":5", "generation.max_new_tokens", "must be a valid integer, it is 'lots'"),
        (":6", "generation.top_p", "must be at most 1, it is 1.5"),
        (":7", "quantisation", "unknown section; did you mean quantization?"),
    ]


@pytest.mark.parametrize(
    ("text", "line", "key", "words"),
    [
        ("seed: 1\nseed: 2\n", ":2", "seed", "given twice, first on line 1"),
        ("load:\n  dtype: floaty16\n", ":2", "load.dtype", "did you mean float16?"),
        ("load:\n  device_map: gpu\n", ":2", "load.device_map", "use auto, cpu, cuda"),
        ("load:\n  device_map: {model: disk}\n", ":2", "load.device_map", "not disk"),
        ("load:\n  max_memory: {0: plenty}\n", ":2", "load.max_memory", "not a size such as 20GiB"),
        (
            "quantization:\n  load_in_4bit: true\n",
            ":2",
            "quantization.load_in_4bit",
            "did you mean quantization.bits: 4bit?",
        ),
        ("temperature: 1\n", ":1", "temperature", "did you mean generation.temperature?"),
        ("model: acme/tiny\n", ":1", "model", "this is a section"),
        ("model:\n  use_safetensors: false\n", ":2", "model.use_safetensors", "pickled weights can run code"),
        ("seed: -1\n", ":1", "seed", "must be at least 0"),
        ("- a\n", ":1", "", "must be a mapping of sections"),
        ("a: [1\n", ":2", "", "not YAML"),
    ],
)
def test_names_the_line_and_the_remedy(text: str, line: str, key: str, words: str, tmp_path: Path) -> None:
    [(where, found, message)] = problems_of(text, tmp_path)
    assert (where, found) == (line, key)
    assert words in message


def test_a_missing_file_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_settings(config=tmp_path / "none.yaml", environ={}, folder=tmp_path)


def test_an_empty_file_and_empty_sections_mean_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("model:\ngeneration:\n")
    assert read_only_file(file).config == settings_from_mapping({}).config


def test_later_layers_win_and_each_value_knows_its_layer(tmp_path: Path) -> None:
    config_file().parent.mkdir(parents=True)
    config_file().write_text("seed: 1\nload:\n  dtype: fp32\n  attn_implementation: eager\ndeterministic: true\n")
    (tmp_path / "llmctl.yaml").write_text("seed: 2\nload:\n  dtype: fp16\n")
    extra = tmp_path / "extra.yaml"
    extra.write_text("seed: 3\ngeneration:\n  top_k: 5\n")
    settings = read_settings(
        config=extra,
        environ={"LLMCTL_SEED": "4", "LLMCTL_GENERATION__TOP_K": "6", "PATH": "/bin"},
        flags={"seed": Entry("5", "--seed")},
        assignments=["generation.top_k=7"],
        folder=tmp_path,
    )
    config = settings.config
    assert (config.seed, settings.origin("seed")) == (5, "--seed")
    assert (config.generation.top_k, settings.origin("generation.top_k")) == (7, "--set")
    assert (config.load.dtype, settings.origin("load.dtype")) == ("float16", f"{tmp_path / 'llmctl.yaml'}:3")
    assert settings.origin("deterministic") == f"{config_file()}:5"
    assert settings.origin("load.device_map") == "default"


def test_every_file_overrides_the_remembered_model_and_its_revision(tmp_path: Path) -> None:
    remember_model("acme/old", revision="v1", how="download")
    remembered = read_settings(environ={}, folder=tmp_path).config.model
    assert (remembered.id, remembered.revision) == ("acme/old", "v1")
    (tmp_path / "llmctl.yaml").write_text("model:\n  id: acme/new\n")
    chosen = read_settings(environ={}, folder=tmp_path).config.model
    assert (chosen.id, chosen.revision) == ("acme/new", None)


def test_an_unknown_llmctl_variable_is_a_problem_and_another_variable_is_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings(environ={"LLMCTL_SEDE": "1", "SEDE": "1"}, folder=tmp_path)
    [problem] = caught.value.problems
    assert (problem.where, problem.key) == ("LLMCTL_SEDE", "sede")
    assert "did you mean seed?" in problem.message


def test_the_problems_of_all_layers_come_together(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(BAD)
    with pytest.raises(ConfigError) as caught:
        read_settings(config=file, environ={"LLMCTL_SEED": "x"}, assignments=["nonsense"], folder=tmp_path)
    assert {p.where.partition(":")[0] for p in caught.value.problems} >= {str(file), "LLMCTL_SEED", "--set nonsense"}
    assert len(caught.value.problems) == 6


def test_text_keys_take_their_value_as_text_and_others_as_yaml(tmp_path: Path) -> None:
    settings = read_settings(
        environ={},
        folder=tmp_path,
        assignments=[
            "chat.system=yes",
            "generation.stop_strings=[a, b]",
            "load.max_memory={0: 20GiB, cpu: 48GiB}",
            "quantization.bits=4bit",
            "generation.temperature=1e-1",
            "model.revision=1234567",
        ],
    )
    config = settings.config
    assert config.chat.system == "yes"
    assert config.generation.stop_strings == ["a", "b"]
    assert config.load.max_memory == {0: "20GiB", "cpu": "48GiB"}
    assert config.quantization.bits == 4
    assert config.generation.temperature == pytest.approx(0.1)
    assert config.model.revision == "1234567"


def test_a_relative_folder_in_a_file_is_relative_to_that_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "here.yaml"
    file.write_text("model:\n  id: ../weights\nchat:\n  template: mine.jinja\n")
    config = read_only_file(file).config
    assert config.model.id == str(tmp_path / "weights")
    assert config.chat.template == str(tmp_path / "sub" / "mine.jinja")


@pytest.mark.parametrize(
    ("written", "meant"),
    [("bf16", "bfloat16"), ("half", "float16"), ("fp32", "float32"), ("torch.bfloat16", "bfloat16")],
)
def test_the_usual_short_names_of_dtypes_work(written: str, meant: str) -> None:
    assert settings_from_mapping({"load": {"dtype": written}}).config.load.dtype == meant


def test_python_values_are_checked_like_a_file() -> None:
    with pytest.raises(ConfigError, match=r"generation\.temprature.*did you mean generation\.temperature"):
        settings_from_mapping({"generation": {"temprature": 1}})


def test_the_starter_file_is_valid_and_changes_nothing(tmp_path: Path) -> None:
    from llmctl.config.document import starter_file
    from llmctl.config.schema import all_keys

    file = tmp_path / "llmctl.yaml"
    file.write_text(starter_file())
    settings = read_only_file(file)
    assert settings.config == settings_from_mapping({}).config
    # and with every key switched on it is still the same configuration
    words = {part for key in all_keys() for part in key.split(".")}
    said = [line.replace("# ", "", 1) for line in starter_file().splitlines()]
    file.write_text("\n".join(s for s in said if ":" in s and s.partition(":")[0].strip() in words))
    assert read_only_file(file).config == settings_from_mapping({}).config
    assert len(read_only_file(file).origins) == len(all_keys())
