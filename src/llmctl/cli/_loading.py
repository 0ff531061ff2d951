"""The steps from settings to a loaded model, with their progress shown."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llmctl.cli._progress import DownloadProgress
from llmctl.cli._render import Output
from llmctl.units import format_bytes

if TYPE_CHECKING:
    from llmctl.config import Settings
    from llmctl.loading.model import LoadedModel
    from llmctl.loading.prepare import Prepared
    from llmctl.model.resolve import ResolvedModel
    from llmctl.plan import Plan
    from llmctl.plan.images import ImageRequest

_LONG_SECONDS = 2


def prepare_model(
    output: Output, settings: "Settings", *, offline: bool, images: "ImageRequest | None" = None
) -> "Prepared":
    """Prepare a model without its weights, with a download if needed, and report which model is used.

    Args:
        images: Images to reserve memory for.

    Raises:
        LlmctlError: as `loading.prepare`.
    """
    from llmctl.generation.structured.structure import check_structure
    from llmctl.loading.prepare import prepare

    check_structure(settings.config)
    with show_download(output, settings) as progress:
        prepared = prepare(settings, offline=offline, progress=progress, images=images)
    output.note(f"model: {prepared.resolved.source} ({prepared.resolved.reason})")
    note_unused(output, [one.name for one in prepared.plan.generation.left_out if one.changes_text])
    if prepared.draft is not None:
        output.note(f"draft: {prepared.draft.resolved.source} ({prepared.draft.resolved.reason})")
    return prepared


def note_unused(output: Output, names: Sequence[str]) -> None:
    """Report settings in the model's files that are not used although they would change answers."""
    if names:
        output.note(f"settings of the model that are not used: {', '.join(names)} (llmctl load shows why)")


def load_model(output: Output, prepared: "Prepared") -> "LoadedModel":
    """Load the weights of a prepared model, and report the decisions: important ones, and with --verbose all.

    Raises:
        LlmctlError: as `load_prepared`, and if images are wanted from the start and their processor cannot be loaded.
    """
    from llmctl.cli._image_input import check_takes_images
    from llmctl.loading.loader import load_prepared

    if prepared.plan.loads_towers:
        check_takes_images(prepared)
    with output.waiting(f"loading {prepared.resolved.source}"):
        loaded = load_prepared(prepared)
    show_decisions(output, loaded.plan)
    for decision in loaded.draft.plan.decisions if loaded.draft else ():
        if decision.is_note:
            output.note(f"draft: {decision}")
    return loaded


def note_unpacked(output: Output, loaded: "LoadedModel") -> None:
    """Say why concurrent requests are answered one at a time, if they are."""
    from llmctl.generation.engine.packable import why_not_packed

    reason = "a draft model proposes tokens" if loaded.draft else why_not_packed(loaded)
    if reason is not None:
        output.note(f"requests are answered one at a time: {reason}")


def show_decisions(output: Output, plan: "Plan") -> None:
    """Report the decisions of a plan: important ones, and with --verbose all."""
    for decision in plan.decisions:
        (output.note if decision.is_note else output.detail)(str(decision))


@contextmanager
def show_download(output: Output, settings: "Settings") -> Iterator[DownloadProgress]:
    """Show the progress of a download that may start inside; an interrupted one can be resumed."""
    from llmctl.cli._interrupts import resumable
    from llmctl.model.resolve import is_path

    progress = DownloadProgress(output)
    if settings.config.model.id is not None and not is_path(settings.config.model.id):
        from llmctl.hub.http import bound_other_calls

        bound_other_calls()
    with resumable(output, arriving=lambda: progress.has_started):
        yield progress


@contextmanager
def show_hashing(output: Output, resolved: "ResolvedModel") -> Iterator[None]:
    """Show that a model's files are being hashed, and the duration if it was long."""
    from llmctl.reproduce.hashes import unknown_bytes

    size, began = unknown_bytes(resolved), time.perf_counter()
    if not size:
        yield
        return
    with output.waiting(f"hashing {format_bytes(size)} of the model's files, once"):
        yield
    seconds = time.perf_counter() - began
    if seconds > _LONG_SECONDS:
        output.note(f"hashed {format_bytes(size)} of model files in {seconds:.0f} s; remembered until they change")
