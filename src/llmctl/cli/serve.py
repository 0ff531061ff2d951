"""`llmctl serve`."""

import signal
import time
from typing import TYPE_CHECKING

import typer

from llmctl.cli._command import command, new_app
from llmctl.cli._flags import MODEL_ARGUMENT, OFFLINE, VLLM_PYTHON
from llmctl.cli._loading import load_model, note_unpacked, prepare_model
from llmctl.cli._options import Options
from llmctl.cli._render import Output
from llmctl.cli._serve_log import log_to
from llmctl.errors import MachineError

if TYPE_CHECKING:
    import socket

    from llmctl.config import Settings
    from llmctl.loading.model import LoadedModel
    from llmctl.server.security.guard import Rules

app = new_app()


@command(app, MODEL_ARGUMENT, "Server", "Model", "Loading", "--draft", "--prompt-lookup", "--think", "Engine")
def serve(options: Options) -> None:
    """Serve a model to OpenAI clients and browsers.

    Examples:

      llmctl serve

      llmctl serve Qwen/Qwen3-4B --quant 4bit --port 8080

      llmctl serve --host 0.0.0.0 --api-key-file keys.txt

      llmctl serve --config configs/llama3-70b-two-machines.yaml --engine vllm
    """
    output, settings, offline = options.output, options.settings(), options[OFFLINE]
    _check_packages()
    section = settings.config.serve
    rules = rules_of(settings)
    if settings.config.engine == "vllm":
        from llmctl.cli._serve_vllm import serve_vllm

        serve_vllm(output, settings, rules, offline=offline)
        return
    options.refuse(VLLM_PYTHON, reason="--vllm-python works only with --engine vllm")
    from llmctl.server.listen_address import bind

    sockets = bind(section.host, section.port)
    loaded = load_model(output, prepare_model(output, settings, offline=offline))
    _serve(output, loaded, rules, sockets)


def rules_of(settings: "Settings") -> "Rules":
    """Return the access rules of the configuration.

    Raises:
        UserError: other machines can reach the address and there is no key, or the keys are invalid.
    """
    from llmctl.server.app import OPEN_PATHS
    from llmctl.server.security.guard import Rules
    from llmctl.server.security.hosts import allowed_hosts
    from llmctl.server.security.keys import check_bind_address, read_keys

    section = settings.config.serve
    keys = read_keys(section.api_key_file)
    check_bind_address(section.host, keys, without_key=section.no_api_key)
    return Rules(
        hosts=allowed_hosts(section.host, section.allowed_hosts),
        origins=tuple(section.allowed_origins),
        keys=keys,
        open_paths=OPEN_PATHS,
        body_bytes=section.max_body_bytes,
    )


def _check_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise MachineError(f"{' and '.join(missing)} is not installed", hint="pip install 'llmctl-hf[serve]'")


def _serve(output: Output, loaded: "LoadedModel", rules: "Rules", sockets: "list[socket.socket]") -> None:
    """Serve until a signal arrives."""
    from llmctl.generation.prompt import check_chat
    from llmctl.generation.tools import tool_format
    from llmctl.model.resolve import names_of
    from llmctl.server.app import make_app
    from llmctl.server.connections import Server, uvicorn_config
    from llmctl.server.listen_address import port_of, url
    from llmctl.server.registry import ModelRegistry
    from llmctl.server.security.guard import Guard
    from llmctl.server.worker import Worker

    check_chat(loaded.tokenizer, loaded.config.chat)
    section = loaded.config.serve
    worker = Worker(loaded, max_queue=section.max_queue, max_sequences=section.max_sequences)
    name, *others = names_of(loaded.resolved.source, section.model_name)
    registry = ModelRegistry(name, loaded, worker, int(time.time()), section.request_seconds, other_names=tuple(others))
    guarded = Guard(make_app(registry, drain_seconds=section.drain_seconds), rules)
    config = uvicorn_config(
        guarded,
        host=section.host,
        port=section.port,
        log_config=None,
        timeout_graceful_shutdown=max(1, int(section.drain_seconds)),
    )
    log_to(output)
    note_unpacked(output, loaded)
    form = tool_format(loaded.tokenizer, loaded.config.chat)
    if form.template_lacks_tools:
        output.note("the chat template has no tool support; tools are described to the model in text")
    elif form.is_guess:
        output.warn(
            "this chat template's format of tool calls is not known to llmctl; it was guessed from the template: "
            f"{form.begin.strip()}...{form.end.strip()}"
        )
    page = f"{url(section.host, port_of(sockets))}/"
    if output.as_json:
        output.document("llmctl.serve/1", {"page": page, "url": f"{page}v1", "model": name})
    output.note(f"chat page: {page}")
    output.note(f"serving {name} at {page}v1; Ctrl-C ends it")
    # uvicorn shuts down and then raises the signal again: a server that has drained ends with exit code 0
    signal.signal(signal.SIGTERM, lambda *_: None)
    server = Server(config)
    server.run(sockets)
    if server.force_exit:
        raise typer.Exit(128 + signal.SIGTERM)
