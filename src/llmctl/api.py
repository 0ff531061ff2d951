"""The functions of the library: load, stream, generate, generate_object, generate_batch, score, rank."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmctl.config import Config, Settings, settings_from_mapping
from llmctl.config.layers import read_only_file
from llmctl.errors import UserError
from llmctl.generation.batch.answers import generate_batch
from llmctl.generation.scoring import rank, score
from llmctl.generation.stream import generate, stream
from llmctl.generation.structured.objects import generate_object
from llmctl.hub.environment import check_imports
from llmctl.loading import loader
from llmctl.loading.model import LoadedModel

__all__ = ["generate", "generate_batch", "generate_object", "load", "rank", "score", "stream"]


def load(
    model: str | Path | None = None,
    *,
    config: Config | Settings | Path | str | None = None,
    adapters: Sequence[str | Path | Mapping[str, Any]] = (),
    merge_adapters: bool = False,
    offline: bool = False,
    **sections: Mapping[str, Any] | int | bool,
) -> LoadedModel:
    """Load a model as `llmctl load` does, but without reading the user's configuration file or the environment.

    Args:
        model: A Hub id or a folder; by default the configuration's model, or the small default.
        config: A `Config`, `Settings`, or the path of a YAML file.
        adapters: LoRA adapters to put on the model: ids, folders, or {"id": …, "revision": …, "scale": …}.
        merge_adapters: Add the adapters to the model's own weights.
        offline: Never use the network.
        sections: Overrides of the configuration: `quantization={"bits": 4}`, `load={"dtype": "bfloat16"}`, `seed=7`.

    Returns:
        The model in eval mode and its tokenizer; pass it to `stream` and `generate`.

    Raises:
        ConfigError: all problems of the configuration.
        LlmctlError: see `llmctl.loading.loader.load`.
    """
    check_imports()
    settings = _settings(config)
    values: dict[str, Any] = settings.config.model_dump(exclude_unset=True) if config is not None else {}
    for name, value in sections.items():
        values[name] = {**values.get(name, {}), **value} if isinstance(value, Mapping) else value
    if model is not None:
        values["model"] = {**values.get("model", {}), "id": str(model)}
    if adapters or merge_adapters:
        specs = [dict(item) if isinstance(item, Mapping) else {"id": str(item)} for item in adapters]
        values["model"] = {**values.get("model", {}), "adapters": specs, "merge_adapters": merge_adapters}
    return loader.load(settings_from_mapping(values), offline=offline)


def _settings(config: Config | Settings | Path | str | None) -> Settings:
    if config is None:
        return Settings(Config())
    if isinstance(config, Settings):
        return config
    if isinstance(config, Config):
        return Settings(config)
    path = Path(config)
    if not path.is_file():
        raise UserError(f"there is no configuration file {path}")
    return read_only_file(path)
