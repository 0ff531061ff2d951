"""`llmctl serve --engine vllm`: vLLM started as the configuration says, watched, and ended with this command."""

import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llmctl.cli._loading import show_download
from llmctl.cli._render import Output

if TYPE_CHECKING:
    from llmctl.config import Settings
    from llmctl.server.security.guard import Rules
    from llmctl.vllm.process import Launch, VllmProcess

_NOTE_SECONDS = 30.0


def serve_vllm(output: Output, settings: "Settings", rules: "Rules", *, offline: bool) -> None:
    """Serve until a signal comes.

    Raises:
        LlmctlError: the configuration cannot be translated, vLLM is not there, or it ended.
    """
    from llmctl.model.resolve import locate
    from llmctl.vllm.command import make_launch
    from llmctl.vllm.detection import detect_vllm
    from llmctl.vllm.process import VllmProcess, free_port
    from llmctl.vllm.target import make_target
    from llmctl.vllm.translate import check

    vllm = detect_vllm(settings.config.vllm.python)
    check(settings, make_target(settings, vllm, None))  # before anything is fetched
    host = settings.config.serve.host
    port = free_port(host, settings.config.serve.port)
    with show_download(output, settings) as bar:
        located = locate(settings, offline=offline, progress=bar)
        target = make_target(settings, vllm, located, host=host, port=port, offline=offline, progress=bar)
    output.note(f"model: {located.source} ({located.reason})")
    translation = check(settings, target)
    launch = make_launch(vllm, settings.config, translation, target, rules, offline=offline)
    output.note(f"vLLM {vllm.version} of {vllm.python}; its log: {launch.log}")
    with VllmProcess(launch) as child:
        ends = _passing_signals(child)
        await_health(output, child, seconds=settings.config.vllm.startup_seconds, ends=ends)
        if not ends():
            _tell(output, launch, translation.served_name, seconds=child.seconds)
        child.wait()
        if not ends():
            child.check_running()


def await_health(
    output: Output, child: "VllmProcess", *, seconds: float, ends: Callable[[], bool] = lambda: False
) -> None:
    """Wait until vLLM answers, telling what it says on the way; no longer once a signal has come. As
    `VllmProcess.wait_until_healthy`."""
    told = time.monotonic()
    on_terminal = sys.stderr.isatty()

    def tell(message: str) -> None:
        nonlocal told
        if ends():
            raise _Ends
        if on_terminal:
            show(f"starting vLLM, {child.seconds:.0f} s: {message[:100]}")
        elif time.monotonic() - told > _NOTE_SECONDS:
            told = time.monotonic()
            output.note(f"starting vLLM, {child.seconds:.0f} s: {message}")

    with output.waiting("starting vLLM") as show:
        try:
            child.wait_until_healthy(seconds, on_message=tell)
        except _Ends:
            return


class _Ends(Exception):  # noqa: N818 (it is no error)
    """A signal came while vLLM was starting."""


def _passing_signals(child: "VllmProcess") -> Callable[[], bool]:
    """Pass SIGINT and SIGTERM on to vLLM from now on; gives what says whether one has come."""
    came = False

    def passes(_number: int, _frame: Any) -> None:
        nonlocal came
        came = True
        child.interrupt()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, passes)
    return lambda: came


def _tell(output: Output, launch: "Launch", name: str, *, seconds: float) -> None:
    if output.as_json:
        output.document("llmctl.serve/1", {"url": f"{launch.address}/v1", "model": name, "log": str(launch.log)})
    else:
        output.note(f"{name} at {launch.address}/v1, up in {seconds:.0f} s; Ctrl-C ends it")
