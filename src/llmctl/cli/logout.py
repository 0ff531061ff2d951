"""`llmctl logout`."""

from llmctl.cli._command import command, new_app
from llmctl.cli._flag import text
from llmctl.cli._options import Options

app = new_app()

NAME = text("--name", help="Forget only the token of this name", default_text="all tokens")


@command(app, NAME)
def logout(options: Options) -> None:
    """Delete a stored Hugging Face token.

    Examples:

      llmctl logout

      llmctl logout --name work
    """

    from llmctl.hub.login import tokens

    output = options.output
    result = tokens.logout(name=options[NAME])
    if output.as_json:
        output.document(
            "llmctl.logout/1", {"forgotten": list(result.forgotten), "still_ruled_by": result.still_ruled_by}
        )
    else:
        output.line(f"forgotten: {', '.join(result.forgotten)}" if result.forgotten else "no token was stored")
    if result.still_ruled_by:
        output.warn(f"{result.still_ruled_by} is set and its token is still in use: unset {result.still_ruled_by}")
