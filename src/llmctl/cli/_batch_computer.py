"""The engine of a batch: transformers in this process, or a vLLM server started for this run."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmctl.cli._loading import (
    load_model,
    note_unpacked,
    note_unused,
    prepare_model,
    show_decisions,
    show_download,
    show_hashing,
)
from llmctl.cli._render import Output
from llmctl.cli._serve_vllm import await_health
from llmctl.errors import UserError

if TYPE_CHECKING:
    from llmctl.config import Settings
    from llmctl.generation.batch.answers import RowOutcome
    from llmctl.generation.batch.keys import Identity
    from llmctl.generation.batch.run import Compute
    from llmctl.loading.model import PromptModel
    from llmctl.loading.prepare import Prepared


@dataclass(frozen=True)
class Computer:
    """The prepared model of a batch, and the functions that load and run it.

    Attributes:
        prepared: The model before its weights are loaded.
        identity: The part of each row's key that depends on the model and the settings.
        load: Loads the model; called when the first row needs it.
        compute: Computes the answers.
        engine: The name of the engine.
    """

    prepared: "Prepared"
    identity: "Identity"
    load: "Callable[[], PromptModel]"
    compute: "Compute"
    engine: str = "transformers"


@contextmanager
def open_computer(output: Output, settings: "Settings", *, offline: bool, with_manifest: bool) -> Iterator[Computer]:
    """Prepare the engine that the settings name; a vLLM server ends with the `with` block.

    Raises:
        LlmctlError: the model cannot be prepared, vLLM is missing, or the configuration cannot be translated for it.
    """
    if settings.config.engine == "vllm":
        if with_manifest:
            raise UserError("--manifest is for transformers: llmctl replay does not run vLLM", hint="omit --manifest")
        with _vllm_computer(output, settings, offline=offline) as computer:
            yield computer
        return
    from llmctl.generation.batch.answers import answers
    from llmctl.generation.batch.keys import identity

    prepared = prepare_model(output, settings, offline=offline)
    with show_hashing(output, prepared.resolved):
        run_identity = identity(prepared)

    def load() -> "PromptModel":
        loaded = load_model(output, prepared)
        note_unpacked(output, loaded)
        return loaded

    yield Computer(prepared, run_identity, load, answers)


@contextmanager
def _vllm_computer(output: Output, settings: "Settings", *, offline: bool) -> Iterator[Computer]:
    """Prepare a vLLM server that listens only on the loopback interface, with a random key."""
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
    with show_download(output, settings) as progress:
        prepared = prepare_remote(settings, offline=offline, progress=progress)
    output.note(f"model: {prepared.resolved.source} ({prepared.resolved.reason})")
    target = make_target(settings, vllm, prepared.resolved, purpose="batch", port=free_port(), offline=offline)
    translation = check(settings, target)
    note_unused(output, translation.unused)
    with show_hashing(output, prepared.resolved):
        run_identity = identity(prepared, engine=engine_identity(translation))
    key = new_key()
    rules = Rules(keys=Keys.from_plain([key], source="this run"), open_paths=OPEN_PATHS, body_bytes=256 << 20)
    with ExitStack() as stack:
        started: list[VllmBatch] = []

        def load() -> "PromptModel":
            loaded = load_remote(prepared)
            show_decisions(output, loaded.plan)
            launch = make_launch(vllm, settings.config, translation, target, rules, offline=offline)
            output.note(f"vLLM {vllm.version} of {vllm.python}; its log: {launch.log}")
            process = stack.enter_context(VllmProcess(launch))
            await_health(output, process, seconds=settings.config.vllm.startup_seconds)
            started.append(VllmBatch(process, translation, key))
            return loaded

        def compute(*arguments: object, **options: object) -> Iterator["RowOutcome"]:
            return started[0].answers(*arguments, **options)  # type: ignore[arg-type]

        yield Computer(prepared, run_identity, load, compute, "vllm")
