"""The table of commands and the error boundary.

A command's module is imported only when that command runs, so that `--help`, `--version` and a mistyped flag never
import torch or transformers.
"""

import errno
import os
import platform
import sys
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand
from typer.exceptions import Abort

from llmctl._version import __version__
from llmctl.cli._command import CONTEXT_SETTINGS, Command, Group, flags_of, write_section
from llmctl.cli._render import Output
from llmctl.cli._streams import StandardOutput, open_closed_streams
from llmctl.errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_NO, EXIT_USER, LlmctlError, MachineError, UserError
from llmctl.synonyms import COMMAND_ADVICE
from llmctl.synonyms import COMMANDS as COMMAND_SYNONYMS


class Entry(NamedTuple):
    """A row of the table of commands.

    Attributes:
        module: The name of its module in this package, imported only when the command runs.
        group: The title of its section in `llmctl --help`.
        summary: The line there, which is also the first line of the command's own help.
    """

    module: str
    group: str
    summary: str


_RUN, _MANAGE, _INSPECT, _ACCOUNT = "Run a model", "Manage models", "Inspect and measure", "Account"
COMMANDS = {
    "generate": Entry("generate", _RUN, "Generate text from a prompt."),
    "run": Entry("run", _RUN, "Answer a prompt with a model, or chat with it."),
    "chat": Entry("chat", _RUN, "Chat with a model on the terminal, without a server."),
    "serve": Entry("serve", _RUN, "Serve a model to OpenAI clients and browsers."),
    "score": Entry("score", _RUN, "Show how likely a text is to a model, or rank several answers."),
    "replay": Entry("replay", _RUN, "Repeat recorded answers and show where they differ."),
    "download": Entry("download", _MANAGE, "Download the files that loading a model needs, and nothing else."),
    "models": Entry("models", _MANAGE, "List, describe and remove cached models."),
    "use": Entry("use", _MANAGE, "Choose the model that commands use by default."),
    "quantize": Entry("quantize", _MANAGE, "Quantise a model once, into a folder that loads without quantising."),
    "plan": Entry("plan", _INSPECT, "Show how a model would run here, before downloading it."),
    "load": Entry("load", _INSPECT, "Load a model and show what was requested, decided and measured."),
    "prompt": Entry("prompt", _INSPECT, "Show a prompt as the model sees it, and its problems."),
    "bench": Entry("bench", _INSPECT, "Measure how fast a model runs here in several configurations."),
    "doctor": Entry("doctor", _INSPECT, "Find what prevents a model from running here, and the fix."),
    "config": Entry("config", _INSPECT, "Show, check and write configuration files."),
    "login": Entry("login", _ACCOUNT, "Store a Hugging Face token after checking it."),
    "logout": Entry("logout", _ACCOUNT, "Delete a stored Hugging Face token."),
    "whoami": Entry("whoami", _ACCOUNT, "Show the owner of the token in use, and its source."),
    "use-token": Entry("use_token", _ACCOUNT, "Choose which of the stored tokens is used."),
}


_NO_SERVICE = "no model stays loaded: each runs as long as its command; these are the models on this machine"


def typer_command(name: str) -> Any:
    """Import a command's module and return Typer's object for the command."""
    command = typer.main.get_command(import_module(f"llmctl.cli.{COMMANDS[name].module}").app)
    command.name = name
    return command


class LazyGroup(Group):
    """The root group: lists commands by their row in the table, and imports one only to run or complete it."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, entry in COMMANDS.items():
            self.add_command(TyperCommand(name, help=entry.summary, rich_markup_mode=None))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        for title in dict.fromkeys(entry.group for entry in COMMANDS.values()):
            rows = [(name, entry.summary) for name, entry in COMMANDS.items() if entry.group == title]
            write_section(formatter, title, rows)
        records = [parameter.get_help_record(ctx) for parameter in self.get_params(ctx)]
        write_section(formatter, "Options", [(name, text.rstrip(".")) for name, text in filter(None, records)])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] == "ps":
            ctx.find_root().obj.note(_NO_SERVICE)
        args = _renamed(args)
        name, listed, rest = super().resolve_command(ctx, args)
        if name is None or listed is None:
            return name, listed, rest
        return name, typer_command(name), rest


def _renamed(words: list[str]) -> list[str]:
    """Return a command line with the command of another tool, of one or two words, replaced by that of llmctl.

    Raises:
        UserError: a command of two words has no counterpart, and its first word alone means something else.
    """
    from llmctl.cli._suggestions import unknown_command

    both = " ".join(words[:2])
    if words[0] in COMMANDS:
        return words
    if both in COMMAND_SYNONYMS:
        return [*COMMAND_SYNONYMS[both], *words[2:]]
    if " " in both and both in COMMAND_ADVICE:
        raise unknown_command(both, COMMANDS)
    return [*COMMAND_SYNONYMS.get(words[0], words[:1]), *words[1:]]


def _version(value: bool) -> None:
    if value:
        print(f"llmctl {__version__}")  # noqa: T201 (data for standard output, before any Output exists)
        raise typer.Exit


_PERMISSIONS = "correct its owner or permissions, or choose another place"
_PLACE = "choose another place"
_LONGEST_PATH = 300  # in a message
# Errors of the system that no change of llmctl would prevent, with the next step.
_REFUSALS = {
    errno.EACCES: _PERMISSIONS,
    errno.EPERM: _PERMISSIONS,
    errno.EROFS: "the file system is read-only: choose another place",
    errno.ENOSPC: "make room on that disk: llmctl models prune",
    errno.EDQUOT: "make room: the quota of this user is used up",
    errno.EFBIG: "a file may not be that large here: see ulimit -f",
    errno.EAGAIN: "this user may not start more processes: see ulimit -u",
    errno.ENOMEM: "close other programs, or allow more memory: see ulimit -v",
    errno.EMFILE: "allow more open files: ulimit -n 4096",
    errno.ENFILE: "too many files are open on this computer: close other programs",
    errno.EIO: "the disk has an error: see its log (dmesg)",
    errno.ENOTDIR: _PLACE,
    errno.ENAMETOOLONG: _PLACE,
    errno.ELOOP: _PLACE,
}

app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT_SETTINGS,
    epilog="Start here: llmctl generate 'What is the capital of France?'",
)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Show the version", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Set up and run large language models on this machine with Hugging Face transformers."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Every error ends here, as one message."""
    arguments = _as_flags(list(sys.argv[1:] if arguments is None else arguments))
    output, stdout = Output(), StandardOutput()
    try:
        open_closed_streams()
        stdout.prepare()
        code = _run(arguments, output, stdout)
    except LlmctlError as error:
        output.error(error)
        return error.exit_code
    except OSError:
        if stdout.failure is None:
            raise
        unwritten = stdout.explain_failure()
        if unwritten is None:
            return EXIT_NO
        output.error(unwritten)
        return unwritten.exit_code
    if stdout.has_escapes:
        name = sys.stdout.encoding
        output.note(f"standard output is {name}: other characters became \\uXXXX; PYTHONIOENCODING=utf-8 keeps them")
    return code


def _as_flags(arguments: list[str]) -> list[str]:
    """Return `help COMMAND` and `version` as the flags that they mean."""
    if arguments[:1] == ["help"]:
        return [*arguments[1:], "--help"]
    return ["--version", *arguments[1:]] if arguments[:1] == ["version"] else arguments


def _run(arguments: Sequence[str], output: Output, stdout: StandardOutput) -> int:
    """Run a command, and turn every exception but a failure of standard output into a message and an exit code."""
    group = typer.main.get_command(app)
    try:
        result = group.main(args=list(arguments), prog_name="llmctl", standalone_mode=False, obj=output)
        sys.stdout.flush()
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
    except Exception as error:
        if stdout.failure is not None and isinstance(error, OSError):
            raise
        if isinstance(error, OSError) and (refusal := _refusal(error)) is not None:
            output.error(refusal)
            if output.debug:
                traceback.print_exc()
            return refusal.exit_code
        return _usage_error(error, arguments, output) or _bug(error, arguments, output)
    if result == EXIT_INTERRUPTED:  # Typer converts the exception to this code
        output.note("interrupted")
    return result if isinstance(result, int) else 0


def _refusal(error: OSError) -> MachineError | None:
    """Return the error for a file that the system refuses, such as one of another user; None for other errors."""
    hint = _REFUSALS.get(error.errno or 0)
    if hint is None:
        return None
    where = f"{str(error.filename)[:_LONGEST_PATH]}: " if error.filename else ""
    details = {"path": str(error.filename)} if error.filename else {}
    return MachineError(f"{where}{error.strerror}", hint=hint, details=details)


def _usage_error(error: Exception, arguments: Sequence[str], output: Output) -> int | None:
    """Report a usage error. Typer's classes for it are private; they all have `format_message`."""
    if not hasattr(error, "format_message"):
        return None
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(error.format_message() + "\n")
        return EXIT_USER
    output.as_json = output.as_json or "--json" in arguments
    command = context.command_path if context is not None else "llmctl"
    output.error(_explained(error, context, command, arguments))
    return EXIT_USER


def _explained(error: Any, context: Any, command: str, arguments: Sequence[str]) -> UserError:
    """Return a usage error of Typer in llmctl's words, with the name that was probably meant."""
    from llmctl.cli._suggestions import misplaced_flag, surplus_argument, unknown_flag

    flags = flags_of(context.command) if isinstance(getattr(context, "command", None), Command) else ()
    option, hint = getattr(error, "option_name", None), f"see: {command} --help"
    if type(error).__name__ == "NoSuchOption":
        if command == "llmctl":
            return misplaced_flag(str(option), COMMANDS, typed=arguments)
        return unknown_flag(str(option), flags, command, typed=arguments)
    message = error.format_message().rstrip(".")
    if "unexpected extra argument" in message:
        hint = surplus_argument(flags, command)
    return UserError(message, hint=hint)


def _bug(error: Exception, arguments: Sequence[str], output: Output) -> int:
    """Report a bug in one line, and write the details to a file."""
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
    try:
        where = log_dir() / f"bug-{now:%Y%m%d-%H%M%S}-{os.getpid()}.log"
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(report, encoding="utf-8", errors="backslashreplace")
        details = f"; details in {where}"
    except (OSError, LlmctlError):
        details = "; --debug shows the details"
    summary = (str(error).strip().splitlines() or [""])[0][:200]
    sys.stderr.write(f"error: this is a bug in llmctl: {type(error).__name__}: {summary}{details}\n")
    if output.debug:
        sys.stderr.write(report)
    return EXIT_BUG


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
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
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def run() -> None:
    """Run the console script."""
    sys.exit(main())
