"""`llmctl logout`."""

from typing import Annotated

import typer

from llmctl.cli._command import Command, new_app
from llmctl.cli._render import Output

app = new_app()


@app.command(cls=Command)
def logout(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Option("--name", help="Forget only the token of this name.", show_default=False)
    ] = None,
) -> None:
    """Forget a stored Hugging Face token.

    Examples:

      llmctl logout

      llmctl logout --name work
    """
    from llmctl.hub import auth

    output: Output = ctx.obj
    done = auth.logout(name=name)
    if output.as_json:
        output.document("llmctl.logout/1", {"forgotten": list(done.forgotten), "still_ruled_by": done.still_ruled_by})
    else:
        output.line(f"forgotten: {', '.join(done.forgotten)}" if done.forgotten else "no token was stored")
    if done.still_ruled_by:
        output.warn(f"{done.still_ruled_by} is set and its token is still used: unset {done.still_ruled_by}")
