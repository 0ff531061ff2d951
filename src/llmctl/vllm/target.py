"""The target of a translation on this machine: the detected vLLM and the files of the model."""

from typing import TYPE_CHECKING

from llmctl.config import Settings
from llmctl.errors import LlmctlError
from llmctl.model.info import read_model_info
from llmctl.model.resolve import ResolvedModel, is_path, resolve_adapters, resolve_model
from llmctl.vllm.arguments import Purpose, Target
from llmctl.vllm.detection import DetectedVllm

if TYPE_CHECKING:
    from llmctl.hub.download.progress import Progress


def make_target(
    settings: Settings,
    vllm: DetectedVllm | None,
    resolved: ResolvedModel | None,
    *,
    purpose: Purpose = "serve",
    host: str = "127.0.0.1",
    port: int = 8000,
    offline: bool = False,
    progress: "Progress | None" = None,
) -> Target:
    """Return the target for a detected vLLM and a resolved model. Both may be None.

    Raises:
        LlmctlError: a file of the model or of an adapter cannot be read, or the adapter cannot be downloaded.
    """
    device, has_bitsandbytes = (vllm.device, vllm.has_bitsandbytes) if vllm else (None, False)
    if resolved is None:
        return Target(purpose, has_bitsandbytes=has_bitsandbytes, device=device, host=host, port=port)
    info = read_model_info(resolved.folder, source=resolved.source, commit=resolved.commit)
    adapters = resolve_adapters(settings.config, offline=offline, progress=progress)
    return Target(
        purpose,
        model=str(resolved.folder),
        commit=resolved.commit,
        generation=info.generation,
        quantization=info.stored_quantization,
        adapter=str(adapters[0].folder) if adapters else None,
        adapter_rank=max(adapters[0].ranks.values(), default=1) if adapters else None,
        has_bitsandbytes=has_bitsandbytes,
        device=device,
        host=host,
        port=port,
    )


def resolve_local(settings: Settings) -> ResolvedModel | None:
    """Return the model if it is already on this machine. Download nothing."""
    model = settings.config.model
    try:
        return resolve_model(settings, offline=True)
    except LlmctlError:
        if model.id is not None and is_path(model.id):
            raise
        return None
