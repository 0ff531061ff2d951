"""`llmctl login`."""

import getpass
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.cli._command import Command, new_app
from llmctl.cli._render import Output, visible
from llmctl.errors import UserError

if TYPE_CHECKING:
    from llmctl.hub.auth import Account

app = new_app()


@app.command(cls=Command)
def login(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Keep the token under this name, beside others.", show_default=False),
    ] = None,
    git_credential: Annotated[
        bool, typer.Option("--git-credential", help="Hand the token to git's credential helper as well.")
    ] = False,
) -> None:
    """Store a Hugging Face token, after checking it.

    Asks for the token without showing it, or goes through the browser. Without a terminal it reads standard input,
    or takes HF_TOKEN where nothing is there to read.

    Examples:

      llmctl login

      llmctl login --name work < token.txt
    """
    from llmctl.hub import auth
    from llmctl.hub.http import bound_other_calls

    bound_other_calls()
    output: Output = ctx.obj
    token = _given_token(output) if sys.stdin.isatty() else _piped_token()
    if token is None:
        account = _through_browser(name=name, git_credential=git_credential)
    else:
        account = auth.login(token, name=name, add_to_git_credential=git_credential)
    ruling = auth.ruling_variable()
    _show(output, account, ruling if ruling and auth.environment_token() != token else None)


def _show(output: Output, account: "Account", ruling: str | None) -> None:
    if output.as_json:
        body = {"name": account.name, "token_name": account.token_name, "role": account.role, "stored": account.source}
        output.document("llmctl.login/1", {**body, "ruled_by": ruling})
    else:
        kind = f", {account.role}" if account.role else ""
        output.line(f"logged in as {account.name} (token {account.token_name}{kind}), stored in {account.source}")
    if ruling:
        output.warn(f"{ruling} is set and goes before the stored token; unset it to use the one just stored")


def _piped_token() -> str:
    from llmctl.hub import auth

    token = sys.stdin.read().strip() or auth.environment_token()
    if not token:
        raise UserError(
            "no token came through standard input, and HF_TOKEN is not set",
            hint="llmctl login < FILE, or run llmctl login on a terminal",
        )
    return token


def _given_token(output: Output) -> str | None:
    """The token that a person gives on the terminal, or None for the browser."""
    from llmctl.hub import auth, browser, settings

    present = auth.environment_token()
    if present:
        sys.stderr.write(f"{auth.ruling_variable()} is set. Store that token? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return present
    output.note(f"tokens are made at {settings.tokens_page()}")
    choice = " (or press Enter to log in with a browser)" if browser.is_offered() else ""
    token = getpass.getpass(f"Token, not shown{choice}: ").strip()
    if not token and not browser.is_offered():
        raise UserError("no token was given", hint="run it again and paste one")
    return token or None


def _through_browser(*, name: str | None, git_credential: bool) -> "Account":
    from llmctl.hub import browser

    def show(address: str, code: str) -> None:
        sys.stderr.write(visible(f"Open {address} in a browser and enter the code {code}") + "\n")

    return browser.login(show, name=name, add_to_git_credential=git_credential)
