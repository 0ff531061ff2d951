"""`llmctl use`."""

from llmctl.cli._command import command, new_app
from llmctl.cli._flag import switch, text
from llmctl.cli._flags import MODEL_HELP
from llmctl.cli._options import Options
from llmctl.cli._render import Output
from llmctl.config.last_model import current_model, forget_model, remember_model
from llmctl.errors import OfflineError, UnreachableError, UserError
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
        remember_model(_checked(output, name, revision), revision=revision, how="use")
    current = current_model()
    if output.as_json:
        output.document("llmctl.use/1", {"model": current.model if current else None})
    else:
        output.line(current.model if current else "none chosen: the small default model is used")


def _checked(output: Output, model: str, revision: str | None) -> str:
    """Return a folder as its absolute path, and a Hub id unchanged.

    Raises:
        UserError: it is neither, or the folder holds no model.
        RemoteError: the Hub has no such model, or there is no network and the model is not in the cache.
    """
    from llmctl.model.info import read_model_info

    folder = expand(model)
    if folder.is_dir():
        read_model_info(folder, source=model)
        return str(folder.resolve())
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise UserError(
            f"{model} is neither a folder nor a Hub id of the form org/name",
            hint="give a folder that holds config.json, or an id as the Hub shows it",
        )
    _check_on_hub(output, model, revision)
    return model


def _check_on_hub(output: Output, model: str, revision: str | None) -> None:
    """Check that a model is in the cache or on the Hub; if the Hub does not answer, warn."""
    from llmctl.hub import settings
    from llmctl.hub.cache.snapshot import find_snapshot
    from llmctl.hub.http import Patience
    from llmctl.hub.listing import fetch_listing
    from llmctl.model.demo import MODEL_ID

    if model == MODEL_ID or find_snapshot(model, revision=revision) is not None:
        return
    if settings.is_offline():
        raise OfflineError(
            f"{model} is not in the cache {settings.cache_dir()}, and the Hub is not asked offline",
            hint=f"with a network: llmctl download {model}",
        )
    try:
        fetch_listing(model, revision=revision, patience=Patience(attempts=1), check_access=False)
    except UnreachableError as error:
        output.warn(f"it is not known if {model} exists: {error.message}")
