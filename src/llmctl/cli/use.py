"""`llmctl use`."""

from pathlib import Path
from typing import Annotated

import typer

from llmctl.cli._command import Command, new_app
from llmctl.cli._render import Output
from llmctl.config.last_model import current_model, forget_model, remember_model
from llmctl.errors import UserError

app = new_app()


@app.command(cls=Command)
def use(
    ctx: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="A Hub id (org/name) or a folder. Without it: show the choice.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="A branch, a tag or a commit of it.", show_default=False)
    ] = None,
    forget: Annotated[bool, typer.Option("--forget", help="Go back to the small default model.")] = False,
) -> None:
    """Choose the model that commands use when none is named.

    Examples:

      llmctl use Qwen/Qwen3-4B

      llmctl use ./my-model
    """
    output: Output = ctx.obj
    if forget:
        forget_model()
    elif model:
        remember_model(_known(model), revision=revision, how="use")
    current = current_model()
    if output.as_json:
        output.document("llmctl.use/1", {"model": current.model if current else None})
    else:
        output.line(current.model if current else "none chosen: the small default model is used")


def _known(model: str) -> str:
    """A folder as its absolute path, a Hub id as it is."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return str(folder.resolve())
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise UserError(
            f"{model} is neither a folder nor a Hub id of the form org/name",
            hint="give a folder that holds config.json, or an id as the Hub shows it",
        )
    return model
