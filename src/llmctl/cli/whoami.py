"""`llmctl whoami`."""

import typer

from llmctl.cli._command import Command, new_app
from llmctl.cli._render import Output

app = new_app()


@app.command(cls=Command)
def whoami(ctx: typer.Context) -> None:
    """Show whose token is in use and where it comes from.

    Examples:

      llmctl whoami
    """
    from llmctl.hub import auth

    output: Output = ctx.obj
    account = auth.whoami()
    if output.as_json:
        body = {"name": account.name, "token_name": account.token_name, "role": account.role}
        output.document(
            "llmctl.whoami/1", {**body, "source": account.source, "organizations": list(account.organizations)}
        )
        return
    output.line(account.name)
    kind = f" ({account.role})" if account.role else ""
    output.note(f"token {account.token_name}{kind}, from {account.source}")
    if account.organizations:
        output.note(f"organisations: {', '.join(account.organizations)}")
