"""`llmctl use-token`."""

from llmctl.cli._command import command, new_app
from llmctl.cli._flag import text
from llmctl.cli._options import Options

app = new_app()

NAME = text("NAME", metavar="NAME", help="Name it was stored under", default_text="list the names")


@command(app, NAME, name="use-token")
def use_token(options: Options) -> None:
    """Choose which of the stored tokens is used.

    Examples:

      llmctl use-token

      llmctl use-token work
    """
    from llmctl.hub.login import tokens as store

    output, name = options.output, options[NAME]
    if name is not None:
        store.use_token(name)
    tokens, overriding_variable = store.stored_tokens(), store.overriding_variable()
    if output.as_json:
        listed = [{"name": token.name, "active": token.active} for token in tokens]
        output.document("llmctl.use-token/1", {"tokens": listed, "ruled_by": overriding_variable})
    else:
        for token in tokens:
            output.line(f"{'*' if token.active else ' '} {token.name}")
        if not tokens:
            output.line("no token is stored")
    if overriding_variable:
        output.warn(f"{overriding_variable} is set and takes precedence over the stored tokens")
