"""`llmctl config`."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llmctl.cli._command import command, new_app
from llmctl.cli._flag import Flag, required_path, switch
from llmctl.cli._options import Options
from llmctl.cli._render import Output
from llmctl.config.document import starter_file
from llmctl.config.layers import LOCAL_FILE, Settings, read_only_file
from llmctl.config.schema import Config, all_keys
from llmctl.errors import EXIT_NO, LlmctlError, UserError

if TYPE_CHECKING:
    from llmctl.vllm.detection import DetectedVllm
    from llmctl.vllm.translate import Translation

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_EXPLAINED = "0.32"
app = new_app(help="Show, check and write configuration files.", group=True)


ALL = switch("--all", help="Include keys at their defaults")
FILE = required_path("FILE", help="YAML file")
NEW_FILE = Flag(names=("FILE",), metavar="FILE", help="File to write", annotation=Path, default=LOCAL_FILE)
FORCE = switch("--force", help="Replace an existing file")


@command(app, ALL, "Model", "Loading", "--seed", group="config")
def show(options: Options) -> None:
    """Show each value and the layer it comes from.

    Examples:

      llmctl config show

      llmctl config show --config configs/small-cpu.yaml --all
    """
    output, settings = options.output, options.settings()
    keys = [key for key in all_keys() if options[ALL] or settings.is_set(key)]
    if output.as_json:
        values = {key: {"value": _value(settings, key), "from": settings.origin(key)} for key in keys}
        output.document("llmctl.config/1", {"values": values})
        return
    rows = [(k, json.dumps(_value(settings, k)), settings.origin(k)) for k in keys]
    output.table(("key", "value", "from"), rows, drop=("from",), wrap=("value", "from"))
    if not options[ALL]:
        output.note(f"{len(all_keys()) - len(keys)} more keys have their defaults; --all shows them")


def _value(settings: Settings, key: str) -> object:
    value: object = settings.config.model_dump(mode="json")
    for part in key.split("."):
        assert isinstance(value, dict)  # noqa: S101 (the keys are the schema's)
        value = value[part]
    return value


@command(app, FILE)
def validate(options: Options) -> None:
    """Check a file and report every problem in it.

    Example:

      llmctl config validate llmctl.yaml
    """
    output, file = options.output, options[FILE]
    settings = read_only_file(file)
    if output.as_json:
        output.document("llmctl.validate/1", {"file": str(file), "valid": True, "keys": sorted(settings.origins)})
    else:
        output.line(f"{file}: valid, {len(settings.origins)} keys set")


@command(app, NEW_FILE, FORCE)
def init(options: Options) -> None:
    """Write a file with every key, its default and its meaning.

    Example:

      llmctl config init
    """
    from llmctl.paths import write_atomically

    output, file = options.output, options[NEW_FILE]
    if file.exists() and not options[FORCE]:
        raise UserError(f"{file} exists already", hint="--force replaces it")
    write_atomically(file.absolute(), starter_file())
    if output.as_json:
        output.document("llmctl.init/1", {"file": str(file)})
    else:
        output.line(str(file))


@command(app, "Engine", "Model", "Loading", "--seed", group="config")
def explain(options: Options) -> None:
    """Show the command that serves a configuration with vLLM, and the fate of each key.

    Nothing is started or downloaded. The exit code is 1 if a key cannot be passed to vLLM.

    Example:

      llmctl config explain --config configs/llama3-70b-two-machines.yaml
    """
    from llmctl.vllm.detection import detect_vllm
    from llmctl.vllm.target import make_target, resolve_local
    from llmctl.vllm.translate import translate

    output, settings = options.output, options.settings()
    serve = settings.config.serve
    if settings.config.engine != "vllm":
        raise UserError(
            "only --engine vllm can be explained", hint="for transformers: llmctl plan, or llmctl load --show-code"
        )
    vllm = None
    try:
        vllm = detect_vllm(settings.config.vllm.python)
        output.note(f"vLLM {vllm.version} of {vllm.python}")
    except LlmctlError as error:
        output.note(f"{error.message}: the explanation is for vLLM {_EXPLAINED}")
    resolved = resolve_local(settings)
    if resolved is None:
        output.note("the model is not on this machine: its generation_config.json is assumed to be empty")
    translation = translate(
        settings.config, make_target(settings, vllm, resolved, host=serve.host, port=serve.port, offline=True)
    )
    _show_translation(output, settings, translation, vllm)
    if translation.problems(settings):
        raise typer.Exit(EXIT_NO)


def _show_translation(
    output: Output, settings: Settings, translation: "Translation", vllm: "DetectedVllm | None"
) -> None:
    from llmctl.vllm.detection import serve_command

    arguments = translation.arguments
    command_line = list(vllm.command(arguments) if vllm else ("vllm", *serve_command(arguments)))
    if output.as_json:
        keys = [
            {
                "key": one.key,
                "value": _value(settings, one.key),
                "from": settings.origin(one.key),
                "outcome": one.outcome.kind,
                "how": one.outcome.text,
            }
            for one in translation.keys
        ]
        body = {"command": command_line, "environment": dict(translation.environment), "keys": keys}
        body["unused_settings_of_the_model"] = list(translation.unused)
        output.document("llmctl.explain/1", {**body, "possible": not translation.problems(settings)})
        return
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in translation.environment.items())
    output.line(f"{variables} {shlex.join(command_line)}")
    for kind in ("translated", "not needed", "not possible"):
        rows = [
            (one.key, f"{one.outcome.text}{_origin_text(settings, one.key)}")
            for one in translation.keys
            if one.outcome.kind == kind
        ]
        if rows:
            output.heading(f"\n{kind}")
            output.pairs(rows)
    if translation.unused:
        output.heading("\nsettings of the model that are not used")
        output.pairs([("", ", ".join(translation.unused))])


def _origin_text(settings: Settings, key: str) -> str:
    return f"  ({settings.origin(key)})" if settings.is_set(key) else ""


@command(app)
def schema(options: Options) -> None:
    """Print the JSON Schema of the configuration, for editors.

    Example:

      llmctl config schema > llmctl.schema.json
    """
    options.output.line(json.dumps({"$schema": _DIALECT, **Config.model_json_schema()}, indent=2))
