"""`llmctl use`."""

from llmctl.cli._command import command, new_app
from llmctl.cli._flag import switch, text
from llmctl.cli._flags import MODEL_HELP
from llmctl.cli._options import Options
from llmctl.config.last_model import current_model, forget_model, remember_model
from llmctl.errors import UserError
from llmctl.paths import expand

app = new_app()

MODEL = text("MODEL", metavar="MODEL", help=MODEL_HELP, default_text="show the choice")
REVISION = text("--revision", help="Branch, tag or commit of the model", default_text="the main branch", needs="MODEL")
FORGET = switch("--forget", help="Return to the small default model", excludes=("MODEL",))


@command(app, MODEL, REVISION, FORGET)
def use(options: Options) -> None:
    """Choose the model that commands use by default.

    Examples:

      llmctl use Qwen/Qwen3-4B

      llmctl use ./my-model
    """
    output, model = options.output, options[MODEL]
    if options[FORGET]:
        forget_model()
    elif model:
        name, revision = options.id_and_revision(MODEL, REVISION)
        remember_model(_checked(name), revision=revision, how="use")
    current = current_model()
    if output.as_json:
        output.document("llmctl.use/1", {"model": current.model if current else None})
    else:
        output.line(current.model if current else "none chosen: the small default model is used")


def _checked(model: str) -> str:
    """Return a folder as its absolute path, and a Hub id unchanged."""
    folder = expand(model)
    if folder.is_dir():
        return str(folder.resolve())
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise UserError(
            f"{model} is neither a folder nor a Hub id of the form org/name",
            hint="give a folder that holds config.json, or an id as the Hub shows it",
        )
    return model
