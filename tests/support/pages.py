"""The examples of the documentation: blocks of code in a page, and the commands of its shell blocks."""

import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from support import forkserver

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
PAGES = sorted(
    [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")] + list((ROOT / "docs").rglob("*.md"))
)
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
# the words with which a shell separates commands
_PIPE, _REDIRECTIONS, _AND = "|", ("<", ">"), "&&"


@dataclass(frozen=True)
class Block:
    """A block of code of a page.

    Attributes:
        language: The word after the fence.
        text: The code, without the indentation of the block.
        line: Line number of its first line.
    """

    page: Path
    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Done:
    """The end of a command line: the exit code of its last command, and the texts of all."""

    code: int
    out: str
    err: str


def blocks(page: Path, language: str = "") -> Iterator[Block]:
    """Yield the blocks of a page in a language, or all of them."""
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        if language in ("", match[2]):
            line = text.count("\n", 0, match.start()) + 2
            yield Block(page, match[2], textwrap.dedent(match[3]), line)


def without_blocks(page: Path) -> str:
    """Return the running text of a page."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def shell_lines(page: Path) -> list[str]:
    """Return the lines of a page's shell blocks, and of a configuration's header, without their comments."""
    if page.suffix == ".yaml":
        lines = page.read_text(encoding="utf-8").splitlines()
        return [line.removeprefix("#").strip() for line in lines if re.match(r"#   \w", line)]
    text = "\n".join(block.text for block in blocks(page, "sh"))
    return [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def commands(line: str) -> list[list[str]]:
    """Return the commands of a line as words, without variables, pipes and redirections."""
    found = []
    for stage in (stage for words in _split(_words(line), _AND) for stage in _split(words, _PIPE)):
        words = stage[: next((at for at, word in enumerate(stage) if word in _REDIRECTIONS), len(stage))]
        inner = [word for word in words if word.startswith("$(")]
        found += [shlex.split(word[2:-1]) for word in inner]
        found.append([word for at, word in enumerate(words) if at or not re.match(r"[A-Z_]+=", word)])
    return found


def llmctl_calls(line: str) -> list[list[str]]:
    """Return the arguments of each call of llmctl in a line."""
    return [rest for program, *rest in filter(None, commands(line)) if program == "llmctl"]


def run_line(line: str, *, folder: Path, env: Mapping[str, str], stdin: str = "") -> Done:
    """Run a line of shell: `llmctl` in forked processes, programs of the system as they are.

    Args:
        stdin: Standard input of the first command.
    """
    done = Done(0, stdin, "")
    for words in _split(_words(line), _AND):
        done = Done(0, stdin, done.err)
        for stage in _split(words, _PIPE):
            done = _run_stage(stage, done, folder, env)
        if done.code:
            break
    return done


def _run_stage(words: list[str], before: Done, folder: Path, env: Mapping[str, str]) -> Done:
    arguments, out_to, given = list(words), None, before.out
    while len(arguments) > 2 and arguments[-2] in _REDIRECTIONS:
        *arguments, mark, name = arguments
        if mark == "<":
            given = (folder / name).read_text(encoding="utf-8")
        else:
            out_to = folder / name
    program, *rest = arguments
    if program == "llmctl":
        ended = forkserver.run(*rest, stdin=given, env=env, cwd=folder)
    else:
        program = sys.executable if program == "python" else shutil.which(program) or program
        ended = subprocess.run(
            [program, *rest], input=given, env=env, cwd=folder, capture_output=True, text=True, check=False
        )
    if out_to:
        out_to.write_text(ended.stdout, encoding="utf-8")
    return Done(ended.returncode or before.code, "" if out_to else ended.stdout, before.err + ended.stderr)


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|<>&")
    lexer.whitespace_split = True
    return list(lexer)


def _split(words: list[str], at: str) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word == at:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts
