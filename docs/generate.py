"""Write docs/reference/ from the code: `python docs/generate.py`, or `--check` to fail when a page is out of date."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from llmctl.cli._command import flags_of
from llmctl.cli._flag import Flag, by_group
from llmctl.cli.main import COMMANDS, app, typer_command
from llmctl.config.document import Row, reference_rows
from llmctl.config.layers import ENVIRONMENT_PREFIX
from llmctl.config.schema import sections
from llmctl.model.generation_fields import FIELDS
from llmctl.server.chat_body import ChatBody
from llmctl.server.fields import Body
from llmctl.server.fields import rows as field_rows
from llmctl.server.response_body import ResponseBody
from llmctl.server.routes.completions import CompletionBody
from llmctl.server.routes.tokenizer import DetokenizeBody, TokenizeBody

REFERENCE = Path(__file__).resolve().parent / "reference"
_MADE = "<!-- Made by docs/generate.py from the code. Change the code, then run: make docs -->"

_LAYERS = """
A configuration has layers. For each key, a later layer takes precedence:

1. the defaults below
2. the model that `llmctl download` or `llmctl use` remembered
3. the user's file, `config.yaml` in llmctl's configuration folder (`~/.config/llmctl` on Linux)
4. `llmctl.yaml` in the current folder
5. the file of `--config FILE`
6. environment variables: `LLMCTL_SECTION__KEY`, with two underscores after the section
7. flags, and `--set section.key=value` for any key (`--set` takes precedence over a flag)

A layer that names a model drops the revision and the adapters that a lower layer gave to another model. A layer that
sets a structure drops the structure of a lower layer. Unknown keys, wrong types and values out of bounds are errors in
every layer; all of them are reported together, with file and line. Values of variables and of `--set` are read as YAML,
unless the key takes text.

Names that other tools use are accepted where they mean exactly the same, inside the section of the key:
`generation.stop` is `generation.stop_strings`, `load.torch_dtype` is `load.dtype`, `--num-predict` is
`--max-new-tokens`. The error for any other name says what to write.

YAML is read for the key where it stands. A key that takes text gets what was written: `choices: [yes, no]` and
`revision: 1.10` need no quotes. A value that YAML 1.1 and 1.2 read differently (`010`, `1:30`; `no` where any value is
allowed) is an error. Files may be UTF-8, with or without a byte order mark, or UTF-16.

`LLMCTL_MODEL` is short for `LLMCTL_MODEL__ID`. `LLMCTL_HOME` is not a key: it names one folder for all files of llmctl,
instead of the platform's separate folders.

```sh
llmctl config show --all
llmctl config validate llmctl.yaml
llmctl config init
llmctl config schema > llmctl.schema.json
```
""".strip()

_GENERATION = """
A model's author can set defaults for generation in generation_config.json (in older models, in config.json). llmctl
reads the file once and checks every value. A value acts the same on every path (`generate`, batches, `chat`, `serve`,
in every dtype), or is left out. A key of the [section `generation`](configuration.md) or a flag takes precedence.

* Numbers and truth values may be written as text: `"0.7"` is 0.7.
* A value that is not usable (a wrong type, out of bounds, not finite, a token that the model does not have) is left
  out. In a list, only such items are.
* `do_sample: true` with `temperature: 0` is greedy.
* With a structured answer, `stop_strings`, `no_repeat_ngram_size`, `min_new_tokens` and `min_length` of the model are
  left out, because they could break the structure.
* A file that is not JSON, or larger than 1 MB, is left out as a whole.

Every command names what it left out if that can change answers. `llmctl load` and `llmctl generate --verbose` show
every setting in use with its origin, and everything left out with the reason; with `--json`, `generation` has the
same.
""".strip()
_USES = {
    "always": "Used",
    "sampling": "Used for sampling",
    "beams": "Used for beam search (generation.num_beams)",
    "draft": "Used if the model is a draft",
    "left out": "Left out",
    "no effect": "Without effect",
}
_REQUESTS = """
`llmctl serve` answers each field of a request in one of three ways. Nothing that a client asks for is dropped silently:

* **honoured**
* **no effect**: accepted, because it asks for nothing that could change an answer
* **refused**: an error 400 with the field in `param` and `unsupported_parameter` as `code`. `null` is accepted, and so
  are values that ask for nothing, such as the defaults of OpenAI's and vLLM's APIs

Any other key is an error 400, too, with `unknown_parameter` as `code` and the closest field in the message. In this
table, `[]` stands for each item of a list.
""".strip()
_BODIES: dict[str, type[Body]] = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/v1/responses": ResponseBody,
    "/tokenize": TokenizeBody,
    "/detokenize": DetokenizeBody,
}


def pages() -> dict[Path, str]:
    """Return the generated pages by path."""
    return {
        REFERENCE / "commands.md": commands_page(),
        REFERENCE / "configuration.md": configuration_page(),
        REFERENCE / "generation-config.md": generation_config_page(),
        REFERENCE / "requests.md": requests_page(),
    }


def outdated() -> list[Path]:
    """Return the pages that differ from the generated ones."""
    return [path for path, text in pages().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]


def configuration_page() -> str:
    """Return the page of keys: default, values, environment variable and meaning."""
    lines = ["# Configuration", "", _MADE, "", _LAYERS, ""]
    rows = reference_rows()
    named = sections()
    for section in ["", *named]:
        about = named[section].__doc__ if section else "Keys outside the sections."
        lines += [f"## {section or 'Top level'}", "", str(about), "", *_key_table(section, rows), ""]
    return "\n".join(lines)


def generation_config_page() -> str:
    """Return the page of the fields of generation_config.json: the use of each."""
    lines = ["# The model's generation_config.json", "", _MADE, "", _GENERATION, ""]
    for use, title in _USES.items():
        rows = [_table_row(f"`{name}`", field.reason) for name, field in FIELDS.items() if field.use == use]
        lines += [f"## {title}", "", *_table_head("setting", "meaning, or reason"), *rows, ""]
    return "\n".join(lines)


def _key_table(section: str, rows: Sequence[Row]) -> Iterator[str]:
    yield from _table_head("key", "default", "values", "variable", "meaning")
    for row in rows:
        owner, _, inner = row.key.rpartition(".")
        if owner == section:
            variable = ENVIRONMENT_PREFIX + row.key.upper().replace(".", "__")
            yield _table_row(f"`{inner}`", f"`{row.default}`", row.values, f"`{variable}`", row.meaning)


def requests_page() -> str:
    """Return the page of request fields: a table for each route."""
    lines = ["# Requests", "", _MADE, "", _REQUESTS, ""]
    for path, body in _BODIES.items():
        lines += [f"## {path}", "", *_table_head("field", "kind", "explanation")]
        for row in field_rows(body):
            accepted = f" (accepted: `{row.accepted}`)" if row.accepted else ""
            lines.append(_table_row(f"`{row.path}`", row.kind, f"{row.explanation}{accepted}"))
        lines.append("")
    return "\n".join(lines)


def commands_page() -> str:
    """Return the page of commands: usage, examples, and a table of flags for each."""
    commands = dict(real_commands())
    output = [flag for flag in flags_of(commands["llmctl generate"]) if flag.group == "Output"]
    lines = ["# Commands", "", _MADE, "", "## llmctl", "", *_root_options()]
    lines += ["", "Every command also takes `--help` and:", "", *_flag_table(output)]
    for name, shown in commands.items():
        lines += ["", f"## {name}", "", *_about(shown), "", *_usage(shown, name)]
        own = [flag for flag in flags_of(shown) if flag.group != "Output"]
        lines += ["", *_flag_table(own)] if own else []
    return "\n".join([*lines, ""])


def real_commands() -> Iterator[tuple[str, Any]]:
    """Yield every command, subcommands included, as (`llmctl config show`, Typer's object)."""
    for name in COMMANDS:
        command = typer_command(name)
        inner = getattr(command, "commands", None)
        if inner is None:
            yield f"llmctl {name}", command
        for inner_name, inner_command in (inner or {}).items():
            yield f"llmctl {name} {inner_name}", inner_command


def _root_options() -> Iterator[str]:
    root: Any = typer.main.get_command(app)
    context = root.make_context("llmctl", [], resilient_parsing=True)
    records = [parameter.get_help_record(context) for parameter in root.get_params(context)]
    rows = [_table_row(f"`{name}`", " ".join(text.split()).rstrip(".")) for name, text in filter(None, records)]
    yield from (*_table_head("option", "meaning"), *rows)


def _flag_table(flags: Sequence[Flag[Any]]) -> Iterator[str]:
    """Yield a table of flags in groups, with the configuration key that each sets."""
    yield from _table_head("group", "option", "meaning", "key")
    for title, rows in by_group(flags):
        for flag in rows:
            key = f"`{flag.key}`" if flag.key else ""
            yield _table_row(title, f"`{flag.spelling()}`", flag.description(), key)


def _about(command: Any) -> Iterator[str]:
    """Yield the text of the docstring, with its examples in one block of code."""
    examples: list[str] = []
    paragraphs: list[str] = []
    for paragraph in (command.help or "").split("\n\n"):
        if paragraph.startswith("  "):
            examples.append(paragraph.strip())
        elif paragraph.strip() not in ("Example:", "Examples:"):
            paragraphs.append(" ".join(paragraph.split()))
    yield "\n\n".join(paragraphs)
    if examples:
        yield from ("", "```sh", *examples, "```")


def _usage(command: Any, name: str) -> Iterator[str]:
    context = command.make_context(name, [], resilient_parsing=True)
    yield "```text"
    yield " ".join([name, *command.collect_usage_pieces(context)])
    yield "```"


def _table_head(*names: str) -> tuple[str, str]:
    return _table_row(*names), _table_row(*("---" for _ in names))


def _table_row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or with `--check` compare them and return 1 if one differs."""
    if list(arguments) == ["--check"]:
        different = outdated()
        for path in different:
            print(f"{path.name} is out of date: run docs/generate.py", file=sys.stderr)
        return 1 if different else 0
    for path, text in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
