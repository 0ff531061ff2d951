"""`llmctl use-token`."""

from typing import Annotated

import typer

from llmctl.cli._command import Command, new_app
from llmctl.cli._render import Output

app = new_app()


@app.command("use-token", cls=Command)
def use_token(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="The name it was stored under. Without it: list the names.")
    ] = None,
) -> None:
    """Choose which of the stored tokens is in use.

    Examples:

      llmctl use-token

      llmctl use-token work
    """
    from llmctl.hub import auth

    output: Output = ctx.obj
    if name is not None:
        auth.use_token(name)
    tokens, ruling = auth.stored_tokens(), auth.ruling_variable()
    if output.as_json:
        listed = [{"name": token.name, "active": token.active} for token in tokens]
        output.document("llmctl.use-token/1", {"tokens": listed, "ruled_by": ruling})
    else:
        for token in tokens:
            output.line(f"{'*' if token.active else ' '} {token.name}")
        if not tokens:
            output.line("no token is stored")
    if ruling:
        output.warn(f"{ruling} is set and goes before the stored tokens")
