"""The documentation says what the code does: generated pages are current, command lines parse, links lead somewhere."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from llmctl.cli._chat_commands import COMMANDS as CHAT_COMMANDS
from llmctl.cli._command import flags_of
from llmctl.cli._options import Options
from llmctl.cli._render import Output
from llmctl.cli.main import COMMANDS, app, typer_command
from llmctl.config.layers import read_only_file
from llmctl.errors import ConfigError
from support.pages import CONFIGS, PAGES, ROOT, blocks, commands, llmctl_calls, shell_lines, without_blocks

_INLINE = re.compile(r"`(llmctl [^`]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
# Other programs than llmctl in the shell blocks
_PROGRAMS = {
    ".",
    "cat",
    "chmod",
    "cmake",
    "echo",
    "jq",
    "ls",
    "make",
    "ninja",
    "pip",
    "printf",
    "python",
    "python3",
    "qemu-aarch64",
    "ray",
}


def generator() -> ModuleType:
    """docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mentions(page: Path) -> list[str]:
    """The commands that the running text names, as in `llmctl use MODEL`."""
    return _INLINE.findall(without_blocks(page))


def parse(words: list[str]) -> str:
    """Parse arguments as the command line would, without running anything. Returns the command's name.

    Raises Typer's own error for a command, an option or a value that does not exist, and llmctl's for a value that the
    schema refuses, or for flags that exclude each other.
    """
    root: Any = typer.main.get_command(app)
    if words[0].startswith("-"):
        root.make_parser(root.make_context("llmctl", [], resilient_parsing=True)).parse_args(list(words))
        return "llmctl"
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        raise LookupError(f"llmctl has no command {name}")
    command: Any = typer_command(name)
    inner = getattr(command, "commands", None)
    if inner is not None and rest and not rest[0].startswith("-"):
        if rest[0] not in inner:
            raise LookupError(f"llmctl {name} has no command {rest[0]}")
        name, command, rest = f"{name} {rest[0]}", inner[rest[0]], rest[1:]
    if {"-h", "--help"} & set(rest):
        return name
    values = command.make_context(name, list(rest)).params
    options = Options(Output(), flags_of(command), values)
    options.check_combinations()
    file = values.get("config")
    if isinstance(file, Path) and not file.is_absolute():
        values["config"] = ROOT / file if (ROOT / file).is_file() else None
    options.settings()
    return name


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_generated_pages_are_up_to_date() -> None:
    assert [path.name for path in generator().outdated()] == [], "run: make docs"


def test_a_changed_page_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = generator()
    monkeypatch.setattr(module, "REFERENCE", tmp_path)
    assert module.main([]) == 0
    assert module.main(["--check"]) == 0
    page = tmp_path / "commands.md"
    page.write_text(page.read_text(encoding="utf-8") + "more\n", encoding="utf-8")
    assert module.main(["--check"]) == 1


def test_every_key_and_every_command_has_its_place_in_the_reference() -> None:
    from llmctl.config.schema import all_keys

    configuration = (ROOT / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    commands = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    assert [key for key in all_keys() if f"`LLMCTL_{key.upper().replace('.', '__')}`" not in configuration] == []
    assert [name for name in COMMANDS if f"\n## llmctl {name}" not in commands] == []


@pytest.mark.parametrize("page", [*PAGES, *CONFIGS], ids=label)
def test_every_command_line_parses(page: Path) -> None:
    wrong = []
    for line in shell_lines(page):
        unknown = {words[0] for words in commands(line) if words} - _PROGRAMS - {"llmctl"}
        wrong += [f"{line}: {name}" for name in unknown if not name.startswith(".venv")]
        try:
            for words in llmctl_calls(line):
                parse(words)
        except Exception as error:  # noqa: BLE001 (Typer's errors are private; all of them mean the same here)
            wrong.append(f"{line}: {error}")
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_commands_named_in_the_text_exist(page: Path) -> None:
    wrong = [text for text in mentions(page) if not all(map(_is_named_right, llmctl_calls(text)))]
    assert wrong == []


def _is_named_right(words: list[str]) -> bool:
    """Whether the command exists, and its options; what it is given may be left away in running text."""
    if words[0].startswith("-"):
        return bool(parse(words))
    if words[0] not in COMMANDS:
        return False
    command: Any = typer_command(words[0])
    inner = getattr(command, "commands", {})
    if len(words) > 1 and inner:
        command = inner.get(words[1])
        if command is None:
            return False
    known = {name for parameter in command.params for name in parameter.opts} | {"-h", "--help"}
    return all(word in known for word in words[1:] if word.startswith("-"))


def test_there_are_command_lines_to_check() -> None:
    assert len(shell_lines(ROOT / "README.md")) >= 10
    assert all(len(shell_lines(config)) >= 2 for config in CONFIGS)


@pytest.mark.parametrize(
    "line",
    [
        "llmctl generate --promt hello",
        "llmctl gnerate --prompt hello",
        "llmctl config shw",
        "llmctl generate --num-return zero",
        "llmctl config validate",
        "cat x | llmctl generate --quant 5bit > y",
        'ls "$(llmctl models pth Qwen/Qwen3-4B)"',
        "llmctl generate --set generation.temperatur=1 --prompt hello",
        "llmctl generate --prompt-template '{text}' --prompt hello",
    ],
)
def test_a_wrong_command_line_does_not_parse(line: str) -> None:
    [words] = llmctl_calls(line)
    with pytest.raises(Exception, match=r"[Nn]o such|no command|a valid integer|Missing|must be|unknown key|only with"):
        parse(words)


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_every_link_leads_to_a_file(page: Path) -> None:
    targets = [target.partition("#")[0] for target in _LINK.findall(page.read_text(encoding="utf-8"))]
    local = [target for target in targets if target and "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_yaml_examples_are_valid_configurations(tmp_path: Path) -> None:
    examples = [block for page in PAGES for block in blocks(page, "yaml")]
    for number, block in enumerate(examples):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block.text, encoding="utf-8")
        read_only_file(file)
    assert len(examples) >= 10


def test_json_examples_are_json() -> None:
    examples = [json.loads(block.text) for page in PAGES for block in blocks(page, "json")]
    assert len(examples) >= 5


def test_every_block_has_a_language_that_is_checked() -> None:
    wrong = [
        f"{label(page)}:{block.line}: {block.language}"
        for page in PAGES
        for block in blocks(page)
        if block.language not in ("sh", "python", "yaml", "json", "text")
    ]
    assert wrong == []


def test_the_error_in_the_readme_equals_the_printed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("llmctl.yaml").write_text("load:\n  dtpye: bf16\ngeneration:\n  temperature: -1\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_only_file(Path("llmctl.yaml"))
    printed = f"error: {caught.value.message}\n  {caught.value.hint}\n"
    assert printed in (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_examples_use_names_that_exist() -> None:
    import llmctl

    used = set()
    for block in (block for page in PAGES for block in blocks(page, "python")):
        compile(block.text, str(block.page), "exec")
        used |= set(re.findall(r"llmctl\.(\w+)", block.text))
    assert used
    assert used <= set(llmctl.__all__)


def test_the_table_of_chat_has_every_command() -> None:
    page = (ROOT / "docs" / "how-to" / "chat.md").read_text(encoding="utf-8")
    rows = "".join(re.findall(r"^\| (`/.*?) \|", page, re.MULTILINE))
    named = set(re.findall(r"/\w+(?: \[?[A-Z]+\]?(?: VALUE)?)?", rows)) - {"/bye", "/quit"}
    assert named == {f"{name} {entry.arguments}".strip() for name, entry in CHAT_COMMANDS.items()}


def test_no_page_advises_a_structure_without_an_end() -> None:
    flags = re.compile(r"--(?:regex|grammar) (?:'([^']*)'|\"([^\"]*)\"|(\S+))")
    values = [value for page in PAGES for found in flags.findall(page.read_text(encoding="utf-8")) for value in found]
    assert [value for value in values if re.search(r"[])\w.][+*]", value)] == []
    assert len(list(filter(None, values))) >= 2


def test_the_picture_shows_an_answer_and_no_path_of_the_machine_it_was_made_on() -> None:
    svg = (ROOT / "docs" / "images" / "run.svg").read_text(encoding="utf-8")
    assert "Paris" in svg
    text = "".join(re.findall(r">([^<]*)</text>", svg)).replace("&#160;", " ")
    assert not re.search(r"(^|\s)/(home|tmp|root|work|Users|usr)\b", text)
    assert "http" not in svg.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "quantization         llmctl 4-bit (asked for" in text, "run: python docs/picture.py"
    assert "requested" in text
    assert "bitsandbytes" not in text
