"""The documentation says what the code does: generated pages are current, command lines parse, links lead somewhere."""

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from llmctl.cli.main import COMMANDS, app, typer_command
from llmctl.config.layers import read_only_file
from llmctl.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
PAGES = sorted(
    [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")] + list((ROOT / "docs").rglob("*.md"))
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(llmctl [^`]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
# what a shell takes before or after a command
_BEFORE, _AFTER = re.compile(r"^.*?(?=\bllmctl )"), {"|", ">", "<", "&&", ">>", "2>"}


def generator() -> ModuleType:
    """docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shell_lines(page: Path) -> list[str]:
    """The lines of a page's shell examples, and of a configuration's header, that call llmctl."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".yaml":
        return [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#   llmctl ")]
    blocks = [body for language, body in _FENCE.findall(text) if language == "sh"]
    fenced = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in fenced if re.search(r"(^|[|&] |[A-Z_]+=\S+ )llmctl ", line)]


def mentions(page: Path) -> list[str]:
    """The commands that the running text names, as in `llmctl use MODEL`."""
    return _INLINE.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))


def words_of(line: str) -> list[str]:
    """The arguments of the llmctl call inside a line of shell."""
    words = shlex.split(_BEFORE.sub("", line), comments=True)
    end = next((place for place, word in enumerate(words) if word in _AFTER), len(words))
    assert words[0] == "llmctl"
    return words[1:end]


def parse(words: list[str]) -> str:
    """Parse arguments as the command line would, without running anything. Returns the command's name.

    Raises Typer's own error for a command, an option or a value that does not exist.
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
    command.make_context(name, list(rest))
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
        try:
            parse(words_of(line))
        except Exception as error:  # noqa: BLE001 (Typer's errors are private; all of them mean the same here)
            wrong.append(f"{line}: {error}")
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_commands_named_in_the_text_exist(page: Path) -> None:
    wrong = [text for text in mentions(page) if not _is_named_right(words_of(text))]
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
    ],
)
def test_a_wrong_command_line_does_not_parse(line: str) -> None:
    with pytest.raises(Exception, match=r"[Nn]o such|no command|a valid integer|Missing"):
        parse(words_of(line))


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_every_link_leads_to_a_file(page: Path) -> None:
    targets = [target.partition("#")[0] for target in _LINK.findall(page.read_text(encoding="utf-8"))]
    local = [target for target in targets if target and "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_yaml_examples_are_valid_configurations(tmp_path: Path) -> None:
    found = 0
    for page in PAGES:
        for language, body in _FENCE.findall(page.read_text(encoding="utf-8")):
            if language == "yaml":
                file = tmp_path / f"{found}.yaml"
                file.write_text(body, encoding="utf-8")
                read_only_file(file)
                found += 1
    assert found >= 2


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
    for page in PAGES:
        for language, body in _FENCE.findall(page.read_text(encoding="utf-8")):
            if language == "python":
                compile(body, str(page), "exec")
                used |= set(re.findall(r"llmctl\.(\w+)", body))
    assert used
    assert used <= set(llmctl.__all__)


def test_the_picture_shows_an_answer_and_no_path_of_the_machine_it_was_made_on() -> None:
    svg = (ROOT / "docs" / "images" / "run.svg").read_text(encoding="utf-8")
    assert "Paris" in svg
    text = "".join(re.findall(r">([^<]*)</text>", svg)).replace("&#160;", " ")
    assert not re.search(r"(^|\s)/(home|tmp|root|work|Users|usr)\b", text)
    assert "http" not in svg.replace('xmlns="http://www.w3.org/2000/svg"', "")
