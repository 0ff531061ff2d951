"""`llmctl generate --input --engine vllm`: a vLLM of one's own, started when the first row needs it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from llmctl.cli._batch import Computer
from llmctl.cli._options import download_shown
from llmctl.cli._render import Output
from llmctl.cli._serve_vllm import await_health
from llmctl.cli.generate import hashing
from llmctl.config import Settings

if TYPE_CHECKING:
    from llmctl.generation.batch.answers import Outcome
    from llmctl.loading.model import PromptModel


@contextmanager
def vllm_computer(output: Output, settings: Settings, *, offline: bool) -> Iterator[Computer]:
    """What computes a batch on vLLM. It listens on the loopback alone, with a key that nobody else knows.

    Raises:
        LlmctlError: the configuration cannot be translated, or vLLM is not there.
    """
    from llmctl.generation.batch.keys import identity
    from llmctl.generation.structured.structure import check_structure
    from llmctl.server.security.guard import Rules
    from llmctl.server.security.keys import Keys
    from llmctl.vllm.batch import VllmBatch, engine_identity
    from llmctl.vllm.command import OPEN_PATHS, make_launch
    from llmctl.vllm.detection import detect_vllm
    from llmctl.vllm.process import VllmProcess, free_port, new_key
    from llmctl.vllm.remote import load_remote, prepare_remote
    from llmctl.vllm.target import make_target
    from llmctl.vllm.translate import check

    vllm = detect_vllm(settings.config.vllm.python)
    check(settings, make_target(settings, vllm, None, purpose="batch"))  # before anything is fetched
    check_structure(settings.config)
    with download_shown(output, settings) as bar:
        prepared = prepare_remote(settings, offline=offline, progress=bar)
    output.note(f"model: {prepared.located.source} ({prepared.located.reason})")
    target = make_target(settings, vllm, prepared.located, purpose="batch", port=free_port(), offline=offline)
    translation = check(settings, target)
    with hashing(output, prepared.located):
        run = identity(prepared, engine=engine_identity(translation))
    key = new_key()
    rules = Rules(keys=Keys.from_plain([key], source="this run"), open_paths=OPEN_PATHS, body_bytes=256 << 20)
    with ExitStack() as stack:
        started: list[VllmBatch] = []

        def load() -> "PromptModel":
            loaded = load_remote(prepared)
            launch = make_launch(vllm, settings.config, translation, target, rules, offline=offline)
            output.note(f"vLLM {vllm.version} of {vllm.python}; its log: {launch.log}")
            child = stack.enter_context(VllmProcess(launch))
            await_health(output, child, seconds=settings.config.vllm.startup_seconds)
            started.append(VllmBatch(child, translation, key))
            return loaded

        def compute(*arguments: object, **more: object) -> Iterator["Outcome"]:
            return started[0].answers(*arguments, **more)  # type: ignore[arg-type]

        yield Computer(prepared, run, load, compute, "vllm")
