"""The decorator that turns a function into a command, and the Typer classes that show its help in groups.

A command module makes `app = new_app(...)` and decorates one function per command with `@command(app, …)`, which names
the groups and flags that it takes. The function gets one `Options` object. Help is plain, because rich would double
the start-up time.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from llmctl.cli._flag import Flag, by_group
from llmctl.cli._flags import select
from llmctl.cli._options import Options
from llmctl.cli._render import Output
from llmctl.cli._suggestions import check_single_dash, unknown_command
from llmctl.errors import UserError
from llmctl.hub.environment import check_imports, drop_empty
from llmctl.paths import state_dir
from llmctl.synonyms import COMMANDS
from llmctl.text_files import NotTextError, as_utf8

CONTEXT_SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    "token_normalize_func": lambda name: name.replace("_", "-"),  # --top_k is --top-k
}
NAMES_WIDTH = 26  # columns for names; longer ones get their own line
HELP_ROW = ("-h, --help", "Show this message and exit")
_FIELDS = {"json": "as_json", "quiet": "quiet", "verbose": "verbose", "debug": "debug", "no_color": "no_color"}


def new_app(*, help: str | None = None, group: bool = False) -> typer.Typer:
    """Return a Typer application; `group` for one with subcommands."""
    return typer.Typer(
        help=help,
        cls=Group,
        no_args_is_help=group,
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings=CONTEXT_SETTINGS,
    )


def command(
    app: typer.Typer, *flags: str | Flag[Any], name: str | None = None, group: str = "", reports_faults: bool = False
) -> Callable[[Callable[[Options], None]], Callable[[Options], None]]:
    """Register a function as a command of `app`.

    Args:
        flags: Titles of groups, long names of rows of the table, and flags that only this command has.
        name: The command's name; by default the function's.
        group: The name of the command that it is a subcommand of.
        reports_faults: True for a command that runs with faulty environment variables, and reports them.
    """

    def register(function: Callable[[Options], None]) -> Callable[[Options], None]:
        taken = select(*flags, "Output", command=f"{group} {name or function.__name__}".strip())

        def run(ctx: typer.Context, **values: Any) -> None:
            output = ctx.find_root().obj
            assert isinstance(output, Output)  # noqa: S101 (made by main)
            for parameter, field in _FIELDS.items():
                setattr(output, field, values[parameter])
            _check_folders()
            drop_empty(os.environ)
            if not reports_faults:
                check_imports()
            options = Options(output, taken, _as_texts(taken, values))
            options.check_combinations()
            function(options)

        context = Parameter("ctx", Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        spelled = {name for flag in taken for name in flag.spellings}
        run.__signature__ = Signature([context, *(flag.signature(spelled) for flag in taken)])  # type: ignore[attr-defined]
        run.__doc__, run.__name__ = function.__doc__, function.__name__
        run.flags = taken  # type: ignore[attr-defined]
        app.command(name, cls=Command)(run)
        return function

    return register


def flags_of(shown: Any) -> tuple[Flag[Any], ...]:
    """Return the flags of a command, given Typer's object for it."""
    flags: tuple[Flag[Any], ...] = shown.callback.flags
    return flags


def _as_texts(flags: Sequence[Flag[Any]], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with texts whose bytes the locale does not know read as UTF-8. Paths keep their bytes.

    Raises:
        UserError: one of them is not UTF-8.
    """
    texts = dict(values)
    for flag in flags:
        value = values[flag.parameter]
        try:
            if isinstance(value, str):
                texts[flag.parameter] = as_utf8(value)
            elif isinstance(value, list):
                texts[flag.parameter] = [as_utf8(one) if isinstance(one, str) else one for one in value]
        except NotTextError as error:
            raise UserError(f"{flag.long}: {error}", hint="give it in a file, or correct it") from None
    return texts


def _check_folders() -> None:
    """Raise UserError if the current folder is gone, or LLMCTL_HOME is not a path.

    torch ends the process if it is loaded from a deleted folder.
    """
    state_dir()
    try:
        Path.cwd()
    except OSError as error:
        raise UserError(
            f"the current folder has been deleted, or cannot be read: {error.strerror}", hint="go to another one: cd"
        ) from None


class Command(TyperCommand):
    """A command whose help has one section for each group of flags."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        check_single_dash(args, flags_of(self), ctx.command_path)
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Return the completions without the names that only other tools have."""
        shown = {name for flag in flags_of(self) if not flag.is_hidden for name in flag.spellings}
        items = super().shell_complete(ctx, incomplete)
        return [item for item in items if not item.value.startswith("-") or item.value in {*shown, "-h", "--help"}]

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[OPTIONS]", *(flag.spelling() for flag in flags_of(self) if flag.is_argument)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        all_flags = flags_of(self)
        width = max(len(flag.spelling()) for flag in all_flags if not flag.is_hidden)  # one width for all sections
        for title, flags in by_group(all_flags):
            rows = [(flag.spelling().ljust(min(width, NAMES_WIDTH)), flag.description()) for flag in flags]
            write_section(formatter, title, [*rows, HELP_ROW] if title == "Output" else rows)


class Group(TyperGroup):
    """A group whose help shows the whole first line of each command, wrapped instead of cut."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands:
            ctx.find_root().obj.as_json |= "--json" in args
            args = [self._named(args[0], ctx), *args[1:]]
        return super().resolve_command(ctx, args)

    def _named(self, typed: str, ctx: Any) -> str:
        """Return the command that a name of another tool means here: `models ls` is `models list`.

        Raises:
            UserError: there is no such command.
        """
        name = COMMANDS.get(typed, (typed,))[-1].replace("_", "-")
        if name not in self.commands and not name.startswith("-"):
            group, top = ctx.command_path.partition(" ")[2], ctx.find_root().command.commands
            raise unknown_command(typed, self.commands, group=group, top=top if group else ())
        return name

    def format_options(self, ctx: Any, formatter: Any) -> None:
        write_section(formatter, "Options", [HELP_ROW])
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = [(name, (command.help or "").partition("\n")[0]) for name, command in self.commands.items()]
        write_section(formatter, "Commands", rows)


def write_section(formatter: Any, title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Write a section of the help: names on the left, wrapped descriptions on the right."""
    with formatter.section(title):
        formatter.write_dl(rows, col_max=NAMES_WIDTH)
