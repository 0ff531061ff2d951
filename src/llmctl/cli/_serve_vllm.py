"""`llmctl serve --engine vllm`: start vLLM with the configuration, watch it, and stop it with this command."""

import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llmctl.cli._loading import note_unused, show_download
from llmctl.cli._render import Output

if TYPE_CHECKING:
    from llmctl.config import Settings
    from llmctl.server.security.guard import Rules
    from llmctl.vllm.process import Launch, VllmProcess

_NOTE_SECONDS = 30.0


def serve_vllm(output: Output, settings: "Settings", rules: "Rules", *, offline: bool) -> None:
    """Serve until a signal arrives.

    Raises:
        LlmctlError: the configuration cannot be translated, vLLM is not installed, or it exited.
    """
    from llmctl.model.resolve import resolve_model
    from llmctl.vllm.command import make_launch
    from llmctl.vllm.detection import detect_vllm
    from llmctl.vllm.process import VllmProcess, free_port
    from llmctl.vllm.target import make_target
    from llmctl.vllm.translate import check

    vllm = detect_vllm(settings.config.vllm.python)
    check(settings, make_target(settings, vllm, None))  # before anything is fetched
    host = settings.config.serve.host
    port = free_port(host, settings.config.serve.port)
    with show_download(output, settings) as progress:
        resolved = resolve_model(settings, offline=offline, progress=progress)
        target = make_target(settings, vllm, resolved, host=host, port=port, offline=offline, progress=progress)
    output.note(f"model: {resolved.source} ({resolved.reason})")
    translation = check(settings, target)
    note_unused(output, translation.unused)
    launch = make_launch(vllm, settings.config, translation, target, rules, offline=offline)
    output.note(f"vLLM {vllm.version} of {vllm.python}; its log: {launch.log}")
    with VllmProcess(launch) as child:
        is_interrupted = _forward_signals(child)
        await_health(output, child, seconds=settings.config.vllm.startup_seconds, is_interrupted=is_interrupted)
        if not is_interrupted():
            _report_ready(output, launch, translation.served_name, seconds=child.seconds)
        child.wait()
        if not is_interrupted():
            child.check_running()


def await_health(
    output: Output, child: "VllmProcess", *, seconds: float, is_interrupted: Callable[[], bool] = lambda: False
) -> None:
    """Wait until vLLM answers or a signal arrives, and show its messages meanwhile.

    Raises:
        LlmctlError: as `VllmProcess.wait_until_healthy`.
    """
    last_note = time.monotonic()
    on_terminal = sys.stderr.isatty()

    def on_message(message: str) -> None:
        nonlocal last_note
        if is_interrupted():
            raise _Interrupted
        if on_terminal:
            show(f"starting vLLM, {child.seconds:.0f} s: {message[:100]}")
        elif time.monotonic() - last_note > _NOTE_SECONDS:
            last_note = time.monotonic()
            output.note(f"starting vLLM, {child.seconds:.0f} s: {message}")

    with output.waiting("starting vLLM") as show:
        try:
            child.wait_until_healthy(seconds, on_message=on_message)
        except _Interrupted:
            return


class _Interrupted(Exception):  # noqa: N818 (not an error)
    """A signal arrived while vLLM was starting."""


def _forward_signals(child: "VllmProcess") -> Callable[[], bool]:
    """Forward SIGINT and SIGTERM to vLLM; return a function that is true once one has arrived."""
    has_arrived = False

    def forward(_number: int, _frame: Any) -> None:
        nonlocal has_arrived
        has_arrived = True
        child.interrupt()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    return lambda: has_arrived


def _report_ready(output: Output, launch: "Launch", name: str, *, seconds: float) -> None:
    if output.as_json:
        output.document("llmctl.serve/1", {"url": f"{launch.address}/v1", "model": name, "log": str(launch.log)})
    else:
        output.note(f"{name} at {launch.address}/v1, up in {seconds:.0f} s; Ctrl-C ends it")
