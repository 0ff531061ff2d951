"""Options that every command has, and the Typer classes that carry them.

A command module makes `app = new_app(...)` and declares its command with `cls=Command`; `--json`, `--quiet`,
`--verbose`, `--debug` and `--no-color` are then its own and are recorded in the `Output` that `ctx.obj` holds.
"""

from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from llmctl.cli._render import Output

SHARED_OPTIONS = ("--json", "--quiet", "-q", "--verbose", "-v", "--debug", "--no-color")
CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def new_app(*, help: str | None = None, group: bool = False) -> typer.Typer:
    """A Typer application in this project's manner: `-h`, plain help (rich would double the start-up time)."""
    return typer.Typer(
        help=help,
        cls=Group,
        no_args_is_help=group,
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings=CONTEXT_SETTINGS,
    )


class Group(TyperGroup):
    """A group whose help shows the whole first line of each command, wrapped instead of cut."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = [(name, (command.help or "").partition("\n")[0]) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _record(ctx: typer.Context, param: Any, value: Any) -> Any:
    output = ctx.find_root().obj
    if value is not None and isinstance(output, Output):
        setattr(output, param.name, value)
    return value


def _shared_parameters() -> list[Any]:
    """The shared options, as the parameter objects that a command holds."""
    carrier = typer.Typer(add_completion=False, rich_markup_mode=None)

    @carrier.command(add_help_option=False)
    def _carry(
        as_json: Annotated[
            bool | None,
            typer.Option("--json", help="One JSON document on standard output.", callback=_record, expose_value=False),
        ] = None,
        quiet: Annotated[
            bool | None,
            typer.Option("--quiet", "-q", help="Only the result.", callback=_record, expose_value=False),
        ] = None,
        verbose: Annotated[
            bool | None,
            typer.Option("--verbose", "-v", help="Every decision and step.", callback=_record, expose_value=False),
        ] = None,
        debug: Annotated[
            bool | None,
            typer.Option(
                "--debug",
                help="Show the traceback of an error, and the libraries' own messages.",
                callback=_record,
                expose_value=False,
            ),
        ] = None,
        no_color: Annotated[
            bool | None,
            typer.Option(
                "--no-color",
                help="No colours (NO_COLOR does the same).",
                callback=_record,
                expose_value=False,
            ),
        ] = None,
    ) -> None:
        raise AssertionError("only its parameters are used")

    return [p for p in typer.main.get_command(carrier).params if p.name != "help"]


class Command(TyperCommand):
    """A command with the shared options added after its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(_shared_parameters())
