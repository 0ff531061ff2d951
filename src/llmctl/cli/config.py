"""`llmctl config`."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.cli._command import Command, new_app
from llmctl.cli._options import (
    AttentionOption,
    ConfigOption,
    DeviceMapOption,
    DtypeOption,
    EngineOption,
    ModelOption,
    QuantOption,
    RevisionOption,
    SeedOption,
    SetOption,
    VllmPythonOption,
    settings_asked,
)
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


@app.command(cls=Command)
def show(
    ctx: typer.Context,
    model: ModelOption = None,
    revision: RevisionOption = None,
    config: ConfigOption = None,
    quant: QuantOption = None,
    dtype: DtypeOption = None,
    attn: AttentionOption = None,
    device_map: DeviceMapOption = None,
    seed: SeedOption = None,
    assignments: SetOption = None,
    everything: Annotated[bool, typer.Option("--all", help="The defaults as well.")] = False,
) -> None:
    """Show each value and the layer it comes from.

    Examples:

      llmctl config show

      llmctl config show --config configs/small-cpu.yaml --all
    """
    output: Output = ctx.obj
    settings = settings_asked(ctx)
    keys = [key for key in all_keys() if everything or settings.is_set(key)]
    if output.as_json:
        values = {key: {"value": _value(settings, key), "from": settings.origin(key)} for key in keys}
        output.document("llmctl.config/1", {"values": values})
        return
    output.table(("key", "value", "from"), [(k, json.dumps(_value(settings, k)), settings.origin(k)) for k in keys])
    if not everything:
        output.note(f"{len(all_keys()) - len(keys)} more keys have their defaults: --all shows them")


def _value(settings: Settings, key: str) -> object:
    value: object = settings.config.model_dump(mode="json")
    for part in key.split("."):
        assert isinstance(value, dict)  # noqa: S101 (the keys are the schema's)
        value = value[part]
    return value


@app.command(cls=Command)
def validate(
    ctx: typer.Context, file: Annotated[Path, typer.Argument(help="The YAML file.", show_default=False)]
) -> None:
    """Check a file and report every problem in it.

    Example:

      llmctl config validate llmctl.yaml
    """
    output: Output = ctx.obj
    settings = read_only_file(file)
    if output.as_json:
        output.document("llmctl.validate/1", {"file": str(file), "valid": True, "keys": sorted(settings.origins)})
    else:
        output.line(f"{file}: valid, {len(settings.origins)} keys set")


@app.command(cls=Command)
def init(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="Where to write it.")] = LOCAL_FILE,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a file with every key, its default and its meaning, ready to edit.

    Example:

      llmctl config init
    """
    from llmctl.paths import write_atomically

    output: Output = ctx.obj
    if file.exists() and not force:
        raise UserError(f"{file} is there already", hint="--force replaces it")
    write_atomically(file.absolute(), starter_file())
    if output.as_json:
        output.document("llmctl.init/1", {"file": str(file)})
    else:
        output.line(str(file))


@app.command(cls=Command)
def explain(
    ctx: typer.Context,
    engine: EngineOption = None,
    vllm_python: VllmPythonOption = None,
    model: ModelOption = None,
    revision: RevisionOption = None,
    config: ConfigOption = None,
    quant: QuantOption = None,
    dtype: DtypeOption = None,
    attn: AttentionOption = None,
    device_map: DeviceMapOption = None,
    seed: SeedOption = None,
    assignments: SetOption = None,
) -> None:
    """Show the command that serves a configuration with vLLM, and what becomes of each key.

    Nothing is started or downloaded. The exit code is 1 where vLLM cannot be told a key.

    Example:

      llmctl config explain --engine vllm --config configs/llama3-70b-two-machines.yaml
    """
    from llmctl.vllm.detection import detect_vllm
    from llmctl.vllm.target import locate_local, make_target
    from llmctl.vllm.translate import translate

    output: Output = ctx.obj
    settings = settings_asked(ctx)
    serve = settings.config.serve
    if settings.config.engine != "vllm":
        raise UserError(
            "this explains --engine vllm", hint="what transformers gets: llmctl plan, or llmctl load --show-code"
        )
    vllm = None
    try:
        vllm = detect_vllm(settings.config.vllm.python)
        output.note(f"vLLM {vllm.version} of {vllm.python}")
    except LlmctlError as error:
        output.note(f"{error.message}: explained for vLLM {_EXPLAINED}")
    located = locate_local(settings)
    if located is None:
        output.note("the model is not on this machine: its generation_config.json is taken to be empty")
    translation = translate(
        settings.config, make_target(settings, vllm, located, host=serve.host, port=serve.port, offline=True)
    )
    _explain(output, settings, translation, vllm)
    if translation.problems(settings):
        raise typer.Exit(EXIT_NO)


def _explain(output: Output, settings: Settings, translation: "Translation", vllm: "DetectedVllm | None") -> None:
    """The command, and each key."""
    from llmctl.vllm.detection import serve_command

    arguments = translation.arguments
    command = list(vllm.command(arguments) if vllm else ("vllm", *serve_command(arguments)))
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
        body = {"command": command, "environment": dict(translation.environment), "keys": keys}
        output.document("llmctl.explain/1", {**body, "possible": not translation.problems(settings)})
        return
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in translation.environment.items())
    output.line(f"{variables} {shlex.join(command)}")
    for kind in ("translated", "not needed", "not possible"):
        rows = [
            (one.key, f"{one.outcome.text}{_from(settings, one.key)}")
            for one in translation.keys
            if one.outcome.kind == kind
        ]
        if rows:
            output.heading(f"\n{kind}")
            output.pairs(rows)


def _from(settings: Settings, key: str) -> str:
    return f"  ({settings.origin(key)})" if settings.is_set(key) else ""


@app.command(cls=Command)
def schema(ctx: typer.Context) -> None:
    """Print the JSON Schema of the configuration, for editors.

    Example:

      llmctl config schema > llmctl.schema.json
    """
    output: Output = ctx.obj
    output.line(json.dumps({"$schema": _DIALECT, **Config.model_json_schema()}, indent=2))
