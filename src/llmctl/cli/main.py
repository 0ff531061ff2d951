"""The table of commands and the one error boundary.

A command's module is imported only when that command runs, so `--help`, `--version` and a mistyped flag never pay for
torch or transformers.
"""

import os
import platform
import sys
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import Abort

from llmctl._version import __version__
from llmctl.cli._command import CONTEXT_SETTINGS, SHARED_OPTIONS
from llmctl.cli._render import Output
from llmctl.errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_USER, LlmctlError, UserError

# name -> (module, the line that `llmctl --help` shows). The module's own help begins with the same line (tested).
COMMANDS = {
    "login": ("llmctl.cli.login", "Store a Hugging Face token, after checking it."),
    "logout": ("llmctl.cli.logout", "Forget a stored Hugging Face token."),
    "whoami": ("llmctl.cli.whoami", "Show whose token is in use and where it comes from."),
    "use-token": ("llmctl.cli.use_token", "Choose which of the stored tokens is in use."),
    "download": ("llmctl.cli.download", "Download what loading a model needs, and nothing else."),
    "models": ("llmctl.cli.models", "List, describe and remove models of the cache."),
    "use": ("llmctl.cli.use", "Choose the model that commands use when none is named."),
    "plan": ("llmctl.cli.plan", "Show how a model would run here, before anything is downloaded."),
    "load": ("llmctl.cli.load", "Load a model; show what was asked, decided and measured."),
    "generate": ("llmctl.cli.generate", "Generate text from a prompt."),
    "score": ("llmctl.cli.score", "Show how likely a model thinks a text, or which of several answers."),
    "replay": ("llmctl.cli.replay", "Run recorded answers again, and say where they differ."),
    "chat": ("llmctl.cli.chat", "Talk with a model, without a server."),
    "serve": ("llmctl.cli.serve", "Serve a model to OpenAI clients and browsers."),
    "quantize": ("llmctl.cli.quantize", "Quantise a model once, into a folder that loads anywhere."),
    "bench": ("llmctl.cli.bench", "Measure how fast configurations run a model here, side by side."),
    "doctor": ("llmctl.cli.doctor", "Find what is in the way of running a model here, and the command that mends it."),
    "prompt": ("llmctl.cli.prompt", "Show a prompt as the model sees it, and what is wrong with it."),
    "config": ("llmctl.cli.config", "Show, check and write configuration files."),
}


class LazyGroup(TyperGroup):
    """The root group: lists commands by their line in the table, and imports one only to run or complete it."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, (_, summary) in COMMANDS.items():
            self.add_command(TyperCommand(name, help=summary, rich_markup_mode=None))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, listed, rest = super().resolve_command(ctx, args)
        if name is None or listed is None:
            return name, listed, rest
        command = typer.main.get_command(import_module(COMMANDS[name][0]).app)
        command.name = name
        return name, command, rest


def _version(value: bool) -> None:
    if value:
        print(f"llmctl {__version__}")  # noqa: T201 (data for standard output, before any Output exists)
        raise typer.Exit


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT_SETTINGS,
    epilog="Start here: llmctl generate --prompt 'What is the capital of France?'",
)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Show the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Set up and run large language models on this machine with Hugging Face transformers."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Every error ends here, as one message."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    output = Output()
    group = typer.main.get_command(app)
    try:
        result = group.main(args=arguments, prog_name="llmctl", standalone_mode=False, obj=output)
    except LlmctlError as error:
        output.error(error)
        if output.debug:
            traceback.print_exc()
        return error.exit_code
    except Abort:
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        output.note("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BUG if output.debug else 1
    except Exception as error:  # noqa: BLE001 (the boundary: whatever is left is a bug, reported as one)
        return _usage_error(error, arguments, output) or _bug(error, arguments, output)
    if result == EXIT_INTERRUPTED:  # Typer turns the exception into this code
        output.note("interrupted")
    return result if isinstance(result, int) else 0


def _usage_error(error: Exception, arguments: Sequence[str], output: Output) -> int | None:
    """Report a mistake on the command line. Typer's classes for it are private; its contract is `format_message`."""
    if not hasattr(error, "format_message"):
        return None
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(error.format_message() + "\n")
        return EXIT_USER
    output.as_json = output.as_json or "--json" in arguments
    command = context.command_path if context is not None else "llmctl"
    hint = f"see: {command} --help"
    option = getattr(error, "option_name", None)
    if option in SHARED_OPTIONS and command == "llmctl":
        hint = f"{option} goes after the command: llmctl load {option}"
    output.error(UserError(error.format_message().rstrip("."), hint=hint))
    return EXIT_USER


def _bug(error: Exception, arguments: Sequence[str], output: Output) -> int:
    """Report a bug in one line, and leave what a report of it needs in a file."""
    from llmctl.paths import log_dir

    now = datetime.now(UTC)
    report = "\n".join(
        [
            f"llmctl {__version__}, Python {platform.python_version()}, {platform.platform()}, {now.isoformat()}",
            f"command: {arguments[0] if arguments else ''}",
            *(f"{name} {version}" for name, version in _versions().items()),
            "".join(traceback.format_exception(error)),
        ]
    )
    where = log_dir() / f"bug-{now:%Y%m%d-%H%M%S}-{os.getpid()}.log"
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(report, encoding="utf-8")
        place = f"; details in {where}"
    except OSError:
        place = "; details with --debug"
    summary = (str(error).strip().splitlines() or [""])[0][:200]
    sys.stderr.write(f"error: this is a bug in llmctl: {type(error).__name__}: {summary}{place}\n")
    if output.debug:
        sys.stderr.write(report)
    return EXIT_BUG


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in (
        "transformers",
        "torch",
        "accelerate",
        "bitsandbytes",
        "huggingface_hub",
        "safetensors",
        "typer",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def run() -> None:
    """The console script."""
    sys.exit(main())
