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
            "llmctl.logout/1", {"forgotten": list(result.forgotten), "still_ruled_by": result.overriding_variable}
        )
    else:
        output.line(f"forgotten: {', '.join(result.forgotten)}" if result.forgotten else "no token was stored")
    if result.overriding_variable:
        output.warn(
            f"{result.overriding_variable} is set and its token is still in use: unset {result.overriding_variable}"
        )
