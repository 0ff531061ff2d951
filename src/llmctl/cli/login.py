"""`llmctl login`."""

import getpass
import sys
from typing import TYPE_CHECKING

from llmctl.cli._command import command, new_app
from llmctl.cli._flag import switch, text
from llmctl.cli._options import Options
from llmctl.cli._render import Output, visible
from llmctl.cli._text_input import read_stdin
from llmctl.errors import UserError

if TYPE_CHECKING:
    from llmctl.hub.login.account import Account

app = new_app()

NAME = text("--name", help="Store the token under this name, beside others", default_text="the token's own")
GIT_CREDENTIAL = switch("--git-credential", help="Store the token in git's credential helper as well")


@command(app, NAME, GIT_CREDENTIAL)
def login(options: Options) -> None:
    """Store a Hugging Face token after checking it.

    The command asks for the token without showing it, or logs in with a browser. Without a terminal it reads standard
    input, or HF_TOKEN if standard input is empty.

    Examples:

      llmctl login

      llmctl login --name work < token.txt
    """
    from llmctl.hub.http import bound_other_calls
    from llmctl.hub.login import tokens
    from llmctl.hub.login.account import login as login_with_token

    bound_other_calls()
    output, name, git_credential = options.output, options[NAME], options[GIT_CREDENTIAL]
    token = _given_token(output) if sys.stdin.isatty() else _piped_token()
    if token is None:
        account = _through_browser(name=name, git_credential=git_credential)
    else:
        account = login_with_token(token, name=name, add_to_git_credential=git_credential)
    overriding_variable = tokens.overriding_variable()
    _show(output, account, overriding_variable if overriding_variable and tokens.environment_token() != token else None)


def _show(output: Output, account: "Account", overriding_variable: str | None) -> None:
    if output.as_json:
        body = {"name": account.name, "token_name": account.token_name, "role": account.role, "stored": account.source}
        output.document("llmctl.login/1", {**body, "ruled_by": overriding_variable})
    else:
        kind = f", {account.role}" if account.role else ""
        output.line(f"logged in as {account.name} (token {account.token_name}{kind}), stored in {account.source}")
    if overriding_variable:
        output.warn(f"{overriding_variable} is set and takes precedence; unset it to use the token just stored")


def _piped_token() -> str:
    from llmctl.hub.login import tokens

    token = read_stdin().strip() or tokens.environment_token()
    if not token:
        raise UserError(
            "no token came through standard input, and HF_TOKEN is not set",
            hint="llmctl login < FILE, or run llmctl login on a terminal",
        )
    return token


def _given_token(output: Output) -> str | None:
    """Return the token typed on the terminal, or None to log in with a browser."""
    from llmctl.hub import settings
    from llmctl.hub.login import browser, tokens

    present = tokens.environment_token()
    if present:
        sys.stderr.write(f"{tokens.overriding_variable()} is set. Store that token? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return present
    output.note(f"create a token at {settings.tokens_page()}")
    choice = " (or press Enter to log in with a browser)" if browser.is_offered() else ""
    token = getpass.getpass(f"Token, not shown{choice}: ").strip()
    if not token and not browser.is_offered():
        raise UserError("no token was given", hint="run it again and paste one")
    return token or None


def _through_browser(*, name: str | None, git_credential: bool) -> "Account":
    from llmctl.hub.login import browser

    def show(address: str, code: str) -> None:
        sys.stderr.write(visible(f"Open {address} in a browser and enter the code {code}") + "\n")

    return browser.login(show, name=name, add_to_git_credential=git_credential)
