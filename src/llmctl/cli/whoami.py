"""`llmctl whoami`."""

from llmctl.cli._command import command, new_app
from llmctl.cli._options import Options

app = new_app()


@command(app)
def whoami(options: Options) -> None:
    """Show the owner of the token in use, and its source.

    Examples:

      llmctl whoami
    """

    from llmctl.hub.login import account as accounts

    output = options.output
    account = accounts.whoami()
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
