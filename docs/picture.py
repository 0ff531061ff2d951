"""Draw docs/images/run.svg: run llmctl on a terminal of its own and keep what it showed."""

import io
import os
import re
import sys
from pathlib import Path

import pexpect
from rich.console import Console
from rich.text import Text

IMAGE = Path(__file__).resolve().parent / "images" / "run.svg"
HOME = IMAGE.parents[2] / ".demo"  # the small model of the tests, and no model that a user has chosen
COLUMNS = 112
RUNS = (
    ["generate", "--prompt", "What is the capital of France?"],
    ["load", "--quant", "4bit"],
)
# Colours stay; what moves the cursor, and the frames of the waiting mark that it paints over, go.
_FRAME = re.compile(r"(\x1b\[[\d;]*m)*[\u2800-\u28ff](\x1b\[[\d;]*m)* loading [^\r\n\x1b]*")
_MOVES = re.compile(r"\x1b\[[?\d;]*[A-Za-ln-z]|\r")

# rich's own page without the fonts that it would fetch from elsewhere
PAGE = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def shown_by(arguments: list[str]) -> str:
    """What `llmctl ARGUMENTS` leaves on a terminal, with its colours."""
    program = str(Path(sys.executable).with_name("llmctl"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LLMCTL_", "HF_"))}
    environment |= {"TERM": "xterm-256color", "HF_HUB_OFFLINE": "1", "HF_HOME": str(HOME), "LLMCTL_HOME": str(HOME)}
    raw, status = pexpect.run(
        f"{program} {' '.join(quoted(argument) for argument in arguments)}",
        withexitstatus=True,
        timeout=300,
        env=environment,
        dimensions=(40, COLUMNS),
    )
    text = _MOVES.sub("", _FRAME.sub("", raw.decode("utf-8")))
    if status != 0:
        raise SystemExit(f"llmctl {arguments[0]} ended with {status}:\n{text}")
    return "\n".join(line for line in text.split("\n") if line.strip())


def quoted(argument: str) -> str:
    """An argument as a person types it."""
    return f'"{argument}"' if " " in argument else argument


def main() -> int:
    """Run the commands and write the picture."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for number, arguments in enumerate(RUNS):
        command = " ".join(["llmctl", *map(quoted, arguments)])
        console.print(Text(("\n" if number else "") + f"$ {command}", style="bold"))
        console.print(Text.from_ansi(shown_by(arguments)))
    svg = console.export_svg(title="llmctl", code_format=PAGE, unique_id="llmctl")
    IMAGE.parent.mkdir(parents=True, exist_ok=True)
    IMAGE.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
